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

// What a pass over a transformed row found (row_scan.h). A view: of scratch memory, as a rule.
struct RowStats {
  float max = 0.0F;
  float sum = 0.0F;  // Of ExpF32(x - max); SoftmaxStatsArgs has the order.
  std::span<const float> block_max = {};
  std::span<const double> block_sum = {};  // Empty with sum 0: nobody asked.
};

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
  std::vector<int32_t> counts;        // [vocab], zero between calls.
  std::vector<float> block_max;       // [blocks]
  std::vector<double> block_sum;      // [blocks]
  std::vector<float> largest;         // capacity blocks
};

// What a row is transformed by.
struct TransformArgs {
  const SamplingParams* params = nullptr;
  std::span<const int32_t> generated;      // Output tokens so far.
  std::span<const int32_t> eos_token_ids;  // Of the model.
};

// Whether TransformLogits does anything at all.
bool ChangesLogits(const TransformArgs& args);
// Rewrites `row` [vocab] in place:
//   x -= frequency_penalty * count + presence_penalty   for generated ids
//   x = x < 0 ? x * repetition_penalty : x / repetition_penalty   for generated ids
//   x += bias;  x = kMaskedLogit for EOS and stop ids below min_new_tokens
//   x = x / temperature unless greedy
// Source of the order of penalties and of "generated only": SGLang's sampling penalties.
void TransformLogits(const TransformArgs& args, std::span<float> row, SamplerScratch* scratch);

// Whether SampleToken needs stats.sum and stats.block_sum.
bool DrawsFromWeights(const SamplingParams& params);

// Draws from a transformed row. Ties and candidate order: larger logit first, then smaller id.
// Without filters the draw runs over ids ascending: sums of blocks in FP64 first, then the values
// of one block. `stats` may lie in `scratch`.
struct SampleArgs {
  const SamplingParams* params = nullptr;
  uint64_t seed = 0;
  int64_t position = 0;        // Of the token to be drawn, counted from the prompt's start.
  std::span<const float> row;  // [vocab]
  RowStats stats;
};
int32_t SampleToken(const SampleArgs& args, SamplerScratch* scratch);

// Fills scratch->candidates with every value of the row that is at least `logit_min`, ascending by
// id, without weights.
void CollectCandidates(std::span<const float> row, std::span<const float> block_max,
                       float logit_min, SamplerScratch* scratch);
// A logit that at least `count` values of the row reach: the count-th largest maximum of a block;
// -inf when there are not so many blocks.
float LogitReachedBy(int64_t count, std::span<const float> block_max, SamplerScratch* scratch);

// Uniform in [0, 1) with 53 bits, from words 0 and 1 of Philox(seed, position).
double UniformDraw(uint64_t seed, int64_t position);

}  // namespace octavo
