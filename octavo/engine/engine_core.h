#pragma once
// EngineCore: everything the engine does, as plain calls on one thread. Engine (engine.h) puts a
// thread and a mailbox around it; tests drive it step by step.

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/engine/engine.h"
#include "octavo/engine/latencies.h"
#include "octavo/engine/logits_pass.h"
#include "octavo/engine/page_pool.h"
#include "octavo/engine/prefix_cache.h"
#include "octavo/engine/rid_registry.h"
#include "octavo/engine/scheduler.h"
#include "octavo/engine/token_rate.h"
#include "octavo/engine/validate.h"
#include "octavo/kernels/input_ranges.h"

namespace octavo {

// A weight swap that somebody asked for.
struct SwapRequest {
  std::unique_ptr<ModelWeights> weights;
  std::string version;
  InFlight in_flight = InFlight::kRetract;
  std::function<void(SwapReport, std::unique_ptr<ModelWeights>)> done;
};

// Counters that only grow.
struct EngineTotals {
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;
  int64_t stale_cached_tokens = 0;  // Of those, computed under earlier weights.
  int64_t computed_tokens = 0;      // Rows of all forward passes.
  int64_t generated_tokens = 0;
  int64_t requests = 0;
  int64_t cache_hits = 0;  // Requests that ended and had cached tokens.
  int64_t aborted = 0;
  int64_t version_conflicts = 0;
  int64_t failed = 0;
};

// One thread, which takes part in backend.pool() as worker 0. Between two public calls the engine
// stands at a step boundary.
class EngineCore {
 public:
  struct Init {
    std::unique_ptr<Backend> backend;
    const ModelSpec* spec = nullptr;  // Copied.
    std::unique_ptr<ModelWeights> weights;
    std::vector<int32_t> eos_token_ids;
    std::string weight_version;
    EngineOptions options;
    RidRegistry* rids = nullptr;  // Outlives the core.
    // Called before a swap is reported, so that whoever hears of it finds figures that know it. May
    // be null.
    std::function<void()> publish;
  };
  // Allocates activations, logits and the KV pool. Errors: kInvalidArgument for an option out of
  // range, kExhausted, those of MakeModel.
  static Result<std::unique_ptr<EngineCore>> Create(Init init);
  // For Create alone: the KV pool has no memory yet.
  EngineCore(Init init, std::unique_ptr<Model> model, const RequestLimits& limits);

  // Written once by Create; safe to read from any thread.
  const RequestLimits& limits() const { return limits_; }
  const ModelSpec& spec() const { return model_->spec(); }
  int64_t max_running() const { return max_running_; }

  // --- Requests ---
  // `request` was validated and its rid registered.
  void Add(Request request, EngineClock::time_point submitted);
  void Abort(std::string_view rid);
  void AbortAll();

  // --- Control: engine.h has the semantics ---
  void Pause(PauseMode mode);
  void Continue();
  void Flush(EngineClock::time_point deadline, std::function<void(Status)> done);
  void Swap(SwapRequest swap);
  void SetWeightVersion(std::string version);
  Result<std::unique_ptr<ModelWeights>> VoidWeights(std::unique_ptr<ModelWeights> weights);
  Result<std::unique_ptr<ModelWeights>> ReleaseMemory(MemoryParts parts);
  Status ResumeMemory(MemoryParts parts);
  void PoisonWeights();
  void Drain(std::function<void()> done);
  // Ends everything: requests are aborted, waiting flushes refused, waiting swaps made.
  void Shutdown();

  // Does what became possible at this boundary: waiting swaps, flushes and drains.
  void AtBoundary();
  // Runs one forward pass with whatever it yields. False when there was nothing to run.
  bool Step();

  // True when Step would run something, unless the queue's head waits for a swap.
  bool HasRunnable() const;
  // When AtBoundary has to run next even if nothing happens; max() when never.
  EngineClock::time_point NextDeadline() const;

