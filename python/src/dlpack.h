#pragma once
// The structs of DLPack that pass a tensor between libraries in one process.
//
// Source: DLPack 1.1, dlpack.h: the ABI of an unversioned capsule, "dltensor".

#include <cstdint>

namespace octavo_python {

enum DlDeviceType : int32_t { kDlCpu = 1, kDlCudaHost = 3 };

enum DlTypeCode : uint8_t {
  kDlInt = 0,
  kDlUint = 1,
  kDlFloat = 2,
  kDlBfloat = 4,
  kDlBool = 6,
  kDlFloat8E4m3fn = 10,
  kDlFloat8E5m2 = 12,
  kDlFloat8E8m0fnu = 14,
};

struct DlDevice {
  int32_t device_type;
  int32_t device_id;
};

struct DlDataType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};

struct DlTensor {
  void* data;
  DlDevice device;
  int32_t ndim;
  DlDataType dtype;
  int64_t* shape;
  int64_t* strides;  // In elements; null: dense, row-major.
  uint64_t byte_offset;
};

struct DlManagedTensor {
  DlTensor dl_tensor;
  void* manager_ctx;
  void (*deleter)(DlManagedTensor* self);
};

static_assert(sizeof(DlTensor) == 48 && sizeof(DlManagedTensor) == 64);

}  // namespace octavo_python
