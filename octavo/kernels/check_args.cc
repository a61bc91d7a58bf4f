#include "octavo/kernels/check_args.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>

#include "octavo/base/check.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/formats/e4m3.h"
#include "octavo/formats/e8m0.h"
#include "octavo/formats/format.h"
#include "octavo/formats/mxfp8.h"
#include "octavo/formats/nvfp4.h"
#include "octavo/formats/quantize.h"
#include "octavo/kernels/linear_input.h"
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

// y of an op that is left to a linear layer, and the layer's x.
void CheckSame(const Activations& y, const Activations& x) {
  CheckSameShape(y, x);
  CHECK((y.data == x.data && y.stride == x.stride));
}

// Segments cover rows in order, without overlap, and their page tables reach their last position.
void CheckSegments(std::span<const Segment> segments, const KvLayer& kv, int64_t num_rows) {
  CHECK(kv.shape.num_kv_heads > 0);
  CHECK(kv.shape.head_dim > 0);
  CHECK(kv.shape.head_dim % 2 == 0);
  CHECK(kv.shape.ValueDim() > 0);
  CHECK(kv.shape.ValueDim() % 2 == 0);
  CHECK((kv.shape.dtype == DType::kBf16 || kv.shape.dtype == DType::kF8E4m3));
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
    return InvalidArgument("{}: expected {}, got {}", what, expected, actual);
  }
  return OkStatus();
}

bool GoesWith(WeightFormat format, InputForm input) {
  if (input == InputForm::kBf16) {
    return true;
  }
  switch (format) {
    case WeightFormat::kBf16:
      return false;
    case WeightFormat::kFp8:
    case WeightFormat::kFp8Ue8m0:
      return input == InputForm::kFp8Group;
    case WeightFormat::kFp8Channel:
      return input == InputForm::kFp8Token;
    case WeightFormat::kFp8Tensor:
      return input == InputForm::kFp8Token || input == InputForm::kFp8Static;
    case WeightFormat::kMxfp8:
      return input == InputForm::kMxfp8;
    case WeightFormat::kNvfp4:
      return input == InputForm::kNvfp4Token || input == InputForm::kNvfp4Pow2 ||
             input == InputForm::kNvfp4Static || input == InputForm::kNvfp4Batch;
  }
  return false;
}

// A tensor's scale and an input's must multiply to something.
Status CheckScales(const CanonicalMatrix& matrix) {
  if (matrix.format == WeightFormat::kFp8Tensor || matrix.format == WeightFormat::kNvfp4) {
    const float scale =
        matrix.tensor_scale_divides ? 1.0F / matrix.tensor_scale : matrix.tensor_scale;
    if (!std::isfinite(scale)) {
      return InvalidArgument("tensor scale of {} weights: expected a finite factor, got {}",
                             WeightFormatName(matrix.format), scale);
    }
  }
  if (IsStaticInput(matrix.input) &&
      !(std::isfinite(matrix.input_scale) && matrix.input_scale > 0.0F)) {
    return InvalidArgument("input scale of {} weights: expected a finite one above 0, got {}",
                           WeightFormatName(matrix.format), matrix.input_scale);
  }
  return OkStatus();
}

// Code * 2^(b - 127) is exact in BF16 without subnormals for b - 127 in [-117, 119]; beyond, only a
// group of zeros (which has scale code 0) is.
Status CheckMxfp8Exponents(const CanonicalMatrix& matrix) {
  constexpr int kLow = 127 - 117;
  constexpr int kHigh = 127 + 119;
  for (size_t g = 0; g < matrix.scales.size(); ++g) {
    const auto code = std::to_integer<int>(matrix.scales[g]);
    if (code >= kLow && code <= kHigh) {
      continue;
    }
    const auto codes = matrix.codes.subspan(g * kMxGroupElems, kMxGroupElems);
    const bool is_zero = std::ranges::all_of(
        codes, [](std::byte b) { return (b & std::byte{0x7F}) == std::byte{0}; });
    if (!is_zero || code == kE8m0NaN) {
      const auto groups = static_cast<size_t>(matrix.cols / kMxGroupElems);
      return Unsupported(
          "mxfp8 weights with the scale 2^{} (row {}, columns from {}): only 2^-117 to 2^119 "
          "multiply exactly",
          code - 127, g / groups, g % groups * kMxGroupElems);
    }
  }
  return OkStatus();
}

