// Linear layers on panels.
//
// Columns are cut into groups of panels, and groups into one static range a thread. Per group and
// chunk of rows the depth runs in blocks (so that a block of the group's weights stays in L1 or L2
// while all rows of the chunk pass it), and sums stay in an FP32 scratch: the order of ops.h does
// not depend on any of these cuts.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/base/thread_pool.h"
#include "octavo/formats/format.h"
#include "octavo/formats/fp8_block.h"
#include "octavo/kernels/cpu/cpu_path.h"
#include "octavo/kernels/cpu/kernel_table.h"
#include "octavo/kernels/cpu/layout.h"
#include "octavo/kernels/fp8_activation.h"
#include "octavo/kernels/ops.h"

namespace octavo::cpu {
namespace {

// Rows of one chunk: a multiple of the kernels' register blocks. With a depth block of 256 its
// FP32 inputs are 288 KiB and its sums 144 KiB: together in an L2 of 1 MiB.
constexpr int64_t kChunkRows = 288;
constexpr int64_t kMaxGroupPanels = 8;  // 128 columns: one row of FP8 weight scales.
constexpr int64_t kGroupCols = kMaxGroupPanels * kPanelCols;
constexpr int64_t kDepthBlock = 256;
// Rows of P that are summed before they are scaled into acc; stays in L1.
constexpr int64_t kScaleRows = 48;
// Up to this many rows a group's weights are read once anyway: no depth blocks, so that the
// streams from memory are long.
constexpr int64_t kStreamRows = 6;
// How far ahead of the reads weights are fetched. 4 KiB cover 100 ns at 40 GB/s: with 4 rows 32
// GB/s of BF16 from memory, against 26 with 1 KiB and 30 with 8 KiB (AMD EPYC, family 26, one
// thread).
constexpr int64_t kPrefetchBytes = 4096;
// Keeps rows of power-of-two widths from sharing cache sets.
constexpr int64_t kStridePadElems = 32;

constexpr int64_t kBlockDecodedElems = kFp8BlockDim * kGroupCols;

}  // namespace

// Work of one thread at a time: some panels of one part, all rows in chunks.
struct LinearOp::Group {
  const LinearPart* part = nullptr;
  int64_t first_panel = 0;
  int64_t num_panels = 0;
  int64_t first_row = 0;
  int64_t num_rows = 0;

