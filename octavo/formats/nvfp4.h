#pragma once
// NVFP4: groups of 16 E2M1 codes along a row that share one E4M3 scale, and one FP32 scale for the
// tensor (or for the fused set that it belongs to).
//
//   S  = fl(2688 / A), at most FLT_MAX; 1 for A = 0        A: amax of the sharing set
//   sb = E4M3(min(fl(amax(group) * fl(S * fl(1/6))), 448)) the group's scale
//   D  = fl(1 / S)                                         the tensor's scale
//   q  = E2M1(fl(x * m)), m = min(fl(1 / fl(sb * D)), FLT_MAX)
//   value = q * fl(sb * D)
//
// This is TransformerEngine's exact-math path, operation by operation, so that a checkpoint has the
// bytes of a trainer that quantizes its weights so. Source: docs/formats.md; arXiv 2509.25149.

#include <algorithm>
#include <cstdint>
#include <limits>

#include "octavo/formats/e4m3.h"

namespace octavo {

inline constexpr int64_t kNvfp4GroupElems = 16;

// S above. `amax` is finite and not negative. Always finite and positive.
inline constexpr float Nvfp4EncodeScale(float amax) {
  if (amax == 0.0F) {
    return 1.0F;
  }
  return std::min(2688.0F / amax, std::numeric_limits<float>::max());  // 448 * 6.
}

// D above: what the codes and group scales are multiplied with.
inline constexpr float Nvfp4TensorScale(float amax) { return 1.0F / Nvfp4EncodeScale(amax); }

// fl(S * fl(1/6)), by which group scales follow from a group's amax.
inline constexpr float Nvfp4GroupFactor(float amax) {
  return Nvfp4EncodeScale(amax) * (1.0F / 6.0F);
}

// sb above. It may underflow to 0, and then the group decodes to zeros.
inline constexpr uint8_t Nvfp4GroupScale(float group_amax, float group_factor) {
  return FloatToE4m3(std::min(group_amax * group_factor, kE4m3Max));
}

// m above, from the value of sb and D.
inline constexpr float Nvfp4Multiplier(float group_scale, float tensor_scale) {
  const float scale = group_scale * tensor_scale;
  if (scale == 0.0F) {
    return std::numeric_limits<float>::max();
  }
  return std::min(1.0F / scale, std::numeric_limits<float>::max());
}

}  // namespace octavo
