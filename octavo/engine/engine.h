#pragma once
// Engine: one thread that owns scheduler, KV pages and weights. The world sends it messages.

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/hash.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/engine/latencies.h"
#include "octavo/engine/request.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/input_ranges.h"
#include "octavo/model/model.h"

namespace octavo {

struct EngineOptions {
  // Size of the KV pool; at most one of the three. None: what max_running_requests can use, but no
  // more than 30% of free memory (memory_budget.h). What came of it is logged at the start.
  int64_t max_total_tokens = 0;
  int64_t kv_cache_bytes = 0;
  double kv_cache_fraction = 0.0;  // Of free memory, in (0, 1].
  // kBf16, or kF8E4m3: half the memory, and other bits (ops.h, KvShape).
  DType kv_cache_dtype = DType::kBf16;
  int64_t max_running_requests = 256;  // Sequences decoded together.
  int64_t max_queued_requests = 0;     // 0: no bound but memory.
  int64_t chunk_tokens = 512;          // Tokens of one step, prefill chunks included.
  int64_t context_length = 0;          // 0: max_position_embeddings.
  bool prefix_cache = true;
  // For how many versions of the weights cached prefixes stay usable after their own: 0, the
  // default, means that no KV outlives the weights that computed it. More trades exactness for
  // prefill; such requests are marked (RequestOutput::cached_tokens_stale).
  int64_t stale_prefix_versions = 0;
  // Keeps which experts every cached token was sent to, for requests that ask
  // (Request::return_routed_experts). Costs 2 bytes a layer and expert of a token.
  bool return_routed_experts = false;
  // From which the seeds of requests without one are drawn, by arrival; absent: from the system.
  std::optional<uint64_t> random_seed = {};
};

// What happens to requests in flight when weights change (DESIGN, promise 4).
enum class InFlight {
  kRetract,  // KV dropped and recomputed under the new weights; tokens so far are kept.
  kDrain,    // The swap waits until all have finished; new ones are held.
  kAbort,    // Partial outputs are returned.
  kInPlace,  // KV kept: a mixed context; its pages never enter the prefix cache.
};

enum class PauseMode { kAbort, kRetract, kInPlace };

// Parts of the memory that can be given back to the system and taken again (docs/api.md).
struct MemoryParts {
  bool kv_cache = false;
  bool weights = false;
};

// Requests are held unless the weights are live. A swap makes them so, whatever they were.
enum class WeightState {
  kLive,
  kReleased,  // Their memory was given back.
  kVoid,      // Nobody's policy: resumed without content, or overwritten by a check.
  kPoisoned,  // Lost in an update in place that was given up. New requests are refused.
};
std::string_view WeightStateName(WeightState state);  // "live", "released", "void", "poisoned".

struct SwapReport {
  int64_t in_flight = 0;  // Requests that had been started when the swap happened.
  int64_t retracted = 0;
  int64_t aborted = 0;    // Those whose demand the new version does not meet included.
  double pause_ms = 0.0;  // From the last step under old weights to the first under new ones.
};

// Figures for /v1/loads, /server_info and metrics; a consistent snapshot.
struct EngineStats {
  int64_t num_running = 0;
  int64_t num_queued = 0;
  int64_t num_paused = 0;     // Held: the engine is paused, or its memory is released.
  int64_t num_retracted = 0;  // Of the queued ones, those that ran before.
  int64_t used_tokens = 0;
  int64_t max_total_tokens = 0;
  int64_t num_pages = 0;         // Of the KV pool.
  int64_t num_free_pages = 0;    // Neither held by a sequence nor cached.
  int64_t num_cached_pages = 0;  // In the prefix cache, whether a sequence holds them or not.
  int64_t max_running_requests = 0;
  int64_t context_length = 0;
  int64_t prompt_tokens_total = 0;
  int64_t cached_tokens_total = 0;
  int64_t stale_cached_tokens_total = 0;  // Of those, computed under earlier weights.
  int64_t computed_tokens_total = 0;      // Rows of all forward passes.
  int64_t generated_tokens_total = 0;
  int64_t num_requests_total = 0;
  int64_t num_cache_hits_total = 0;  // Requests that the prefix cache served a token to.
  int64_t num_aborted_total = 0;
  int64_t num_version_conflicts_total = 0;  // FinishType::kVersionConflict; not among the aborted.
  int64_t num_failed_total = 0;
  int64_t num_retractions_total = 0;
  InputRanges nvfp4_inputs_total;
  double gen_tokens_per_s = 0.0;  // Over the last few seconds.
  double heartbeat_age_s = 0.0;   // Since the engine thread last looked at its mailbox.
  bool paused = false;
  bool kv_released = false;
  WeightState weight_state = WeightState::kLive;
  bool returns_routed_experts = false;
  std::string weight_version;
  std::optional<Hash128> weight_digest;  // ModelWeights::digest of the live ones.
};

// All public methods are thread-safe: each posts a message. Callbacks run on the engine thread.
class Engine {
 public:
  // `weights` become version `weight_version`. Starts the thread.
  static Result<std::unique_ptr<Engine>> Start(std::unique_ptr<Backend> backend,
                                               const ModelSpec& spec,
                                               std::unique_ptr<ModelWeights> weights,
                                               const std::vector<int32_t>& eos_token_ids,
                                               const std::string& weight_version,
                                               const EngineOptions& options);
  // For Start alone: an Impl is made nowhere else.
  class Impl;
  explicit Engine(std::unique_ptr<Impl> impl);
  // Stops at the next step boundary; requests still in flight get finish type kAbort.
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Checks everything that can be refused without running (docs/api.md: ids, lengths, pool).
  // Thread-safe, immediate.
  Status Validate(const Request& request) const;
  // Queues a request. Every accepted request gets exactly one output with finish.type != kNone.
  // Errors: those of Validate; kInvalidArgument for an rid in flight; kUnavailable when the queue
  // is full, the weights are poisoned or the engine stops.
  Status Submit(Request request);

