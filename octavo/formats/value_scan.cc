// Amax, CountNonFinite and CheckFiniteValues of quantize.h.

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "octavo/base/check.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/formats/bf16.h"
#include "octavo/formats/quantize.h"
#include "octavo/formats/quantize_simd.h"

namespace octavo {
namespace {

constexpr uint32_t kInfinityBits = 0x7F800000U;

template <typename T>
uint32_t MagnitudeBits(T value) {
  if constexpr (sizeof(T) == sizeof(uint16_t)) {
    return uint32_t{value & 0x7FFFU} << 16;
  } else {
    return std::bit_cast<uint32_t>(value) & 0x7FFFFFFFU;
  }
}

template <typename T>
std::span<const T> Elements(const ConstTensorView& values) {
  return {reinterpret_cast<const T*>(values.data), static_cast<size_t>(NumElements(values.shape))};
}

template <typename T>
uint32_t MaxMagnitudeBits(std::span<const T> values) {
  uint32_t max = 0;
  for (const T value : values) {
    max = std::max(max, MagnitudeBits(value));
  }
  return max;
}

template <typename T>
NonFiniteCount CountNonFiniteIn(std::span<const T> values) {
  NonFiniteCount found;
  for (size_t i = 0; i < values.size(); ++i) {
    if (MagnitudeBits(values[i]) >= kInfinityBits) {
      found.first_idx = found.count == 0 ? static_cast<int64_t>(i) : found.first_idx;
      ++found.count;
    }
  }
  return found;
}

// The index of element `flat` in a tensor of that shape.
Shape Unravel(int64_t flat, const Shape& shape) {
  Shape index(shape.size());
  for (size_t axis = shape.size(); axis-- > 0;) {
    index[axis] = flat % shape[axis];
    flat /= shape[axis];
  }
  return index;
}

}  // namespace

float AmaxScalar(const ConstTensorView& values) {
  CHECK((values.dtype == DType::kBf16 || values.dtype == DType::kF32));
  return std::bit_cast<float>(values.dtype == DType::kF32
                                  ? MaxMagnitudeBits(Elements<float>(values))
                                  : MaxMagnitudeBits(Elements<uint16_t>(values)));
}

float Amax(const ConstTensorView& values) {
  CHECK((values.dtype == DType::kBf16 || values.dtype == DType::kF32));
  return std::bit_cast<float>(simd::MaxMagnitudeBits(values));
}

NonFiniteCount CountNonFinite(const ConstTensorView& values) {
  if (std::bit_cast<uint32_t>(Amax(values)) < kInfinityBits) {
    return {};
  }
  return values.dtype == DType::kF32 ? CountNonFiniteIn(Elements<float>(values))
                                     : CountNonFiniteIn(Elements<uint16_t>(values));
}

Status CheckFiniteValues(const ConstTensorView& values) {
  const NonFiniteCount found = CountNonFinite(values);
  if (found.count == 0) {
    return OkStatus();
  }
  return InvalidArgument("expected finite values, got {} NaN or infinite, the first at {}",
                         found.count, ShapeString(Unravel(found.first_idx, values.shape)));
}

}  // namespace octavo
