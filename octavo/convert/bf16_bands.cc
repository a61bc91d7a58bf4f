#include "octavo/convert/bf16_bands.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "octavo/base/check.h"
#include "octavo/base/tensor.h"
#include "octavo/formats/bf16_span.h"

namespace octavo {

Bf16Bands::Bf16Bands(const ConstTensorView& source)
    : source_(source),
      rows_(source.shape.empty() ? 1 : source.shape[0]),
      cols_(rows_ == 0 ? 0 : NumElements(source.shape) / rows_) {}

int64_t Bf16Bands::BandRows(int64_t band_idx) const {
  return std::min(kBandRows, rows_ - BandBegin(band_idx));
}

std::span<const uint16_t> Bf16Bands::Read(int64_t band_idx) {
  const auto count = static_cast<size_t>(BandRows(band_idx) * cols_);
  if (count == 0) {
    return {};
  }
  const auto elem_bytes = static_cast<size_t>(DTypeBytes(source_.dtype));
  const std::byte* data =
      source_.data + static_cast<size_t>(BandBegin(band_idx) * cols_) * elem_bytes;
  const bool is_aligned = reinterpret_cast<uintptr_t>(data) % alignof(uint16_t) == 0;
  if (source_.dtype == DType::kBf16 && is_aligned) {
    return {reinterpret_cast<const uint16_t*>(data), count};
  }
  bf16_.resize(count);
  if (source_.dtype == DType::kF32) {
    f32_.resize(count);
    std::memcpy(f32_.data(), data, count * elem_bytes);
    RoundF32ToBf16(f32_, bf16_);
  } else if (source_.dtype == DType::kF16) {
    f16_.resize(count);
    std::memcpy(f16_.data(), data, count * elem_bytes);
    RoundF16ToBf16(f16_, bf16_);
  } else {
    CHECK(source_.dtype == DType::kBf16);
    std::memcpy(bf16_.data(), data, count * elem_bytes);
  }
  return bf16_;
}

}  // namespace octavo
