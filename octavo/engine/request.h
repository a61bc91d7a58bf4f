#pragma once
// What a client asks of the engine for one sequence, and what comes back. Ids only: text, stop
// strings included, belongs to the caller (StopMatcher).

#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/hash.h"
#include "octavo/base/status.h"
#include "octavo/engine/version_demand.h"

namespace octavo {

// Defaults are those of SGLang's sampling_params (docs/api.md). Checked by ValidateRequest.
struct SamplingParams {
  int64_t max_new_tokens = 128;
  int64_t min_new_tokens = 0;
  float temperature = 1.0F;  // Below 1e-6: greedy.
  float top_p = 1.0F;
  int64_t top_k = -1;  // -1: all.
  float min_p = 0.0F;
  float frequency_penalty = 0.0F;
  float presence_penalty = 0.0F;
  float repetition_penalty = 1.0F;
  bool ignore_eos = false;  // Also turns off stop_token_ids.
  std::vector<int32_t> stop_token_ids;
  std::vector<std::pair<int32_t, float>> logit_bias;
  std::optional<int64_t> seed;  // Drawn by the engine when absent; reported either way.
};

// Watches the output for stop strings. Called on the engine thread after each token that neither
// spent the budget nor matched a stop id; returns the string that matched.
class StopMatcher {
 public:
  virtual ~StopMatcher() = default;
  virtual std::optional<std::string> OnToken(int32_t id) = 0;
};

struct TokenLogprob {
  float logprob = 0.0F;
  int32_t id = 0;
};

enum class FinishType {
  kNone,
  kStopToken,
  kStopString,
  kLength,
  kAbort,
  kVersionConflict,  // The live weights are not, or no longer, those that the request demands.
  kError,
};

struct FinishReason {
  FinishType type = FinishType::kNone;
  int32_t matched_token = 0;        // kStopToken.
  std::string matched_string = {};  // kStopString.
  std::string message = {};         // kAbort, kVersionConflict, kError.
};

// A run of output tokens sampled with one weight version.
struct VersionSpan {
  std::string version;
  int64_t num_tokens = 0;
  std::optional<Hash128> digest = {};  // ModelWeights::digest.
};

// A snapshot of one request, built on the engine thread. Output lists hold what is new since the
// previous snapshot delivered to the same sink; the sink accumulates.
struct RequestOutput {
  std::string rid;
  std::vector<int32_t> new_ids;
  std::vector<TokenLogprob> new_logprobs;                   // One each id, if asked for.
  std::vector<std::vector<TokenLogprob>> new_top_logprobs;  // If top_logprobs_num > 0.
  std::vector<std::vector<TokenLogprob>> new_ids_logprobs;  // If token_ids_logprob is set.
  // Filled once, in the first snapshot after the prompt was scored: prompt positions
  // logprob_start_len..prompt-1; the first logprob is absent (NaN is never stored).
  std::vector<std::pair<std::optional<float>, int32_t>> input_logprobs;
  std::vector<std::vector<TokenLogprob>> input_top_logprobs;  // First entry empty.
  std::vector<std::vector<TokenLogprob>> input_ids_logprobs;
  // In the last output, if asked for: the experts of positions routed_experts_start_len ..
  // prompt_tokens + completion_tokens - 2 (the last token is never fed), [rows, layers, top_k];
  // fewer rows when the request was aborted before so many were computed.
  std::vector<int32_t> routed_experts;
  FinishReason finish;  // type kNone while it runs.

  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;
  int64_t cached_tokens = 0;
  int64_t cached_tokens_stale = 0;  // Of those, computed under earlier weights.
  int64_t num_retractions = 0;
  int64_t seed = 0;
  std::vector<VersionSpan> versions;     // Whole output so far, run-length encoded, in order.
  std::string weight_version;            // Of the last token, or of the engine when there is none.
  std::optional<Hash128> weight_digest;  // Likewise.
  // A token was sampled over KV of other weights than its own: InFlight::kInPlace, or a stale
  // prefix.
  bool mixed_context = false;
  double queue_seconds = 0.0;
  double e2e_seconds = 0.0;
};

// Receives progress on the engine thread; must be quick and must not block.
class RequestSink {
 public:
  virtual ~RequestSink() = default;
  virtual void OnOutput(RequestOutput output) = 0;
};

struct Request {
  std::string rid;
  std::vector<int32_t> input_ids;
  SamplingParams sampling;
  bool return_logprob = false;
  int64_t logprob_start_len = -1;  // -1: output only.
  int64_t top_logprobs_num = 0;
  std::vector<int32_t> token_ids_logprob;
  bool return_routed_experts = false;
  int64_t routed_experts_start_len = 0;  // First position whose experts are wanted.
  bool stream = false;  // Snapshot after every stream_interval tokens; else only the last.
  int64_t stream_interval = 1;
  std::string extra_key;  // Separates prefix-cache entries.
  VersionDemand version_demand;
  // How many versions a cached prefix may lie behind; absent: EngineOptions::stale_prefix_versions,
  // which is also the most. Without effect, for it would break what they promise, on requests that
  // demand a version, that score their prompt, or that were retracted.
  std::optional<int64_t> stale_prefix_versions = {};
  std::unique_ptr<StopMatcher> stop_matcher;  // May be null.
  std::shared_ptr<RequestSink> sink;
};

}  // namespace octavo
