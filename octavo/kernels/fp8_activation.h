#pragma once
// FP8 activations: per token, groups of 128 along the depth share one FP32 scale (rule A of the
// FP8-block recipe: IEEE division, no reciprocal).
//
//   s = max(amax(group), 1e-10) / 448;   code = E4M3(x / s);   value = code * s
//
// The last group of a row may be short. A NaN or infinity in x makes its group's scale NaN and the
// group's codes 0: exactly that token's outputs become NaN.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>

#include "octavo/formats/e4m3.h"

namespace octavo {

inline constexpr int64_t kActivationGroup = 128;
inline constexpr float kActivationAmaxFloor = 1e-10F;

// Scale of one group of at most 128 values.
inline float Fp8ActivationScale(std::span<const float> group) {
  float amax = 0.0F;
  for (const float x : group) {
    if (!std::isfinite(x)) {
      return std::numeric_limits<float>::quiet_NaN();
    }
    amax = std::max(amax, std::fabs(x));
  }
  return std::max(amax, kActivationAmaxFloor) / kE4m3Max;
}

// Quantizes one group and returns its scale. `values` (as long as `group`; may be it) receives the
// exact values of the codes, without the scale: they fit BF16, so products of two are exact in
// FP32.
inline float QuantizeFp8Group(std::span<const float> group, std::span<float> values) {
  const float scale = Fp8ActivationScale(group);
  const bool is_finite = std::isfinite(scale);
  for (size_t i = 0; i < group.size(); ++i) {
    values[i] = is_finite ? E4m3ToFloat(FloatToE4m3(group[i] / scale)) : 0.0F;
  }
  return scale;
}

}  // namespace octavo
