#include "octavo/capi/tensor_in.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/buffer.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/capi/boundary.h"
#include "octavo/octavo.h"

namespace octavo::capi {
namespace {

static_assert(static_cast<int>(DType::kBool) == OCTAVO_BOOL);
static_assert(static_cast<int>(DType::kI64) == OCTAVO_I64);
static_assert(static_cast<int>(DType::kF8E4m3) == OCTAVO_F8_E4M3);
static_assert(static_cast<int>(DType::kF8E8m0) == OCTAVO_F8_E8M0);
static_assert(static_cast<int>(DType::kF16) == OCTAVO_F16);
static_assert(static_cast<int>(DType::kBf16) == OCTAVO_BF16);
static_assert(static_cast<int>(DType::kF64) == OCTAVO_F64);

// Extents whose product of bytes fits.
Result<ConstTensorView> CheckTensor(const octavo_tensor* tensor, std::string_view name) {
  RETURN_IF_ERROR(CheckGiven(tensor, name));
  if (tensor->dtype < OCTAVO_BOOL || tensor->dtype > OCTAVO_F64) {
    return InvalidArgument("{}: expected a dtype, got {}", name, tensor->dtype);
  }
  if (tensor->ndim < 0 || tensor->ndim > OCTAVO_NDIM_MAX) {
    return InvalidArgument("{}: expected 0 to {} axes, got {}", name, OCTAVO_NDIM_MAX,
                           tensor->ndim);
  }
  ConstTensorView view = {.dtype = static_cast<DType>(tensor->dtype),
                          .shape = {},
                          .data = static_cast<const std::byte*>(tensor->data)};
  if (tensor->ndim > 0) {
    RETURN_IF_ERROR(CheckGiven(tensor->shape, name));
    view.shape.assign(tensor->shape, tensor->shape + tensor->ndim);
  }
  int64_t room = std::numeric_limits<int64_t>::max() / DTypeBytes(view.dtype);
  for (const int64_t extent : view.shape) {
    if (extent < 0 || extent > room) {
      return InvalidArgument("{}: expected extents, got {}", name, ShapeString(view.shape));
    }
    room /= std::max<int64_t>(extent, 1);
  }
  if (NumElements(view.shape) > 0) {
    RETURN_IF_ERROR(CheckGiven(tensor->data, name));
  }
  return view;
}

bool IsDense(const Shape& shape, const int64_t* strides) {
  int64_t expected = 1;
  for (size_t axis = shape.size(); axis-- > 0;) {
    if (shape[axis] != 1 && strides[axis] != expected) {
      return false;
    }
    expected *= shape[axis];
  }
  return true;
}

// Row-major copy of a strided tensor: an odometer over all axes but the last.
struct Gather {
  const std::byte* source;
  std::span<const int64_t> shape;
  std::span<const int64_t> strides;  // In elements.
  size_t elem_bytes;
  std::byte* target;

  void Run() const {
    const size_t last = shape.size() - 1;
    const auto inner = static_cast<size_t>(shape[last]);
    const int64_t step = strides[last] * static_cast<int64_t>(elem_bytes);
    std::vector<int64_t> index(last, 0);
    std::byte* out = target;
    for (;;) {
      int64_t offset = 0;
      for (size_t axis = 0; axis < last; ++axis) {
        offset += index[axis] * strides[axis];
      }
      const std::byte* row = source + offset * static_cast<int64_t>(elem_bytes);
      for (size_t i = 0; i < inner; ++i, out += elem_bytes) {
        std::memcpy(out, row + static_cast<int64_t>(i) * step, elem_bytes);
      }
      size_t axis = last;
      while (axis > 0 && ++index[axis - 1] == shape[axis - 1]) {
        index[--axis] = 0;
      }
      if (axis == 0) {
        return;
      }
    }
  }
};

}  // namespace

Result<DenseTensor> DenseTensor::From(const octavo_tensor* tensor, std::string_view name) {
  DenseTensor dense;
  ASSIGN_OR_RETURN(dense.view_, CheckTensor(tensor, name));
  ConstTensorView& view = dense.view_;
  const bool is_empty = NumElements(view.shape) == 0;
  if (tensor->strides == nullptr || is_empty || IsDense(view.shape, tensor->strides)) {
    return dense;
  }
  ASSIGN_OR_RETURN(dense.copy_, Buffer::AllocateHost(view.NumBytes()));
  Gather{.source = view.data,
         .shape = view.shape,
         .strides = {tensor->strides, view.shape.size()},
         .elem_bytes = static_cast<size_t>(DTypeBytes(view.dtype)),
         .target = dense.copy_.data()}
      .Run();
  view.data = dense.copy_.data();
  return dense;
}

}  // namespace octavo::capi

const char* octavo_dtype_name(octavo_dtype dtype) {
  return dtype >= OCTAVO_BOOL && dtype <= OCTAVO_F64
             ? octavo::DTypeName(static_cast<octavo::DType>(dtype)).data()
             : nullptr;
}

octavo_dtype octavo_dtype_parse(const char* name) {
  const auto dtype = octavo::ParseDType(name == nullptr ? "" : name);
  return dtype.has_value() ? static_cast<octavo_dtype>(*dtype) : -1;
}
