#include "octavo/sync/weight_update.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/check.h"
#include "octavo/base/function_ref.h"
#include "octavo/base/log.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/base/thread_pool.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/convert/digest.h"
#include "octavo/engine/engine.h"
#include "octavo/engine/memory_budget.h"
#include "octavo/kernels/backend.h"
#include "octavo/model/model.h"
#include "octavo/policy/precision_table.h"
#include "octavo/sync/live_digest.h"
#include "octavo/sync/live_weights.h"
#include "octavo/sync/load_weights.h"
#include "octavo/sync/staging.h"
#include "octavo/sync/staging_budget.h"
#include "octavo/sync/version_record.h"
#include "octavo/sync/weight_change.h"
#include "octavo/sync/weight_plan.h"

namespace octavo {
namespace {

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

int64_t UnixSeconds() {
  return std::chrono::duration_cast<std::chrono::seconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

// Quantizing shares the machine with serving: it takes half of the processors.
int NumStagingThreads() { return std::max(1, NumUsableThreads() / 2); }

struct OpenUpdate {
  std::string id;
  std::string version;
  StagingBudget budget;
  std::unique_ptr<Staging> staging;
  bool has_taken = false;  // The live weights, to overwrite them.
  Require require = Require::kAll;
  bool sealed = false;
  // Of what is sealed:
  ModelDigest digest;
  std::vector<WeightChange> changes;
  Status trial;       // Of the last TrySealed.
  bool busy = false;  // A call works on it without holding the lock of the registry.
  Clock::time_point begun = Clock::now();
  Clock::time_point last_touched = begun;
  double put_seconds = 0.0;
  double seal_seconds = 0.0;
  bool from_disk = false;
};

}  // namespace

struct WeightUpdater::Impl {
  Impl(Engine* engine_in, const Backend* backend_in, const WeightPlan* plan_in, Options options_in)
      : engine(engine_in),
        backend(backend_in),
        plan(plan_in),
        options(std::move(options_in)),
        live(engine, backend, plan, options.live),
        pool(NumStagingThreads()) {}

  // Takes the open update out of the registry's hands for one call: nobody else may touch it until
  // Release. Errors: kNotFound, kUnavailable (another call works on it).
  Result<OpenUpdate*> Acquire(const std::string& id);
  // The same of one that is sealed. Errors: also kInvalidArgument.
  Result<OpenUpdate*> AcquireSealed(const std::string& id);
  Status PrepareCommit(const OpenUpdate& update) const;
  void Release(OpenUpdate* update);
  Result<StagingBudget> PlanMemory(const LiveBase& base, StagingMode mode) const;
  Status MakeRoom();
  Status CheckVersion(const std::string& version) const;
  Status MakeStaging(OpenUpdate* update, LiveBase base, StagingMode mode);
  void EndUnfinished(OpenUpdate* update);
  std::vector<bool> MayStay(Require require);
  Status CloseLedger(OpenUpdate* update);
  Status SealStaged(OpenUpdate* update);
  Status Compare(OpenUpdate* update);
  bool Drop(const std::string& id);
  void Count(const CommitReport& report);

  Engine* const engine;
  const Backend* const backend;
  const WeightPlan* const plan;
  const Options options;

  std::mutex mutex;                  // Guards open, next_id, last_commit, totals and seen.
  std::condition_variable released;  // An update stopped being busy.
  std::optional<OpenUpdate> open;
  uint64_t next_id = 1;
  // Part of each id: a call that is late does not meet an update of the next run of the server.
  const uint32_t run_key = std::random_device()();
  std::optional<CommitReport> last_commit;
  UpdateTotals totals;
  std::vector<bool> seen;  // Rows that the first update brought; empty before it.

