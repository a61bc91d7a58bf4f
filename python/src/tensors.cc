#include "tensors.h"

#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dlpack.h"
#include "octavo/octavo.h"

namespace octavo_python {
namespace py = pybind11;
namespace {

constexpr const char* kCapsuleName = "dltensor";
constexpr const char* kUsedCapsuleName = "used_dltensor";

// -1 when safetensors has no such type.
octavo_dtype DtypeOf(const DlDataType& type) {
  if (type.lanes != 1) {
    return -1;
  }
  switch (type.code) {
    case kDlInt:
      return type.bits == 8    ? OCTAVO_I8
             : type.bits == 16 ? OCTAVO_I16
             : type.bits == 32 ? OCTAVO_I32
             : type.bits == 64 ? OCTAVO_I64
                               : -1;
    case kDlUint:
      return type.bits == 8    ? OCTAVO_U8
             : type.bits == 16 ? OCTAVO_U16
             : type.bits == 32 ? OCTAVO_U32
             : type.bits == 64 ? OCTAVO_U64
                               : -1;
    case kDlFloat:
      return type.bits == 16   ? OCTAVO_F16
             : type.bits == 32 ? OCTAVO_F32
             : type.bits == 64 ? OCTAVO_F64
                               : -1;
    case kDlBfloat:
      return type.bits == 16 ? OCTAVO_BF16 : -1;
    case kDlBool:
      return type.bits == 8 ? OCTAVO_BOOL : -1;
    case kDlFloat8E4m3fn:
      return OCTAVO_F8_E4M3;
    case kDlFloat8E5m2:
      return OCTAVO_F8_E5M2;
    case kDlFloat8E8m0fnu:
      return OCTAVO_F8_E8M0;
    default:
      return -1;
  }
}

// Of native byte order and size, as NumPy and array write them.
octavo_dtype DtypeOfFormat(std::string_view format, int64_t item_bytes) {
  if (!format.empty() && (format[0] == '@' || format[0] == '=' || format[0] == '<')) {
    format.remove_prefix(1);
  }
  if (format.size() != 1) {
    return -1;
  }
  const std::string_view signed_codes = "bhilqn";
  const std::string_view unsigned_codes = "BHILQN";
  const auto by_bytes = [item_bytes](octavo_dtype one, octavo_dtype two, octavo_dtype four,
                                     octavo_dtype eight) {
    return item_bytes == 1 ? one : item_bytes == 2 ? two : item_bytes == 4 ? four : eight;
  };
  if (signed_codes.find(format[0]) != std::string_view::npos) {
    return by_bytes(OCTAVO_I8, OCTAVO_I16, OCTAVO_I32, OCTAVO_I64);
  }
  if (unsigned_codes.find(format[0]) != std::string_view::npos) {
    return by_bytes(OCTAVO_U8, OCTAVO_U16, OCTAVO_U32, OCTAVO_U64);
  }
  switch (format[0]) {
    case 'e':
      return OCTAVO_F16;
    case 'f':
      return OCTAVO_F32;
    case 'd':
      return OCTAVO_F64;
    case '?':
      return OCTAVO_BOOL;
    default:
      return -1;
  }
}

// What readers of buffers and of DLPack know: FP8 and E8M0 are bytes to them.
DlDataType DlTypeOf(octavo_dtype dtype) {
  switch (dtype) {
    case OCTAVO_F32:
      return {kDlFloat, 32, 1};
    case OCTAVO_BF16:
      return {kDlBfloat, 16, 1};
    default:
      return {kDlUint, 8, 1};
  }
}

// Keeps a DLPack tensor of another library until the last view of it is gone.
struct DlOwner {
  explicit DlOwner(DlManagedTensor* given) : managed(given) {}
  ~DlOwner() {
    if (managed->deleter != nullptr) {
      managed->deleter(managed);
    }
  }
  DlOwner(const DlOwner&) = delete;
  DlOwner& operator=(const DlOwner&) = delete;

  DlManagedTensor* managed;
};

// An array that was given away as a DLPack tensor.
struct Export {
  Array array;
  std::vector<int64_t> shape;
  std::vector<int64_t> strides;
  DlManagedTensor managed;
};

}  // namespace

void Check(octavo_status status, const octavo_error& error) {
  if (status == OCTAVO_OK) {
    return;
  }
  const py::object make = py::module_::import("octavo._errors").attr("make_error");
  const py::object exception = make(octavo_status_name(status), error.message);
  PyErr_SetObject(py::type::of(exception).ptr(), exception.ptr());
  throw py::error_already_set();
}

std::vector<int64_t> DenseStrides(const std::vector<int64_t>& shape) {
  std::vector<int64_t> strides(shape.size(), 1);
  for (size_t axis = shape.size(); axis-- > 1;) {
    strides[axis - 1] = strides[axis] * shape[axis];
  }
  return strides;
}

int64_t DtypeBytes(octavo_dtype dtype) {
  switch (dtype) {
    case OCTAVO_U16:
    case OCTAVO_I16:
    case OCTAVO_F16:
    case OCTAVO_BF16:
      return 2;
    case OCTAVO_U32:
    case OCTAVO_I32:
    case OCTAVO_F32:
      return 4;
    case OCTAVO_U64:
    case OCTAVO_I64:
    case OCTAVO_F64:
      return 8;
    default:
      return 1;
  }
}

View::View(octavo_dtype dtype, const void* data, std::vector<int64_t> shape,
           std::vector<int64_t> strides, std::shared_ptr<void> owner)
    : dtype_(dtype),
      data_(data),
      shape_(std::move(shape)),
      strides_(std::move(strides)),
      owner_(std::move(owner)) {}

View View::FromDlpack(const py::capsule& capsule) {
  if (PyCapsule_IsValid(capsule.ptr(), kCapsuleName) == 0) {
    throw py::type_error("__dlpack__: expected a capsule \"dltensor\" that nobody has used");
  }
  auto* managed = static_cast<DlManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), kCapsuleName));
  PyCapsule_SetName(capsule.ptr(), kUsedCapsuleName);
  auto owner = std::make_shared<DlOwner>(managed);
  const DlTensor& tensor = managed->dl_tensor;
  if (tensor.device.device_type != kDlCpu && tensor.device.device_type != kDlCudaHost) {
    throw py::buffer_error("expected a tensor in host memory, got DLPack device " +
                           std::to_string(tensor.device.device_type));
  }
  const octavo_dtype dtype = DtypeOf(tensor.dtype);
  if (dtype < 0) {
    throw py::type_error("expected a dtype of safetensors, got DLPack code " +
                         std::to_string(tensor.dtype.code) + " of " +
                         std::to_string(tensor.dtype.bits) + " bits");
  }
  std::vector<int64_t> shape(tensor.shape, tensor.shape + tensor.ndim);
  std::vector<int64_t> strides =
      tensor.strides == nullptr
          ? DenseStrides(shape)
          : std::vector<int64_t>(tensor.strides, tensor.strides + tensor.ndim);
  const void* data = static_cast<const char*>(tensor.data) + tensor.byte_offset;
  return View(dtype, data, std::move(shape), std::move(strides), std::move(owner));
}

