#include "octavo/engine/sampler.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <span>

#include "octavo/base/check.h"
#include "octavo/base/random.h"
#include "octavo/engine/request.h"
#include "octavo/engine/row_scan.h"
#include "octavo/kernels/math.h"

namespace octavo {
namespace {

using Candidate = SamplerScratch::Candidate;

// Heap order: the top is the largest logit, and among equals the smallest id. A strict total
// order, so every correct heap pops the same sequence.
bool Worse(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit < b.logit : a.id > b.id;
}

bool HasPenalties(const SamplingParams& params) {
  return params.frequency_penalty != 0.0F || params.presence_penalty != 0.0F ||
         params.repetition_penalty != 1.0F;
}
bool MasksStops(const TransformArgs& args) {
  return static_cast<int64_t>(args.generated.size()) < args.params->min_new_tokens;
}
bool DividesByTemperature(const SamplingParams& params) {
  return !IsGreedy(params) && params.temperature != 1.0F;
}

void ApplyPenalties(const TransformArgs& args, std::span<float> row, std::span<int32_t> counts) {
  const SamplingParams& params = *args.params;
  for (const int32_t id : args.generated) {
    ++counts[static_cast<size_t>(id)];
  }
  for (const int32_t id : args.generated) {
    const int32_t count = counts[static_cast<size_t>(id)];
    if (count == 0) {
      continue;  // Seen earlier in this loop.
    }
    float& x = row[static_cast<size_t>(id)];
    x -= params.frequency_penalty * static_cast<float>(count);
    x -= params.presence_penalty;
    x = x < 0.0F ? x * params.repetition_penalty : x / params.repetition_penalty;
    counts[static_cast<size_t>(id)] = 0;
  }
}

void MaskStops(const TransformArgs& args, std::span<float> row) {
  for (const int32_t id : args.eos_token_ids) {
    if (static_cast<size_t>(id) < row.size()) {
      row[static_cast<size_t>(id)] = kMaskedLogit;
    }
  }
  for (const int32_t id : args.params->stop_token_ids) {
    row[static_cast<size_t>(id)] = kMaskedLogit;
  }
}

double Total(std::span<const double> block_sum) {
  double sum = 0.0;
  for (const double block : block_sum) {
    sum += block;
  }
  return sum;
}

// Draws an id by inverse CDF: first the block, then the value in it.
int32_t SampleUnfiltered(const SampleArgs& args, double uniform) {
  const std::span<const double> sums = args.stats.block_sum;
  const double target = uniform * Total(sums);
  double sum = 0.0;
  size_t block = 0;
  size_t chosen = 0;  // The last block with any weight: target may have been rounded up.
  double before = 0.0;
  for (; block < sums.size() && sum <= target; ++block) {
    if (sums[block] > 0.0) {
      chosen = block;
      before = sum;
      sum += sums[block];
    }
  }
  const size_t begin = chosen * static_cast<size_t>(kScanBlock);
  const size_t end = std::min(begin + static_cast<size_t>(kScanBlock), args.row.size());
  size_t last_possible = begin;
  for (size_t i = begin; i < end; ++i) {
    const float weight = ExpF32(args.row[i] - args.stats.max);
    if (weight > 0.0F) {
      before += static_cast<double>(weight);
      last_possible = i;
      if (before > target) {
        break;
      }
    }
  }
  return static_cast<int32_t>(last_possible);
}

int32_t FirstOfMax(const SampleArgs& args) {
  const auto block = std::ranges::find(args.stats.block_max, args.stats.max);
  CHECK(block != args.stats.block_max.end());
  const auto begin = (block - args.stats.block_max.begin()) * kScanBlock;
  const auto best = std::find(args.row.begin() + begin, args.row.end(), args.stats.max);
  CHECK(best != args.row.end());
  return static_cast<int32_t>(best - args.row.begin());
}

// Candidates in order, best first, sorted only as far as anybody looks.
class BestFirst {
 public:
  explicit BestFirst(std::span<Candidate> candidates) : candidates_(candidates) {
    std::ranges::make_heap(candidates_, Worse);
  }

  size_t size() const { return candidates_.size(); }
  const Candidate& At(size_t rank) {
    for (; num_sorted_ <= rank; ++num_sorted_) {
      std::pop_heap(candidates_.begin(),
                    candidates_.end() - static_cast<std::ptrdiff_t>(num_sorted_), Worse);
    }
    return candidates_[candidates_.size() - 1 - rank];
  }

