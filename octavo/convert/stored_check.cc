#include "octavo/convert/stored_check.h"

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/convert/source.h"
#include "octavo/convert/stored_values.h"
#include "octavo/formats/e4m3.h"
#include "octavo/formats/e8m0.h"
#include "octavo/formats/format.h"
#include "octavo/policy/precision_table.h"

namespace octavo {
namespace {

bool IsE8m0(DType dtype) { return dtype == DType::kU8 || dtype == DType::kF8E8m0; }

bool IsExactDType(const PrecisionRow& row, const StoredTensorSpec& spec, DType dtype) {
  if (dtype == spec.dtype) {
    return true;
  }
  if (spec.part == StoredPart::kCodes) {
    return false;
  }
  if (spec.dtype == DType::kF32) {
    const bool is_power = row.format == WeightFormat::kFp8Ue8m0 && spec.part == StoredPart::kScales;
    return dtype == DType::kBf16 || dtype == DType::kF16 || (is_power && IsE8m0(dtype));
  }
  return row.format == WeightFormat::kMxfp8 && IsE8m0(spec.dtype) && IsE8m0(dtype);
}

// The same elements without trailing extents of 1.
Shape Trimmed(Shape shape) {
  while (!shape.empty() && shape.back() == 1) {
    shape.pop_back();
  }
  return shape;
}

// Of an E4M3 group scale: not negative, not NaN.
bool IsUsableE4m3Scale(uint8_t byte) { return byte <= 0x7E; }

bool IsUsable(const PrecisionRow& row, const StoredTensorSpec& spec, const ConstTensorView& view,
              int64_t elem_idx) {
  const auto byte = DTypeBytes(view.dtype) == 1
                        ? std::to_integer<uint8_t>(view.data[static_cast<size_t>(elem_idx)])
                        : uint8_t{0};
  if (spec.dtype == DType::kF8E4m3) {
    return IsUsableE4m3Scale(byte);
  }
  if (row.format == WeightFormat::kMxfp8 && spec.part == StoredPart::kScales) {
    return byte != kE8m0NaN;
  }
  float scale = 0.0F;
  WidenScales(view, elem_idx, {&scale, 1});
  if (!IsUsableScale(scale)) {
    return false;
  }
  const bool is_power = row.format == WeightFormat::kFp8Ue8m0 && spec.part == StoredPart::kScales;
  const auto bits = std::bit_cast<uint32_t>(scale);
  return !is_power || ((bits & 0x7FFFFFU) == 0);
}

float ValueAt(const StoredTensorSpec& spec, const ConstTensorView& view, int64_t elem_idx) {
  if (spec.dtype == DType::kF8E4m3) {
    return E4m3ToFloat(std::to_integer<uint8_t>(view.data[static_cast<size_t>(elem_idx)]));
  }
  float scale = 0.0F;
  WidenScales(view, elem_idx, {&scale, 1});
  return scale;
}

}  // namespace

Status CheckStoredType(const PrecisionRow& row, const StoredTensorSpec& spec,
                       const ConstTensorView& view) {
  const bool same_shape = view.shape == spec.shape || (spec.part != StoredPart::kCodes &&
                                                       Trimmed(view.shape) == Trimmed(spec.shape));
  if (!same_shape || !IsExactDType(row, spec, view.dtype)) {
    return InvalidArgument("{}: expected {} {}, got {} {}", spec.name, ShapeString(spec.shape),
                           DTypeName(spec.dtype), ShapeString(view.shape), DTypeName(view.dtype));
  }
  return OkStatus();
}

Status CheckStoredCodes(const PrecisionRow& row, std::span<const uint8_t> codes) {
  if (row.format != WeightFormat::kNvfp4 && HasNaNCode(codes)) {
    return InvalidArgument("{}: expected E4M3 codes of finite values, got a NaN code", row.name);
  }
  return OkStatus();
}

Status CheckStoredScales(const PrecisionRow& row, const StoredTensorSpec& spec,
                         const ConstTensorView& view) {
  const int64_t count = NumElements(view.shape);
  for (int64_t i = 0; i < count; ++i) {
    if (!IsUsable(row, spec, view, i)) {
      const bool is_power = row.format == WeightFormat::kFp8Ue8m0;
      return InvalidArgument("{}: expected finite positive scales{}, got {} at {}", spec.name,
                             is_power ? " that are powers of two" : "", ValueAt(spec, view, i),
                             IndexString(view.shape, i));
    }
  }
  return OkStatus();
}

void CopyStored(const StoredTensorSpec& spec, const ConstTensorView& view,
                std::span<std::byte> out) {
  if (out.empty()) {
    return;
  }
  if (DTypeBytes(view.dtype) == DTypeBytes(spec.dtype)) {
    std::memcpy(out.data(), view.data, out.size());
    return;
  }
  WidenScales(view, 0, {reinterpret_cast<float*>(out.data()), out.size() / sizeof(float)});
}

}  // namespace octavo
