// Engine: the thread and the mailbox around EngineCore.

#include "octavo/engine/engine.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

#include "octavo/base/check.h"
#include "octavo/base/function_ref.h"
#include "octavo/base/status.h"
#include "octavo/engine/engine_core.h"
#include "octavo/engine/latencies.h"
#include "octavo/engine/request.h"
#include "octavo/engine/rid_registry.h"
#include "octavo/engine/scheduler.h"
#include "octavo/engine/sequence.h"
#include "octavo/engine/token_rate.h"
#include "octavo/engine/validate.h"
#include "octavo/kernels/backend.h"
#include "octavo/model/model.h"
#include "octavo/model/spec/model_spec.h"

namespace octavo {
namespace {

// An idle engine thread still looks at its mailbox this often, so that its heartbeat stays young.
constexpr std::chrono::milliseconds kIdleWait(200);

double SecondsBetween(EngineClock::time_point from, EngineClock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

// --- Messages, one struct each --------------------------------------------------------------

struct SubmitMessage {
  Request request;
  EngineClock::time_point submitted;
};
struct AbortMessage {
  std::string rid;
};
struct AbortAllMessage {};
struct PauseMessage {
  PauseMode mode;
  std::function<void()> done;
};
struct ContinueMessage {
  std::function<void()> done;
};
struct FlushMessage {
  EngineClock::time_point deadline;
  std::function<void(Status)> done;
};
struct SwapMessage {
  SwapRequest swap;
};
struct VersionMessage {
  std::string version;
  std::function<void()> done;
};
struct VoidMessage {
  std::unique_ptr<ModelWeights> weights;
  std::function<void(Result<std::unique_ptr<ModelWeights>>)> done;
};
struct ReleaseMessage {
  MemoryParts parts;
  std::function<void(Result<std::unique_ptr<ModelWeights>>)> done;
};
struct ResumeMessage {
  MemoryParts parts;
  std::function<void(Status)> done;
};
struct PoisonMessage {
  std::function<void()> done;
};
struct RunMessage {
  std::function<void(const ModelWeights& live, Backend& backend)> fn;
};
struct DrainMessage {
  std::function<void()> done;
};
using Message =
    std::variant<SubmitMessage, AbortMessage, AbortAllMessage, PauseMessage, ContinueMessage,
                 FlushMessage, SwapMessage, VersionMessage, VoidMessage, ReleaseMessage,
                 ResumeMessage, PoisonMessage, RunMessage, DrainMessage>;

// Does what each message says. Figures are published before a caller hears that it was done, so
// that he never reads older ones.
struct Handler {
  EngineCore& core;
  FunctionRef<void()> publish;

  void Notify(const std::function<void()>& done) {
    publish();
    if (done != nullptr) {
      done();
    }
  }
  void operator()(SubmitMessage& message) {
    core.Add(std::move(message.request), message.submitted);
  }
  void operator()(AbortMessage& message) { core.Abort(message.rid); }
  void operator()(AbortAllMessage&) { core.AbortAll(); }
  void operator()(PauseMessage& message) {
    core.Pause(message.mode);
    Notify(message.done);
  }
  void operator()(ContinueMessage& message) {
    core.Continue();
    Notify(message.done);
  }
  void operator()(FlushMessage& message) { core.Flush(message.deadline, std::move(message.done)); }
  void operator()(SwapMessage& message) { core.Swap(std::move(message.swap)); }
  void operator()(VersionMessage& message) {
    core.SetWeightVersion(std::move(message.version));
    Notify(message.done);
  }
  void operator()(VoidMessage& message) {
    Result<std::unique_ptr<ModelWeights>> old = core.VoidWeights(std::move(message.weights));
    publish();
    message.done(std::move(old));
  }
  void operator()(ReleaseMessage& message) {
    Result<std::unique_ptr<ModelWeights>> weights = core.ReleaseMemory(message.parts);
    publish();
    message.done(std::move(weights));
  }
  void operator()(ResumeMessage& message) {
    const Status status = core.ResumeMemory(message.parts);
    publish();
    message.done(status);
  }
  void operator()(PoisonMessage& message) {
    core.PoisonWeights();
    Notify(message.done);
  }
  void operator()(RunMessage& message) { message.fn(core.weights(), core.backend()); }
  void operator()(DrainMessage& message) { core.Drain(std::move(message.done)); }
};

}  // namespace

// What the engine thread and its callers share is behind one mutex; the core belongs to the thread
// alone, but for what Create wrote.
class Engine::Impl {
 public:
  explicit Impl(const EngineOptions& options) : options_(options) {}

