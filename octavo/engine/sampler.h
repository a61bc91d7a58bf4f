#pragma once
// Sampler: from a row of logits to a token.
//
// Order (docs/api.md): penalties, logit bias, mask of stop ids below min_new_tokens, division
// by the temperature -> the row whose log-softmax is the reported logprob -> top-k, top-p, min-p
// -> one draw. Every sum has a fixed order and the draw is a pure function of (seed, position), so
// the same request gives the same tokens wherever it runs.

#include <cstdint>
#include <span>
#include <vector>

#include "octavo/engine/request.h"

namespace octavo {

// Below this temperature a request is greedy: the largest logit wins, and logprobs are those of
// temperature 1.
inline constexpr float kGreedyTemperature = 1e-6F;
// What stands for "impossible": finite, so that no arithmetic on it gives a NaN.
inline constexpr float kMaskedLogit = -1e30F;

inline bool IsGreedy(const SamplingParams& params) {
  return params.temperature < kGreedyTemperature;
}

// Working memory of one thread, for one vocabulary.
class SamplerScratch {
 public:
  struct Candidate {
    float logit = 0.0F;
    float weight = 0.0F;  // ExpF32(logit - max); unused by logprobs.
    int32_t id = 0;
  };

  explicit SamplerScratch(int64_t vocab_size);

  std::vector<Candidate> candidates;  // capacity vocab
  std::vector<float> weights;         // [vocab]
  std::vector<int32_t> counts;        // [vocab], zero between calls.
};

// What a row is transformed by.
struct TransformArgs {
  const SamplingParams* params = nullptr;
  std::span<const int32_t> generated;      // Output tokens so far.
  std::span<const int32_t> eos_token_ids;  // Of the model.
};

// Rewrites `row` [vocab] in place:
//   x -= frequency_penalty * count + presence_penalty   for generated ids
//   x = x < 0 ? x * repetition_penalty : x / repetition_penalty   for generated ids
//   x += bias;  x = kMaskedLogit for EOS and stop ids below min_new_tokens
//   x = x / temperature unless greedy
// Source of the order of penalties and of "generated only": SGLang's sampling penalties.
void TransformLogits(const TransformArgs& args, std::span<float> row, SamplerScratch* scratch);

// Draws from a transformed row whose largest value is `max`. Ties and candidate order: larger
// logit first, then smaller id. Without filters the draw runs over ids ascending.
struct SampleArgs {
  const SamplingParams* params = nullptr;
  uint64_t seed = 0;
  int64_t position = 0;        // Of the token to be drawn, counted from the prompt's start.
  std::span<const float> row;  // [vocab]
  float max = 0.0F;
};
int32_t SampleToken(const SampleArgs& args, SamplerScratch* scratch);

// Uniform in [0, 1) with 53 bits, from words 0 and 1 of Philox(seed, position).
double UniformDraw(uint64_t seed, int64_t position);

}  // namespace octavo
