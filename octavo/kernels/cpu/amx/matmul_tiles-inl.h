#pragma once
// The MatMul order on tiles: TDPBF16PS adds, per output and 32 depths, the chain over even and the
// chain over odd depths to C, which is the order of ops.h by definition.
//
// All tiles are 16 rows of 64 bytes: C and P are 16 x 16 FP32, A is 16 rows x 32 BF16, B is one
// tile of a panel (layout.h). Rows beyond num_rows are computed and not used (row_step), so that
// one tile configuration serves every shape: the instruction costs the same for 1 row as for 16.
//
// `Tiles` has the instructions or their model:
//   Tiles::Zero<t>(); Tiles::Load<t>(address, row_bytes); Tiles::Store<t>(address, row_bytes);
//   Tiles::Dot<c, a, b>();   // c += a * b
//
// Tile registers: 0..3 are C of a 2 x 2 block (row tile, panel), 4 and 5 are A, 6 and 7 are B.

#include <cstdint>

#include "octavo/kernels/cpu/kernel_table.h"
#include "octavo/kernels/cpu/layout.h"

namespace octavo::cpu {

inline constexpr int64_t kTileRows = 16;

// kRowTiles x kPanels tiles of C, over all tiles of depth. Each is 1 or 2.
template <class Tiles, int kRowTiles, int kPanels>
inline void TileBlock(const MatMulArgs& args, const uint16_t* a, const uint16_t* b, float* c) {
  const int64_t a_row_bytes = args.a_stride * int64_t{sizeof(uint16_t)};
  const int64_t c_row_bytes = args.c_stride * int64_t{sizeof(float)};
  const int64_t a_next = kTileRows * args.a_stride;
  const int64_t c_next = kTileRows * args.c_stride;
  constexpr int64_t kBRowBytes = 2 * kPanelCols * int64_t{sizeof(uint16_t)};

  if (args.from_zero) {
    Tiles::template Zero<0>();
    if constexpr (kPanels == 2) Tiles::template Zero<1>();
    if constexpr (kRowTiles == 2) Tiles::template Zero<2>();
    if constexpr (kRowTiles == 2 && kPanels == 2) Tiles::template Zero<3>();
  } else {
    Tiles::template Load<0>(c, c_row_bytes);
    if constexpr (kPanels == 2) Tiles::template Load<1>(c + kPanelCols, c_row_bytes);
    if constexpr (kRowTiles == 2) Tiles::template Load<2>(c + c_next, c_row_bytes);
    if constexpr (kRowTiles == 2 && kPanels == 2) {
      Tiles::template Load<3>(c + c_next + kPanelCols, c_row_bytes);
    }
  }
  for (int64_t tile = 0; tile < args.num_tiles; ++tile) {
    const uint16_t* a_tile = a + tile * kTileDepth;
    const uint16_t* b_tile = b + tile * kTileElems;
    // Fetched ahead where B is read once; otherwise it is in the cache.
    for (int64_t r = 0; kRowTiles == 1 && r < kTileRows * kPanels; ++r) {
      __builtin_prefetch(reinterpret_cast<const std::byte*>(b_tile) + args.prefetch_bytes +
                         r / kTileRows * args.panel_stride * int64_t{sizeof(uint16_t)} +
                         r % kTileRows * kBRowBytes);
    }
    Tiles::template Load<6>(b_tile, kBRowBytes);
    Tiles::template Load<4>(a_tile, a_row_bytes);
    Tiles::template Dot<0, 4, 6>();
    if constexpr (kPanels == 2) {
      Tiles::template Load<7>(b_tile + args.panel_stride, kBRowBytes);
      Tiles::template Dot<1, 4, 7>();
    }
    if constexpr (kRowTiles == 2) {
      Tiles::template Load<5>(a_tile + a_next, a_row_bytes);
      Tiles::template Dot<2, 5, 6>();
    }
    if constexpr (kRowTiles == 2 && kPanels == 2) {
      Tiles::template Dot<3, 5, 7>();
    }
  }
  Tiles::template Store<0>(c, c_row_bytes);
  if constexpr (kPanels == 2) Tiles::template Store<1>(c + kPanelCols, c_row_bytes);
  if constexpr (kRowTiles == 2) Tiles::template Store<2>(c + c_next, c_row_bytes);
  if constexpr (kRowTiles == 2 && kPanels == 2) {
    Tiles::template Store<3>(c + c_next + kPanelCols, c_row_bytes);
  }
}

// One or two tiles of rows with all panels.
template <class Tiles, int kRowTiles>
inline void TileRows(const MatMulArgs& args, int64_t row) {
  const auto* a = reinterpret_cast<const uint16_t*>(args.a) + row * args.a_stride;
  float* c = args.c + row * args.c_stride;
  int64_t p = 0;
  for (; p + 2 <= args.num_panels; p += 2) {
    TileBlock<Tiles, kRowTiles, 2>(args, a, args.b + p * args.panel_stride, c + p * kPanelCols);
  }
  if (p < args.num_panels) {
    TileBlock<Tiles, kRowTiles, 1>(args, a, args.b + p * args.panel_stride, c + p * kPanelCols);
  }
}

// The 2 x 2 block's instructions on tiles of zeros: the time does not depend on the values.
template <class Tiles>
inline int64_t BurnTiles(int64_t rounds) {
  Tiles::template Zero<0>();
  Tiles::template Zero<1>();
  Tiles::template Zero<2>();
  Tiles::template Zero<3>();
  Tiles::template Zero<4>();
  Tiles::template Zero<5>();
  Tiles::template Zero<6>();
  Tiles::template Zero<7>();
  for (int64_t i = 0; i < rounds; ++i) {
    Tiles::template Dot<0, 4, 6>();
    Tiles::template Dot<1, 4, 7>();
    Tiles::template Dot<2, 5, 6>();
    Tiles::template Dot<3, 5, 7>();
  }
  return rounds * 4 * kTileRows * kPanelCols * kTileDepth * 2;
}

template <class Tiles>
inline void MatMulOnTiles(const MatMulArgs& args) {
  int64_t row = 0;
  for (; row + kTileRows < args.num_rows; row += 2 * kTileRows) {
    TileRows<Tiles, 2>(args, row);
  }
  if (row < args.num_rows) {
    TileRows<Tiles, 1>(args, row);
  }
}

}  // namespace octavo::cpu
