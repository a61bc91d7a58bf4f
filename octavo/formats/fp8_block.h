#pragma once
// FP8 in blocks: 128x128 tiles of E4M3 codes that share one FP32 scale.
//
//   scale[i, j] = max(amax(tile), 1e-10) / 448          IEEE FP32 division
//   code[n, k]  = E4M3(x[n, k] / scale[n / 128, k / 128])   nearest even, saturating
//   value       = code * scale
//
// Edge tiles use the elements they have. Source: docs/formats.md (the "DeepSeek blocks" of
// DeepSeek-V3's checkpoints; the floor 1e-10 is that of the Triton kernel which slime, miles,
// AReaL and verl share).

#include <cstdint>

#include "octavo/formats/e8m0.h"

namespace octavo {

inline constexpr int64_t kFp8BlockDim = 128;

// ceil(extent / 128): how many blocks cover an extent.
inline constexpr int64_t NumFp8Blocks(int64_t extent) {
  return (extent + kFp8BlockDim - 1) / kFp8BlockDim;
}

inline constexpr float kFp8BlockAmaxMin = 1e-10F;

// The scale of a block whose largest magnitude is `amax` (finite): always positive and normal.
inline constexpr float Fp8BlockScale(float amax) {
  return (amax > kFp8BlockAmaxMin ? amax : kFp8BlockAmaxMin) / 448.0F;
}

// With power-of-two scales (fp8-ue8m0) the floor is higher: the least scale is 2^-22.
inline constexpr float kFp8BlockUe8m0AmaxMin = 1e-4F;

// The smallest power of two that is not below max(amax, 1e-4) / 448: a quotient by it is exact and
// at most 448.
inline constexpr float Fp8BlockUe8m0Scale(float amax) {
  const float scale = (amax > kFp8BlockUe8m0AmaxMin ? amax : kFp8BlockUe8m0AmaxMin) / 448.0F;
  return E8m0ToFloat(FloatToE8m0RoundUp(scale));
}

}  // namespace octavo
