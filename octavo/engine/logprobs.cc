#include "octavo/engine/logprobs.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "octavo/engine/request.h"
#include "octavo/engine/sampler.h"

namespace octavo {

std::vector<TokenLogprob> TopLogprobs(const LogprobRow& row, int64_t count,
                                      SamplerScratch* scratch) {
  CollectCandidates(row.row, row.block_max, LogitReachedBy(count, row.block_max, scratch), scratch);
  std::vector<SamplerScratch::Candidate>& candidates = scratch->candidates;
  const auto num_kept =
      static_cast<size_t>(std::min(count, static_cast<int64_t>(candidates.size())));
  const auto better = [](const auto& a, const auto& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
  };
  std::partial_sort(candidates.begin(), candidates.begin() + static_cast<std::ptrdiff_t>(num_kept),
                    candidates.end(), better);
  std::vector<TokenLogprob> top;
  top.reserve(num_kept);
  for (size_t i = 0; i < num_kept; ++i) {
    top.push_back({.logprob = row.At(candidates[i].id), .id = candidates[i].id});
  }
  return top;
}

std::vector<TokenLogprob> LogprobsOf(const LogprobRow& row, std::span<const int32_t> ids) {
  std::vector<TokenLogprob> entries;
  entries.reserve(ids.size());
  for (const int32_t id : ids) {
    entries.push_back({.logprob = row.At(id), .id = id});
  }
  return entries;
}

}  // namespace octavo
