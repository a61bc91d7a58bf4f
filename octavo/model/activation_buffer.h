#pragma once
// ActivationBuffer: the memory of one named activation, allocated once for the largest batch.

#include <cstdint>
#include <utility>

#include "octavo/base/buffer.h"
#include "octavo/base/check.h"
#include "octavo/base/status.h"
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
  // The same memory as [rows * num_heads, cols / num_heads]: one row a head.
  Activations Heads(int64_t rows, int64_t num_heads) {
    DCHECK(rows <= max_rows_);
    const int64_t head_dim = cols_ / num_heads;
    return {.dtype = dtype_,
            .data = buffer_.data(),
            .rows = rows * num_heads,
            .cols = head_dim,
            .stride = head_dim};
  }

 private:
  Buffer buffer_;
  DType dtype_ = DType::kBf16;
  int64_t max_rows_ = 0;
  int64_t cols_ = 0;
};

}  // namespace octavo
