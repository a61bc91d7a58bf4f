// Method: ExpF32 and LogF32 against libm in FP64, over strided bit patterns of the whole FP32 range
// (a prime stride, so that all exponents and many mantissas occur), and every special value by
// hand.

#include "octavo/kernels/math.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>

#include "octavo/base/float_env.h"

namespace octavo {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kMinNormal = std::numeric_limits<float>::min();
constexpr uint32_t kStride = 997;

// Distance of `actual` from `exact` in units of exact's last FP32 place.
double UlpError(float actual, double exact) {
  int exponent = 0;
  std::frexp(exact, &exponent);
  return std::fabs(double{actual} - exact) / std::ldexp(1.0, exponent - 24);
}

TEST(ExpF32, StaysWithinOneUlp) {
  double worst = 0.0;
  float worst_x = 0.0F;
  for (uint64_t bits = 0; bits <= 0xFFFFFFFFU; bits += kStride) {
    const float x = std::bit_cast<float>(static_cast<uint32_t>(bits));
    if (!(x >= exp_f32::kMin && x <= exp_f32::kMax)) {
      continue;
    }
    const double error = UlpError(ExpF32(x), std::exp(double{x}));
    if (error > worst) {
      worst = error;
      worst_x = x;
    }
  }
  EXPECT_LT(worst, 1.0) << "at x = " << worst_x;
  RecordProperty("worst_ulp", std::to_string(worst));
}

TEST(ExpF32, HandlesEverySpecialValue) {
  EXPECT_EQ(ExpF32(0.0F), 1.0F);
  EXPECT_EQ(ExpF32(-0.0F), 1.0F);
  EXPECT_EQ(std::bit_cast<uint32_t>(ExpF32(-kInf)), 0U);
  EXPECT_EQ(std::bit_cast<uint32_t>(ExpF32(-1e30F)), 0U);
  EXPECT_EQ(ExpF32(kInf), kInf);
  EXPECT_EQ(ExpF32(1e30F), kInf);
  EXPECT_TRUE(std::isnan(ExpF32(std::numeric_limits<float>::quiet_NaN())));
  EXPECT_EQ(ExpF32(std::nextafter(exp_f32::kMin, -kInf)), 0.0F);
  EXPECT_GE(ExpF32(exp_f32::kMin), kMinNormal);
  EXPECT_EQ(ExpF32(std::nextafter(exp_f32::kMax, kInf)), kInf);
  EXPECT_TRUE(std::isfinite(ExpF32(exp_f32::kMax)));
}

TEST(ExpF32, DoesNotDependOnTheSubnormalMode) {
  for (uint64_t bits = 0; bits <= 0xFFFFFFFFU; bits += 7919) {
    const float x = std::bit_cast<float>(static_cast<uint32_t>(bits));
    const float plain = ExpF32(x);
    const ScopedFlushSubnormals flush;
    const float flushed = ExpF32(x);
    if (std::isnan(x)) {
      continue;
    }
    ASSERT_EQ(std::bit_cast<uint32_t>(plain), std::bit_cast<uint32_t>(flushed)) << "x = " << x;
  }
}

TEST(LogF32, StaysWithinOneUlp) {
  double worst = 0.0;
  float worst_x = 0.0F;
  for (uint64_t bits = 0x00800000; bits < 0x7F800000U; bits += kStride) {
    const float x = std::bit_cast<float>(static_cast<uint32_t>(bits));
    const double exact = std::log(double{x});
    const double error = UlpError(LogF32(x), exact);
    if (error > worst) {
      worst = error;
      worst_x = x;
    }
  }
  EXPECT_LT(worst, 1.0) << "at x = " << worst_x;
  RecordProperty("worst_ulp", std::to_string(worst));
}

TEST(LogF32, HandlesEverySpecialValue) {
  EXPECT_EQ(LogF32(1.0F), 0.0F);
  EXPECT_EQ(LogF32(0.0F), -kInf);
  EXPECT_EQ(LogF32(-0.0F), -kInf);
  EXPECT_EQ(LogF32(kMinNormal / 2), -kInf);  // Subnormals count as zero.
  EXPECT_EQ(LogF32(kInf), kInf);
  EXPECT_TRUE(std::isnan(LogF32(-1.0F)));
  EXPECT_TRUE(std::isnan(LogF32(-kInf)));
  EXPECT_TRUE(std::isnan(LogF32(std::numeric_limits<float>::quiet_NaN())));
}

}  // namespace
}  // namespace octavo
