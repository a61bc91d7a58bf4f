#pragma once
// Tensors across the border of Python: views of what Python objects hold, and what is given back.

#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "octavo/octavo.h"

namespace octavo_python {

// Throws the Python exception of octavo._errors for a status that is not OCTAVO_OK. With the GIL.
void Check(octavo_status status, const octavo_error& error);

// Memory of another Python object, which is kept alive. Never written.
class View {
 public:
  // Of the capsule that __dlpack__ gave; it is used up. Throws for a device that is not the host
  // and for a dtype that safetensors has not.
  static View FromDlpack(const pybind11::capsule& capsule);
  // Of an object with the buffer protocol.
  static View FromBuffer(const pybind11::buffer& buffer);

  View(octavo_dtype dtype, const void* data, std::vector<int64_t> shape,
       std::vector<int64_t> strides, std::shared_ptr<void> owner);

  // The same memory as elements of another dtype of the same width.
  View WithDtype(const std::string& name) const;

  octavo_tensor tensor() const;
  octavo_dtype dtype() const { return dtype_; }
  const std::vector<int64_t>& shape() const { return shape_; }
  const std::vector<int64_t>& strides() const { return strides_; }
  uintptr_t address() const { return reinterpret_cast<uintptr_t>(data_); }

 private:
  octavo_dtype dtype_;
  const void* data_;
  std::vector<int64_t> shape_;
  std::vector<int64_t> strides_;  // In elements.
  std::shared_ptr<void> owner_;
};

// One part of a quantized weight. It shares the memory of all of them.
class Array {
 public:
  Array(std::shared_ptr<octavo_quantized> quantized, int32_t part_idx);

  const octavo_part& part() const { return part_; }
  std::vector<int64_t> shape() const;
  View view() const;
  pybind11::buffer_info Buffer() const;
  // BF16 as bfloat, what DLPack or its readers have no name for as unsigned integers.
  pybind11::capsule Dlpack() const;

 private:
  std::shared_ptr<octavo_quantized> quantized_;
  octavo_part part_ = {};
};

// Of [extents], in elements.
std::vector<int64_t> DenseStrides(const std::vector<int64_t>& shape);

// Bytes of one element.
int64_t DtypeBytes(octavo_dtype dtype);

}  // namespace octavo_python
