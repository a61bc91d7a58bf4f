#pragma once
// Element types as safetensors spells them, and views of dense row-major tensors.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace octavo {

enum class DType : uint8_t {
  kBool,
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kU64,
  kI64,
  kF8E4m3,
  kF8E5m2,
  kF8E8m0,
  kF16,
  kBf16,
  kF32,
  kF64,
};

// Bytes of one element.
int64_t DTypeBytes(DType dtype);
// "BF16", "F8_E4M3", ...: safetensors' spelling.
std::string_view DTypeName(DType dtype);
// Inverse of DTypeName; nullopt for a name that we do not know.
std::optional<DType> ParseDType(std::string_view name);

// Extents, outermost first. [] is a scalar: one element.
using Shape = std::vector<int64_t>;

// Product of the extents; 1 for []. Requires non-negative extents whose product fits.
int64_t NumElements(const Shape& shape);
// "[2, 3]", "[]".
std::string ShapeString(const Shape& shape);

// A tensor somebody else owns; the owner of `data` must outlive the view.
struct ConstTensorView {
  DType dtype = DType::kU8;
  Shape shape;
  const std::byte* data = nullptr;

  int64_t NumBytes() const { return NumElements(shape) * DTypeBytes(dtype); }
  std::span<const std::byte> Bytes() const { return {data, static_cast<size_t>(NumBytes())}; }
};

// The same, writable.
struct TensorView {
  DType dtype = DType::kU8;
  Shape shape;
  std::byte* data = nullptr;

  int64_t NumBytes() const { return NumElements(shape) * DTypeBytes(dtype); }
  std::span<std::byte> Bytes() const { return {data, static_cast<size_t>(NumBytes())}; }
  operator ConstTensorView() const {  // NOLINT(google-explicit-constructor): adds const only
    return {dtype, shape, data};
  }
};

}  // namespace octavo