// Group scales of NVFP4 are E4M3 without sign and NaN.
Status CheckNvfp4Scales(const CanonicalMatrix& matrix) {
  const auto bad = std::ranges::find_if(
      matrix.scales, [](std::byte scale) { return scale >= std::byte{kE4m3NaN}; });
  if (bad == matrix.scales.end()) {
    return OkStatus();
  }
  const auto g = static_cast<int64_t>(bad - matrix.scales.begin());
  const int64_t groups = matrix.cols / kNvfp4GroupElems;
  return InvalidArgument(
      "nvfp4 weights, row {}, columns from {}: expected a group scale from 0x00 to 0x7E, got "
      "0x{:02X}",
      g / groups, g % groups * kNvfp4GroupElems, std::to_integer<int>(*bad));
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
  CHECK(!(args.norm.has_value() && args.silu_mul.has_value()));
  if (args.norm.has_value()) {
    CheckArgs(*args.norm, activation);
    CheckSame(args.norm->y, args.x);
  }
  if (args.silu_mul.has_value()) {
    CheckArgs(*args.silu_mul, activation);
    CheckSame(args.silu_mul->y, args.x);
  }
  CHECK(!args.parts.empty());
  CHECK(args.parts.size() <= static_cast<size_t>(kMaxLinearParts));
  for (const LinearPart& part : args.parts) {
    CHECK(part.weight != nullptr);
    CHECK(part.weight->cols == args.x.cols);
    CHECK(part.weight->rows == part.y.cols);
    CHECK(part.y.rows == args.x.rows);
    CHECK((part.y.data != args.x.data || args.x.rows == 0));
    CheckMatrix(part.y, part.y.dtype == DType::kF32 ? DType::kF32 : activation);
    if (part.bias != nullptr) {
      CHECK(part.bias->vector_dtype == DType::kBf16);
      CHECK(part.bias->rows == 1);
      CHECK(part.bias->cols == part.y.cols);
    }
  }
}

void CheckArgs(const GroupedLinearArgs& args, DType activation) {
  CheckMatrix(args.x, activation);
  if (args.silu_mul.has_value()) {
    CheckArgs(*args.silu_mul, activation);
    CheckSame(args.silu_mul->y, args.x);
  }
  CHECK(!args.parts.empty());
  CHECK(args.parts.size() <= static_cast<size_t>(kMaxGroupedParts));
  CHECK(args.offsets.size() >= 2U);
  CHECK(args.offsets.front() == 0);
  CHECK(std::ranges::is_sorted(args.offsets));
  CHECK(static_cast<size_t>(args.offsets.back()) == args.source_rows.size());
  for (const int32_t row : args.source_rows) {
    CHECK(row >= 0);
    CHECK(row < args.x.rows);
  }
  for (const GroupedPart& part : args.parts) {
    CheckMatrix(part.y, activation);
    CHECK(part.y.rows == args.offsets.back());
    CHECK(part.weights.size() + 1 == args.offsets.size());
    const PackedMatrix& first = *part.weights.front();
    for (const PackedMatrix* weight : part.weights) {
      CHECK(weight->rows == part.y.cols);
      CHECK(weight->cols == args.x.cols);
      CHECK((weight->format == first.format && weight->input == first.input));
    }
  }
}

