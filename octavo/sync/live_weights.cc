#include "octavo/sync/live_weights.h"

#include <malloc.h>

#include <algorithm>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "octavo/base/function_ref.h"
#include "octavo/base/log.h"
#include "octavo/base/status.h"
#include "octavo/base/thread_pool.h"
#include "octavo/convert/digest.h"
#include "octavo/engine/engine.h"
#include "octavo/kernels/backend.h"
#include "octavo/model/model.h"
#include "octavo/sync/live_digest.h"
#include "octavo/sync/staging.h"
#include "octavo/sync/weight_file.h"
#include "octavo/sync/weight_plan.h"

namespace octavo {
namespace {

// One value handed from the engine thread to a waiting one.
template <typename T>
class Handover {
 public:
  void Set(T value) {
    const std::lock_guard lock(mutex_);
    value_ = std::move(value);
    ready_.notify_one();
  }
  T Wait() {
    std::unique_lock lock(mutex_);
    ready_.wait(lock, [this] { return value_.has_value(); });
    return *std::move(value_);
  }

 private:
  std::mutex mutex_;
  std::condition_variable ready_;
  std::optional<T> value_;
};

// From here on glibc gives back the free end of every arena as it grows. By itself it raises the
// size from which it does so with what the program frees, up to 64 MiB, and malloc_trim passes over
// the free ends of all arenas but the first, where weights of an update come from.
void ReturnFreedEnds() {
#ifdef __GLIBC__
  mallopt(M_TRIM_THRESHOLD, 128 << 10);
#endif
}

// What the allocator keeps of freed memory for later goes back to the system.
void ReturnFreedMemory() {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

}  // namespace

LiveWeights::LiveWeights(Engine* engine, const Backend* backend, const WeightPlan* plan,
                         LiveWeightsOptions options)
    : engine_(*engine), backend_(*backend), plan_(*plan), options_(std::move(options)) {}

// Calls fn on the engine's thread, between two steps, and hands its result over.
template <typename T>
T LiveWeights::BetweenSteps(T (*fn)(const ModelWeights& live)) const {
  const auto handover = std::make_shared<Handover<T>>();
  engine_.RunBetweenSteps(
      [handover, fn](const ModelWeights& live, Backend& /*backend*/) { handover->Set(fn(live)); });
  return handover->Wait();
}

LiveBase LiveWeights::Base() {
  const std::lock_guard lock(mutex_);
  LiveBase base = base_.has_value() ? *base_ : BetweenSteps(&LiveBaseOf);
  return base.is_held.empty() ? EmptyBase(plan_) : base;
}

SwapReport LiveWeights::SwapLocked(std::unique_ptr<ModelWeights> weights,
                                   const std::string& version, InFlight in_flight) {
  struct Outcome {
    SwapReport report;
    std::unique_ptr<ModelWeights> old;
  };
  const auto handover = std::make_shared<Handover<Outcome>>();
  engine_.SwapWeights(std::move(weights), version, in_flight,
                      [handover](SwapReport report, std::unique_ptr<ModelWeights> old) {
                        handover->Set({report, std::move(old)});
                      });
  const SwapReport report = handover->Wait().report;
  backup_.reset();
  base_.reset();
  return report;
}

SwapReport LiveWeights::Swap(std::unique_ptr<ModelWeights> weights, const std::string& version,
                             InFlight in_flight) {
  const std::lock_guard lock(mutex_);
  return SwapLocked(std::move(weights), version, in_flight);
}

Status LiveWeights::Void(std::unique_ptr<ModelWeights> weights) {
  const std::lock_guard lock(mutex_);
  using Taken = Result<std::unique_ptr<ModelWeights>>;
  const auto handover = std::make_shared<Handover<Taken>>();
  engine_.VoidWeights(std::move(weights), [handover](Taken old) { handover->Set(std::move(old)); });
  return handover->Wait().error();
}

Result<std::unique_ptr<ModelWeights>> LiveWeights::TakeFromEngine(MemoryParts parts) {
  using Taken = Result<std::unique_ptr<ModelWeights>>;
  const auto handover = std::make_shared<Handover<Taken>>();
  engine_.ReleaseMemory(parts, [handover](Taken weights) { handover->Set(std::move(weights)); });
  return handover->Wait();
}

Result<std::unique_ptr<ModelWeights>> LiveWeights::TakeForUpdate() {
  const std::lock_guard lock(mutex_);
  const bool were_live = engine_.Stats().weight_state == WeightState::kLive;
  ASSIGN_OR_RETURN(std::unique_ptr<ModelWeights> weights, TakeFromEngine({.weights = true}));
  if (weights == nullptr || weights->matrices.empty()) {
    return std::unique_ptr<ModelWeights>();
  }
  base_ = LiveBaseOf(*weights);
  return were_live ? std::move(weights) : std::unique_ptr<ModelWeights>();
}

void LiveWeights::GiveBack(std::unique_ptr<ModelWeights> weights) {
  const std::lock_guard lock(mutex_);
  SwapLocked(std::move(weights), engine_.Stats().weight_version, InFlight::kRetract);
}

void LiveWeights::Poison() {
  const std::lock_guard lock(mutex_);
  const auto handover = std::make_shared<Handover<bool>>();
  engine_.PoisonWeights([handover] { handover->Set(true); });
  handover->Wait();
}

// Copies released weights to the file; if that fails, they are live again.
Status LiveWeights::KeepBackup(std::unique_ptr<ModelWeights> weights) {
  Result<WeightFile> file = WeightFile::Write(*weights, options_.backup_dir);
  if (!file.has_value()) {
    SwapLocked(std::move(weights), engine_.Stats().weight_version, InFlight::kRetract);
    return file.error();
  }
  backup_ = *std::move(file);
  return OkStatus();
}

Status LiveWeights::Release(MemoryParts parts) {
  const std::lock_guard lock(mutex_);
  ReturnFreedEnds();
  const bool were_live = engine_.Stats().weight_state == WeightState::kLive;
  if (parts.weights) {
    ASSIGN_OR_RETURN(std::unique_ptr<ModelWeights> weights, TakeFromEngine({.weights = true}));
    if (weights != nullptr && !weights->matrices.empty()) {
      base_ = LiveBaseOf(*weights);
      if (were_live && options_.keep_backup) {
        RETURN_IF_ERROR(KeepBackup(std::move(weights)));
      }
    }
  }
  if (parts.kv_cache) {  // Cannot fail once the weights are released: nothing runs.
    RETURN_IF_ERROR(TakeFromEngine({.kv_cache = true}).error());
  }
  ReturnFreedMemory();
  LOG(INFO, "memory released kv_cache={} weights={} backup_bytes={}", parts.kv_cache, parts.weights,
      backup_.has_value() ? backup_->num_bytes() : 0);
  return OkStatus();
}

Status LiveWeights::Resume(MemoryParts parts) {
  const std::lock_guard lock(mutex_);
  std::unique_ptr<ModelWeights> weights;
  if (parts.weights && backup_.has_value()) {
    ASSIGN_OR_RETURN(weights, backup_->Read());
    parts.weights = false;
  }
  const auto handover = std::make_shared<Handover<Status>>();
  engine_.ResumeMemory(parts, [handover](const Status& status) { handover->Set(status); });
  RETURN_IF_ERROR(handover->Wait());
  if (weights != nullptr) {
    SwapLocked(std::move(weights), engine_.Stats().weight_version, InFlight::kRetract);
  }
  const WeightState state = engine_.Stats().weight_state;
  LOG(INFO, "memory resumed kv_cache={} weights={}", parts.kv_cache, WeightStateName(state));
  if (state == WeightState::kVoid) {
    LOG(WARNING, "weights resumed without content: requests are held until an update is complete");
  }
  return OkStatus();
}

Status LiveWeights::Read(FunctionRef<Status(const ModelWeights& live)> read) {
  // The pointer stays good: weights are replaced only under the mutex.
  const std::lock_guard lock(mutex_);
  const auto* live =
      BetweenSteps<const ModelWeights*>([](const ModelWeights& weights) { return &weights; });
  if (live->matrices.empty()) {
    return Unavailable("weights: they are released, and no update has brought new ones since");
  }
  return read(*live);
}

Result<ModelDigest> LiveWeights::Digest() {
  ModelDigest digest;
  RETURN_IF_ERROR(Read([&](const ModelWeights& live) -> Status {
    RETURN_IF_ERROR(CheckDerivedWeights(*plan_.spec, live, backend_));
    ThreadPool pool(NumUsableThreads());
    ASSIGN_OR_RETURN(digest, DigestLiveWeights(*plan_.table, live, backend_, &pool));
    return OkStatus();
  }));
  return digest;
}

}  // namespace octavo
