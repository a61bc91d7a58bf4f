// Linear layers of the reference backend.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>

#include "octavo/base/status.h"
#include "octavo/formats/bf16.h"
#include "octavo/formats/format.h"
#include "octavo/formats/fp8_block.h"
#include "octavo/kernels/check_args.h"
#include "octavo/kernels/input_ranges.h"
#include "octavo/kernels/linear_input.h"
#include "octavo/kernels/matrix.h"
#include "octavo/kernels/ops.h"
#include "octavo/kernels/reference/reference_backend.h"
#include "octavo/kernels/reference/row_math.h"
#include "octavo/kernels/reference/weight_row.h"

namespace octavo::reference {
namespace {

bool HasBlocks(WeightFormat format) {
  return format == WeightFormat::kFp8 || format == WeightFormat::kFp8Ue8m0;
}

// kNvfp4Batch: the largest magnitude of all rows without NaN or infinity. `row` holds one of them.
float BatchAmax(const Activations& x, std::span<float> row) {
  float amax = 0.0F;
  for (int64_t t = 0; t < x.rows; ++t) {
    LoadRow(x, t, 0, x.cols, row.data());
    const float row_amax = FiniteAmax(row);
    amax = row_amax > amax ? row_amax : amax;  // Not for NaN.
  }
  return amax;
}

// Whether the input of `part` is quantized as that of one before it, so that it counts with that.
template <typename Part, typename WeightOf>
bool IsCounted(std::span<const Part> parts, size_t part, WeightOf weight_of) {
  const PackedMatrix& weight = weight_of(parts[part]);
  return std::ranges::any_of(parts.first(part), [&](const Part& before) {
    const PackedMatrix& other = weight_of(before);
    return other.input == weight.input &&
           (!IsStaticInput(weight.input) || other.input_scale == weight.input_scale);
  });
}

// Whether all experts of a part quantize their input with one scale.
bool HasOneInputScale(const GroupedPart& part) {
  const PackedMatrix& first = *part.weights.front();
  return !IsStaticInput(first.input) ||
         std::ranges::all_of(part.weights, [&](const PackedMatrix* weight) {
           return weight->input_scale == first.input_scale;
         });
}

}  // namespace

// Fills input_ (rows padded with zeros to whole tiles), input_scales_ (1 where a form has no group
// scales) and row_factors_.
void ReferenceBackend::LoadLinearInput(const Activations& x, InputForm form, float input_scale) {
  const int64_t depth = PadTo(x.cols, kTileDepth);
  const int64_t num_blocks = NumFp8Blocks(x.cols);
  GrowTo(&input_, x.rows * depth);
  GrowTo(&input_scales_, x.rows * num_blocks);
  GrowTo(&row_factors_, x.rows);
  std::fill(input_scales_.begin(), input_scales_.end(), 1.0F);
  const float scale = form == InputForm::kNvfp4Batch ? BatchAmax(x, RowFor(x)) : input_scale;
  pool_.ParallelFor(x.rows, [&](int64_t begin, int64_t end, int /*worker*/) {
    for (int64_t t = begin; t < end; ++t) {
      const std::span<float> row(input_.data() + t * depth, static_cast<size_t>(x.cols));
      LoadRow(x, t, 0, x.cols, row.data());
      std::fill_n(row.data() + x.cols, depth - x.cols, 0.0F);
      row_factors_[static_cast<size_t>(t)] = QuantizeLinearInput(
          form, scale, row, row,
          {input_scales_.data() + t * num_blocks, static_cast<size_t>(num_blocks)});
    }
  });
}

void ReferenceBackend::CountRow(const Activations& x, const PackedMatrix& weight, float scale,
                                int64_t t) {
  const std::span<float> row = RowFor(x);
  LoadRow(x, t, 0, x.cols, row.data());
  input_ranges_ += CountInputRanges(weight.input, scale, row);
}

void ReferenceBackend::CountRows(const Activations& x, const PackedMatrix& weight) {
  if (!is_serving() || !IsNvfp4Input(weight.input)) {
    return;
  }
  const float scale =
      weight.input == InputForm::kNvfp4Batch ? BatchAmax(x, RowFor(x)) : weight.input_scale;
  for (int64_t t = 0; t < x.rows; ++t) {
    CountRow(x, weight, scale, t);
  }
}

// As input_ranges.h has it: rows of x once, or where experts have scales of their own, what each of
// them reads.
void ReferenceBackend::CountExperts(const GroupedLinearArgs& args) {
  std::array<GroupedPart, kMaxGroupedParts> shared;  // No vector: the step loop allocates nothing.
  size_t num_shared = 0;
  for (const GroupedPart& part : args.parts) {
    if (HasOneInputScale(part)) {
      shared[num_shared++] = part;
      continue;
    }
    for (size_t g = 0; is_serving() && g < part.weights.size(); ++g) {
      const PackedMatrix& weight = *part.weights[g];
      for (int32_t row = args.offsets[g]; row < args.offsets[g + 1]; ++row) {
        CountRow(args.x, weight, weight.input_scale, args.source_rows[static_cast<size_t>(row)]);
      }
    }
  }
  const auto weight_of = [](const GroupedPart& part) -> const PackedMatrix& {
    return *part.weights.front();
  };
  for (size_t i = 0; i < num_shared && !args.source_rows.empty(); ++i) {
    if (!IsCounted(std::span<const GroupedPart>(shared), i, weight_of)) {
      CountRows(args.x, weight_of(shared[i]));
    }
  }
}

// One output in FP32: weight row n in `w` with input row t.
float ReferenceBackend::LinearOutput(const PackedMatrix& weight, const float* w, int64_t n,
                                     int64_t t) const {
  const int64_t depth = PadTo(weight.cols, kTileDepth);
  const float* x = input_.data() + t * depth;
  const float row_factor = row_factors_[static_cast<size_t>(t)];
  if (!is_serving()) {
    return math_.dot(x, w, depth);
  }
  if (HasBlocks(weight.format)) {
    const int64_t num_blocks = NumFp8Blocks(weight.cols);
    return math_.dot_blocks(x, w, depth, input_scales_.data() + t * num_blocks,
                            weight.scales.As<float>().data() + n / kFp8BlockDim * num_blocks);
  }
  const float sum = math_.dot(x, w, depth);
  switch (weight.format) {
    case WeightFormat::kFp8Channel:
      return (sum * row_factor) * weight.scales.As<float>()[static_cast<size_t>(n)];
    case WeightFormat::kFp8Tensor:
      return (sum * row_factor) * weight.TensorScale();
    case WeightFormat::kNvfp4:
      return sum * (row_factor * weight.TensorScale());
    default:
      return sum;
  }
}

// Rows [first_row, last_row) of y from the input rows source_rows[row], or from those of the same
// number where source_rows is empty.
void ReferenceBackend::LinearRows(const LinearPart& part, std::span<const int32_t> source_rows,
                                  int64_t first_row, int64_t last_row) {
  const PackedMatrix& weight = *part.weight;
  const int64_t depth = PadTo(weight.cols, kTileDepth);
  ReserveRow(depth);
  pool_.ParallelFor(weight.rows, [&](int64_t begin, int64_t end, int worker) {
    float* w = workers_[static_cast<size_t>(worker)].row.data();
    std::fill(w + weight.cols, w + depth, 0.0F);
    for (int64_t n = begin; n < end; ++n) {
      if (is_serving()) {
        DecodeWeightRow(weight, n, w);
      } else {
        DequantizeWeightRow(weight, n, w);
      }
      for (int64_t row = first_row; row < last_row; ++row) {
        const int64_t t = source_rows.empty() ? row : source_rows[static_cast<size_t>(row)];
        float y = LinearOutput(weight, w, n, t);
        if (part.bias != nullptr) {
          y = y + Bf16ToFloat(part.bias->codes.As<uint16_t>()[static_cast<size_t>(n)]);
        }
        StoreRow(part.y, row, n, 1, &y);
      }
    }
  });
}

Status ReferenceBackend::Linear(const LinearArgs& args) {
  CheckArgs(args, activation_dtype());
  if (args.norm.has_value()) {
    RETURN_IF_ERROR(RmsNorm(*args.norm));
  }
  if (args.silu_mul.has_value()) {
    RETURN_IF_ERROR(SiluMul(*args.silu_mul));
  }
  const OpScope scope(*this);
  const auto weight_of = [](const LinearPart& part) -> const PackedMatrix& { return *part.weight; };
  for (size_t i = 0; i < args.parts.size(); ++i) {
    if (!IsCounted(args.parts, i, weight_of)) {
      CountRows(args.x, *args.parts[i].weight);
    }
  }
  for (const LinearPart& part : args.parts) {
    LoadLinearInput(args.x, is_serving() ? part.weight->input : InputForm::kBf16,
                    part.weight->input_scale);
    LinearRows(part, {}, 0, args.x.rows);
  }
  return OkStatus();
}

Status ReferenceBackend::GroupedLinear(const GroupedLinearArgs& args) {
  CheckArgs(args, activation_dtype());
  if (args.silu_mul.has_value()) {
    RETURN_IF_ERROR(SiluMul(*args.silu_mul));
  }
  const OpScope scope(*this);
  CountExperts(args);
  for (const GroupedPart& part : args.parts) {
    for (size_t g = 0; g < part.weights.size(); ++g) {
      const PackedMatrix& weight = *part.weights[g];
      const bool is_loaded = g > 0 && !IsStaticInput(weight.input);
      if (!is_loaded) {
        LoadLinearInput(args.x, is_serving() ? weight.input : InputForm::kBf16, weight.input_scale);
      }
      LinearRows({.weight = &weight, .y = part.y}, args.source_rows, args.offsets[g],
                 args.offsets[g + 1]);
    }
  }
  return OkStatus();
}

}  // namespace octavo::reference
