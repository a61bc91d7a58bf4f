#pragma once
// Tensors that a caller of the C ABI describes, as dense views.

#include "octavo/base/buffer.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/octavo.h"

namespace octavo::capi {

// A dense tensor: the caller's own memory where it is dense, else a copy of it. Move-only.
class DenseTensor {
 public:
  // The tensor must outlive this. `name` stands in messages. Errors: kInvalidArgument for a dtype,
  // a rank or an extent that is none, and for null data; kExhausted without memory for the copy.
  static Result<DenseTensor> From(const octavo_tensor* tensor, std::string_view name);

  const ConstTensorView& view() const { return view_; }
  bool is_copy() const { return !copy_.empty(); }

 private:
  ConstTensorView view_;
  Buffer copy_;
};

}  // namespace octavo::capi