  int64_t NumCols() const { return num_panels * kPanelCols; }
};

LinearOp::LinearOp(const CpuPath& path, ThreadPool* pool)
    : path_(path), pool_(pool), workers_(static_cast<size_t>(pool->num_threads())) {}

Status LinearOp::Ensure(int64_t tokens, int64_t width) {
  const int64_t rows = RoundUp(tokens, path_.matmul.row_step);
  const int64_t stride = RoundUp(width, kTileDepth) + kStridePadElems;
  RETURN_IF_ERROR(input_.Ensure(rows * stride * path_.matmul.a_elem_bytes));
  RETURN_IF_ERROR(codes_.Ensure(rows * stride * path_.matmul.a_elem_bytes));
  return scales_.Ensure(rows * NumFp8Blocks(width) * static_cast<int64_t>(sizeof(float)));
}

Status LinearOp::Reserve(int64_t max_tokens, int64_t max_width) {
  constexpr int64_t kFloat = sizeof(float);
  for (WorkerScratch& worker : workers_) {
    RETURN_IF_ERROR(worker.sums.Ensure(kChunkRows * kGroupCols * kFloat));
    RETURN_IF_ERROR(worker.blocks.Ensure(kScaleRows * kGroupCols * kFloat +
                                         kBlockDecodedElems * int64_t{sizeof(uint16_t)}));
  }
  return Ensure(max_tokens, max_width);
}

// x as A elements and, for FP8 weights, its codes with their scales; depth is zero-padded.
void LinearOp::LoadInput(const Activations& x, bool has_bf16, bool has_fp8) {
  const int64_t depth = RoundUp(x.cols, kTileDepth);
  const int64_t elem_bytes = path_.matmul.a_elem_bytes;
  const int64_t num_blocks = NumFp8Blocks(x.cols);
  a_stride_ = depth + kStridePadElems;
  const auto pad_bytes = static_cast<size_t>((depth - x.cols) * elem_bytes);
  const auto load_rows = [&](int64_t begin, int64_t end, int /*worker*/) {
    for (int64_t t = begin; t < end; ++t) {
      const uint16_t* row = Bf16Row(x, t);
      const int64_t offset = t * a_stride_ * elem_bytes;
      if (has_bf16) {
        path_.LoadA(row, x.cols, input_.data() + offset);
        std::memset(input_.data() + offset + x.cols * elem_bytes, 0, pad_bytes);
      }
      for (int64_t block = 0; has_fp8 && block < num_blocks; ++block) {
        const int64_t k = block * kActivationGroup;
        scales_.floats()[t * num_blocks + block] =
            path_.QuantizeA(row + k, std::min(kActivationGroup, x.cols - k),
                            codes_.data() + offset + k * elem_bytes);
      }
      if (has_fp8) {
        std::memset(codes_.data() + offset + x.cols * elem_bytes, 0, pad_bytes);
      }
    }
  };
  constexpr int64_t kParallelElems = 16384;  // Below, waking the pool costs more than the rows.
  if (x.rows * x.cols < kParallelElems) {
    load_rows(0, x.rows, 0);
  } else {
    pool_->ParallelFor(x.rows, load_rows);
  }
}

void LinearOp::SumBf16(const Group& group, int64_t depth, WorkerScratch* scratch) const {
  const MatMulKernel& kernel = path_.matmul;
  const int64_t panel_stride = depth * kPanelCols;
  const int64_t depth_block = group.num_rows <= kStreamRows ? depth : kDepthBlock;
  const auto* panels = reinterpret_cast<const uint16_t*>(group.part->weight->codes.data()) +
                       group.first_panel * panel_stride;
  for (int64_t k = 0; k < depth; k += depth_block) {
    kernel.matmul({.a = input_.data() + (group.first_row * a_stride_ + k) * kernel.a_elem_bytes,
                   .a_stride = a_stride_,
                   .num_rows = group.num_rows,
                   .b = panels + k * kPanelCols,
                   .panel_stride = panel_stride,
                   .num_panels = group.num_panels,
                   .num_tiles = std::min(depth_block, depth - k) / kTileDepth,
                   .c = scratch->sums.floats(),
                   .c_stride = kGroupCols,
                   .from_zero = k == 0,
                   .prefetch_bytes = kPrefetchBytes});
  }
}

void LinearOp::SumFp8(const Group& group, int64_t cols, WorkerScratch* scratch) const {
  const MatMulKernel& kernel = path_.matmul;
  const int64_t depth = RoundUp(cols, kTileDepth);
  const int64_t num_blocks = NumFp8Blocks(cols);
  const auto* panels = reinterpret_cast<const uint8_t*>(group.part->weight->codes.data()) +
                       group.first_panel * depth * kPanelCols;
  const float* weight_scales = group.part->weight->scales.As<float>().data() +
                               group.first_panel * kPanelCols / kFp8BlockDim * num_blocks;
  const std::byte* codes = codes_.data() + group.first_row * a_stride_ * kernel.a_elem_bytes;
  const float* input_scales = scales_.floats() + group.first_row * num_blocks;
  if (group.num_rows <= kernel.stream_fp8_rows) {
    kernel.stream_fp8({.a = codes,
                       .a_stride = a_stride_,
                       .num_rows = group.num_rows,
                       .codes = panels,
                       .num_panels = group.num_panels,
                       .depth = depth,
                       .a_scales = input_scales,
                       .b_scales = weight_scales,
                       .c = scratch->sums.floats(),
                       .c_stride = kGroupCols});
    return;
  }
  auto* decoded = reinterpret_cast<uint16_t*>(scratch->blocks.data());
  for (int64_t block = 0; block < num_blocks; ++block) {
    const int64_t k = block * kFp8BlockDim;
    const int64_t block_depth = std::min(kFp8BlockDim, depth - k);
    const int64_t panel_elems = block_depth * kPanelCols;
    for (int64_t p = 0; p < group.num_panels; ++p) {
      path_.rows.decode_fp8(panels + (p * depth + k) * kPanelCols, panel_elems,
                            decoded + p * panel_elems);
    }
    std::array<float, kChunkRows> row_scales;
    for (int64_t r = 0; r < group.num_rows; ++r) {
      row_scales[static_cast<size_t>(r)] =
          input_scales[r * num_blocks + block] * weight_scales[block];
    }
    AddScaledBlock({.a = codes + k * kernel.a_elem_bytes,
                    .a_stride = a_stride_,
                    .num_rows = group.num_rows,
                    .b = decoded,
                    .panel_stride = panel_elems,
                    .num_panels = group.num_panels,
                    .num_tiles = block_depth / kTileDepth,
                    .c = scratch->sums.floats(),
                    .c_stride = kGroupCols,
                    .from_zero = block == 0,
                    .row_scales = row_scales.data()},
                   scratch);
  }
}

// args.c = fma(P, args.row_scales, args.c): by the kernel, or, where it only multiplies, some rows
// at a time with P in the scratch behind the decoded codes.
void LinearOp::AddScaledBlock(const MatMulArgs& args, WorkerScratch* scratch) const {
  const MatMulKernel& kernel = path_.matmul;
  if (kernel.has_row_scales) {
    kernel.matmul(args);
    return;
  }
  float* products = scratch->blocks.floats() + kBlockDecodedElems / 2;
  for (int64_t row = 0; row < args.num_rows; row += kScaleRows) {
    MatMulArgs part = args;
    part.a = args.a + row * args.a_stride * kernel.a_elem_bytes;
    part.num_rows = std::min(kScaleRows, args.num_rows - row);
    part.c = products;
    part.from_zero = true;
    part.row_scales = nullptr;
    kernel.matmul(part);
    for (int64_t r = 0; r < part.num_rows; ++r) {
      path_.rows.scale_add(products + r * kGroupCols, args.row_scales[row + r],
                           args.num_panels * kPanelCols, args.from_zero,
                           args.c + (row + r) * args.c_stride);
    }
  }
}

void LinearOp::StoreSums(const Group& group, WorkerScratch* scratch) const {
  const Activations& y = group.part->y;
  const int64_t first_col = group.first_panel * kPanelCols;
  const int64_t num_cols = std::min(group.NumCols(), y.cols - first_col);
  for (int64_t r = 0; r < group.num_rows; ++r) {
    const float* from = scratch->sums.floats() + r * kGroupCols;
    const int64_t at = (group.first_row + r) * y.stride + first_col;
    if (y.dtype == DType::kF32) {
      std::memcpy(reinterpret_cast<float*>(y.data) + at, from,
                  static_cast<size_t>(num_cols) * sizeof(float));
    } else {
      path_.rows.store_bf16(from, num_cols, reinterpret_cast<uint16_t*>(y.data) + at);
    }
  }
}

// All rows of a group, in chunks of nearly equal size.
void LinearOp::RunGroup(const LinearArgs& args, const Group& group, WorkerScratch* scratch) {
  const int64_t num_chunks = (args.x.rows + kChunkRows - 1) / kChunkRows;
  const int64_t chunk_rows =
      std::min(kChunkRows, RoundUp((args.x.rows + num_chunks - 1) / num_chunks, kScaleRows));
  for (int64_t row = 0; row < args.x.rows; row += chunk_rows) {
    Group chunk = group;
    chunk.first_row = row;
    chunk.num_rows = std::min(chunk_rows, args.x.rows - row);
    if (group.part->weight->format == WeightFormat::kFp8) {
      SumFp8(chunk, args.x.cols, scratch);
    } else {
      SumBf16(chunk, RoundUp(args.x.cols, kTileDepth), scratch);
    }
    StoreSums(chunk, scratch);
  }
}

Status LinearOp::Run(const LinearArgs& args) {
  RETURN_IF_ERROR(Reserve(args.x.rows, args.x.cols));
  bool has_bf16 = false;
  bool has_fp8 = false;
  int64_t num_panels = 0;
  for (const LinearPart& part : args.parts) {
    if (part.weight->format == WeightFormat::kBf16 && part.weight->rows == 1) {
      return Unsupported("linear layer with one output: its weight [1, {}] is kept as a vector",
                         part.weight->cols);
    }
    (part.weight->format == WeightFormat::kFp8 ? has_fp8 : has_bf16) = true;
    num_panels += NumPanels(part.weight->rows);
  }
  LoadInput(args.x, has_bf16, has_fp8);

  // Large groups reuse inputs, small ones balance many threads.
  const int64_t groups_wanted = int64_t{4} * pool_->num_threads();
  int64_t group_panels = kMaxGroupPanels;
  while (group_panels > 1 && num_panels / group_panels < groups_wanted) {
    group_panels /= 2;
  }
  std::array<int64_t, kMaxLinearParts + 1> first_group = {};
  for (size_t i = 0; i < args.parts.size(); ++i) {
    const int64_t panels = NumPanels(args.parts[i].weight->rows);
    first_group[i + 1] = first_group[i] + (panels + group_panels - 1) / group_panels;
  }
  pool_->ParallelFor(first_group[args.parts.size()], [&](int64_t begin, int64_t end, int worker) {
    const MatMulScope scope(path_.matmul);
    size_t part = 0;
    for (int64_t g = begin; g < end; ++g) {
      while (g >= first_group[part + 1]) {
        ++part;
      }
      Group group{.part = &args.parts[part], .first_panel = (g - first_group[part]) * group_panels};
      group.num_panels =
          std::min(group_panels, NumPanels(group.part->weight->rows) - group.first_panel);
      RunGroup(args, group, &workers_[static_cast<size_t>(worker)]);
    }
  });
  return OkStatus();
}

Status LinearOp::RunGrouped(const GroupedLinearArgs& /*args*/) {
  return Unsupported("GroupedLinear on {}", path_.name);
}

}  // namespace octavo::cpu
