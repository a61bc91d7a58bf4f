#include "octavo/sync/torch_names.h"

#include <optional>
#include <span>
#include <string_view>

#include "octavo/base/tensor.h"

namespace octavo {
namespace {

struct TorchName {
  std::string_view name;
  DType dtype;
};

constexpr TorchName kDTypes[] = {
    {"bool", DType::kBool},
    {"uint8", DType::kU8},
    {"int8", DType::kI8},
    {"uint16", DType::kU16},
    {"int16", DType::kI16},
    {"short", DType::kI16},
    {"uint32", DType::kU32},
    {"int32", DType::kI32},
    {"int", DType::kI32},
    {"uint64", DType::kU64},
    {"int64", DType::kI64},
    {"long", DType::kI64},
    {"float8_e4m3fn", DType::kF8E4m3},
    {"float8_e5m2", DType::kF8E5m2},
    {"float8_e8m0fnu", DType::kF8E8m0},
    {"float16", DType::kF16},
    {"half", DType::kF16},
    {"bfloat16", DType::kBf16},
    {"float32", DType::kF32},
    {"float", DType::kF32},
    {"float4_e2m1fn_x2", DType::kU8},  // Two codes a byte.
    {"float64", DType::kF64},
    {"double", DType::kF64},
};

constexpr TorchName kStorages[] = {
    {"UntypedStorage", DType::kU8},    {"ByteStorage", DType::kU8},
    {"CharStorage", DType::kI8},       {"BoolStorage", DType::kBool},
    {"ShortStorage", DType::kI16},     {"IntStorage", DType::kI32},
    {"LongStorage", DType::kI64},      {"HalfStorage", DType::kF16},
    {"BFloat16Storage", DType::kBf16}, {"FloatStorage", DType::kF32},
    {"DoubleStorage", DType::kF64},
};

std::optional<DType> Find(std::span<const TorchName> names, std::string_view name) {
  for (const TorchName& known : names) {
    if (known.name == name) {
      return known.dtype;
    }
  }
  return std::nullopt;
}

}  // namespace

std::optional<DType> DTypeOfTorch(std::string_view name) {
  constexpr std::string_view kPrefix = "torch.";
  return Find(kDTypes, name.starts_with(kPrefix) ? name.substr(kPrefix.size()) : name);
}

std::optional<DType> DTypeOfTorchStorage(std::string_view name) { return Find(kStorages, name); }

}  // namespace octavo
