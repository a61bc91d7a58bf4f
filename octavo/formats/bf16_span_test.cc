// Method: F16 against its formula over all 65,536 bit patterns, FP32 rounding against the two
// neighbouring BF16 values compared in FP64. The vector paths are in fp8_block_simd_test.cc.

#include "octavo/formats/bf16_span.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <random>

#include "octavo/formats/bf16.h"
#include "octavo/formats/format.h"

namespace octavo {
namespace {

TEST(F16, DecodesEveryPatternToItsFormula) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float value = F16ToFloat(static_cast<uint16_t>(bits));
    const int exponent = static_cast<int>((bits >> 10) & 31U);
    const double fraction = (bits & 0x3FFU) / 1024.0;
    EXPECT_EQ(std::signbit(value), bits >= 0x8000U) << bits;
    if (exponent == 31) {
      EXPECT_EQ(std::isnan(value), fraction != 0.0) << bits;
      EXPECT_EQ(std::isinf(value), fraction == 0.0) << bits;
    } else {
      const double magnitude =
          exponent == 0 ? std::ldexp(fraction, -14) : std::ldexp(1.0 + fraction, exponent - 15);
      EXPECT_EQ(std::fabs(double{value}), magnitude) << bits;
    }
  }
}

TEST(Bf16, RoundsToTheNearerNeighbourAndTiesToEven) {
  std::mt19937 rng(4);
  for (int i = 0; i < 200000; ++i) {
    const auto bits = static_cast<uint32_t>(rng());
    const uint32_t magnitude = bits & 0x7FFFFFFFU;
    if (magnitude >= 0x7F7F0000U) {
      continue;
    }
    const float x = std::bit_cast<float>(magnitude);
    const auto below = static_cast<uint16_t>(magnitude >> 16);
    const auto above = static_cast<uint16_t>(below + 1);
    const double down = double{x} - double{Bf16ToFloat(below)};
    const double up = double{Bf16ToFloat(above)} - double{x};
    const bool take_below = down < up || (down == up && below % 2 == 0);
    ASSERT_EQ(FloatToBf16(x), take_below ? below : above) << bits;
    ASSERT_EQ(FloatToBf16(-x), (take_below ? below : above) | 0x8000U) << bits;
  }
}

TEST(Bf16, OverflowsToInfinityAndKeepsNan) {
  EXPECT_EQ(FloatToBf16(std::bit_cast<float>(0x7F7F8000U)), 0x7F80);  // Half way to 2^128.
  EXPECT_EQ(FloatToBf16(std::bit_cast<float>(0x7F7F7FFFU)), 0x7F7F);
  EXPECT_EQ(FloatToBf16(std::bit_cast<float>(0x7F800001U)), 0x7FC0);  // A payload that rounds away.
  EXPECT_EQ(FloatToBf16(std::bit_cast<float>(0xFFFFFFFFU)), 0xFFFF);
}

TEST(WeightFormat, NamesAreReadBack) {
  for (const WeightFormat format : {WeightFormat::kBf16, WeightFormat::kFp8}) {
    EXPECT_EQ(ParseWeightFormat(WeightFormatName(format)), format);
  }
  EXPECT_FALSE(ParseWeightFormat("FP8").has_value());
  EXPECT_FALSE(ParseWeightFormat("").has_value());
}

}  // namespace
}  // namespace octavo
