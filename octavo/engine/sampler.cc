#include "octavo/engine/sampler.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include "octavo/base/check.h"
#include "octavo/base/random.h"
#include "octavo/engine/exp_row.h"
#include "octavo/engine/request.h"

namespace octavo {
namespace {

using Candidate = SamplerScratch::Candidate;

// Heap order: the top is the largest logit, and among equals the smallest id. A strict total
// order, so every correct heap pops the same sequence.
bool Worse(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit < b.logit : a.id > b.id;
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

// Draws an index from `weights` (not all zero) by inverse CDF, summing in order in FP64.
size_t DrawIndex(std::span<const float> weights, double total, double uniform) {
  const double target = uniform * total;
  double sum = 0.0;
  size_t last_possible = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    if (weights[i] > 0.0F) {
      sum += static_cast<double>(weights[i]);
      last_possible = i;
      if (sum > target) {
        return i;
      }
    }
  }
  return last_possible;  // target was rounded up to total.
}

double Sum(std::span<const float> weights) {
  double sum = 0.0;
  for (const float weight : weights) {
    sum += static_cast<double>(weight);
  }
  return sum;
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

// How many of the best candidates pass top-k, top-p and min-p; at least 1. `total` is the weight
// of all candidates. Without min_p, top_k and top_p both look at the unfiltered distribution; with
// it, top_p looks at what top_k left, renormalised (docs/api.md).
size_t CountKept(const SamplingParams& params, double total, BestFirst* best) {
  const size_t max_count =
      params.top_k < 0 ? best->size() : std::min(best->size(), static_cast<size_t>(params.top_k));
  double mass = total;
  if (params.min_p > 0.0F && max_count < best->size()) {
    mass = 0.0;
    for (size_t rank = 0; rank < max_count; ++rank) {
      mass += static_cast<double>(best->At(rank).weight);
    }
  }
  // Nucleus: the smallest run of best candidates whose mass reaches top_p.
  const double limit = params.top_p < 1.0F ? static_cast<double>(params.top_p) * mass
                                           : std::numeric_limits<double>::infinity();
  const float weight_min = params.min_p * best->At(0).weight;
  double sum = 0.0;
  size_t count = 0;
  while (count < max_count && sum < limit) {
    const float weight = best->At(count).weight;
    if (weight < weight_min) {
      break;
    }
    sum += static_cast<double>(weight);
    ++count;
  }
  return count;
}

// Draws among the candidates that the filters keep.
int32_t SampleFiltered(const SampleArgs& args, double total, double uniform,
                       SamplerScratch* scratch) {
  scratch->candidates.clear();
  for (size_t id = 0; id < args.row.size(); ++id) {
    if (scratch->weights[id] > 0.0F) {
      scratch->candidates.push_back(
          {.logit = args.row[id], .weight = scratch->weights[id], .id = static_cast<int32_t>(id)});
    }
  }
  BestFirst best(scratch->candidates);
  const size_t count = CountKept(*args.params, total, &best);
  const std::span<float> kept = std::span(scratch->weights).first(count);
  for (size_t rank = 0; rank < count; ++rank) {
    kept[rank] = best.At(rank).weight;
  }
  return best.At(DrawIndex(kept, Sum(kept), uniform)).id;
}

}  // namespace

SamplerScratch::SamplerScratch(int64_t vocab_size)
    : weights(static_cast<size_t>(vocab_size)), counts(static_cast<size_t>(vocab_size), 0) {
  candidates.reserve(static_cast<size_t>(vocab_size));
}

void TransformLogits(const TransformArgs& args, std::span<float> row, SamplerScratch* scratch) {
  const SamplingParams& params = *args.params;
  if (params.frequency_penalty != 0.0F || params.presence_penalty != 0.0F ||
      params.repetition_penalty != 1.0F) {
    ApplyPenalties(args, row, scratch->counts);
  }
  for (const auto& [id, bias] : params.logit_bias) {
    row[static_cast<size_t>(id)] += bias;
  }
  if (static_cast<int64_t>(args.generated.size()) < params.min_new_tokens) {
    MaskStops(args, row);
  }
  if (!IsGreedy(params) && params.temperature != 1.0F) {
    for (float& x : row) {
      x = x / params.temperature;
    }
  }
}

int32_t SampleToken(const SampleArgs& args, SamplerScratch* scratch) {
  const SamplingParams& params = *args.params;
  if (IsGreedy(params) || params.top_k == 1) {
    const auto best = std::ranges::find(args.row, args.max);
    CHECK(best != args.row.end());
    return static_cast<int32_t>(best - args.row.begin());
  }
  ExpRow(args.row, args.max, scratch->weights);
  const double total = Sum(scratch->weights);
  const double uniform = UniformDraw(args.seed, args.position);
  if (params.top_k < 0 && params.top_p >= 1.0F && params.min_p <= 0.0F) {
    return static_cast<int32_t>(DrawIndex(scratch->weights, total, uniform));
  }
  return SampleFiltered(args, total, uniform, scratch);
}

double UniformDraw(uint64_t seed, int64_t position) {
  const std::array<uint32_t, 4> words = Philox(seed, static_cast<uint64_t>(position));
  const uint64_t bits = (uint64_t{words[0]} << 21) | (words[1] >> 11);
  return static_cast<double>(bits) * 0x1p-53;
}

}  // namespace octavo
