// Method: every code and every BF16 input of E2M1 against the table of its magnitudes and the
// midpoints between them in FP64; every E8M0 code against its formula, and its rounding up against
// a logarithm-free search over all BF16 inputs; the published vectors one by one.

#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "octavo/formats/bf16.h"
#include "octavo/formats/e2m1.h"
#include "octavo/formats/e8m0.h"
#include "octavo/formats/fp8_block.h"
#include "octavo/formats/mxfp8.h"

namespace octavo {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr std::array kMagnitudes = {0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0};

uint8_t NearestE2m1(double x) {
  size_t code = 0;
  while (code < 7) {
    const double midpoint = (kMagnitudes[code] + kMagnitudes[code + 1]) / 2;
    if (std::fabs(x) < midpoint || (std::fabs(x) == midpoint && code % 2 == 0)) {
      break;
    }
    ++code;
  }
  return static_cast<uint8_t>(code | (std::signbit(x) ? 8U : 0U));
}

TEST(E2m1, DecodesEveryCodeAndEncodesItBack) {
  for (unsigned code = 0; code < 16; ++code) {
    const float value = E2m1ToFloat(static_cast<uint8_t>(code));
    EXPECT_EQ(std::fabs(double{value}), kMagnitudes[code & 7]) << code;
    EXPECT_EQ(std::signbit(value), code >= 8) << code;
    EXPECT_EQ(FloatToE2m1(value), code);
  }
}

TEST(E2m1, EncodesEveryBf16ToTheNearestValue) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float x = Bf16ToFloat(static_cast<uint16_t>(bits));
    ASSERT_EQ(FloatToE2m1(x), std::isnan(x) ? 7 : NearestE2m1(double{x})) << bits;
  }
}

// The neighbours in FP32 of each midpoint part.
TEST(E2m1, RoundsAtEveryMidpointToTheBit) {
  for (size_t code = 0; code < 7; ++code) {
    const auto midpoint = static_cast<float>((kMagnitudes[code] + kMagnitudes[code + 1]) / 2);
    EXPECT_EQ(FloatToE2m1(midpoint), code % 2 == 0 ? code : code + 1) << midpoint;
    EXPECT_EQ(FloatToE2m1(std::nextafter(midpoint, 0.0F)), code) << midpoint;
    EXPECT_EQ(FloatToE2m1(std::nextafter(midpoint, 9.0F)), code + 1) << midpoint;
  }
}

TEST(E2m1, MatchesThePublishedVectors) {
  const std::vector<std::pair<float, int>> cases = {
      {0.25F, 0}, {0.2501F, 1}, {-0.1F, 8},     {-0.0F, 8},       {0.75F, 2},
      {1.25F, 2}, {1.75F, 4},   {2.5F, 4},      {3.5F, 6},        {5.0F, 6},
      {5.01F, 7}, {7.0F, 7},    {kInfinity, 7}, {-kInfinity, 15}, {kNaN, 7}};
  for (const auto& [x, code] : cases) {
    EXPECT_EQ(FloatToE2m1(x), code) << x;
  }
  EXPECT_EQ(PackE2m1(FloatToE2m1(0.5F), FloatToE2m1(6.0F)), 0x71);
}

TEST(E8m0, DecodesEveryCodeToItsFormula) {
  for (int code = 0; code < 255; ++code) {
    const auto byte = static_cast<uint8_t>(code);
    EXPECT_EQ(double{E8m0ToFloat(byte)}, std::ldexp(1.0, code - 127)) << code;
    EXPECT_EQ(double{E8m0Reciprocal(byte)}, std::ldexp(1.0, 127 - code)) << code;
    EXPECT_EQ(FloatToE8m0RoundUp(E8m0ToFloat(byte)), code);
  }
  EXPECT_TRUE(std::isnan(E8m0ToFloat(255)));
  EXPECT_TRUE(std::isnan(E8m0Reciprocal(255)));
}

TEST(E8m0, RoundsEveryBf16UpToThePowerThatCoversIt) {
  for (uint32_t bits = 0; bits < 0x7F80; ++bits) {
    const float x = Bf16ToFloat(static_cast<uint16_t>(bits));
    int code = 0;
    while (code < 254 && E8m0ToFloat(static_cast<uint8_t>(code)) < x) {
      ++code;
    }
    ASSERT_EQ(FloatToE8m0RoundUp(x), code) << bits;
  }
}

TEST(E8m0, MatchesThePublishedVectors) {
  const std::vector<std::pair<float, int>> cases = {
      {0.0F, 0x00},      {0x1p-127F, 0x00}, {5.9e-39F, 0x01},
      {0x1p-126F, 0x01}, {1.0F, 0x7F},      {std::nextafter(1.0F, 2.0F), 0x80},
      {2.0F, 0x80},      {3.4e38F, 0xFE},   {kInfinity, 0xFE},
      {kNaN, 0xFF}};
  for (const auto& [x, code] : cases) {
    EXPECT_EQ(FloatToE8m0RoundUp(x), code) << x;
  }
}

TEST(Mxfp8Scale, MatchesThePublishedVectors) {
  const std::vector<std::pair<float, int>> cases = {{448.0F, 127}, {1.75F, 119},  {1.7578125F, 120},
                                                    {1.0F, 119},   {0.875F, 118}, {3.5F, 120}};
  for (const auto& [amax, code] : cases) {
    EXPECT_EQ(Mxfp8ScaleCode(amax), code) << amax;
  }
}

// The smallest power of two that leaves nothing above 448: in FP64 both sides are exact. A product
// by fl(1/448), a division by 448 and this agree on every BF16.
TEST(Mxfp8Scale, IsTheLeastThatFitsForEveryBf16) {
  for (uint32_t bits = 0; bits < 0x7F80; ++bits) {
    const float amax = Bf16ToFloat(static_cast<uint16_t>(bits));
    int code = 0;
    while (double{amax} > 448.0 * std::ldexp(1.0, code - 127)) {
      ++code;
    }
    ASSERT_EQ(Mxfp8ScaleCode(amax), code) << bits;
    ASSERT_EQ(FloatToE8m0RoundUp(amax / 448.0F), code) << bits;
    ASSERT_LE(code, 247) << bits;
  }
}

// All FP32 mantissas, in one binade: the rule has one result.
TEST(Mxfp8Scale, ProductAndDivisionAgreeOnEveryMantissa) {
  for (uint32_t mantissa = 0; mantissa < (1U << 23); ++mantissa) {
    const float amax = std::bit_cast<float>(0x3F800000U | mantissa);
    ASSERT_EQ(Mxfp8ScaleCode(amax), FloatToE8m0RoundUp(amax / 448.0F)) << mantissa;
    ASSERT_EQ(Mxfp8ScaleCode(amax), amax <= 1.75F ? 119 : 120) << mantissa;
  }
}

TEST(Fp8BlockUe8m0, ScaleIsThePowerThatCoversEveryBf16) {
  for (uint32_t bits = 0; bits < 0x7F80; ++bits) {
    const float amax = Bf16ToFloat(static_cast<uint16_t>(bits));
    const float scale = Fp8BlockUe8m0Scale(amax);
    ASSERT_EQ(std::bit_cast<uint32_t>(scale) & 0x007FFFFFU, 0U) << bits;
    ASSERT_GE(scale, 0x1p-22F) << bits;
    ASSERT_LE(double{amax}, 448.0 * double{scale}) << bits;
    if (scale > 0x1p-22F) {
      ASSERT_GT(double{amax}, 224.0 * double{scale}) << bits;
    }
  }
}

}  // namespace
}  // namespace octavo
