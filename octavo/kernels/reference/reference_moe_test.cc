// Method: Route against cases worked out by hand (every p is 1/2 or 1/4 exactly where the choice is
// decided) and against FP64 within its roundings; Combine against sums whose order shows; in both
// recipes where no rounding is at stake. Negative space: tokens that are not finite.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <numeric>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/ops.h"
#include "octavo/kernels/test_tensors.h"

namespace octavo {
namespace {

using ::testing::ElementsAre;

struct Routing {
  std::vector<int32_t> experts;
  std::vector<float> weights;
};

// What RouteArgs says beside logits and results.
struct Rule {
  RouteScoring scoring = RouteScoring::kSoftmax;
  std::vector<float> bias = {};
  int64_t num_groups = 1;
  int64_t top_groups = 1;
  bool norm_topk_prob = false;
  float sum_eps = 0.0F;
  float scale = 1.0F;
  int64_t top_k = 0;
};

Routing RouteOne(Recipe recipe, const std::vector<float>& logits, const Rule& rule) {
  const auto backend = MakeReferenceBackend(recipe, 1);
  TestActivations x(DType::kF32, 1, static_cast<int64_t>(logits.size()));
  for (size_t e = 0; e < logits.size(); ++e) {
    x.Set(0, static_cast<int64_t>(e), logits[e]);
  }
  Routing routing{std::vector<int32_t>(static_cast<size_t>(rule.top_k), -1),
                  std::vector<float>(static_cast<size_t>(rule.top_k), -1.0F)};
  EXPECT_TRUE(backend
                  ->Route({.logits = x.view(),
                           .scoring = rule.scoring,
                           .bias = rule.bias,
                           .num_groups = rule.num_groups,
                           .top_groups = rule.top_groups,
                           .norm_topk_prob = rule.norm_topk_prob,
                           .sum_eps = rule.sum_eps,
                           .scale = rule.scale,
                           .top_k = rule.top_k,
                           .experts = routing.experts,
                           .weights = routing.weights})
                  .ok());
  return routing;
}

class ReferenceRoute : public ::testing::TestWithParam<Recipe> {
 protected:
  static Routing Route(const std::vector<float>& logits, const Rule& rule) {
    return RouteOne(GetParam(), logits, rule);
  }
};

INSTANTIATE_TEST_SUITE_P(Recipes, ReferenceRoute,
                         ::testing::Values(Recipe::kFp32, Recipe::kServing), [](const auto& info) {
                           return info.param == Recipe::kFp32 ? "Fp32" : "Serving";
                         });

TEST_P(ReferenceRoute, TakesTheLowerIndexOfEqualChoicesAndReturnsExpertsInOrder) {
  // Softmax of four equal logits: 1/4 each.
  const Routing tied = Route({1, 1, 1, 1}, {.top_k = 2});
  EXPECT_THAT(tied.experts, ElementsAre(0, 1));
  EXPECT_THAT(tied.weights, ElementsAre(0.25F, 0.25F));
  // The largest is last: taken first, returned last.
  const Routing mixed = Route({1, 5, 1, 9}, {.top_k = 3});
  EXPECT_THAT(mixed.experts, ElementsAre(0, 1, 3));
  EXPECT_LT(mixed.weights[0], mixed.weights[1]);
  EXPECT_LT(mixed.weights[1], mixed.weights[2]);
}

TEST_P(ReferenceRoute, NormalisesAndScalesTheWeights) {
  const Routing normed = Route({1, 1, 1, 1}, {.norm_topk_prob = true, .top_k = 2});
  EXPECT_THAT(normed.weights, ElementsAre(0.5F, 0.5F));
  const Routing scaled = Route({1, 1, 1, 1}, {.norm_topk_prob = true, .scale = 2.5F, .top_k = 2});
  EXPECT_THAT(scaled.weights, ElementsAre(1.25F, 1.25F));
  const Routing raw = Route({1, 1, 1, 1}, {.scale = 2.5F, .top_k = 2});
  EXPECT_THAT(raw.weights, ElementsAre(0.625F, 0.625F));
  // 1/4 + 1/4 + 1/2: the epsilon is added to the sum.
  const Routing eps = Route({1, 1, 1, 1}, {.norm_topk_prob = true, .sum_eps = 0.5F, .top_k = 2});
  EXPECT_THAT(eps.weights, ElementsAre(0.25F, 0.25F));
}

TEST_P(ReferenceRoute, ChoosesByBiasAndWeighsWithoutIt) {
  // Choices: sigmoid(2) - 1 = -0.12, 1/2.
  const std::vector<float> bias = {-1.0F, 0.0F};
  const Routing routing =
      Route({2, 0}, {.scoring = RouteScoring::kSigmoid, .bias = bias, .top_k = 1});
  EXPECT_THAT(routing.experts, ElementsAre(1));
  EXPECT_THAT(routing.weights, ElementsAre(0.5F));
}

TEST_P(ReferenceRoute, MasksGroupsWithMinusInfinityAlsoWhereAllChoicesAreNegative) {
  // p = 1/2 for all; choices {-1/2, -1/2 | -3/2, -3/2}. A mask of 0 would make the masked group's
  // experts the largest.
  const std::vector<float> bias = {-1.0F, -1.0F, -2.0F, -2.0F};
  const Routing routing = Route({0, 0, 0, 0}, {.scoring = RouteScoring::kSigmoid,
                                               .bias = bias,
                                               .num_groups = 2,
                                               .top_groups = 1,
                                               .norm_topk_prob = true,
                                               .sum_eps = 1e-20F,
                                               .scale = 2.5F,
                                               .top_k = 2});
  EXPECT_THAT(routing.experts, ElementsAre(0, 1));
  EXPECT_THAT(routing.weights, ElementsAre(1.25F, 1.25F));
}

TEST_P(ReferenceRoute, RanksAGroupByTheSumOfItsTwoLargestChoices) {
  // Choices {0.9, 0, 0 | 0.5, 0.5, -9}: the best expert is in the worse group (0.9 < 1).
  const std::vector<float> bias = {0.4F, -0.5F, -0.5F, 0.0F, 0.0F, -9.5F};
  const Rule rule{.scoring = RouteScoring::kSigmoid,
                  .bias = bias,
                  .num_groups = 2,
                  .top_groups = 1,
                  .top_k = 2};
  EXPECT_THAT(Route({0, 0, 0, 0, 0, 0}, rule).experts, ElementsAre(3, 4));
  // Both groups: the best two of all.
  Rule both = rule;
  both.top_groups = 2;
  EXPECT_THAT(Route({0, 0, 0, 0, 0, 0}, both).experts, ElementsAre(0, 3));
}

TEST_P(ReferenceRoute, TakesTheLowerOfEqualGroupsAndGroupsOfOneExpert) {
  const Rule rule{.scoring = RouteScoring::kSigmoid, .num_groups = 3, .top_groups = 2, .top_k = 2};
  EXPECT_THAT(Route({0, 0, 0, 0, 0, 0}, rule).experts, ElementsAre(0, 1));
  EXPECT_THAT(Route({0, 0, 0, 0, 1, 1}, rule).experts, ElementsAre(4, 5));
  EXPECT_THAT(Route({-1, 2, 1}, rule).experts, ElementsAre(1, 2));
}

TEST_P(ReferenceRoute, OfWeightsThatUnderflowDividesByTheEpsilon) {
  // sigmoid(-200) is below the smallest normal FP32.
  Rule rule{
      .scoring = RouteScoring::kSigmoid, .norm_topk_prob = true, .sum_eps = 1e-20F, .top_k = 2};
  EXPECT_THAT(Route({-200, -200}, rule).weights, ElementsAre(0.0F, 0.0F));
}

TEST_P(ReferenceRoute, OfATokenThatIsNotFiniteGivesNanWeightsAndTheFirstExperts) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  const auto expect_bad = [](const Routing& routing) {
    EXPECT_THAT(routing.experts, ElementsAre(0, 1));
    EXPECT_TRUE(std::isnan(routing.weights[0]));
    EXPECT_TRUE(std::isnan(routing.weights[1]));
  };
  const Rule softmax{.norm_topk_prob = true, .top_k = 2};
  expect_bad(Route({1, 2, kNan}, softmax));
  expect_bad(Route({1, 2, kInf}, softmax));
  expect_bad(Route({-kInf, -kInf, -kInf}, softmax));
  // An expert at -inf is just never chosen.
  EXPECT_THAT(Route({-kInf, 2, 2}, softmax).weights, ElementsAre(0.5F, 0.5F));
  Rule sigmoid{.scoring = RouteScoring::kSigmoid, .top_k = 2};
  expect_bad(Route({1, 2, kNan}, sigmoid));
  EXPECT_THAT(Route({1, 2, kInf}, sigmoid).experts, ElementsAre(1, 2));
  const std::vector<float> bias = {0, 0, kInf};
  sigmoid.bias = bias;
  expect_bad(Route({1, 2, 3}, sigmoid));
}

TEST_P(ReferenceRoute, StaysWithinItsRoundingsOfFp64) {
  // Relative to the weight: Exp 2 units of 2^-24 and 12 for its argument (|x - max| < 12), a sum of
  // 8 + 4 terms a lane, one of top_k, three divisions and multiplications: below 64 * 2^-24.
  constexpr double kTolerance = 64 * 0x1p-24;
  constexpr size_t kExperts = 128;
  for (const RouteScoring scoring : {RouteScoring::kSoftmax, RouteScoring::kSigmoid}) {
    for (const bool norm : {false, true}) {
      for (uint64_t seed = 0; seed < 20; ++seed) {
        std::vector<float> logits(kExperts);
        std::vector<double> p(kExperts);
        double sum = 0.0;
        for (size_t e = 0; e < kExperts; ++e) {
          logits[e] = 3.0F * TestValue(seed, e);
          p[e] = scoring == RouteScoring::kSoftmax ? std::exp(double{logits[e]})
                                                   : 1.0 / (1.0 + std::exp(-double{logits[e]}));
          sum += p[e];
        }
        if (scoring == RouteScoring::kSoftmax) {
          std::ranges::for_each(p, [&](double& x) { x /= sum; });
        }
        const Routing routing =
            Route(logits, {.scoring = scoring, .norm_topk_prob = norm, .scale = 1.5F, .top_k = 8});
        std::vector<double> sorted = p;
        std::ranges::sort(sorted, std::greater<>());
        double chosen = 0.0;
        for (const int32_t e : routing.experts) {
          EXPECT_GE(p[static_cast<size_t>(e)], sorted[7] * (1.0 - kTolerance)) << "seed " << seed;
          chosen += p[static_cast<size_t>(e)];
        }
        for (size_t k = 0; k < 8; ++k) {
          const double expected =
              1.5 * p[static_cast<size_t>(routing.experts[k])] / (norm ? chosen : 1.0);
          EXPECT_NEAR(routing.weights[k], expected, expected * kTolerance) << "seed " << seed;
        }
      }
    }
  }
}

TEST(ReferenceCombine, AddsSlotsInOrderAndTheSharedExpertLast) {
  // 2^24 + 1 + 1 = 2^24, each 1 lost; 1 + 1 + 2^24 = 2^24 + 2. Then the shared expert's -2^24.
  const auto backend = MakeReferenceBackend(Recipe::kServing, 1);
  TestActivations x(DType::kBf16, 3, 1);
  x.Set(0, 0, 0x1p24F);
  x.Set(1, 0, 1.0F);
  x.Set(2, 0, 1.0F);
  TestActivations shared(DType::kBf16, 1, 1);
  shared.Set(0, 0, -0x1p24F);
  const TestActivations y(DType::kBf16, 1, 1);
  const std::vector<float> weights = {1.0F, 1.0F, 1.0F};
  const auto combine = [&](const std::vector<int32_t>& row_of_slot) {
    EXPECT_TRUE(backend
                    ->Combine({.x = x.view(),
                               .row_of_slot = row_of_slot,
                               .weights = weights,
                               .top_k = 3,
                               .shared = shared.view(),
                               .y = y.view()})
                    .ok());
    return y.At(0, 0);
  };
  EXPECT_EQ(combine({0, 1, 2}), 0.0F);
  EXPECT_EQ(combine({1, 2, 0}), 2.0F);
}

TEST(ReferenceCombine, WeighsTheRowsOfATokensSlotsAndRoundsOnce) {
  // Slots of token 0 lie in rows 2, 0: 3/4 * 2 + 1/4 * 8 = 3.5. Those of token 1 in rows 1, 3:
  // 1 + 2^-8, which is half way between 1 and the next BF16.
  const auto backend = MakeReferenceBackend(Recipe::kServing, 1);
  TestActivations x(DType::kBf16, 4, 1);
  x.Set(2, 0, 2.0F);
  x.Set(0, 0, 8.0F);
  x.Set(1, 0, 1.0F);
  x.Set(3, 0, 0x1p-8F);
  TestActivations shared(DType::kBf16, 2, 1);
  shared.Set(0, 0, 0.5F);
  shared.Set(1, 0, 0x1p-9F);
  TestActivations y(DType::kBf16, 2, 1);
  const std::vector<float> weights = {0.75F, 0.25F, 1.0F, 1.0F};
  const std::vector<int32_t> row_of_slot = {2, 0, 1, 3};
  CombineArgs args{.x = x.view(),
                   .row_of_slot = row_of_slot,
                   .weights = weights,
                   .top_k = 2,
                   .shared = {},
                   .y = y.view()};
  ASSERT_TRUE(backend->Combine(args).ok());
  EXPECT_EQ(y.At(0, 0), 3.5F);
  EXPECT_EQ(y.At(1, 0), 1.0F);  // 1 + 2^-8 is a tie.
  args.shared = shared.view();
  ASSERT_TRUE(backend->Combine(args).ok());
  EXPECT_EQ(y.At(0, 0), 4.0F);
  // 1 + 2^-8 + 2^-9 rounds up; had the sum been rounded before the shared expert, it were 1.
  EXPECT_EQ(y.At(1, 0), 1.0F + 0x1p-7F);
}

TEST(CheckArgsDeathTest, NamesWhatRoutingCannotDo) {
  const auto backend = MakeReferenceBackend(Recipe::kServing, 1);
  const TestActivations logits(DType::kF32, 1, 4);
  std::vector<int32_t> experts(2);
  std::vector<float> weights(2);
  const std::vector<float> bias(4, 0.0F);
  RouteArgs args{
      .logits = logits.view(), .bias = bias, .top_k = 2, .experts = experts, .weights = weights};
  EXPECT_DEATH((void)backend->Route(args), "RouteScoring::kSigmoid");
  args.bias = {};
  args.num_groups = 3;
  EXPECT_DEATH((void)backend->Route(args), "num_experts % args.num_groups == 0");
  args.num_groups = 4;
  args.top_groups = 1;
  EXPECT_DEATH((void)backend->Route(args), "args.top_k <=");
}

}  // namespace
}  // namespace octavo
