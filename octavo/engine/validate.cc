#include "octavo/engine/validate.h"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string_view>

#include "octavo/base/status.h"
#include "octavo/engine/request.h"
#include "octavo/engine/version_demand.h"

namespace octavo {
namespace {

Status CheckIds(std::string_view field, std::span<const int32_t> ids, int64_t vocab_size) {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= vocab_size) {
      return InvalidArgument("{}[{}]: expected a token id in [0, {}), got {}", field, i, vocab_size,
                             ids[i]);
    }
  }
  return OkStatus();
}

// An interval of allowed values; NaN is in none.
struct Range {
  std::string_view field;
  double value;
  double low;
  double high;
  bool open_low = false;  // low itself is refused.
};

Status CheckRange(const Range& range) {
  const bool above = range.open_low ? range.value > range.low : range.value >= range.low;
  if (above && range.value <= range.high) {
    return OkStatus();
  }
  return InvalidArgument("{}: expected a value in {}{}, {}], got {}", range.field,
                         range.open_low ? "(" : "[", range.low, range.high, range.value);
}

Status CheckSampling(const SamplingParams& params, int64_t vocab_size) {
  constexpr double kMaxFloat = std::numeric_limits<float>::max();
  const Range ranges[] = {
      {.field = "temperature", .value = params.temperature, .low = 0.0, .high = kMaxFloat},
      {.field = "top_p", .value = params.top_p, .low = 0.0, .high = 1.0, .open_low = true},
      {.field = "min_p", .value = params.min_p, .low = 0.0, .high = 1.0},
      {.field = "frequency_penalty", .value = params.frequency_penalty, .low = -2.0, .high = 2.0},
      {.field = "presence_penalty", .value = params.presence_penalty, .low = -2.0, .high = 2.0},
      {.field = "repetition_penalty",
       .value = params.repetition_penalty,
       .low = 0.0,
       .high = 2.0,
       .open_low = true},
  };
  for (const Range& range : ranges) {
    RETURN_IF_ERROR(CheckRange(range));
  }
  if (params.top_k != -1 && params.top_k < 1) {
    return InvalidArgument("top_k: expected -1 or at least 1, got {}", params.top_k);
  }
  if (params.max_new_tokens < 0) {
    return InvalidArgument("max_new_tokens: expected at least 0, got {}", params.max_new_tokens);
  }
  if (params.min_new_tokens < 0 || params.min_new_tokens > params.max_new_tokens) {
    return InvalidArgument("min_new_tokens: expected a value in [0, max_new_tokens = {}], got {}",
                           params.max_new_tokens, params.min_new_tokens);
  }
  RETURN_IF_ERROR(CheckIds("stop_token_ids", params.stop_token_ids, vocab_size));
  for (const auto& [id, bias] : params.logit_bias) {
    if (id < 0 || id >= vocab_size) {
      return InvalidArgument("logit_bias: expected a token id in [0, {}), got {}", vocab_size, id);
    }
    if (!std::isfinite(bias)) {
      return InvalidArgument("logit_bias of token {}: expected a finite number, got {}", id, bias);
    }
  }
  return OkStatus();
}

Status CheckLengths(const Request& request, const RequestLimits& limits) {
  const auto prompt = static_cast<int64_t>(request.input_ids.size());
  const int64_t budget = request.sampling.max_new_tokens;
  if (prompt == 0) {
    return InvalidArgument("input_ids: expected at least one token, got none");
  }
  if (prompt >= limits.context_length) {
    return InvalidArgument("input_ids: expected fewer than {} tokens (context length), got {}",
                           limits.context_length, prompt);
  }
  if (budget > limits.context_length - prompt) {
    return InvalidArgument(
        "max_new_tokens: expected at most {} (context length {} less {} prompt tokens), got {}",
        limits.context_length - prompt, limits.context_length, prompt, budget);
  }
  if (budget > limits.max_total_tokens - prompt) {
    return InvalidArgument(
        "prompt and max_new_tokens: expected at most {} tokens (KV pool), got {} + {}",
        limits.max_total_tokens, prompt, budget);
  }
  return OkStatus();
}

}  // namespace

Status ValidateRequest(const Request& request, const RequestLimits& limits) {
  if (request.rid.empty()) {
    return InvalidArgument("rid: expected text, got none");
  }
  RETURN_IF_ERROR(CheckSampling(request.sampling, limits.vocab_size));
  RETURN_IF_ERROR(CheckLengths(request, limits));
  RETURN_IF_ERROR(CheckIds("input_ids", request.input_ids, limits.vocab_size));
  RETURN_IF_ERROR(CheckIds("token_ids_logprob", request.token_ids_logprob, limits.vocab_size));
  const auto prompt = static_cast<int64_t>(request.input_ids.size());
  if (request.logprob_start_len < -1 || request.logprob_start_len > prompt) {
    return InvalidArgument("logprob_start_len: expected a value in [-1, {} prompt tokens], got {}",
                           prompt, request.logprob_start_len);
  }
  if (request.return_routed_experts && !limits.has_routed_experts) {
    return InvalidArgument(
        "return_routed_experts: expected a mixture of experts whose server returns them "
        "(--enable-return-routed-experts)");
  }
  if (request.routed_experts_start_len < 0 || request.routed_experts_start_len > prompt) {
    return InvalidArgument(
        "routed_experts_start_len: expected a value in [0, {} prompt tokens], got {}", prompt,
        request.routed_experts_start_len);
  }
  if (request.top_logprobs_num < 0 || request.top_logprobs_num > limits.vocab_size) {
    return InvalidArgument("top_logprobs_num: expected a value in [0, {} (vocabulary)], got {}",
                           limits.vocab_size, request.top_logprobs_num);
  }
  if (const int64_t stale = request.stale_prefix_versions.value_or(0);
      stale < 0 || stale > limits.stale_prefix_versions) {
    return InvalidArgument(
        "stale_prefix_versions: expected a value in [0, {}] (--stale-prefix-versions), got {}",
        limits.stale_prefix_versions, stale);
  }
  if (request.version_demand.kind == VersionDemand::Kind::kMinimum &&
      !VersionNumber(request.version_demand.version).has_value()) {
    return InvalidArgument("min_weight_version: expected a decimal number below 2^64, got {}",
                           request.version_demand.version);
  }
  if (request.stream_interval < 1) {
    return InvalidArgument("stream_interval: expected at least 1, got {}", request.stream_interval);
  }
  return OkStatus();
}

}  // namespace octavo
