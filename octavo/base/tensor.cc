#include "octavo/base/tensor.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "octavo/base/check.h"

namespace octavo {
namespace {

struct DTypeRow {
  DType dtype;
  std::string_view name;
  int64_t bytes;
};

constexpr std::array kDTypes = {
    DTypeRow{DType::kBool, "BOOL", 1},      DTypeRow{DType::kU8, "U8", 1},
    DTypeRow{DType::kI8, "I8", 1},          DTypeRow{DType::kU16, "U16", 2},
    DTypeRow{DType::kI16, "I16", 2},        DTypeRow{DType::kU32, "U32", 4},
    DTypeRow{DType::kI32, "I32", 4},        DTypeRow{DType::kU64, "U64", 8},
    DTypeRow{DType::kI64, "I64", 8},        DTypeRow{DType::kF8E4m3, "F8_E4M3", 1},
    DTypeRow{DType::kF8E5m2, "F8_E5M2", 1}, DTypeRow{DType::kF8E8m0, "F8_E8M0", 1},
    DTypeRow{DType::kF16, "F16", 2},        DTypeRow{DType::kBf16, "BF16", 2},
    DTypeRow{DType::kF32, "F32", 4},        DTypeRow{DType::kF64, "F64", 8},
};

const DTypeRow& RowOf(DType dtype) {
  const DTypeRow& row = kDTypes[static_cast<size_t>(dtype)];
  DCHECK(row.dtype == dtype);
  return row;
}

}  // namespace

int64_t DTypeBytes(DType dtype) { return RowOf(dtype).bytes; }

std::string_view DTypeName(DType dtype) { return RowOf(dtype).name; }

std::optional<DType> ParseDType(std::string_view name) {
  for (const DTypeRow& row : kDTypes) {
    if (row.name == name) {
      return row.dtype;
    }
  }
  return std::nullopt;
}

int64_t NumElements(const Shape& shape) {
  int64_t count = 1;
  for (const int64_t extent : shape) {
    count *= extent;
  }
  return count;
}

std::string ShapeString(const Shape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return text + "]";
}

}  // namespace octavo