 private:
  std::span<Candidate> candidates_;
  size_t num_sorted_ = 0;
};

// How many of the best candidates pass top-k, top-p and min-p; at least 1. Without min_p, top_k
// and top_p both look at the unfiltered distribution; with it, top_p looks at what top_k left,
// renormalised (docs/api.md).
struct Kept {
  size_t count = 0;
  double mass = 0.0;         // Their weights' sum.
  bool is_complete = false;  // No candidate beyond those collected could pass.
};
// `total`: the weight of the whole row. `has_all`: the candidates are the whole row.
Kept CountKept(const SamplingParams& params, double total, bool has_all, BestFirst* best) {
  constexpr size_t kAll = std::numeric_limits<size_t>::max();
  const size_t top_k = params.top_k < 0 ? kAll : static_cast<size_t>(params.top_k);
  const size_t max_count = std::min(best->size(), top_k);
  double whole = total;
  if (params.min_p > 0.0F && top_k != kAll) {
    whole = 0.0;
    for (size_t rank = 0; rank < max_count; ++rank) {
      whole += static_cast<double>(best->At(rank).weight);
    }
  }
  // Nucleus: the smallest run of best candidates whose mass reaches top_p.
  const double limit = params.top_p < 1.0F ? static_cast<double>(params.top_p) * whole
                                           : std::numeric_limits<double>::infinity();
  const float weight_min = params.min_p * best->At(0).weight;
  Kept kept;
  while (kept.count < max_count && kept.mass < limit) {
    const float weight = best->At(kept.count).weight;
    if (weight < weight_min || weight == 0.0F) {
      break;
    }
    kept.mass += static_cast<double>(weight);
    ++kept.count;
  }
  // The candidates ran out before a filter said stop: a further one might pass. Without all of
  // top_k, `whole` is too small.
  const bool ran_out = kept.count == best->size() && kept.mass < limit;
  const bool lacks_top_k = top_k != kAll && best->size() < top_k;
  kept.is_complete = has_all || !(ran_out || lacks_top_k);
  return kept;
}

// Draws among the candidates that the filters keep. Candidates are collected from the top, in
// widening rounds: trained models put nearly all mass on few tokens.
int32_t SampleFiltered(const SampleArgs& args, double uniform, SamplerScratch* scratch) {
  constexpr float kLowest = -std::numeric_limits<float>::infinity();
  constexpr std::array<float, 5> kDepths = {3.0F, 6.0F, 10.0F, 16.0F, -kLowest};
  const double total = Total(args.stats.block_sum);
  // Nothing below this logit passes top_k.
  const float top_k_logit = args.params->top_k < 0
                                ? kLowest
                                : LogitReachedBy(args.params->top_k, args.stats.block_max, scratch);
  const bool knows_top_k = top_k_logit > kLowest;
  for (const float depth : kDepths) {
    const float logit_min = knows_top_k ? top_k_logit : args.stats.max - depth;
    CollectCandidates(args.row, args.stats.block_max, logit_min, scratch);
    for (Candidate& candidate : scratch->candidates) {
      candidate.weight = ExpF32(candidate.logit - args.stats.max);
    }
    const bool has_all = knows_top_k || scratch->candidates.size() == args.row.size();
    BestFirst best(scratch->candidates);
    const Kept kept = CountKept(*args.params, total, has_all, &best);
    if (!kept.is_complete) {
      continue;
    }
    const double target = uniform * kept.mass;
    double sum = 0.0;
    for (size_t rank = 0; rank < kept.count; ++rank) {
      sum += static_cast<double>(best.At(rank).weight);
      if (sum > target) {
        return best.At(rank).id;
      }
    }
    return best.At(kept.count - 1).id;  // target was rounded up to the mass.
  }
  CHECK(false);  // The last round collects everything.
  return 0;
}

}  // namespace

SamplerScratch::SamplerScratch(int64_t vocab_size)
    : counts(static_cast<size_t>(vocab_size), 0),
      block_max(static_cast<size_t>(NumScanBlocks(vocab_size))),
      block_sum(block_max.size()) {
  candidates.reserve(static_cast<size_t>(vocab_size));
  largest.reserve(block_max.size());
}

float LogitReachedBy(int64_t count, std::span<const float> block_max, SamplerScratch* scratch) {
  if (count > static_cast<int64_t>(block_max.size())) {
    return -std::numeric_limits<float>::infinity();
  }
  scratch->largest.assign(block_max.begin(), block_max.end());
  const auto place = scratch->largest.begin() + (count - 1);
  std::ranges::nth_element(scratch->largest, place, std::greater<>());
  return *place;
}

void CollectCandidates(std::span<const float> row, std::span<const float> block_max,
                       float logit_min, SamplerScratch* scratch) {
  scratch->candidates.clear();
  for (size_t block = 0; block < block_max.size(); ++block) {
    if (block_max[block] < logit_min) {
      continue;
    }
    const size_t begin = block * static_cast<size_t>(kScanBlock);
    const size_t end = std::min(begin + static_cast<size_t>(kScanBlock), row.size());
    for (size_t id = begin; id < end; ++id) {
      if (row[id] >= logit_min) {
        scratch->candidates.push_back(
            {.logit = row[id], .weight = 0.0F, .id = static_cast<int32_t>(id)});
      }
    }
  }
}

bool ChangesLogits(const TransformArgs& args) {
  const SamplingParams& params = *args.params;
  return HasPenalties(params) || !params.logit_bias.empty() || MasksStops(args) ||
         DividesByTemperature(params);
}

void TransformLogits(const TransformArgs& args, std::span<float> row, SamplerScratch* scratch) {
  const SamplingParams& params = *args.params;
  if (HasPenalties(params)) {
    ApplyPenalties(args, row, scratch->counts);
  }
  for (const auto& [id, bias] : params.logit_bias) {
    row[static_cast<size_t>(id)] += bias;
  }
  if (MasksStops(args)) {
    MaskStops(args, row);
  }
  if (DividesByTemperature(params)) {
    DivideRow(row, params.temperature);
  }
}

bool DrawsFromWeights(const SamplingParams& params) {
  return !IsGreedy(params) && params.top_k != 1;
}

int32_t SampleToken(const SampleArgs& args, SamplerScratch* scratch) {
  const SamplingParams& params = *args.params;
  if (!DrawsFromWeights(params)) {
    return FirstOfMax(args);
  }
  const double uniform = UniformDraw(args.seed, args.position);
  if (params.top_k < 0 && params.top_p >= 1.0F && params.min_p <= 0.0F) {
    return SampleUnfiltered(args, uniform);
  }
  return SampleFiltered(args, uniform, scratch);
}

double UniformDraw(uint64_t seed, int64_t position) {
  const std::array<uint32_t, 4> words = Philox(seed, static_cast<uint64_t>(position));
  const uint64_t bits = (uint64_t{words[0]} << 21) | (words[1] >> 11);
  return static_cast<double>(bits) * 0x1p-53;
}

}  // namespace octavo