  LiveWeights live;
  ThreadPool pool;  // Used by the one call that holds the open update.
};

WeightUpdater::WeightUpdater(Engine* engine, const Backend* backend, const WeightPlan* plan)
    : WeightUpdater(engine, backend, plan, Options{}) {}

WeightUpdater::WeightUpdater(Engine* engine, const Backend* backend, const WeightPlan* plan,
                             Options options)
    : impl_(std::make_unique<Impl>(engine, backend, plan, std::move(options))) {}

WeightUpdater::~WeightUpdater() = default;

Result<OpenUpdate*> WeightUpdater::Impl::Acquire(const std::string& id) {
  const std::lock_guard lock(mutex);
  if (!open.has_value() || open->id != id) {
    return NotFound("weight update {}: not open", id);
  }
  if (open->busy) {
    return Unavailable("weight update {}: another call is working on it", id);
  }
  open->busy = true;
  return &*open;
}

void WeightUpdater::Impl::Release(OpenUpdate* update) {
  const std::lock_guard lock(mutex);
  update->busy = false;
  update->last_touched = Clock::now();
  released.notify_all();
}

// The place of the one open update must be free; one that was forgotten is displaced.
Status WeightUpdater::Impl::MakeRoom() {
  OpenUpdate forgotten;
  {
    const std::lock_guard lock(mutex);
    if (!open.has_value()) {
      return OkStatus();
    }
    const OpenUpdate& holder = *open;
    const double idle_s = SecondsSince(holder.last_touched);
    if (holder.busy || idle_s < options.idle_timeout_s) {
      return Unavailable(
          "weight update {} to version {} is open and has been idle for {:.1f} s; abort it, or "
          "wait until it has been idle for {:.0f} s",
          holder.id, holder.version, holder.busy ? 0.0 : idle_s, options.idle_timeout_s);
    }
    LOG(WARNING, "update displaced id={} version={} idle_s={:.1f}", holder.id, holder.version,
        idle_s);
    forgotten = *std::exchange(open, std::nullopt);
    ++totals.num_dropped;
  }
  EndUnfinished(&forgotten);
  return OkStatus();
}

Status WeightUpdater::Impl::CheckVersion(const std::string& version) const {
  return options.versions == nullptr || version.empty()
             ? OkStatus()
             : options.versions->CheckNext(version, engine->Stats().weight_version);
}

std::optional<Require> ParseRequire(std::string_view name) {
  if (name == "all") {
    return Require::kAll;
  }
  if (name == "seen") {
    return Require::kSeen;
  }
  return name == "any" ? std::optional(Require::kAny) : std::nullopt;
}

// Of each row; empty: none may.
std::vector<bool> WeightUpdater::Impl::MayStay(Require require) {
  if (require == Require::kAll) {
    return {};
  }
  std::vector<bool> may_stay(plan->table->rows.size(), true);
  const std::lock_guard lock(mutex);
  if (require == Require::kSeen && !seen.empty()) {
    may_stay = seen;
    may_stay.flip();
  }
  return may_stay;
}

Result<std::string> WeightUpdater::Begin(const std::string& version, StagingMode mode,
                                         Require require) {
  RETURN_IF_ERROR(impl_->CheckVersion(version));
  RETURN_IF_ERROR(impl_->MakeRoom());
  const std::string live_version = impl_->engine->Stats().weight_version;
  const VersionRecord* versions = impl_->options.versions;
  const std::string newest = versions == nullptr ? live_version : versions->Newest(live_version);
  LiveBase base = impl_->live.Base();  // Only a commit of an update changes it.
  ASSIGN_OR_RETURN(const StagingBudget budget, impl_->PlanMemory(base, mode));
  OpenUpdate* update = nullptr;
  {
    const std::lock_guard lock(impl_->mutex);
    if (impl_->open.has_value()) {
      return Unavailable("weight update {} to version {} has just been begun", impl_->open->id,
                         impl_->open->version);
    }
    impl_->open.emplace();
    update = &*impl_->open;
    update->id = fmt::format("update-{}-{:08x}", impl_->next_id++, impl_->run_key);
    update->version = version.empty() ? NextVersion(newest) : version;
    update->budget = budget;
    update->require = require;
    update->busy = true;
  }
  const std::string id = update->id;
  const Status status = impl_->MakeStaging(update, std::move(base), mode);
  if (!status.ok()) {
    const std::lock_guard lock(impl_->mutex);
    impl_->open.reset();
    impl_->released.notify_all();
    return status;
  }
  LOG(INFO, "update open id={} version={} from={} staging={} memory=\"{}\"", id, update->version,
      live_version, mode == StagingMode::kShadow ? "shadow" : "in_place", budget.Text());
  impl_->Release(update);
  return id;
}

Status WeightUpdater::Impl::MakeStaging(OpenUpdate* update, LiveBase base, StagingMode mode) {
  auto weights = std::make_unique<ModelWeights>();
  if (mode == StagingMode::kInPlace) {
    ASSIGN_OR_RETURN(std::unique_ptr<ModelWeights> taken, live.TakeForUpdate());
    update->has_taken = taken != nullptr;
    weights = update->has_taken ? std::move(taken) : std::move(weights);
  }
  update->staging =
      std::make_unique<Staging>(StagingOptions{.plan = plan,
                                               .backend = backend,
                                               .pool = &pool,
                                               .base = std::move(base),
                                               .may_stay = MayStay(update->require),
                                               .waiting_bytes_max = update->budget.waiting_bytes},
                                std::move(weights));
  return OkStatus();
}

// What becomes of the live weights when an update does not come to its commit.
void WeightUpdater::Impl::EndUnfinished(OpenUpdate* update) {
  if (!update->has_taken) {
    return;
  }
  if (std::unique_ptr<ModelWeights> weights = update->staging->TakeUntouched()) {
    live.GiveBack(std::move(weights));
    return;
  }
  live.Poison();
  LOG(ERROR, "weights poisoned: update {} to version {} was given up after it had overwritten some",
      update->id, update->version);
}

Result<StagingBudget> WeightUpdater::Impl::PlanMemory(const LiveBase& base,
                                                      StagingMode mode) const {
  const Result<int64_t> available = AvailableMemoryBytes();
  return PlanStaging(
      {.plan = plan,
       .packed_bytes = mode == StagingMode::kShadow ? base.packed_bytes : 0,
       .waiting_bytes_max = options.waiting_bytes_max,
       .bucket_bytes = options.bucket_bytes_max,
       .available_bytes = available.has_value() ? std::optional(*available) : std::nullopt});
}

Status WeightUpdater::SetVersion(const std::string& id, const std::string& version) {
  RETURN_IF_ERROR(impl_->CheckVersion(version));
  ASSIGN_OR_RETURN(OpenUpdate * update, impl_->Acquire(id));
  update->version = version;
  impl_->Release(update);
  return OkStatus();
}

Status WeightUpdater::CountBucket(int64_t num_bytes) {
  std::string id;
  {
    const std::lock_guard lock(impl_->mutex);
    if (!impl_->open.has_value() || num_bytes <= impl_->open->budget.bucket_bytes) {
      return OkStatus();
    }
    id = impl_->open->id;
  }
  ASSIGN_OR_RETURN(OpenUpdate * update, impl_->Acquire(id));
  StagingBudget budget = update->budget;
  budget.bucket_bytes = num_bytes;
  const Result<int64_t> available = AvailableMemoryBytes();
  const int64_t missing =
      std::max<int64_t>(budget.staged_bytes - update->staging->bytes_staged(), 0);
  const bool fits =
      !available.has_value() || num_bytes + budget.scratch_bytes + missing <= *available;
  if (fits) {
    update->budget = budget;
    LOG(INFO, "update memory grows id={} memory=\"{}\"", id, budget.Text());
  }
  impl_->Release(update);
  return fits ? OkStatus()
              : Exhausted(
                    "a bucket of {} bytes beside {} that are still to be staged and {} of "
                    "scratch: {} are available; the trainer's buckets have to be smaller",
                    num_bytes, missing, budget.scratch_bytes, *available);
}

Result<StagingBudget> WeightUpdater::BudgetOf(const std::string& id) const {
  const std::lock_guard lock(impl_->mutex);
  if (!impl_->open.has_value() || impl_->open->id != id) {
    return NotFound("weight update {}: not open", id);
  }
  return impl_->open->budget;
}

Status WeightUpdater::Put(const std::string& id, std::string_view name,
                          const ConstTensorView& tensor) {
  ASSIGN_OR_RETURN(OpenUpdate * update, impl_->Acquire(id));
  const Clock::time_point start = Clock::now();
  const Status status =
      update->sealed ? InvalidArgument("weight update {}: sealed, so {} came too late", id, name)
                     : update->staging->Put(name, tensor);
  update->put_seconds += SecondsSince(start);
  impl_->Release(update);
  return status;
}

// What stays is copied from the live weights, which only a commit changes.
Status WeightUpdater::Impl::CloseLedger(OpenUpdate* update) {
  if (update->require == Require::kAll || update->has_taken) {
    return update->staging->Seal();
  }
  Status sealed;
  const Status read = live.Read([&](const ModelWeights& weights) {
    sealed = update->staging->Seal(&weights);
    return OkStatus();
  });
  return read.ok() ? sealed : update->staging->Seal();
}

// The digest is read from the memory that will be live, while the old weights serve: replies name
// their weights by it from the first step on.
Status WeightUpdater::Impl::SealStaged(OpenUpdate* update) {
  if (update->sealed) {
    return OkStatus();
  }
  RETURN_IF_ERROR(CloseLedger(update));
  ASSIGN_OR_RETURN(update->digest,
                   DigestLiveWeights(*plan->table, update->staging->sealed(), *backend, &pool));
  RETURN_IF_ERROR(Compare(update));
  update->sealed = true;
  return OkStatus();
}

// Beside weights that were released everything is new.
Status WeightUpdater::Impl::Compare(OpenUpdate* update) {
  const auto compare = [&](const ModelWeights& before) -> Status {
    ASSIGN_OR_RETURN(update->changes,
                     CompareWeights(before, update->staging->sealed(), *backend, &pool));
    return OkStatus();
  };
  const Status status = live.Read(compare);
  return status.code() == StatusCode::kUnavailable ? compare({}) : status;
}

Status WeightUpdater::Seal(const std::string& id) {
  ASSIGN_OR_RETURN(OpenUpdate * update, impl_->Acquire(id));
  const Clock::time_point start = Clock::now();
  const Status status = impl_->SealStaged(update);
  update->seal_seconds += SecondsSince(start);
  impl_->Release(update);
  return status;
}

Result<OpenUpdate*> WeightUpdater::Impl::AcquireSealed(const std::string& id) {
  ASSIGN_OR_RETURN(OpenUpdate * update, Acquire(id));
  if (!update->sealed) {
    Release(update);
    return InvalidArgument("weight update {}: seal it before the commit", id);
  }
  return update;
}

Result<ModelDigest> WeightUpdater::SealedDigest(const std::string& id) {
  ASSIGN_OR_RETURN(OpenUpdate * update, impl_->AcquireSealed(id));
  ModelDigest digest = update->digest;
  impl_->Release(update);
  return digest;
}

Status WeightUpdater::TrySealed(const std::string& id,
                                FunctionRef<Status(std::unique_ptr<ModelWeights>* weights)> use) {
  ASSIGN_OR_RETURN(OpenUpdate * update, impl_->AcquireSealed(id));
  std::unique_ptr<ModelWeights> weights = update->staging->Take();
  const Status status = use(&weights);
  CHECK(weights != nullptr);
  update->staging->Return(std::move(weights));
  update->trial = status;
  impl_->Release(update);
  return status;
}

// What must hold, and be on disk, before the swap.
Status WeightUpdater::Impl::PrepareCommit(const OpenUpdate& update) const {
  if (!update.trial.ok()) {
    return InvalidArgument("weight update {}: {}", update.id, update.trial.message());
  }
  RETURN_IF_ERROR(CheckVersion(update.version));  // The live ones may have been relabelled.
  return options.versions == nullptr ? OkStatus()
                                     : options.versions->Write(update.version, update.digest.hex);
}

Result<CommitReport> WeightUpdater::Commit(const std::string& id, InFlight in_flight) {
  ASSIGN_OR_RETURN(OpenUpdate * update, impl_->AcquireSealed(id));
  if (const Status status = impl_->PrepareCommit(*update); !status.ok()) {
    impl_->Release(update);
    return status;
  }
  const Clock::time_point start = Clock::now();
  CommitReport report{.version = update->version,
                      .digest = update->digest.hex,
                      .swap = {},
                      .num_tensors = update->staging->num_staged(),
                      .bytes_in = update->staging->bytes_in(),
                      .bytes_staged = update->staging->bytes_staged(),
                      .carried_over = update->staging->carried_over(),
                      .change = std::accumulate(
                          update->changes.begin(), update->changes.end(), WeightChange{},
                          [](WeightChange sum, const WeightChange& one) { return sum += one; }),
                      .changes = update->changes,
                      .put_seconds = update->put_seconds,
                      .seal_seconds = update->seal_seconds,
                      .from_disk = update->from_disk};
  const Clock::time_point begun = update->begun;
  std::vector<bool> brought = update->staging->Brought();
  std::unique_ptr<ModelWeights> weights = update->staging->Take();
  weights->digest = update->digest.hash;
  report.swap = impl_->live.Swap(std::move(weights), update->version, in_flight);
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->open.reset();
    impl_->released.notify_all();
  }
  report.commit_seconds = SecondsSince(start);
  report.open_seconds = SecondsSince(begun);
  report.unix_seconds = UnixSeconds();
  LOG(INFO,
      "update committed id={} version={} tensors={} carried_over={} bytes_in={} codes={} "
      "changed={} put_s={:.3f} seal_s={:.3f} commit_s={:.3f} pause_ms={:.2f} in_flight={} "
      "retracted={} aborted={}",
      id, report.version, report.num_tensors, report.carried_over.size(), report.bytes_in,
      report.change.num_codes, report.change.num_changed, report.put_seconds, report.seal_seconds,
      report.commit_seconds, report.swap.pause_ms, report.swap.in_flight, report.swap.retracted,
      report.swap.aborted);
  const std::lock_guard lock(impl_->mutex);
  if (impl_->seen.empty() && !report.from_disk) {
    impl_->seen = std::move(brought);
  }
  impl_->last_commit = report;
  impl_->Count(report);
  return report;
}

void WeightUpdater::Impl::Count(const CommitReport& report) {
  ++totals.num_committed;
  totals.put_seconds += report.put_seconds;
  totals.seal_seconds += report.seal_seconds;
  totals.commit_seconds += report.commit_seconds;
  totals.pause_seconds += 1e-3 * report.swap.pause_ms;
  totals.bytes_in += report.bytes_in;
  totals.bytes_staged += report.bytes_staged;
  (report.from_disk ? totals.last_disk_seconds : totals.last_push_seconds) = report.open_seconds;
}

std::optional<CommitReport> WeightUpdater::LastCommit() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->last_commit;
}

