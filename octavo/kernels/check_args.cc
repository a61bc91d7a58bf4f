#include "octavo/kernels/check_args.h"

#include <cstddef>
#include <cstdint>
#include <span>

#include "octavo/base/check.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/formats/format.h"
#include "octavo/formats/fp8_block.h"
#include "octavo/kernels/matrix.h"
#include "octavo/kernels/ops.h"

namespace octavo {
namespace {

void CheckMatrix(const Activations& x, DType dtype) {
  CHECK(x.dtype == dtype);
  CHECK(x.rows >= 0);
  CHECK(x.cols > 0);
  CHECK(x.stride >= x.cols);
  CHECK((x.rows == 0 || x.data != nullptr));
}

void CheckSameShape(const Activations& x, const Activations& y) {
  CHECK(x.rows == y.rows);
  CHECK(x.cols == y.cols);
}

// Segments cover rows in order, without overlap, and their page tables reach their last position.
void CheckSegments(std::span<const Segment> segments, const KvLayer& kv, int64_t num_rows) {
  CHECK(kv.num_kv_heads > 0);
  CHECK(kv.head_dim > 0);
  CHECK(kv.head_dim % 2 == 0);
  int64_t row = 0;
  for (const Segment& segment : segments) {
    CHECK(segment.first_row >= row);
    CHECK(segment.num_rows >= 0);
    CHECK(segment.first_position >= 0);
    row = segment.first_row + segment.num_rows;
    const int64_t num_tokens = segment.first_position + segment.num_rows;
    const int64_t num_pages = (num_tokens + kPageTokens - 1) / kPageTokens;
    CHECK(num_pages <= static_cast<int64_t>(segment.page_table.size()));
    for (int64_t i = 0; i < num_pages; ++i) {
      const int32_t page = segment.page_table[static_cast<size_t>(i)];
      CHECK(page >= 0);
      CHECK(page < kv.num_pages);
    }
  }
  CHECK(row <= num_rows);
}

Status CheckSpanSize(const char* what, size_t actual, int64_t expected) {
  if (static_cast<int64_t>(actual) != expected) {
    return InvalidArgument("{}: expected {} elements, got {}", what, expected, actual);
  }
  return OkStatus();
}

}  // namespace

void CheckArgs(const EmbedArgs& args, DType activation) {
  CheckMatrix(args.y, activation);
  CHECK(args.table != nullptr);
  CHECK(args.table->format == WeightFormat::kBf16);
  CHECK(args.table->cols == args.y.cols);
  CHECK(static_cast<int64_t>(args.ids.size()) == args.y.rows);
  for (const int32_t id : args.ids) {
    CHECK(id >= 0);
    CHECK(id < args.table->rows);
  }
}

void CheckArgs(const RmsNormArgs& args, DType activation) {
  CheckMatrix(args.x, activation);
  CheckMatrix(args.y, activation);
  CheckSameShape(args.x, args.y);
  CHECK(args.weight != nullptr);
  CHECK(args.weight->format == WeightFormat::kBf16);
  CHECK(args.weight->rows == 1);
  CHECK(args.weight->cols == args.x.cols);
}

void CheckArgs(const AddArgs& args, DType activation) {
  CheckMatrix(args.x, activation);
  CheckMatrix(args.delta, activation);
  CheckSameShape(args.x, args.delta);
}

void CheckArgs(const LinearArgs& args, DType activation) {
  CheckMatrix(args.x, activation);
  CHECK(!args.parts.empty());
  CHECK(args.parts.size() <= static_cast<size_t>(kMaxLinearParts));
  for (const LinearPart& part : args.parts) {
    CHECK(part.weight != nullptr);
    CHECK(part.weight->cols == args.x.cols);
    CHECK(part.weight->rows == part.y.cols);
    CHECK(part.y.rows == args.x.rows);
    CHECK((part.y.data != args.x.data || args.x.rows == 0));
    CheckMatrix(part.y, part.y.dtype == DType::kF32 ? DType::kF32 : activation);
  }
}

void CheckArgs(const RopeArgs& args, DType activation) {
  CheckMatrix(args.x, activation);
  CHECK(args.head_dim > 0);
  CHECK(args.head_dim % 2 == 0);
  CHECK(args.x.cols == args.num_heads * args.head_dim);
  CHECK(static_cast<int64_t>(args.positions.size()) == args.x.rows);
  CHECK(args.cos.size() == args.sin.size());
  const int64_t max_positions = static_cast<int64_t>(args.cos.size()) / (args.head_dim / 2);
  for (const int32_t position : args.positions) {
    CHECK(position >= 0);
    CHECK(position < max_positions);
  }
}

void CheckArgs(const SiluMulArgs& args, DType activation) {
  CheckMatrix(args.gate, activation);
  CheckMatrix(args.up, activation);
  CheckMatrix(args.y, activation);
  CheckSameShape(args.gate, args.up);
  CheckSameShape(args.gate, args.y);
}

void CheckArgs(const GatherRowsArgs& args, DType activation) {
  CheckMatrix(args.x, activation);
  CheckMatrix(args.y, activation);
  CHECK(args.x.cols == args.y.cols);
  CHECK(static_cast<int64_t>(args.rows.size()) == args.y.rows);
  for (const int32_t row : args.rows) {
    CHECK(row >= 0);
    CHECK(row < args.x.rows);
  }
}

void CheckArgs(const KvStoreArgs& args, DType activation) {
  CheckMatrix(args.k, activation);
  CheckMatrix(args.v, activation);
  CheckSameShape(args.k, args.v);
  CHECK(args.k.cols == args.kv.num_kv_heads * args.kv.head_dim);
  CheckSegments(args.segments, args.kv, args.k.rows);
}

void CheckArgs(const AttentionArgs& args, DType activation) {
  CheckMatrix(args.q, activation);
  CheckMatrix(args.y, activation);
  CheckSameShape(args.q, args.y);
  CHECK(args.num_heads > 0);
  CHECK(args.kv.num_kv_heads > 0);
  CHECK(args.num_heads % args.kv.num_kv_heads == 0);
  CHECK(args.q.cols == args.num_heads * args.kv.head_dim);
  CheckSegments(args.segments, args.kv, args.q.rows);
}

void CheckArgs(const SoftmaxStatsArgs& args) {
  CheckMatrix(args.x, DType::kF32);
  CHECK(static_cast<int64_t>(args.max.size()) == args.x.rows);
  CHECK(static_cast<int64_t>(args.sum.size()) == args.x.rows);
}

Status CheckCanonical(const CanonicalMatrix& matrix) {
  if (matrix.rows <= 0 || matrix.cols <= 0) {
    return InvalidArgument("matrix: expected a positive shape, got [{}, {}]", matrix.rows,
                           matrix.cols);
  }
  const int64_t num_elems = matrix.rows * matrix.cols;
  switch (matrix.format) {
    case WeightFormat::kBf16:
      RETURN_IF_ERROR(CheckSpanSize("BF16 bytes", matrix.codes.size(), 2 * num_elems));
      return CheckSpanSize("BF16 scales", matrix.scales.size(), 0);
    case WeightFormat::kFp8:
      RETURN_IF_ERROR(CheckSpanSize("FP8 codes", matrix.codes.size(), num_elems));
      return CheckSpanSize("FP8 scales", matrix.scales.size(),
                           NumFp8Blocks(matrix.rows) * NumFp8Blocks(matrix.cols));
    default:
      break;
  }
  return Unsupported("serving weights in {} is not built in this release: expected bf16 or fp8",
                     WeightFormatName(matrix.format));
}

}  // namespace octavo
