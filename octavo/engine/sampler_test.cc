// Method: small distributions worked out by hand, from which many positions are drawn; observed
// frequencies are compared with the exact ones (bound: five standard errors of a binomial). Filters
// are checked by the set of ids that ever come out. Everything is a pure function of (seed,
// position), so the tests are deterministic.

#include "octavo/engine/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <numeric>
#include <set>
#include <span>
#include <vector>

#include "octavo/base/random.h"
#include "octavo/engine/logprobs.h"
#include "octavo/engine/request.h"
#include "octavo/engine/row_scan.h"
#include "octavo/kernels/math.h"

namespace octavo {
namespace {

using testing::ElementsAre;
using testing::UnorderedElementsAre;

constexpr int kDraws = 20000;

// Logits whose softmax is {0.4, 0.3, 0.2, 0.1} at ids 3, 1, 0, 2: not in id order.
std::vector<float> FourLogits() {
  return {std::log(0.2F), std::log(0.3F), std::log(0.1F), std::log(0.4F)};
}

// One pass over the row; the stats live in `scratch`.
RowStats StatsOf(const std::vector<float>& row, SamplerScratch* scratch) {
  RowStats stats = {.max = ScanMax(row, scratch->block_max).max, .block_max = scratch->block_max};
  stats.sum = ScanSum(row, stats.max, scratch->block_sum);
  stats.block_sum = scratch->block_sum;
  return stats;
}

std::vector<int> CountDraws(const SamplingParams& params, const std::vector<float>& row) {
  SamplerScratch scratch(static_cast<int64_t>(row.size()));
  std::vector<int> counts(row.size(), 0);
  for (int position = 0; position < kDraws; ++position) {
    const int32_t id = SampleToken({.params = &params,
                                    .seed = 42,
                                    .position = position,
                                    .row = row,
                                    .stats = StatsOf(row, &scratch)},
                                   &scratch);
    ++counts[static_cast<size_t>(id)];
  }
  return counts;
}

void ExpectFrequencies(const std::vector<int>& counts, const std::vector<double>& expected) {
  for (size_t id = 0; id < expected.size(); ++id) {
    const double p = expected[id];
    const double tolerance = 5.0 * std::sqrt(p * (1.0 - p) / kDraws);
    EXPECT_NEAR(counts[id] / static_cast<double>(kDraws), p, tolerance) << "id " << id;
  }
}

TEST(SampleToken, FollowsTheSoftmax) {
  ExpectFrequencies(CountDraws({}, FourLogits()), {0.2, 0.3, 0.1, 0.4});
}

TEST(SampleToken, TopKKeepsTheBestAndRenormalises) {
  SamplingParams params;
  params.top_k = 2;
  ExpectFrequencies(CountDraws(params, FourLogits()), {0.0, 3.0 / 7.0, 0.0, 4.0 / 7.0});
}

TEST(SampleToken, TopKBeyondTheVocabularyFiltersNothing) {
  SamplingParams params;
  params.top_k = 1000;
  ExpectFrequencies(CountDraws(params, FourLogits()), {0.2, 0.3, 0.1, 0.4});
}

TEST(SampleToken, TopPKeepsTheSmallestSetThatReachesIt) {
  SamplingParams params;
  params.top_p = 0.65F;  // 0.4 + 0.3 reaches it.
  ExpectFrequencies(CountDraws(params, FourLogits()), {0.0, 3.0 / 7.0, 0.0, 4.0 / 7.0});
  params.top_p = 0.75F;  // 0.7 does not.
  ExpectFrequencies(CountDraws(params, FourLogits()), {2.0 / 9.0, 3.0 / 9.0, 0.0, 4.0 / 9.0});
  params.top_p = 1e-6F;  // The best one always stays.
  ExpectFrequencies(CountDraws(params, FourLogits()), {0.0, 0.0, 0.0, 1.0});
}

TEST(SampleToken, TopKAndTopPAreJointWithoutMinP) {
  SamplingParams params;
  params.top_k = 3;
  params.top_p = 0.85F;  // Of the unfiltered distribution: 0.7 < 0.85 <= 0.9 keeps three.
  ExpectFrequencies(CountDraws(params, FourLogits()), {2.0 / 9.0, 3.0 / 9.0, 0.0, 4.0 / 9.0});
}

TEST(SampleToken, TopPIsRenormalisedAfterTopKWithMinP) {
  SamplingParams params;
  params.top_k = 3;
  params.top_p = 0.75F;  // After top-k: 4/9, 7/9 reaches 0.75; jointly 0.7 would not.
  params.min_p = 0.01F;
  ExpectFrequencies(CountDraws(params, FourLogits()), {0.0, 3.0 / 7.0, 0.0, 4.0 / 7.0});
  params.min_p = 0.0F;
  ExpectFrequencies(CountDraws(params, FourLogits()), {2.0 / 9.0, 3.0 / 9.0, 0.0, 4.0 / 9.0});
}

TEST(SampleToken, MinPIsRelativeToTheBest) {
  SamplingParams params;
  params.min_p = 0.6F;  // Keeps weights of at least 0.24: 0.4 and 0.3.
  ExpectFrequencies(CountDraws(params, FourLogits()), {0.0, 3.0 / 7.0, 0.0, 4.0 / 7.0});
  params.min_p = 1.0F;
  ExpectFrequencies(CountDraws(params, FourLogits()), {0.0, 0.0, 0.0, 1.0});
}

TEST(SampleToken, GreedyTakesTheSmallestIdAmongEquals) {
  SamplerScratch scratch(4);
  SamplingParams params;
  params.temperature = 0.0F;
  const std::vector<float> row = {1.0F, 3.0F, 3.0F, 2.0F};
  const SampleArgs args = {
      .params = &params, .seed = 9, .position = 1, .row = row, .stats = StatsOf(row, &scratch)};
  EXPECT_EQ(SampleToken(args, &scratch), 1);
  params.temperature = 9e-7F;  // Below 1e-6: greedy.
  EXPECT_EQ(SampleToken(args, &scratch), 1);
  params.temperature = 1.0F;
  params.top_k = 1;
  EXPECT_EQ(SampleToken(args, &scratch), 1);
}

TEST(SampleToken, TiesAtTheEdgeOfTopKGoToTheSmallerId) {
  SamplingParams params;
  params.top_k = 2;
  const std::vector<int> counts = CountDraws(params, {1.0F, 1.0F, 1.0F, 1.0F});
  EXPECT_THAT(counts, ElementsAre(testing::Gt(0), testing::Gt(0), 0, 0));
}

TEST(SampleToken, NeverDrawsWhatIsMasked) {
  std::vector<float> row = FourLogits();
  row[3] = kMaskedLogit;
  ExpectFrequencies(CountDraws({}, row), {2.0 / 6.0, 3.0 / 6.0, 1.0 / 6.0, 0.0});
  SamplingParams params;
  params.top_p = 0.999F;
  EXPECT_EQ(CountDraws(params, row)[3], 0);
}

TEST(SampleToken, DependsOnSeedAndPositionAlone) {
  SamplerScratch fresh(101);
  SamplerScratch used(101);
  std::vector<float> row;
  row.reserve(101);
  for (uint64_t i = 0; i < 101; ++i) {
    row.push_back(UniformFloat(1, i) * 4.0F);
  }
  SamplingParams params;
  params.top_p = 0.9F;
  std::set<int32_t> by_seed;
  for (uint64_t seed = 0; seed < 50; ++seed) {
    SampleArgs args = {
        .params = &params, .seed = seed, .position = 7, .row = row, .stats = StatsOf(row, &used)};
    const int32_t id = SampleToken(args, &used);  // Full of the last draw's leftovers.
    args.stats = StatsOf(row, &fresh);
    EXPECT_EQ(SampleToken(args, &fresh), id);
    fresh = SamplerScratch(101);
    by_seed.insert(id);
  }
  EXPECT_GT(by_seed.size(), 10U);
}

// --- Against the definition ---------------------------------------------------------------------

// Rows of many blocks: from nearly flat to a few peaks over a sea.
std::vector<float> WideRow(uint64_t seed) {
  const float spread = seed % 3 == 0 ? 0.5F : 4.0F;
  std::vector<float> row;
  for (uint64_t i = 0; i < 3001; ++i) {
    const float u = UniformFloat(seed, i);
    row.push_back(spread * u + (seed % 3 == 1 && u > 0.995F ? 12.0F * u : 0.0F));
    if (i % 7 == 3) {
      row.back() = row[i / 2];  // Ties, across blocks.
    }
  }
  return row;
}

// What a filter keeps and what is drawn from it, with everything sorted and summed in full.
int32_t DrawByDefinition(const SamplingParams& params, std::span<const float> row, double uniform) {
  const float max = *std::ranges::max_element(row);
  std::vector<int32_t> order(row.size());
  std::iota(order.begin(), order.end(), 0);
  const bool is_filtered = params.top_k > 0 || params.top_p < 1.0F || params.min_p > 0.0F;
  if (is_filtered) {
    std::ranges::stable_sort(order, [&](int32_t a, int32_t b) {
      return row[static_cast<size_t>(a)] > row[static_cast<size_t>(b)];
    });
  }
  const auto weight = [&](int32_t id) {
    return static_cast<double>(ExpF32(row[static_cast<size_t>(id)] - max));
  };
  const auto mass_of = [&] {
    return std::accumulate(order.begin(), order.end(), 0.0,
                           [&](double sum, int32_t id) { return sum + weight(id); });
  };
  double whole = mass_of();
  if (params.top_k > 0 && static_cast<size_t>(params.top_k) < order.size()) {
    order.resize(static_cast<size_t>(params.top_k));
  }
  if (params.min_p > 0.0F) {
    whole = mass_of();
  }
  if (params.top_p < 1.0F) {
    double sum = 0.0;
    size_t count = 0;
    while (count < order.size() && sum < static_cast<double>(params.top_p) * whole) {
      sum += weight(order[count++]);
    }
    order.resize(count);
  }
  std::erase_if(order, [&](int32_t id) { return weight(id) < static_cast<double>(params.min_p); });
  const double target = uniform * mass_of();
  double sum = 0.0;
  for (const int32_t id : order) {
    sum += weight(id);
    if (sum > target) {
      return id;
    }
  }
  return order.back();
}

TEST(SampleToken, IsWhatItsDefinitionSaysOnRowsOfManyBlocks) {
  SamplerScratch scratch(3001);
  int num_different = 0;
  for (uint64_t seed = 0; seed < 30; ++seed) {
    const std::vector<float> row = WideRow(seed);
    for (const int64_t top_k : {-1, 2, 11, 12, 13, 500, 5000}) {
      for (const float top_p : {1.0F, 0.99F, 0.5F, 0.01F}) {
        for (const float min_p : {0.0F, 0.2F}) {
          SamplingParams params;
          params.top_k = top_k;
          params.top_p = top_p;
          params.min_p = min_p;
          for (int64_t position = 0; position < 4; ++position) {
            const int32_t id = SampleToken({.params = &params,
                                            .seed = seed,
                                            .position = position,
                                            .row = row,
                                            .stats = StatsOf(row, &scratch)},
                                           &scratch);
            ASSERT_EQ(id, DrawByDefinition(params, row, UniformDraw(seed, position)))
                << "seed " << seed << " top_k " << top_k << " top_p " << top_p << " min_p "
                << min_p;
            num_different += id != 0 ? 1 : 0;
          }
        }
      }
    }
  }
  EXPECT_GT(num_different, 1000);
}

TEST(UniformDraw, HasFiftyThreeBitsInTheHalfOpenInterval) {
  double sum = 0.0;
  bool has_low_bits = false;
  for (int64_t position = 0; position < 1000; ++position) {
    const double u = UniformDraw(3, position);
    ASSERT_GE(u, 0.0);
    ASSERT_LT(u, 1.0);
    has_low_bits = has_low_bits || u != static_cast<double>(static_cast<float>(u));
    sum += u;
  }
  EXPECT_TRUE(has_low_bits);
  EXPECT_NEAR(sum / 1000.0, 0.5, 5.0 * std::sqrt(1.0 / 12.0 / 1000.0));
}

// --- TransformLogits ----------------------------------------------------------------------------

std::vector<float> Transformed(const SamplingParams& params, std::vector<float> row,
                               const std::vector<int32_t>& generated) {
  SamplerScratch scratch(static_cast<int64_t>(row.size()));
  const std::vector<int32_t> eos = {0, 77};  // 77: an id that the vocabulary lacks.
  TransformLogits({.params = &params, .generated = generated, .eos_token_ids = eos}, row, &scratch);
  for (const int32_t count : scratch.counts) {
    EXPECT_EQ(count, 0);  // Left clean for the next row.
  }
  return row;
}

TEST(TransformLogits, DefaultsChangeNothing) {
  EXPECT_THAT(Transformed({}, {1.0F, -2.0F, 3.0F}, {1, 1, 2}), ElementsAre(1.0F, -2.0F, 3.0F));
}

TEST(TransformLogits, PenaltiesCountGeneratedTokensInOrder) {
  SamplingParams params;
  params.frequency_penalty = 0.5F;
  params.presence_penalty = 0.25F;
  params.repetition_penalty = 2.0F;
  // id 1, twice: 4 - 0.5 * 2 - 0.25 = 2.75, positive: / 2 = 1.375.
  // id 2, once: 0.5 - 0.5 - 0.25 = -0.25, negative: * 2 = -0.5. id 0: untouched.
  EXPECT_THAT(Transformed(params, {4.0F, 4.0F, 0.5F}, {1, 2, 1}), ElementsAre(4.0F, 1.375F, -0.5F));
}

TEST(TransformLogits, BiasComesAfterPenaltiesAndBeforeTemperature) {
  SamplingParams params;
  params.repetition_penalty = 2.0F;
  params.temperature = 0.5F;
  params.logit_bias = {{1, 3.0F}};
  // (4 / 2 + 3) / 0.5 = 10.
  EXPECT_THAT(Transformed(params, {1.0F, 4.0F}, {1}), ElementsAre(2.0F, 10.0F));
}

TEST(TransformLogits, GreedyUsesTemperatureOne) {
  SamplingParams params;
  params.temperature = 0.0F;
  EXPECT_THAT(Transformed(params, {1.0F, 4.0F}, {}), ElementsAre(1.0F, 4.0F));
}

TEST(TransformLogits, MinNewTokensMasksEosAndStopIds) {
  SamplingParams params;
  params.min_new_tokens = 2;
  params.stop_token_ids = {2};
  EXPECT_THAT(Transformed(params, {5.0F, 1.0F, 6.0F}, {1}),
              ElementsAre(kMaskedLogit, 1.0F, kMaskedLogit));
  EXPECT_THAT(Transformed(params, {5.0F, 1.0F, 6.0F}, {1, 1}), ElementsAre(5.0F, 1.0F, 6.0F));
}

// --- Logprobs -----------------------------------------------------------------------------------

LogprobRow RowOf(const std::vector<float>& row, SamplerScratch* scratch) {
  const RowStats stats = StatsOf(row, scratch);
  return {.row = row, .max = stats.max, .log_sum = LogF32(stats.sum), .block_max = stats.block_max};
}

TEST(Logprobs, AreTheLogSoftmax) {
  const std::vector<float> row = FourLogits();
  SamplerScratch scratch(4);
  const LogprobRow logprobs = RowOf(row, &scratch);
  EXPECT_NEAR(logprobs.At(3), std::log(0.4), 1e-6);
  EXPECT_NEAR(logprobs.At(2), std::log(0.1), 1e-6);
}

TEST(Logprobs, TopListIsSortedWithTiesById) {
  const std::vector<float> row = {1.0F, 2.0F, 3.0F, 2.0F};
  SamplerScratch scratch(4);
  std::vector<int32_t> ids;
  for (const TokenLogprob& entry : TopLogprobs(RowOf(row, &scratch), 3, &scratch)) {
    ids.push_back(entry.id);
  }
  EXPECT_THAT(ids, ElementsAre(2, 1, 3));
  EXPECT_EQ(TopLogprobs(RowOf(row, &scratch), 9, &scratch).size(), 4U);
}

TEST(Logprobs, TopListOfManyBlocksIsThatOfASort) {
  SamplerScratch scratch(3001);
  for (uint64_t seed = 0; seed < 6; ++seed) {
    const std::vector<float> row = WideRow(seed);
    std::vector<int32_t> order(row.size());
    std::iota(order.begin(), order.end(), 0);
    std::ranges::stable_sort(order, std::greater<>(),
                             [&](int32_t id) { return row[static_cast<size_t>(id)]; });
    for (const int64_t count : {1, 5, 12, 13, 100, 3001}) {
      std::vector<int32_t> ids;
      for (const TokenLogprob& entry : TopLogprobs(RowOf(row, &scratch), count, &scratch)) {
        ids.push_back(entry.id);
      }
      ASSERT_EQ(ids, std::vector<int32_t>(order.begin(), order.begin() + count));
    }
  }
}

TEST(Logprobs, NeverFallBelowTheFloor) {
  const std::vector<float> row = {0.0F, kMaskedLogit * 1e6F};
  SamplerScratch scratch(2);
  EXPECT_EQ(RowOf(row, &scratch).At(1), kMinLogprob);
}

}  // namespace
}  // namespace octavo