  // Gives the core to a new engine thread.
  void Launch(std::unique_ptr<EngineCore> core);
  void Stop();

  Status Submit(Request request);
  void Post(Message message);
  void RefuseNewRequests();
  EngineStats Stats() const;
  EngineLatencies Latencies() const;
  const EngineCore& core() const { return *core_; }
  RidRegistry* rids() { return &rids_; }
  // Makes the core's figures those that Stats reads. Called on the engine thread.
  void Publish();

 private:
  void Loop();
  bool TakeMessages(std::vector<Message>* messages);

  const EngineOptions options_;
  RidRegistry rids_;
  std::unique_ptr<EngineCore> core_;
  std::thread thread_;

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  // Guarded by mutex_:
  std::vector<Message> mailbox_;
  bool stopping_ = false;
  bool refusing_ = false;
  EngineStats stats_;  // As of the last boundary, and so are:
  EngineLatencies latencies_;
  TokenRate token_rate_;
  EngineClock::time_point heartbeat_;
};

void Engine::Impl::Launch(std::unique_ptr<EngineCore> core) {
  core_ = std::move(core);
  heartbeat_ = EngineClock::now();
  Publish();
  thread_ = std::thread([this] { Loop(); });
}

void Engine::Impl::Stop() {
  {
    const std::scoped_lock lock(mutex_);
    stopping_ = true;
    refusing_ = true;
  }
  wake_.notify_one();
  if (thread_.joinable()) {
    thread_.join();
  }
}

void Engine::Impl::Post(Message message) {
  {
    const std::scoped_lock lock(mutex_);
    mailbox_.push_back(std::move(message));
  }
  wake_.notify_one();
}

void Engine::Impl::RefuseNewRequests() {
  const std::scoped_lock lock(mutex_);
  refusing_ = true;
}

Status Engine::Impl::Submit(Request request) {
  CHECK(request.sink != nullptr);
  RETURN_IF_ERROR(ValidateRequest(request, core_->limits()));
  {
    const std::scoped_lock lock(mutex_);
    if (refusing_) {
      return Unavailable("engine: stopping, no new requests are taken");
    }
    if (stats_.weight_state == WeightState::kPoisoned) {
      return Unavailable(
          "weights: poisoned by an update in place that was given up; bring all of them, from disk "
          "or by another update");
    }
    // stats_ lags behind by at most a step, so the bound may be passed by what one step admits.
    const int64_t num_waiting = rids_.size() - stats_.num_running;
    if (options_.max_queued_requests > 0 && num_waiting >= options_.max_queued_requests) {
      return Unavailable("queue: expected fewer than {} waiting requests, got {}",
                         options_.max_queued_requests, num_waiting);
    }
    if (!rids_.Insert(request.rid)) {
      return InvalidArgument("rid: expected one that is not in flight, got {}", request.rid);
    }
    mailbox_.push_back(
        SubmitMessage{.request = std::move(request), .submitted = EngineClock::now()});
  }
  wake_.notify_one();
  return OkStatus();
}

// Moves the mailbox over, waiting while there is nothing to do. False when the engine stops.
bool Engine::Impl::TakeMessages(std::vector<Message>* messages) {
  std::unique_lock lock(mutex_);
  heartbeat_ = EngineClock::now();
  if (!core_->HasRunnable()) {
    const auto until = std::min(core_->NextDeadline(), heartbeat_ + kIdleWait);
    wake_.wait_until(lock, until, [this] { return stopping_ || !mailbox_.empty(); });
    heartbeat_ = EngineClock::now();
  }
  std::swap(*messages, mailbox_);
  return !stopping_;
}

void Engine::Impl::Loop() {
  std::vector<Message> messages;
  const auto publish = [this] { Publish(); };
  Handler handler = {.core = *core_, .publish = publish};
  bool alive = true;
  while (alive) {
    messages.clear();
    alive = TakeMessages(&messages);
    for (Message& message : messages) {
      std::visit(handler, message);
    }
    core_->AtBoundary();
    if (alive) {
      core_->Step();
    } else {
      core_->Shutdown();
    }
    Publish();
  }
}

void Engine::Impl::Publish() {
  const Scheduler& scheduler = core_->scheduler();
  const EngineTotals& totals = core_->totals();
  const std::scoped_lock lock(mutex_);
  stats_.num_running = static_cast<int64_t>(scheduler.running().size());
  stats_.num_retracted = scheduler.num_started_in_queue();
  stats_.used_tokens = scheduler.num_used_tokens();
  stats_.max_total_tokens = core_->limits().max_total_tokens;
  stats_.max_running_requests = core_->max_running();
  stats_.context_length = core_->limits().context_length;
  stats_.prompt_tokens_total = totals.prompt_tokens;
  stats_.num_pages = core_->page_pool().num_pages();
  stats_.num_free_pages = core_->page_pool().num_free();
  stats_.num_cached_pages = core_->prefix_cache().num_cached();
  stats_.cached_tokens_total = totals.cached_tokens;
  stats_.stale_cached_tokens_total = totals.stale_cached_tokens;
  stats_.computed_tokens_total = totals.computed_tokens;
  stats_.generated_tokens_total = totals.generated_tokens;
  stats_.num_requests_total = totals.requests;
  stats_.num_cache_hits_total = totals.cache_hits;
  stats_.num_aborted_total = totals.aborted;
  stats_.num_version_conflicts_total = totals.version_conflicts;
  stats_.num_failed_total = totals.failed;
  stats_.num_retractions_total = scheduler.num_retractions();
  stats_.nvfp4_inputs_total = core_->input_ranges();
  stats_.paused = core_->paused();
  stats_.kv_released = core_->kv_released();
  stats_.weight_state = core_->weight_state();
  stats_.returns_routed_experts = core_->limits().has_routed_experts;
  if (stats_.weight_version != core_->weight_version()) {
    stats_.weight_version = core_->weight_version();
  }
  stats_.weight_digest = core_->weights().digest;
  token_rate_ = core_->token_rate();
  latencies_ = core_->latencies();
}

EngineLatencies Engine::Impl::Latencies() const {
  const std::scoped_lock lock(mutex_);
  return latencies_;
}

EngineStats Engine::Impl::Stats() const {
  const EngineClock::time_point now = EngineClock::now();
  const std::scoped_lock lock(mutex_);
  EngineStats stats = stats_;
  // Everything in flight that does not run waits, be it in the mailbox or in the queue.
  const int64_t in_flight = rids_.size();
  stats.num_running = std::min(stats.num_running, in_flight);
  stats.num_queued = in_flight - stats.num_running;
  const bool held = stats.paused || stats.kv_released || stats.weight_state != WeightState::kLive;
  stats.num_paused = held ? in_flight : 0;
  stats.gen_tokens_per_s = token_rate_.PerSecond(
      std::chrono::duration_cast<std::chrono::seconds>(now.time_since_epoch()).count());
  stats.heartbeat_age_s = SecondsBetween(heartbeat_, now);
  return stats;
}

// --- Engine -----------------------------------------------------------------------------------

std::string_view WeightStateName(WeightState state) {
  switch (state) {
    case WeightState::kLive:
      return "live";
    case WeightState::kReleased:
      return "released";
    case WeightState::kVoid:
      return "void";
    case WeightState::kPoisoned:
      return "poisoned";
  }
  return "";
}

Engine::Engine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Engine::~Engine() { impl_->Stop(); }

Result<std::unique_ptr<Engine>> Engine::Start(std::unique_ptr<Backend> backend,
                                              const ModelSpec& spec,
                                              std::unique_ptr<ModelWeights> weights,
                                              const std::vector<int32_t>& eos_token_ids,
                                              const std::string& weight_version,
                                              const EngineOptions& options) {
  CHECK(backend != nullptr);
  CHECK(weights != nullptr);
  auto impl = std::make_unique<Impl>(options);
  ASSIGN_OR_RETURN(std::unique_ptr<EngineCore> core,
                   EngineCore::Create({.backend = std::move(backend),
                                       .spec = &spec,
                                       .weights = std::move(weights),
                                       .eos_token_ids = eos_token_ids,
                                       .weight_version = weight_version,
                                       .options = options,
                                       .rids = impl->rids(),
                                       .publish = [owner = impl.get()] { owner->Publish(); }}));
  impl->Launch(std::move(core));
  return std::make_unique<Engine>(std::move(impl));
}

Status Engine::Validate(const Request& request) const {
  return ValidateRequest(request, impl_->core().limits());
}

Status Engine::Submit(Request request) { return impl_->Submit(std::move(request)); }

void Engine::Abort(const std::string& rid) { impl_->Post(AbortMessage{rid}); }

void Engine::AbortAll() { impl_->Post(AbortAllMessage{}); }

void Engine::Pause(PauseMode mode, std::function<void()> done) {
  impl_->Post(PauseMessage{mode, std::move(done)});
}

void Engine::Continue(std::function<void()> done) { impl_->Post(ContinueMessage{std::move(done)}); }

void Engine::Flush(double timeout_s, std::function<void(Status)> done) {
  CHECK(done != nullptr);
  const auto wait = std::chrono::duration_cast<EngineClock::duration>(
      std::chrono::duration<double>(std::clamp(timeout_s, 0.0, 86400.0)));
  impl_->Post(FlushMessage{EngineClock::now() + wait, std::move(done)});
}

void Engine::SwapWeights(std::unique_ptr<ModelWeights> weights, const std::string& version,
                         InFlight in_flight,
                         std::function<void(SwapReport, std::unique_ptr<ModelWeights>)> done) {
  impl_->Post(SwapMessage{{.weights = std::move(weights),
                           .version = version,
                           .in_flight = in_flight,
                           .done = std::move(done)}});
}

void Engine::VoidWeights(std::unique_ptr<ModelWeights> weights,
                         std::function<void(Result<std::unique_ptr<ModelWeights>>)> done) {
  CHECK(done != nullptr);
  impl_->Post(VoidMessage{std::move(weights), std::move(done)});
}

void Engine::ReleaseMemory(MemoryParts parts,
                           std::function<void(Result<std::unique_ptr<ModelWeights>>)> done) {
  CHECK(done != nullptr);
  impl_->Post(ReleaseMessage{parts, std::move(done)});
}

void Engine::ResumeMemory(MemoryParts parts, std::function<void(Status)> done) {
  CHECK(done != nullptr);
  impl_->Post(ResumeMessage{parts, std::move(done)});
}

void Engine::PoisonWeights(std::function<void()> done) {
  impl_->Post(PoisonMessage{std::move(done)});
}

void Engine::SetWeightVersion(const std::string& version, std::function<void()> done) {
  impl_->Post(VersionMessage{version, std::move(done)});
}

void Engine::RunBetweenSteps(std::function<void(const ModelWeights& live, Backend& backend)> fn) {
  CHECK(fn != nullptr);
  impl_->Post(RunMessage{std::move(fn)});
}

EngineStats Engine::Stats() const { return impl_->Stats(); }

EngineLatencies Engine::Latencies() const { return impl_->Latencies(); }

const ModelSpec& Engine::spec() const { return impl_->core().spec(); }

void Engine::Drain(std::function<void()> done) {
  impl_->RefuseNewRequests();
  impl_->Post(DrainMessage{done != nullptr ? std::move(done) : [] {}});
}

}  // namespace octavo
