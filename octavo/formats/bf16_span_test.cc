// Method: F16 against its formula over all 65,536 bit patterns, FP32 rounding against the two
// neighbouring BF16 values compared in FP64; then every vector path against the scalar functions.

#include "octavo/formats/bf16_span.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "octavo/base/float_env.h"
#include "octavo/formats/bf16.h"
#include "octavo/formats/format.h"
#include "octavo/formats/format_simd_test_support.h"

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

TEST(Bf16SpanSimd, RoundsEveryF16AsTheScalarPath) {
  std::vector<uint16_t> in(65536 + 7);
  for (size_t i = 0; i < in.size(); ++i) {
    in[i] = static_cast<uint16_t>(i);
  }
  ForEachTarget([&] {
    const ScopedFlushSubnormals guard;
    std::vector<uint16_t> out(in.size());
    RoundF16ToBf16(in, out);
    const ScopedIeeeSubnormals ieee;
    for (size_t i = 0; i < in.size(); ++i) {
      ASSERT_EQ(out[i], FloatToBf16(F16ToFloat(in[i]))) << i;
    }
  });
}

// The upper half takes every value and the lower half every kind of tie.
TEST(Bf16SpanSimd, RoundsF32AsTheScalarPath) {
  std::vector<float> in;
  for (uint32_t upper = 0; upper < 65536; ++upper) {
    for (const uint32_t lower : {0U, 1U, 0x7FFFU, 0x8000U, 0x8001U, 0xFFFFU}) {
      in.push_back(std::bit_cast<float>((upper << 16) | lower));
    }
  }
  in.push_back(1.0F);  // A length that leaves a tail.
  ForEachTarget([&] {
    const ScopedFlushSubnormals guard;
    std::vector<uint16_t> out(in.size());
    RoundF32ToBf16(in, out);
    for (size_t i = 0; i < in.size(); ++i) {
      ASSERT_EQ(out[i], FloatToBf16(in[i])) << i;
    }
  });
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
