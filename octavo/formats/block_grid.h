#pragma once
// How the blocks that own a scale cover a matrix, for each format.

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "octavo/base/check.h"
#include "octavo/formats/format.h"
#include "octavo/formats/fp8_block.h"
#include "octavo/formats/mxfp8.h"
#include "octavo/formats/nvfp4.h"

namespace octavo {

// The part of a matrix that one scale belongs to.
struct Block {
  int64_t row_begin;
  int64_t row_end;
  int64_t col_begin;
  int64_t col_end;
  int64_t idx;  // Of its scale, in row-major order of blocks.
};

// Blocks of block_rows x block_cols from the first element on; those at the edges are smaller.
struct BlockGrid {
  int64_t rows;
  int64_t cols;
  int64_t block_rows;
  int64_t block_cols;

  int64_t NumBlockRows() const { return (rows + block_rows - 1) / block_rows; }
  int64_t NumBlockCols() const { return (cols + block_cols - 1) / block_cols; }
  int64_t NumBlocks() const { return NumBlockRows() * NumBlockCols(); }
  int64_t BlockOf(int64_t row, int64_t col) const {
    return row / block_rows * NumBlockCols() + col / block_cols;
  }

  // Calls visit(Block) for every block, in the order of their scales.
  template <typename Visit>
  void ForEach(Visit visit) const {
    int64_t idx = 0;
    for (int64_t n = 0; n < rows; n += block_rows) {
      for (int64_t k = 0; k < cols; k += block_cols) {
        visit(Block{.row_begin = n,
                    .row_end = std::min(n + block_rows, rows),
                    .col_begin = k,
                    .col_end = std::min(k + block_cols, cols),
                    .idx = idx++});
      }
    }
  }
};

// The grid of a matrix [rows, cols] in a quantized format; for fp8-tensor one block is all of it.
inline BlockGrid BlockGridOf(WeightFormat format, int64_t rows, int64_t cols) {
  switch (format) {
    case WeightFormat::kFp8:
    case WeightFormat::kFp8Ue8m0:
      return {rows, cols, kFp8BlockDim, kFp8BlockDim};
    case WeightFormat::kFp8Channel:
      return {rows, cols, 1, std::max<int64_t>(cols, 1)};
    case WeightFormat::kFp8Tensor:
      return {rows, cols, std::max<int64_t>(rows, 1), std::max<int64_t>(cols, 1)};
    case WeightFormat::kMxfp8:
      return {rows, cols, 1, kMxGroupElems};
    case WeightFormat::kNvfp4:
      return {rows, cols, 1, kNvfp4GroupElems};
    case WeightFormat::kBf16:
      break;
  }
  CHECK(format != WeightFormat::kBf16);
  return {};
}

}  // namespace octavo
