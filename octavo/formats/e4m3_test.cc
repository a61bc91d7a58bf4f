// Method: every code and every BF16 input against a second definition (a table of values and the
// midpoints between them, compared exactly in FP64), then the published vectors one by one.

#include "octavo/formats/e4m3.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "octavo/base/float_env.h"
#include "octavo/formats/bf16.h"

namespace octavo {
namespace {

// Values of codes 0x00 to 0x7E from the format's formula, in FP64.
std::vector<double> Magnitudes() {
  std::vector<double> values;
  for (int code = 0; code <= 0x7E; ++code) {
    const int exponent = code >> 3;
    const double fraction = (code & 7) / 8.0;
    values.push_back(exponent == 0 ? std::ldexp(fraction, -6)
                                   : std::ldexp(1.0 + fraction, exponent - 7));
  }
  return values;
}

// The code whose value is nearest to x (not NaN); of two equally near the even one. Midpoints need
// 5 significant bits, so FP64 compares them exactly.
uint8_t NearestCode(double x) {
  static const std::vector<double> values = Magnitudes();
  const double magnitude = std::fabs(x);
  size_t code = 0;
  while (code + 1 < values.size()) {
    const double midpoint = (values[code] + values[code + 1]) / 2;
    if (magnitude < midpoint || (magnitude == midpoint && code % 2 == 0)) {
      break;
    }
    ++code;
  }
  return static_cast<uint8_t>(code | (std::signbit(x) ? 0x80U : 0U));
}

TEST(E4m3, DecodesEveryCodeToItsFormula) {
  const std::vector<double> values = Magnitudes();
  for (size_t code = 0; code < values.size(); ++code) {
    EXPECT_EQ(double{E4m3ToFloat(static_cast<uint8_t>(code))}, values[code]) << code;
    const float negative = E4m3ToFloat(static_cast<uint8_t>(code | 0x80U));
    EXPECT_EQ(double{negative}, -values[code]) << code;
    EXPECT_TRUE(std::signbit(negative)) << code;
  }
  EXPECT_TRUE(std::isnan(E4m3ToFloat(0x7F)));
  EXPECT_TRUE(std::isnan(E4m3ToFloat(0xFF)));
}

TEST(E4m3, EncodesEveryCodesValueBackToTheCode) {
  for (unsigned code = 0; code < 256; ++code) {
    const auto byte = static_cast<uint8_t>(code);
    if (IsE4m3NaN(byte)) {
      EXPECT_EQ(FloatToE4m3(E4m3ToFloat(byte)), kE4m3NaN);
    } else {
      EXPECT_EQ(FloatToE4m3(E4m3ToFloat(byte)), byte);
    }
  }
}

TEST(E4m3, EncodesEveryBf16ToTheNearestValue) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float x = Bf16ToFloat(static_cast<uint16_t>(bits));
    const uint8_t expected = std::isnan(x) ? kE4m3NaN : NearestCode(double{x});
    ASSERT_EQ(FloatToE4m3(x), expected) << "BF16 bits " << bits << " = " << x;
  }
}

// Around each midpoint the neighbours in FP32 part: the case that BF16 inputs are too coarse for.
TEST(E4m3, RoundsAtEveryMidpointToTheBit) {
  const std::vector<double> values = Magnitudes();
  for (size_t code = 0; code + 1 < values.size(); ++code) {
    const auto midpoint = static_cast<float>((values[code] + values[code + 1]) / 2);
    const auto even = static_cast<uint8_t>(code % 2 == 0 ? code : code + 1);
    EXPECT_EQ(FloatToE4m3(midpoint), even) << midpoint;
    EXPECT_EQ(FloatToE4m3(std::nextafter(midpoint, 0.0F)), code) << midpoint;
    EXPECT_EQ(FloatToE4m3(std::nextafter(midpoint, 1e9F)), code + 1) << midpoint;
    EXPECT_EQ(FloatToE4m3(-midpoint), even | 0x80) << midpoint;
  }
}

// The vectors of docs/formats.md, section 8.
TEST(E4m3, MatchesThePublishedVectors) {
  const float infinity = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<std::pair<float, int>> cases = {
      {448.0F, 0x7E},     {464.0F, 0x7E},    {464.0001F, 0x7E},
      {480.0F, 0x7E},     {infinity, 0x7E},  {-infinity, 0xFE},
      {nan, 0x7F},        {-nan, 0x7F},      {-0.0F, 0x80},
      {0x1p-10F, 0x00},   {-0x1p-10F, 0x80}, {0x1p-10F * (1.0F + 0x1p-23F), 0x01},
      {0x1.8p-9F, 0x02},  {0x1p-6F, 0x08},   {0x1p-9F, 0x01},
      {0x1.ep-7F, 0x08},  // 7.5 quanta: the tie between 7 and 8 belongs to 8, the least normal.
      {-0x1p-149F, 0x80}, {0x1p-149F, 0x00}};
  for (const auto& [x, code] : cases) {
    EXPECT_EQ(FloatToE4m3(x), code) << x;
  }
}

TEST(E4m3, FindsTheOnlyNaNCodeAtEveryPosition) {
  for (const size_t length : {1U, 8U, 9U, 31U}) {
    for (unsigned other = 0; other < 256; ++other) {
      std::vector<uint8_t> codes(length, static_cast<uint8_t>(other));
      ASSERT_EQ(HasNaNCode(codes), other == 0x7F || other == 0xFF) << other;
    }
    std::vector<uint8_t> codes(length, 0xFE);
    for (size_t i = 0; i < length; ++i) {
      codes[i] = i % 2 != 0 ? 0x7F : 0xFF;
      EXPECT_TRUE(HasNaNCode(codes)) << i;
      codes[i] = 0xFE;
    }
    EXPECT_FALSE(HasNaNCode(codes));
  }
  EXPECT_FALSE(HasNaNCode({}));
}

TEST(E4m3, DoesNotDependOnTheSubnormalModeOfTheThread) {
  const ScopedFlushSubnormals guard;
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const uint16_t value = static_cast<uint16_t>(bits);
    const bool is_nan = (value & 0x7FFFU) > 0x7F80U;
    uint8_t expected = kE4m3NaN;
    if (!is_nan) {
      const ScopedIeeeSubnormals ieee;
      expected = NearestCode(double{Bf16ToFloat(value)});
    }
    ASSERT_EQ(FloatToE4m3(Bf16ToFloat(value)), expected) << bits;
  }
}

}  // namespace
}  // namespace octavo
