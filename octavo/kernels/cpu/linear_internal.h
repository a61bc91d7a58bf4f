#pragma once
// What the files of LinearOp share.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "octavo/base/function_ref.h"
#include "octavo/formats/format.h"
#include "octavo/formats/fp8_block.h"
#include "octavo/kernels/cpu/cpu_path.h"
#include "octavo/kernels/cpu/kernel_table.h"
#include "octavo/kernels/cpu/layout.h"
#include "octavo/kernels/matrix.h"
#include "octavo/kernels/ops.h"

namespace octavo::cpu {

inline constexpr int64_t kFloat = sizeof(float);
// Rows of one chunk: a multiple of the kernels' register blocks. Its inputs over a block of depth
// are 288 KiB, its sums 144 KiB, and the block of a group's panels at most 128 KiB: together in an
// L2 of 1 MiB.
inline constexpr int64_t kChunkRows = 288;
inline constexpr int64_t kMaxGroupPanels = 8;  // 128 columns: one row of FP8 weight scales.
inline constexpr int64_t kGroupCols = kMaxGroupPanels * kPanelCols;
inline constexpr int64_t kDepthBlockBytes = 1024;  // Of a row of A elements.
inline constexpr int64_t kMaxDepthBlock = kDepthBlockBytes / 2;
// Rows of P that are summed before they are scaled into acc; stays in L1.
inline constexpr int64_t kScaleRows = 48;

inline bool HasScaledBlocks(WeightFormat format) {
  return format == WeightFormat::kFp8 || format == WeightFormat::kFp8Ue8m0;
}

inline PanelCode PanelCodeOf(WeightFormat format) {
  switch (format) {
    case WeightFormat::kBf16:
      return PanelCode::kBf16;
    case WeightFormat::kMxfp8:
      return PanelCode::kMxfp8;
    case WeightFormat::kNvfp4:
      return PanelCode::kNvfp4;
    default:
      return PanelCode::kE4m3;
  }
}

// One output matrix; a linear layer is one group.
struct LinearOp::Part {
  std::span<const PackedMatrix* const> weights;  // [groups]
  Activations y;
  const PackedMatrix* bias = nullptr;
  bool is_done = false;

  const PackedMatrix& First() const { return *weights.front(); }
};

// What one call computes; a pass of it is the parts that share a form of input.
struct LinearOp::Problem {
  Activations x;
  std::span<const int32_t> source_rows;  // Empty: row i of y comes from row i of x.
  std::span<const int32_t> offsets;      // [groups + 1]
  std::array<Part, kMaxLinearParts> parts;
  size_t num_parts = 0;
  // Makes row t of x, where an op before this one is left to it; absent once all are made.
  std::optional<FunctionRef<void(int64_t)>> make_row;
  InputForm form = InputForm::kBf16;   // Of the pass.
  bool is_quantized_by_group = false;  // Static scales that differ: when rows are gathered.
  std::array<size_t, kMaxLinearParts> pass = {};  // The parts of the pass.
  size_t num_pass = 0;
};

// Work of one thread at a time: some panels of a weight, some rows.
struct LinearOp::Chunk {
  const PackedMatrix* weight = nullptr;
  const Part* part = nullptr;
  int64_t g = 0;
  int64_t first_panel = 0;
  int64_t num_panels = 0;
  int64_t first_row = 0;  // Of y.
  int64_t num_rows = 0;
  // Its input, row by row.
  const std::byte* a = nullptr;
  const float* group_scales = nullptr;
  const InputRow* rows = nullptr;

  int64_t Depth() const { return RoundUp(weight->cols, kTileDepth); }
  int64_t NumCols() const { return num_panels * kPanelCols; }
  bool HasModerateRows() const {
    return std::all_of(rows, rows + num_rows, [](const InputRow& row) { return row.is_moderate; });
  }
  // Bytes from panel to panel.
  int64_t CodeStride() const { return weight->codes.num_bytes() / NumPanels(weight->rows); }
  int64_t ScaleStride() const { return weight->scales.num_bytes() / NumPanels(weight->rows); }
  const uint8_t* Codes() const {
    return reinterpret_cast<const uint8_t*>(weight->codes.data()) + first_panel * CodeStride();
  }
  // Scales in runs; of no use for other formats.
  const uint8_t* Runs() const {
    return reinterpret_cast<const uint8_t*>(weight->scales.data()) + first_panel * ScaleStride();
  }
  // FP8 blocks: the scales of its columns, one for 128 of depth.
  const float* BlockScales() const {
    return weight->scales.As<float>().data() +
           first_panel * kPanelCols / kFp8BlockDim * NumFp8Blocks(weight->cols);
  }
};

}  // namespace octavo::cpu