UpdateTotals WeightUpdater::Totals() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->totals;
}

// Drops the staging once no call works on it. False when that update is not open.
bool WeightUpdater::Impl::Drop(const std::string& id) {
  OpenUpdate* update = nullptr;
  {
    std::unique_lock lock(mutex);
    released.wait(lock, [&] { return !open.has_value() || open->id != id || !open->busy; });
    if (!open.has_value() || open->id != id) {
      return false;
    }
    update = &*open;
    update->busy = true;
  }
  EndUnfinished(update);
  const std::lock_guard lock(mutex);
  open.reset();
  released.notify_all();
  LOG(INFO, "update aborted id={}", id);
  return true;
}

void WeightUpdater::Abort(const std::string& id) {
  if (impl_->Drop(id)) {
    const std::lock_guard lock(impl_->mutex);
    ++impl_->totals.num_dropped;
  }
}

Result<CommitReport> WeightUpdater::UpdateFromDisk(const std::string& dir,
                                                   const std::string& version, InFlight in_flight) {
  Result<CommitReport> report = StageAndCommit(dir, version, in_flight);
  if (!report.has_value()) {
    const std::lock_guard lock(impl_->mutex);
    ++impl_->totals.num_failed;
  }
  return report;
}

Result<CommitReport> WeightUpdater::StageAndCommit(const std::string& dir,
                                                   const std::string& version, InFlight in_flight) {
  ASSIGN_OR_RETURN(const Checkpoint checkpoint,
                   Checkpoint::Open(dir, impl_->options.config_overrides));
  RETURN_IF_ERROR(CheckSameModel(*impl_->plan->spec, checkpoint.config()).WithContext(dir));
  const std::string& quantization_config = checkpoint.config().quantization_config;
  if (!quantization_config.empty()) {
    ASSIGN_OR_RETURN(const PrecisionTable source,
                     TableFromQuantizationConfig(*impl_->plan->spec, quantization_config));
    RETURN_IF_ERROR(CheckSameTable(*impl_->plan->table, source).WithContext(dir));
  }
  ASSIGN_OR_RETURN(const std::string id, Begin(version));
  ASSIGN_OR_RETURN(OpenUpdate * update, impl_->Acquire(id));
  const Clock::time_point start = Clock::now();
  update->from_disk = true;
  Status status = StageCheckpoint(checkpoint, *impl_->plan, update->staging.get());
  update->put_seconds += SecondsSince(start);
  impl_->Release(update);
  if (status.ok()) {
    status = Seal(id);
  }
  if (!status.ok()) {
    impl_->Drop(id);
    return status.WithContext(dir);
  }
  Result<CommitReport> report = Commit(id, in_flight);
  if (!report.has_value()) {
    impl_->Drop(id);
  }
  return report;
}

Result<ModelDigest> WeightUpdater::LiveDigest() { return impl_->live.Digest(); }

LiveWeights& WeightUpdater::live() { return impl_->live; }

}  // namespace octavo