  const ModelWeights& weights() const { return *weights_; }
  Backend& backend() { return *backend_; }
  InputRanges input_ranges() const { return backend_->input_ranges(); }
  const std::string& weight_version() const { return weight_version_; }
  bool paused() const { return paused_; }
  bool kv_released() const { return kv_released_; }
  WeightState weight_state() const { return weight_state_; }
  // Nothing is scheduled: somebody paused, or memory that a step needs is away.
  bool held() const { return paused_ || !has_memory(); }
  const Scheduler& scheduler() const { return scheduler_; }
  const PrefixCache& prefix_cache() const { return cache_; }
  const EngineTotals& totals() const { return totals_; }
  const EngineLatencies& latencies() const { return latencies_; }
  const PagePool& page_pool() const { return pool_; }
  const TokenRate& token_rate() const { return token_rate_; }
  void CheckInvariants() const { scheduler_.CheckInvariants(); }

 private:
  struct PendingFlush {
    EngineClock::time_point deadline;
    std::function<void(Status)> done;
  };

  // engine_core.cc: the step.
  void CollectTasks(const StepPlan& plan);
  void AddTasks(Sequence* sequence, const Segment& segment);
  void Deliver(const RowTask& task, RowResult& result);
  void DeliverScore(Sequence& sequence, RowResult& result);
  void DeliverSample(Sequence& sequence, RowResult& result);
  FinishReason TestFinish(Sequence& sequence, int32_t id);
  void Settle(const StepPlan& plan, const Status& status);
  void ObserveTimes(Sequence& sequence, EngineClock::time_point now);
  void FillCounts(Sequence& sequence) const;
  void SendSnapshot(Sequence& sequence);
  void Finish(Sequence* sequence);

  // engine_control.cc: between steps.
  void AbortSequence(Sequence* sequence);
  template <typename Predicate>
  std::vector<Sequence*> Choose(Predicate predicate) const;
  template <typename Predicate>
  int64_t AbortIf(Predicate predicate);
  void EndVersionConflict(Sequence* sequence);
  int64_t EndVersionConflicts();
  void RetractAll();
  void KeepInPlace();
  void ExpectNewVersion();
  bool IsFlushable() const;
  bool TryFlush();
  Status NotFlushable(std::string_view what) const;
  void LiftHold();
  bool has_memory() const { return !kv_released_ && weight_state_ == WeightState::kLive; }
  bool CanSwap(const SwapRequest& swap) const;
  void ApplySwap(SwapRequest swap);
  void ReportSwaps();
  bool Idle() const { return scheduler_.running().empty() && scheduler_.queue().empty(); }

  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<ModelWeights> weights_;
  std::string weight_version_;
  const std::vector<int32_t> eos_token_ids_;
  const RequestLimits limits_;
  const int64_t max_running_;
  RidRegistry& rids_;
  const std::function<void()> publish_;
  PagePool pool_;
  PrefixCache cache_;
  Scheduler scheduler_;
  LogitsPass logits_pass_;
  std::vector<RowTask> tasks_;  // Of the present step; capacity chunk_tokens.

  int64_t next_arrival_ = 0;
  uint64_t seed_source_ = 0;  // Philox key of the seeds that requests do not bring.
  bool paused_ = false;
  bool kv_released_ = false;
  WeightState weight_state_ = WeightState::kLive;
  std::deque<SwapRequest> swaps_;  // Waiting, in order.
  // Made, but not reported: the report ends the pause, which lasts until the next step begins.
  struct MadeSwap {
    SwapReport report;
    SwapRequest swap;  // With the old weights.
    EngineClock::time_point pause_began;
  };
  std::vector<MadeSwap> made_swaps_;
  std::vector<PendingFlush> flushes_;
  std::vector<std::function<void()>> drains_;
  EngineClock::time_point last_step_end_;
  bool stepping_ = false;  // The last thing that happened was a step.
  EngineTotals totals_;
  EngineLatencies latencies_;
  int64_t rated_tokens_ = 0;  // Of totals_.generated_tokens, counted in token_rate_.
  TokenRate token_rate_;
};

}  // namespace octavo