View View::FromBuffer(const py::buffer& buffer) {
  auto info = std::make_shared<py::buffer_info>(buffer.request());
  const octavo_dtype dtype = DtypeOfFormat(info->format, info->itemsize);
  if (dtype < 0) {
    throw py::type_error("expected a dtype of safetensors, got a buffer of format '" +
                         info->format + "'");
  }
  std::vector<int64_t> shape(info->shape.begin(), info->shape.end());
  std::vector<int64_t> strides;
  for (const py::ssize_t stride : info->strides) {
    if (stride % info->itemsize != 0) {
      throw py::buffer_error("expected strides of whole elements");
    }
    strides.push_back(stride / info->itemsize);
  }
  const void* data = info->ptr;
  return View(dtype, data, std::move(shape), std::move(strides), std::move(info));
}

View View::WithDtype(const std::string& name) const {
  const octavo_dtype dtype = octavo_dtype_parse(name.c_str());
  if (dtype < 0 || DtypeBytes(dtype) != DtypeBytes(dtype_)) {
    throw py::value_error("dtype: expected one as wide as " +
                          std::string(octavo_dtype_name(dtype_)) + ", got " + name);
  }
  View view = *this;
  view.dtype_ = dtype;
  return view;
}

octavo_tensor View::tensor() const {
  return {.data = data_,
          .dtype = dtype_,
          .ndim = static_cast<int32_t>(shape_.size()),
          .shape = shape_.data(),
          .strides = strides_.data()};
}

Array::Array(std::shared_ptr<octavo_quantized> quantized, int32_t part_idx)
    : quantized_(std::move(quantized)) {
  octavo_error error = {};
  Check(octavo_quantized_part(quantized_.get(), part_idx, &part_, &error), error);
}

std::vector<int64_t> Array::shape() const {
  return {part_.tensor.shape, part_.tensor.shape + part_.tensor.ndim};
}

View Array::view() const {
  return View(part_.tensor.dtype, part_.tensor.data, shape(), DenseStrides(shape()), quantized_);
}

py::buffer_info Array::Buffer() const {
  const octavo_dtype dtype = part_.tensor.dtype;
  const int64_t item_bytes = DtypeBytes(dtype);
  const char* format = dtype == OCTAVO_F32 ? "f" : dtype == OCTAVO_BF16 ? "H" : "B";
  std::vector<py::ssize_t> shape(part_.tensor.shape, part_.tensor.shape + part_.tensor.ndim);
  std::vector<py::ssize_t> strides;
  for (const int64_t stride : DenseStrides(this->shape())) {
    strides.push_back(stride * item_bytes);
  }
  return py::buffer_info(const_cast<void*>(part_.tensor.data), item_bytes, format,
                         part_.tensor.ndim, std::move(shape), std::move(strides));
}

py::capsule Array::Dlpack() const {
  auto out = std::make_unique<Export>(Export{*this, shape(), DenseStrides(shape()), {}});
  DlTensor& tensor = out->managed.dl_tensor;
  tensor.data = const_cast<void*>(part_.tensor.data);
  tensor.device = {kDlCpu, 0};
  tensor.ndim = part_.tensor.ndim;
  tensor.dtype = DlTypeOf(part_.tensor.dtype);
  tensor.shape = out->shape.data();
  tensor.strides = out->strides.data();
  out->managed.manager_ctx = out.get();
  out->managed.deleter = [](DlManagedTensor* self) {
    const std::unique_ptr<Export> owner(static_cast<Export*>(self->manager_ctx));
  };
  PyObject* capsule = PyCapsule_New(&out->managed, kCapsuleName, [](PyObject* object) {
    // Named otherwise, it is whoever took the tensor that frees it.
    if (PyCapsule_IsValid(object, kCapsuleName) != 0) {
      auto* managed = static_cast<DlManagedTensor*>(PyCapsule_GetPointer(object, kCapsuleName));
      managed->deleter(managed);
    }
  });
  if (capsule == nullptr) {
    throw py::error_already_set();
  }
  (void)out.release();
  return py::reinterpret_steal<py::capsule>(capsule);
}

}  // namespace octavo_python
