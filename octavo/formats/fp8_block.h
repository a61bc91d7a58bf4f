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
#include <span>

#include "octavo/base/status.h"
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

// A BF16 matrix [rows, cols] to codes [rows, cols] and scales [blocks(rows), blocks(cols)].
struct Fp8BlockEncodeArgs {
  int64_t rows = 0;
  int64_t cols = 0;
  std::span<const uint16_t> values;  // BF16 bits, row-major. Never written.
  std::span<uint8_t> codes;
  std::span<float> scales;
};

// The SIMD path, equal to EncodeFp8BlockScalar bit for bit. A band of whole block rows may be
// encoded by itself: the result does not depend on how a matrix is cut at multiples of 128 rows.
// Errors: kInvalidArgument when a span has another length, or when a value is NaN or infinite (the
// message gives the count and the first index [n, k]; outputs are then unspecified).
// Thread-safe; allocates nothing on success.
[[nodiscard]] Status EncodeFp8Block(const Fp8BlockEncodeArgs& args);
[[nodiscard]] Status EncodeFp8BlockScalar(const Fp8BlockEncodeArgs& args);

// Errors: kInvalidArgument with the count of NaN and infinite values and the index [n, k] of the
// first, for rows of `cols` values.
[[nodiscard]] Status CheckFinite(std::span<const uint16_t> values, int64_t cols);

// True when a code is one of E4M3's two NaNs, which no encode writes for finite input.
bool HasNaNCode(std::span<const uint8_t> codes);

// values[n, k] = BF16(code * scale), rounded once to nearest even. A NaN code gives a NaN.
// Errors: kInvalidArgument when a span has another length. Thread-safe.
struct Fp8BlockDecodeArgs {
  int64_t rows = 0;
  int64_t cols = 0;
  std::span<const uint8_t> codes;
  std::span<const float> scales;
  std::span<uint16_t> values;
};
[[nodiscard]] Status DecodeFp8Block(const Fp8BlockDecodeArgs& args);
[[nodiscard]] Status DecodeFp8BlockScalar(const Fp8BlockDecodeArgs& args);

}  // namespace octavo
