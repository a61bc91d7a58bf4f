#pragma once
// Logprobs of one row of logits, from its softmax statistics:
//   logprob[i] = (x[i] - max) - LogF32(sum),  sum = sum_i ExpF32(x[i] - max)
// No exp is ever taken of the result's argument, so nothing underflows to -inf.

#include <cstdint>
#include <span>
#include <vector>

#include "octavo/engine/request.h"
#include "octavo/engine/sampler.h"

namespace octavo {

// Logprobs are never below this (docs/api.md: never a non-finite number).
inline constexpr float kMinLogprob = -1e30F;

// A view of a row and its statistics; the row must outlive it.
struct LogprobRow {
  std::span<const float> row;  // [vocab]
  float max = 0.0F;
  float log_sum = 0.0F;                   // LogF32(sum)
  std::span<const float> block_max = {};  // row_scan.h; for TopLogprobs.

  float At(int32_t id) const {
    const float logprob = (row[static_cast<size_t>(id)] - max) - log_sum;
    return logprob > kMinLogprob ? logprob : kMinLogprob;
  }
};

// The `count` best entries (all, if the vocabulary is smaller), highest first, ties by id.
std::vector<TokenLogprob> TopLogprobs(const LogprobRow& row, int64_t count,
                                      SamplerScratch* scratch);
// The entries of `ids`, in their order.
std::vector<TokenLogprob> LogprobsOf(const LogprobRow& row, std::span<const int32_t> ids);

}  // namespace octavo
