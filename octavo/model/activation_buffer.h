#pragma once
// ActivationBuffer: the memory of one named activation, allocated once for the largest batch; and
// views of parts of activations.

#include <cstdint>
#include <utility>

#include "octavo/base/buffer.h"
#include "octavo/base/check.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/kernels/ops.h"

namespace octavo {

// Move-only. One thread.
class ActivationBuffer {
 public:
  // Errors: kExhausted.
  static Result<ActivationBuffer> Make(DType dtype, int64_t max_rows, int64_t cols) {
    ActivationBuffer made;
    ASSIGN_OR_RETURN(made.buffer_, Buffer::AllocateHost(max_rows * cols * DTypeBytes(dtype)));
    made.dtype_ = dtype;
    made.max_rows_ = max_rows;
    made.cols_ = cols;
    return made;
  }

  // The first `rows` rows, [rows, cols]. The view lives as long as the buffer.
  Activations Rows(int64_t rows) {
    DCHECK(rows <= max_rows_);
    return {.dtype = dtype_, .data = buffer_.data(), .rows = rows, .cols = cols_, .stride = cols_};
  }

 private:
  Buffer buffer_;
  DType dtype_ = DType::kBf16;
  int64_t max_rows_ = 0;
  int64_t cols_ = 0;
};

// Columns [first, first + cols) of x.
inline Activations Columns(Activations x, int64_t first, int64_t cols) {
  DCHECK(first + cols <= x.cols);
  x.data += first * DTypeBytes(x.dtype);
  x.cols = cols;
  return x;
}

// The same memory as [rows * num_heads, cols / num_heads]: one row a head. x is contiguous.
inline Activations HeadRows(Activations x, int64_t num_heads) {
  DCHECK(x.stride == x.cols);
  x.rows *= num_heads;
  x.cols /= num_heads;
  x.stride = x.cols;
  return x;
}

}  // namespace octavo
