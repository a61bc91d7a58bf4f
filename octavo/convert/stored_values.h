#pragma once
// Single values of stored tensors, for checks and messages.

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

#include "octavo/base/tensor.h"
#include "octavo/formats/bf16.h"
#include "octavo/formats/e8m0.h"

namespace octavo {

// Element `elem_idx` of scales in F32, BF16, or E8M0 bytes (U8 or F8_E8M0: 2^(b - 127)), at any
// alignment. Official checkpoints store BF16 here and there; widening is exact.
inline float ScaleAt(const ConstTensorView& scales, size_t elem_idx) {
  if (scales.dtype == DType::kU8 || scales.dtype == DType::kF8E8m0) {
    return E8m0ToFloat(std::to_integer<uint8_t>(scales.data[elem_idx]));
  }
  if (scales.dtype == DType::kBf16) {
    uint16_t bits = 0;
    std::memcpy(&bits, scales.data + elem_idx * sizeof(bits), sizeof(bits));
    return Bf16ToFloat(bits);
  }
  float value = 0.0F;
  std::memcpy(&value, scales.data + elem_idx * sizeof(value), sizeof(value));
  return value;
}

// Finite and positive. Judged by its bits, so that a thread which flushes subnormals sees them too.
inline bool IsUsableScale(float scale) {
  const auto bits = std::bit_cast<uint32_t>(scale);
  return bits != 0 && bits < 0x7F800000U;
}

// "[i, j, ...]" of the element at `elem_idx` in row-major order.
inline std::string IndexString(const Shape& shape, int64_t elem_idx) {
  Shape index(shape.size());
  for (size_t axis = shape.size(); axis-- > 0;) {
    index[axis] = elem_idx % shape[axis];
    elem_idx /= shape[axis];
  }
  return ShapeString(index);
}

}  // namespace octavo