  // Aborts the request with exactly this rid; returns at once; nothing happens when there is none.
  void Abort(const std::string& rid);
  void AbortAll();

  // Pause, Continue: docs/api.md. `done` runs when the state that the mode promises holds.
  void Pause(PauseMode mode, std::function<void()> done);
  void Continue(std::function<void()> done);
  // Drops the prefix cache. Succeeds iff no request holds pages and (paused or the queue is empty);
  // else kUnavailable, at once or after waiting up to `timeout_s`.
  void Flush(double timeout_s, std::function<void(Status)> done);

  // Swaps the weights at a step boundary, as `in_flight` says. `done` gets the report and the old
  // weights, so that their memory can be reused.
  void SwapWeights(std::unique_ptr<ModelWeights> weights, const std::string& version,
                   InFlight in_flight,
                   std::function<void(SwapReport, std::unique_ptr<ModelWeights>)> done);
  // Puts weights that are nobody's policy in place of what is there, for a check of updates: their
  // state is kVoid. Needs what Flush needs, else kUnavailable. `done` gets the old ones.
  void VoidWeights(std::unique_ptr<ModelWeights> weights,
                   std::function<void(Result<std::unique_ptr<ModelWeights>>)> done);

  // Gives memory back to the system; requests are held from then on. Parts that are released are
  // passed over; if one is left, it needs what Flush needs, else kUnavailable and nothing changes.
  // Without its KV cache the engine has no prefix cache either. `done` gets the weights, if they
  // were asked for (null if not): their memory is his to give back.
  void ReleaseMemory(MemoryParts parts,
                     std::function<void(Result<std::unique_ptr<ModelWeights>>)> done);
  // Takes released memory again; weights come back as kVoid. Requests go on when both parts are
  // there and nobody has paused. Errors: kExhausted; then nothing has changed.
  void ResumeMemory(MemoryParts parts, std::function<void(Status)> done);

  // Of released weights: they will not come back as they were.
  void PoisonWeights(std::function<void()> done);

  // Relabels the live weights; ends nothing but requests that demand another version.
  void SetWeightVersion(const std::string& version, std::function<void()> done);

  // Runs `fn` between two steps on the engine thread, for example to read a digest from the live
  // weights. Serving waits for it. Released weights have no matrices.
  void RunBetweenSteps(std::function<void(const ModelWeights& live, Backend& backend)> fn);

  EngineStats Stats() const;
  EngineLatencies Latencies() const;
  const ModelSpec& spec() const;
  // Finishes what is in flight and queued, refuses new requests, then calls `done`.
  void Drain(std::function<void()> done);

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace octavo
