#pragma once
// Exp and Log as fixed sequences of FP32 operations: every backend computes the same bits, because
// every step is one IEEE operation that vectors have too. No libm, whose results differ by version.
//
// Both are always inlined, so that std::fma is one instruction in callers that are compiled for
// processors with FMA, and a libm call (the same bits) elsewhere.

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace octavo {

// Constants of ExpF32, shared with its vector form in cpu/.
//
//   exp(x) = 2^n * exp(r), n = round(x / ln 2), r = x - n ln 2, |r| <= ln 2 / 2
//   exp(r) ~ 1 + (r + r^2 * q(r)), q of degree 4 by Remez' exchange with the weight r^2 / exp(r)
//
// ln 2 is cut in two parts; the high one has 9 significant bits, so that n * kLn2High is exact.
namespace exp_f32 {
inline constexpr float kInvLn2 = 0x1.715476p+0F;
inline constexpr float kLn2High = 0x1.62p-1F;
inline constexpr float kLn2Low = 0x1.c85fe0p-10F;
inline constexpr float kRounder = 0x1.8p+23F;  // Adding it leaves round(v) in the low bits.
inline constexpr float kQ0 = 0x1.fffffcp-2F;
inline constexpr float kQ1 = 0x1.555490p-3F;
inline constexpr float kQ2 = 0x1.5558f4p-5F;
inline constexpr float kQ3 = 0x1.123a6cp-7F;
inline constexpr float kQ4 = 0x1.6a2352p-10F;
inline constexpr float kMin = -0x1.5d589ep+6F;  // Below: exp(x) < 2^-126, given as 0.
inline constexpr float kMax = 0x1.62e42ep+6F;   // Above: exp(x) > FLT_MAX, given as infinity.
}  // namespace exp_f32

// exp(x) within 1 ulp; 0 where the true value is below the smallest normal FP32 (so in every
// subnormal mode); +inf on overflow; NaN for NaN. Constant memory, thread-safe.
[[gnu::always_inline]] inline float ExpF32(float x) {
  using namespace exp_f32;  // NOLINT(google-build-using-namespace): the constants of this function
  const float shifted = std::fma(x, kInvLn2, kRounder);
  const float n = shifted - kRounder;
  const float r = std::fma(n, -kLn2Low, std::fma(n, -kLn2High, x));
  float q = std::fma(kQ4, r, kQ3);
  q = std::fma(q, r, kQ2);
  q = std::fma(q, r, kQ1);
  q = std::fma(q, r, kQ0);
  const float p = 1.0F + std::fma(r * r, q, r);
  // 2^n in two factors, since n reaches 128.
  const auto exponent =
      static_cast<int32_t>(std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(kRounder));
  const int32_t half = exponent >> 1;
  const float scale_a = std::bit_cast<float>(static_cast<uint32_t>(half + 127) << 23);
  const float scale_b = std::bit_cast<float>(static_cast<uint32_t>(exponent - half + 127) << 23);
  const float value = p * scale_a * scale_b;
  if (x < kMin) {
    return 0.0F;
  }
  if (x > kMax) {
    return std::numeric_limits<float>::infinity();
  }
  return value;  // A NaN came through p.
}

// Natural logarithm within 1 ulp of its true value or of 2^-24, whichever is larger. -inf for
// zeros and for subnormals (in every subnormal mode), NaN for negatives and NaN, +inf for +inf.
//
//   x = 2^n (1 + f), sqrt(1/2) <= 1 + f < sqrt(2); s = f / (2 + f);
//   log(1 + f) = 2 atanh(s) = f - s (f - t), t = 2/3 s^2 + 2/5 s^4 + 2/7 s^6 + 2/9 s^8
[[gnu::always_inline]] inline float LogF32(float x) {
  if (!(x >= std::numeric_limits<float>::min())) {
    return x > -std::numeric_limits<float>::min() ? -std::numeric_limits<float>::infinity()
                                                  : std::numeric_limits<float>::quiet_NaN();
  }
  if (x > std::numeric_limits<float>::max()) {
    return x;
  }
  constexpr uint32_t kSqrtHalf = 0x3F3504F3U;
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const int32_t exponent = static_cast<int32_t>(bits - kSqrtHalf) >> 23;
  const auto n = static_cast<float>(exponent);
  const float f = std::bit_cast<float>(bits - (static_cast<uint32_t>(exponent) << 23)) - 1.0F;
  const float s = f / (2.0F + f);
  const float z = s * s;
  float t = std::fma(z, 2.0F / 9.0F, 2.0F / 7.0F);
  t = std::fma(t, z, 2.0F / 5.0F);
  t = std::fma(t, z, 2.0F / 3.0F);
  t = t * z;
  const float low = std::fma(n, exp_f32::kLn2Low, -(s * (f - t)));
  return std::fma(n, exp_f32::kLn2High, f + low);
}

}  // namespace octavo
