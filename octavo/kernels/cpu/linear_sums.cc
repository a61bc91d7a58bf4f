// Sums of a chunk of a linear layer. The depth runs in blocks, so that a block of the chunk's
// weights stays in L1 or L2 while all its rows pass, and sums stay in an FP32 scratch: the order of
// ops.h does not depend on these cuts.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "octavo/base/tensor.h"
#include "octavo/formats/format.h"
#include "octavo/formats/fp8_block.h"
#include "octavo/kernels/cpu/cpu_path.h"
#include "octavo/kernels/cpu/kernel_table.h"
#include "octavo/kernels/cpu/layout.h"
#include "octavo/kernels/cpu/linear_internal.h"
#include "octavo/kernels/matrix.h"
#include "octavo/kernels/ops.h"

namespace octavo::cpu {
namespace {

// Up to this many rows a group's weights are read once anyway: no depth blocks, so that the
// streams from memory are long.
constexpr int64_t kStreamRows = 6;
// From this many rows on panels are paired first (MatMulKernel::pair_b): 376 GFLOP/s instead of 347
// at 512 rows, 0.74 at 16 of what pairs on the way give (AMD EPYC, family 26, one thread).
constexpr int64_t kPairedRows = 48;
// How far ahead of the reads weights are fetched. 4 KiB cover 100 ns at 40 GB/s: with 4 rows 32
// GB/s of BF16 from memory, against 26 with 1 KiB and 30 with 8 KiB (AMD EPYC, family 26, one
// thread).
constexpr int64_t kPrefetchBytes = 4096;

}  // namespace

void LinearOp::SumBf16(const Chunk& chunk, WorkerScratch* scratch) const {
  const MatMulKernel& kernel = *kernel_;
  const int64_t depth = chunk.Depth();
  const int64_t depth_block =
      chunk.num_rows <= kStreamRows ? depth : kDepthBlockBytes / kernel.a_elem_bytes;
  const bool is_paired = kernel.pair_b != nullptr && chunk.num_rows >= kPairedRows;
  const auto* panels = reinterpret_cast<const uint16_t*>(chunk.Codes());
  for (int64_t k = 0; k < depth; k += depth_block) {
    const int64_t num_elems = std::min(depth_block, depth - k) * kPanelCols;
    const uint16_t* b = panels + k * kPanelCols;
    if (is_paired) {
      auto* pairs = reinterpret_cast<uint16_t*>(scratch->decoded.data());
      for (int64_t p = 0; p < chunk.num_panels; ++p) {
        const uint8_t* next = NextCodes(chunk, p, k / kTileDepth + num_elems / kTileElems);
        kernel.pair_b(b + p * depth * kPanelCols, num_elems,
                      reinterpret_cast<const uint16_t*>(next), pairs + p * num_elems);
      }
      b = pairs;
    }
    kernel.matmul({.a = chunk.a + k * kernel.a_elem_bytes,
                   .a_stride = a_stride_,
                   .num_rows = chunk.num_rows,
                   .b = b,
                   .panel_stride = is_paired ? num_elems : depth * kPanelCols,
                   .num_panels = chunk.num_panels,
                   .num_tiles = num_elems / kTileElems,
                   .c = scratch->sums.floats(),
                   .c_stride = kGroupCols,
                   .from_zero = k == 0,
                   .b_is_paired = is_paired,
                   .prefetch_bytes = is_paired ? 0 : kPrefetchBytes});
  }
}

void LinearOp::StreamSum(const Chunk& chunk, StreamKernel stream, WorkerScratch* scratch) const {
  const WeightFormat format = chunk.weight->format;
  const bool is_scaled = HasScaledBlocks(format);
  stream(PanelCodeOf(format), {.a = chunk.a,
                               .a_stride = a_stride_,
                               .num_rows = chunk.num_rows,
                               .codes = chunk.Codes(),
                               .panel_bytes = chunk.CodeStride(),
                               .scales = chunk.Runs(),
                               .panel_scale_bytes = chunk.ScaleStride(),
                               .num_panels = chunk.num_panels,
                               .depth = chunk.Depth(),
                               .a_scales = is_scaled ? chunk.group_scales : nullptr,
                               .b_scales = is_scaled ? chunk.BlockScales() : nullptr,
                               .a_is_moderate = chunk.HasModerateRows(),
                               .c = scratch->sums.floats(),
                               .c_stride = kGroupCols});
}

// Where the codes lie that are wanted after those of a panel's tiles: further on in the panel, or
// at the start of the panel at the same place of the next group.
const uint8_t* LinearOp::NextCodes(const Chunk& chunk, int64_t panel, int64_t end_tile) {
  const int64_t num_tiles = chunk.Depth() / kTileDepth;
  const uint8_t* codes = chunk.Codes() + panel * chunk.CodeStride();
  return end_tile < num_tiles ? codes + end_tile * (chunk.CodeStride() / num_tiles)
                              : codes + chunk.num_panels * chunk.CodeStride();
}

// Calls multiply(MatMulArgs) for some panels of a block of depth after the other, b being what they
// decode to. `args` is of all panels.
template <typename Multiply>
void LinearOp::ForDecoded(const Chunk& chunk, int64_t first_tile, MatMulArgs args,
                          WorkerScratch* scratch, Multiply multiply) const {
  auto* decoded = reinterpret_cast<uint16_t*>(scratch->decoded.data());
  args.b = decoded;
  args.panel_stride = args.num_tiles * kTileElems;
  args.b_is_paired = kernel_->pair_b != nullptr;
  for (int64_t first = 0; first < chunk.num_panels; first += kernel_->decoded_panels) {
    args.num_panels = std::min(kernel_->decoded_panels, chunk.num_panels - first);
    for (int64_t p = first; p < first + args.num_panels; ++p) {
      path_.panels.decode(PanelCodeOf(chunk.weight->format),
                          {.codes = chunk.Codes() + p * chunk.CodeStride(),
                           .scales = chunk.Runs() + p * chunk.ScaleStride(),
                           .first_tile = first_tile,
                           .num_tiles = args.num_tiles,
                           .pairs = decoded + (p - first) * args.panel_stride,
                           .is_paired = args.b_is_paired,
                           .next = NextCodes(chunk, p, first_tile + args.num_tiles)});
    }
    multiply(args);
    args.c += args.num_panels * kPanelCols;
  }
}

void LinearOp::SumDecoded(const Chunk& chunk, WorkerScratch* scratch) const {
  const MatMulKernel& kernel = *kernel_;
  const int64_t depth = chunk.Depth();
  const int64_t depth_block = kDepthBlockBytes / kernel.a_elem_bytes;
  for (int64_t k = 0; k < depth; k += depth_block) {
    ForDecoded(chunk, k / kTileDepth,
               {.a = chunk.a + k * kernel.a_elem_bytes,
                .a_stride = a_stride_,
                .num_rows = chunk.num_rows,
                .num_tiles = std::min(depth_block, depth - k) / kTileDepth,
                .c = scratch->sums.floats(),
                .c_stride = kGroupCols,
                .from_zero = k == 0},
               scratch, kernel.matmul);
  }
}

void LinearOp::SumScaledBlocks(const Chunk& chunk, WorkerScratch* scratch) const {
  const MatMulKernel& kernel = *kernel_;
  const int64_t depth = chunk.Depth();
  const int64_t num_blocks = NumFp8Blocks(chunk.weight->cols);
  const float* weight_scales = chunk.BlockScales();
  constexpr int64_t kMaxBlocks = kMaxDepthBlock / kFp8BlockDim;  // At once.
  std::array<float, kMaxBlocks * kChunkRows> row_scales;
  const int64_t depth_block = kDepthBlockBytes / kernel.a_elem_bytes;
  for (int64_t k = 0; k < depth; k += depth_block) {
    const int64_t block = k / kFp8BlockDim;
    const int64_t end = std::min(block + depth_block / kFp8BlockDim, num_blocks);
    for (int64_t b = block; b < end; ++b) {
      float* scales = row_scales.data() + (b - block) * kChunkRows;
      for (int64_t r = 0; r < chunk.num_rows; ++r) {
        scales[r] = chunk.group_scales[r * num_blocks + b] * weight_scales[b];
      }
    }
    ForDecoded(chunk, k / kTileDepth,
               {.a = chunk.a + k * kernel.a_elem_bytes,
                .a_stride = a_stride_,
                .num_rows = chunk.num_rows,
                .num_tiles = std::min(depth_block, depth - k) / kTileDepth,
                .c = scratch->sums.floats(),
                .c_stride = kGroupCols,
                .from_zero = k == 0,
                .row_scales = row_scales.data(),
                .row_scale_stride = kChunkRows},
               scratch, [&](const MatMulArgs& args) { AddScaledBlocks(args, scratch); });
  }
}

// MatMulArgs with row_scales: by the kernel, or, where it only multiplies, a block and some rows at
// a time with P in the scratch.
void LinearOp::AddScaledBlocks(const MatMulArgs& args, WorkerScratch* scratch) const {
  const MatMulKernel& kernel = *kernel_;
  if (kernel.has_row_scales) {
    kernel.matmul(args);
    return;
  }
  constexpr int64_t kBlockTiles = kFp8BlockDim / kTileDepth;
  float* products = scratch->products.floats();
  MatMulArgs part = args;
  part.c = products;
  part.from_zero = true;
  part.row_scales = nullptr;
  for (int64_t tile = 0; tile < args.num_tiles; tile += kBlockTiles) {
    part.num_tiles = std::min(kBlockTiles, args.num_tiles - tile);
    part.b = args.b + tile * kTileElems;
    const float* scales = args.row_scales + tile / kBlockTiles * args.row_scale_stride;
    for (int64_t row = 0; row < args.num_rows; row += kScaleRows) {
      part.a = args.a + (row * args.a_stride + tile * kTileDepth) * kernel.a_elem_bytes;
      part.num_rows = std::min(kScaleRows, args.num_rows - row);
      kernel.matmul(part);
      for (int64_t r = 0; r < part.num_rows; ++r) {
        path_.inputs.scale_add(products + r * kGroupCols, scales[row + r],
                               args.num_panels * kPanelCols, args.from_zero && tile == 0,
                               args.c + (row + r) * args.c_stride);
      }
    }
  }
}

// What multiplies the chunk straight from its codes; null: decoding once and matmul are faster.
LinearOp::StreamKernel LinearOp::StreamOf(const Chunk& chunk) const {
  const PanelCode code = PanelCodeOf(chunk.weight->format);
  if (code == PanelCode::kBf16) {
    return nullptr;
  }
  if (kernel_->a_elem_bytes == kFloat) {
    return chunk.num_rows <= path_.panels.stream_rows ? path_.panels.stream : nullptr;
  }
  if (chunk.num_rows > kernel_->stream_rows || code == PanelCode::kNvfp4) {
    return nullptr;
  }
  if (code == PanelCode::kMxfp8 && !(chunk.HasModerateRows() && HasModerateScales(chunk))) {
    return nullptr;
  }
  return kernel_->stream;
}

bool LinearOp::HasModerateScales(const Chunk& chunk) const {
  for (int64_t p = 0; p < chunk.num_panels; ++p) {
    if (!path_.panels.has_moderate_scales(chunk.Runs() + p * chunk.ScaleStride(),
                                          chunk.Depth() / kTileDepth)) {
      return false;
    }
  }
  return true;
}

void LinearOp::Sum(const Chunk& chunk, WorkerScratch* scratch) const {
  if (chunk.weight->format == WeightFormat::kBf16) {
    SumBf16(chunk, scratch);
  } else if (const StreamKernel stream = StreamOf(chunk); stream != nullptr) {
    StreamSum(chunk, stream, scratch);
  } else if (HasScaledBlocks(chunk.weight->format)) {
    SumScaledBlocks(chunk, scratch);
  } else {
    SumDecoded(chunk, scratch);
  }
}

void LinearOp::StoreSums(const Chunk& chunk, WorkerScratch* scratch) const {
  const PackedMatrix& weight = *chunk.weight;
  const Activations& y = chunk.part->y;
  const int64_t first_col = chunk.first_panel * kPanelCols;
  OutputRowArgs row{.n = std::min(chunk.NumCols(), y.cols - first_col),
                    .is_f32 = y.dtype == DType::kF32};
  if (weight.format == WeightFormat::kFp8Tensor) {
    row.col_factor = weight.TensorScale();
  }
  if (weight.format == WeightFormat::kFp8Channel) {
    row.col_factors = weight.scales.As<float>().data() + first_col;
  }
  if (chunk.part->bias != nullptr) {
    row.bias = chunk.part->bias->codes.As<uint16_t>().data() + first_col;
  }
  for (int64_t r = 0; r < chunk.num_rows; ++r) {
    row.c = scratch->sums.floats() + r * kGroupCols;
    row.factor = chunk.rows[r].factor;
    if (weight.format == WeightFormat::kNvfp4) {
      row.factor = row.factor * weight.TensorScale();
    }
    row.y = y.data + ((chunk.first_row + r) * y.stride + first_col) * DTypeBytes(y.dtype);
    path_.inputs.store_outputs(row);
  }
}

}  // namespace octavo::cpu