void CheckArgs(const RopeArgs& args, DType activation) {
  CheckMatrix(args.x, activation);
  CHECK(args.head_dim > 0);
  CHECK(args.head_dim % 2 == 0);
  CHECK((args.head_stride == 0 || args.head_stride >= args.head_dim));
  const int64_t stride = args.head_stride == 0 ? args.head_dim : args.head_stride;
  CHECK(args.x.cols == args.num_heads * stride);
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

void CheckArgs(const CopyArgs& args, DType activation) {
  CheckMatrix(args.x, activation);
  CheckMatrix(args.y, activation);
  CheckSameShape(args.x, args.y);
}

void CheckArgs(const RouteArgs& args, DType activation) {
  CheckMatrix(args.logits, args.logits.dtype == DType::kF32 ? DType::kF32 : activation);
  const int64_t num_experts = args.logits.cols;
  CHECK((args.bias.empty() || static_cast<int64_t>(args.bias.size()) == num_experts));
  CHECK((args.bias.empty() || args.scoring == RouteScoring::kSigmoid));
  CHECK(args.num_groups >= 1);
  CHECK(num_experts % args.num_groups == 0);
  CHECK(args.top_groups >= 1);
  CHECK(args.top_groups <= args.num_groups);
  CHECK(args.top_k >= 1);
  CHECK(args.top_k <= num_experts / args.num_groups * args.top_groups);
  CHECK(static_cast<int64_t>(args.experts.size()) == args.logits.rows * args.top_k);
  CHECK(args.weights.size() == args.experts.size());
}

void CheckArgs(const SortByExpertArgs& args) {
  CHECK(args.top_k >= 1);
  CHECK(args.offsets.size() >= 2U);
  CHECK(static_cast<int64_t>(args.experts.size()) % args.top_k == 0);
  CHECK(args.source_rows.size() == args.experts.size());
  CHECK(args.row_of_slot.size() == args.experts.size());
  for (const int32_t expert : args.experts) {
    CHECK(expert >= 0);
    CHECK(static_cast<size_t>(expert) + 1 < args.offsets.size());
  }
}

void CheckArgs(const CombineArgs& args, DType activation) {
  CheckMatrix(args.x, activation);
  CheckMatrix(args.y, activation);
  CHECK(args.top_k >= 1);
  CHECK(args.x.rows == args.y.rows * args.top_k);
  CHECK(args.x.cols == args.y.cols);
  CHECK(static_cast<int64_t>(args.row_of_slot.size()) == args.x.rows);
  CHECK(static_cast<int64_t>(args.weights.size()) == args.x.rows);
  for (const int32_t row : args.row_of_slot) {
    CHECK(row >= 0);
    CHECK(row < args.x.rows);
  }
  if (args.shared.data != nullptr) {
    CheckMatrix(args.shared, activation);
    CheckSameShape(args.shared, args.y);
  }
}

void CheckArgs(const KvStoreArgs& args, DType activation) {
  CheckMatrix(args.k, activation);
  CheckMatrix(args.v, activation);
  CHECK(args.k.rows == args.v.rows);
  CHECK(args.k.cols == args.kv.shape.num_kv_heads * args.kv.shape.head_dim);
  CHECK(args.v.cols == args.kv.shape.num_kv_heads * args.kv.shape.ValueDim());
  CheckSegments(args.segments, args.kv, args.k.rows);
}

void CheckArgs(const AttentionArgs& args, DType activation) {
  CheckMatrix(args.q, activation);
  CheckMatrix(args.y, activation);
  CHECK(args.q.rows == args.y.rows);
  CHECK(args.num_heads > 0);
  CHECK(args.kv.shape.num_kv_heads > 0);
  CHECK(args.num_heads % args.kv.shape.num_kv_heads == 0);
  CHECK(args.q.cols == args.num_heads * args.kv.shape.head_dim);
  CHECK(args.y.cols == args.num_heads * args.kv.shape.ValueDim());
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
  if (matrix.cols % ColsMultipleOf(matrix.format) != 0) {
    return InvalidArgument("{} matrix: expected a multiple of {} columns, got {}",
                           WeightFormatName(matrix.format), ColsMultipleOf(matrix.format),
                           matrix.cols);
  }
  const int64_t num_elems = matrix.rows * matrix.cols;
  if (!GoesWith(matrix.format, matrix.input)) {
    return Unsupported("{} weights with this form of input", WeightFormatName(matrix.format));
  }
  if (matrix.format == WeightFormat::kBf16) {
    RETURN_IF_ERROR(CheckSpanSize("BF16 bytes", matrix.codes.size(), 2 * num_elems));
    return CheckSpanSize("BF16 scales", matrix.scales.size(), 0);
  }
  RETURN_IF_ERROR(CheckSpanSize("bytes of codes", matrix.codes.size(),
                                CodeBytes(matrix.format, matrix.rows, matrix.cols)));
  RETURN_IF_ERROR(CheckSpanSize("bytes of scales", matrix.scales.size(),
                                ScaleBytes(matrix.format, matrix.rows, matrix.cols)));
  RETURN_IF_ERROR(CheckScales(matrix));
  switch (matrix.format) {
    case WeightFormat::kMxfp8:
      return CheckMxfp8Exponents(matrix);
    case WeightFormat::kNvfp4:
      return CheckNvfp4Scales(matrix);
    default:
      return OkStatus();
  }
}

}  // namespace octavo
