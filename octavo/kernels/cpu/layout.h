#pragma once
// Packed layouts of the CPU backend.
//
// A panel holds 16 columns of W^T (16 rows of W): for each pair of depths (2i, 2i + 1) the 16
// columns' pairs, 64 bytes of BF16. So 32 depths of a panel are one AMX B tile (16 rows of 64
// bytes, "VNNI" order) and one vector load per pair of depths on AVX-512. Depth is zero-padded to
// tiles of 32, columns to whole panels.
//
//   BF16:  [panels][depth / 2][16 columns][2]
//   E4M3:  the same order in bytes, except that each 64 codes (two pairs of depths, A then B) are
//          stored as four 16-byte lanes, lane j = A[8j, 8j + 8), B[8j, 8j + 8): interleaving the
//          low and high result bytes of a 16-byte table lookup within lanes then yields A and B
//          whole.
//   runs:  [panels][ceil(row bytes / 4)][16 columns][4]: four successive bytes of a row of W are
//          one 32-bit lane of a vector of columns, zero-padded. So lie the codes of NVFP4 (a lane
//          is 8 depths), its group scales (4 groups) and those of MXFP8 (4 tiles).
//
// Source: the tile and VNNI layouts of the Intel 64 SDM, chapter "Intel AMX".

#include <cstdint>

namespace octavo::cpu {

inline constexpr int64_t kPanelCols = 16;
inline constexpr int64_t kTileDepth = 32;
inline constexpr int64_t kTileElems = kPanelCols * kTileDepth;

inline constexpr int64_t RoundUp(int64_t value, int64_t step) {
  return (value + step - 1) / step * step;
}
inline constexpr int64_t NumPanels(int64_t cols) { return RoundUp(cols, kPanelCols) / kPanelCols; }

// Element index, within a panel, of depth k of column n.
inline constexpr int64_t PanelElem(int64_t k, int64_t n) {
  return (k / 2) * (2 * kPanelCols) + n * 2 + k % 2;
}

// Byte index, within an FP8 panel, of depth k of column n.
inline constexpr int64_t Fp8PanelByte(int64_t k, int64_t n) {
  return (k / 4) * 64 + (n / 4) * 16 + (k / 2 % 2) * 8 + (n % 4) * 2 + k % 2;
}

// Bytes of one panel in runs, of rows of `row_bytes`.
inline constexpr int64_t RunPanelBytes(int64_t row_bytes) {
  return RoundUp(row_bytes, 4) * kPanelCols;
}

}  // namespace octavo::cpu
