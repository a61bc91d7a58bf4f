// Method: frequencies of published models against those of HF transformers 5.23
// (modeling_rope_utils.py, FP32: relative tolerance 2e-6, a few roundings of a power and a ramp),
// constants worked out by hand, and the table against FP64 angles.

#include "octavo/model/rope_table.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/checkpoint/hf_config.h"
#include "octavo/model/spec/model_spec.h"

namespace octavo {
namespace {

constexpr double kRelativeTolerance = 2e-6;

using Expected = std::vector<std::pair<size_t, double>>;

void ExpectFrequencies(const RopeSpec& rope, const Expected& expected) {
  const std::vector<double> actual = RopeFrequencies(rope);
  EXPECT_EQ(actual.size(), static_cast<size_t>(rope.dim / 2));
  for (const auto& [i, frequency] : expected) {
    EXPECT_NEAR(actual[i], frequency, kRelativeTolerance * frequency) << i;
  }
}

RopeScaling DeepseekYarn() {
  return {.type = RopeType::kYarn,
          .factor = 40.0,
          .original_max_position_embeddings = 4096,
          .mscale = 1.0,
          .mscale_all_dim = 1.0};
}

TEST(RopeFrequencies, OfDefaultArePowersOfTheta) {
  ExpectFrequencies({.theta = 1e4, .dim = 8, .scaling = {}},
                    {{0, 1.0}, {1, 0.1}, {2, 0.01}, {3, 0.001}});
}

// The ramp is from floor(64 ln(4096 / (2 pi 32)) / (2 ln 1e4)) = floor(10.47) = 10 to
// ceil(64 ln(4096 / (2 pi)) / (2 ln 1e4)) = ceil(22.51) = 23: 10 is untouched, 23 divided by 40.
TEST(RopeFrequencies, OfDeepseekV3EqualTransformers) {
  ExpectFrequencies({.theta = 1e4, .dim = 64, .scaling = DeepseekYarn()}, {{0, 1.0},
                                                                           {9, 0.0749894157},
                                                                           {10, 0.0562341288},
                                                                           {11, 0.0390069261},
                                                                           {16, 0.00550000044},
                                                                           {22, 0.00017782794},
                                                                           {23, 3.3338034e-05},
                                                                           {24, 2.49999994e-05},
                                                                           {31, 3.33380353e-06}});
}

TEST(RopeFrequencies, OfQwen3StretchedByFourEqualTransformers) {
  ExpectFrequencies({.theta = 1e6,
                     .dim = 128,
                     .scaling = {.type = RopeType::kYarn,
                                 .factor = 4.0,
                                 .original_max_position_embeddings = 32768}},
                    {{0, 1.0},
                     {23, 0.00697830599},
                     {24, 0.00537532149},
                     {30, 0.00106436096},
                     {38, 9.26230132e-05},
                     {40, 4.44569851e-05},
                     {41, 3.58253164e-05},
                     {63, 3.10234441e-07}});
}

// 28 turns in less than 8192 / 4 positions and stays; 36 in more than 8192 and is divided by 8.
TEST(RopeFrequencies, OfLlama31EqualTransformers) {
  ExpectFrequencies({.theta = 5e5,
                     .dim = 128,
                     .scaling = {.type = RopeType::kLlama3,
                                 .factor = 8.0,
                                 .original_max_position_embeddings = 8192,
                                 .low_freq_factor = 1.0,
                                 .high_freq_factor = 4.0}},
                    {{0, 1.0},
                     {20, 0.0165604409},
                     {28, 0.00321144611},
                     {29, 0.00216657063},
                     {31, 0.00085675146},
                     {34, 0.000178507791},
                     {35, 9.55621217e-05},
                     {36, 7.78465546e-05},
                     {63, 3.06892588e-07}});
}

// Both ends of the ramp below dimension 0: it is 0.001 wide, as HF's, and all but 0 are stretched.
TEST(RopeFrequencies, OfARampWithoutWidthAreFinite) {
  ExpectFrequencies(
      {.theta = 1e4,
       .dim = 8,
       .scaling = {.type = RopeType::kYarn, .factor = 2.0, .original_max_position_embeddings = 4}},
      {{0, 1.0}, {1, 0.05}, {2, 0.005}, {3, 0.0005}});
}

TEST(RopeAttentionFactor, FollowsWhatIsGiven) {
  RopeScaling yarn = {.type = RopeType::kYarn, .factor = 4.0};
  EXPECT_NEAR(RopeAttentionFactor(yarn), 1.1386294361, 1e-9);  // 0.1 ln 4 + 1
  yarn.mscale = 0.5;                                           // Alone it says nothing.
  EXPECT_NEAR(RopeAttentionFactor(yarn), 1.1386294361, 1e-9);
  yarn.mscale_all_dim = 2.0;  // (0.05 ln 4 + 1) / (0.2 ln 4 + 1)
  EXPECT_NEAR(RopeAttentionFactor(yarn), 1.0693147181 / 1.2772588722, 1e-9);
  yarn.attention_factor = 0.75;
  EXPECT_EQ(RopeAttentionFactor(yarn), 0.75);
  yarn.type = RopeType::kDefault;
  EXPECT_EQ(RopeAttentionFactor(yarn), 1.0);
  EXPECT_EQ(RopeAttentionFactor(DeepseekYarn()), 1.0);
}

// 192^-0.5 * (0.1 ln 40 + 1)^2 = 0.135234 (serving arithmetic of DeepSeek-V3).
TEST(MlaScoreFactor, OfDeepseekV3IsTheSquareOfMscale) {
  EXPECT_NEAR(MlaScoreFactor(DeepseekYarn()) / std::sqrt(192.0), 0.135234, 1e-6);
  EXPECT_EQ(MlaScoreFactor({}), 1.0);
  EXPECT_EQ(MlaScoreFactor({.type = RopeType::kYarn, .factor = 40.0}), 1.0);
}

TEST(RopeSpecOf, TakesTheRotaryPartOfAnMla) {
  ModelSpec spec;
  spec.head_dim = 192;
  EXPECT_EQ(RopeSpecOf(spec).dim, 192);
  spec.mla.kv_lora_rank = 512;
  spec.mla.qk_rope_head_dim = 64;
  EXPECT_EQ(RopeSpecOf(spec).dim, 64);
}

// FP64, rounded once, at a position whose FP32 angle would be off by 2^-8.
TEST(RopeTable, HoldsCosinesAndSinesRoundedOnceTimesTheAttentionFactor) {
  const RopeSpec rope = {
      .theta = 1e4,
      .dim = 8,
      .scaling = {
          .type = RopeType::kYarn, .factor = 40.0, .original_max_position_embeddings = 4096}};
  constexpr int64_t kPositions = 70000;
  const Result<RopeTable> table = RopeTable::Make(rope, kPositions);
  ASSERT_TRUE(table.has_value()) << table.error().message();
  ASSERT_EQ(table->cos().size(), static_cast<size_t>(kPositions * 4));
  const std::vector<double> frequencies = RopeFrequencies(rope);
  const double factor = 1.0 + 0.1 * std::log(40.0);
  for (const int64_t position : {int64_t{0}, int64_t{1}, kPositions - 1}) {
    for (size_t i = 0; i < 4; ++i) {
      const double angle = static_cast<double>(position) * frequencies[i];
      const size_t at = static_cast<size_t>(position) * 4 + i;
      EXPECT_EQ(table->cos()[at], static_cast<float>(std::cos(angle) * factor));
      EXPECT_EQ(table->sin()[at], static_cast<float>(std::sin(angle) * factor));
    }
  }
}

}  // namespace
}  // namespace octavo
