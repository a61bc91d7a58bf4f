// The MatMul order on FP32 vectors: even and odd depths are two chains of FMA per output, one
// vector lane per column of a panel.
//
// A pair of depths of a panel is one 64-byte load; its even elements become FP32 by a shift, its
// odd ones by a mask. A is FP32 already, so that it can be broadcast from memory. Registers hold
// kMaxRows x panels x 2 chains: enough independent ones to fill two FMA units of latency 4.

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "octavo/kernels/cpu/matmul_simd.cc"
#ifndef HWY_WANT_AVX3_DL
#define HWY_WANT_AVX3_DL
#endif
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4)

// What the AVX targets use; the baseline target, which tools look at, is empty.
// NOLINTBEGIN(misc-include-cleaner)
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

#include <algorithm>

#include "octavo/formats/fp8_block.h"
#include "octavo/kernels/cpu/kernel_table.h"
#include "octavo/kernels/cpu/layout.h"
#include "octavo/kernels/cpu/vec-inl.h"
#include "octavo/kernels/cpu/weight_decode-inl.h"
// NOLINTEND(misc-include-cleaner)

HWY_BEFORE_NAMESPACE();
namespace octavo::cpu::HWY_NAMESPACE {

#if OCTAVO_CPU_TARGET

// Rows whose chains fit the registers beside one or two panels. On AVX2 three rows spill: 0.63 of
// the FMA peak at 512 rows against 0.79 with two (AMD EPYC, family 26, one thread).
constexpr int kMaxRows = kLanes == 16 ? 6 : 2;
// Panels that a block of several rows takes together. One row takes one: it is bound by reading B,
// and one stream with fetches ahead read more than two or four here (37, 32 and 34 GB/s of BF16,
// 32, 22 and 26 GB/s of FP8, from memory; same machine, one thread).
constexpr int kBlockPanels = kLanes == 16 ? 2 : 1;

// Vectors of a block's columns, and the chains (e, o) or sums of its rows.
template <int kPanels>
constexpr int kColVecs = kPanels * static_cast<int>(kVecs);

template <int kRows, int kCols>
struct Chains {
  VF e[kRows][kCols];
  VF o[kRows][kCols];

  HWY_INLINE void Clear() {
    HWY_UNROLL(8)
    for (int r = 0; r < kRows; ++r) {
      HWY_UNROLL(8)
      for (int v = 0; v < kCols; ++v) {
        e[r][v] = hn::Zero(DF());
        o[r][v] = hn::Zero(DF());
      }
    }
  }
  // One pair of depths of all columns: `a` points at the even one of row 0. Rows outside, so that
  // an input is broadcast once for all columns.
  HWY_INLINE void MulAdd(const float* a, int64_t a_stride, const VU32 (&pairs)[kCols]) {
    VF b_even[kCols];
    VF b_odd[kCols];
    HWY_UNROLL(8)
    for (int v = 0; v < kCols; ++v) {
      b_even[v] = EvenBf16(pairs[v]);
      b_odd[v] = OddBf16(pairs[v]);
    }
    HWY_UNROLL(8)
    for (int r = 0; r < kRows; ++r) {
      const VF a_even = hn::Set(DF(), a[r * a_stride]);
      const VF a_odd = hn::Set(DF(), a[r * a_stride + 1]);
      HWY_UNROLL(8)
      for (int v = 0; v < kCols; ++v) {
        e[r][v] = hn::MulAdd(a_even, b_even[v], e[r][v]);
        o[r][v] = hn::MulAdd(a_odd, b_odd[v], o[r][v]);
      }
    }
  }
};

// One block of kRows rows and kPanels panels, over all tiles.
template <int kRows, int kPanels, bool kScaled>
HWY_INLINE void Block(const MatMulArgs& args, const float* HWY_RESTRICT a,
                      const uint16_t* HWY_RESTRICT b, float* HWY_RESTRICT c,
                      const float* HWY_RESTRICT scales) {
  constexpr int kCols = kColVecs<kPanels>;
  const DF df;
  Chains<kRows, kCols> chains;
  HWY_ALIGN float partial[kScaled ? kRows * kCols * kLanes : 1];  // P before the last tile.
  for (int64_t tile = 0; tile < args.num_tiles; ++tile) {
    chains.Clear();
    const float* a_tile = a + tile * kTileDepth;
    const uint16_t* b_tile = b + tile * kTileElems;
    for (int64_t pair = 0; pair < kTileDepth / 2; ++pair) {
      VU32 pairs[kCols];
      HWY_UNROLL(8)
      for (int v = 0; v < kCols; ++v) {
        const uint16_t* from =
            b_tile + v / kVecs * args.panel_stride + pair * 2 * kPanelCols + v % kVecs * 2 * kLanes;
        hwy::Prefetch(reinterpret_cast<const std::byte*>(from) + args.prefetch_bytes);
        pairs[v] = hn::LoadU(DU32(), reinterpret_cast<const uint32_t*>(from));
      }
      chains.MulAdd(a_tile + 2 * pair, args.a_stride, pairs);
    }
    const bool is_last = tile + 1 == args.num_tiles;
    const bool is_zero = tile == 0 && (kScaled || args.from_zero);
    HWY_UNROLL(8)
    for (int r = 0; r < kRows; ++r) {
      HWY_UNROLL(8)
      for (int v = 0; v < kCols; ++v) {
        float* to = c + r * args.c_stride + v * kLanes;
        float* sum_at = kScaled ? partial + (r * kCols + v) * kLanes : to;
        const VF before = is_zero ? hn::Zero(df) : hn::LoadU(df, sum_at);
        const VF sum = hn::Add(before, hn::Add(chains.e[r][v], chains.o[r][v]));
        if (kScaled && is_last) {
          const VF acc = args.from_zero ? hn::Zero(df) : hn::LoadU(df, to);
          hn::StoreU(hn::MulAdd(sum, hn::Set(df, scales[r]), acc), df, to);
        } else {
          hn::StoreU(sum, df, sum_at);
        }
      }
    }
  }
}

// kRows rows with all panels, kPanels at a time and the rest singly.
template <int kRows, int kPanels, bool kScaled>
void Rows(const MatMulArgs& args, int64_t row) {
  const auto* a = reinterpret_cast<const float*>(args.a) + row * args.a_stride;
  float* c = args.c + row * args.c_stride;
  const float* scales = kScaled ? args.row_scales + row : nullptr;
  int64_t p = 0;
  for (; p + kPanels <= args.num_panels; p += kPanels) {
    Block<kRows, kPanels, kScaled>(args, a, args.b + p * args.panel_stride, c + p * kPanelCols,
                                   scales);
  }
  for (; p < args.num_panels; ++p) {
    Block<kRows, 1, kScaled>(args, a, args.b + p * args.panel_stride, c + p * kPanelCols, scales);
  }
}

template <int kRows, bool kScaled>
HWY_INLINE void RowsOfBestShape(const MatMulArgs& args, int64_t row) {
  Rows<kRows, (kRows == 1 ? 1 : kBlockPanels), kScaled>(args, row);
}

template <bool kScaled>
void MatMulRows(const MatMulArgs& args) {
  for (int64_t row = 0; row < args.num_rows;) {
    const int64_t rows = std::min<int64_t>(kMaxRows, args.num_rows - row);
    switch (rows) {
      case 1:
        RowsOfBestShape<1, kScaled>(args, row);
        break;
      case 2:
        RowsOfBestShape<2, kScaled>(args, row);
        break;
#if HWY_TARGET != HWY_AVX2  // Where kMaxRows is 2.
      case 3:
        RowsOfBestShape<3, kScaled>(args, row);
        break;
      case 4:
        RowsOfBestShape<4, kScaled>(args, row);
        break;
      case 5:
        RowsOfBestShape<5, kScaled>(args, row);
        break;
      default:
        RowsOfBestShape<6, kScaled>(args, row);
        break;
#endif
    }
    row += rows;
  }
}

void MatMul(const MatMulArgs& args) {
  if (args.row_scales == nullptr) {
    return MatMulRows<false>(args);
  }
  constexpr int64_t kBlockTiles = kFp8BlockDim / kTileDepth;
  MatMulArgs block = args;
  for (int64_t tile = 0; tile < args.num_tiles; tile += kBlockTiles) {
    block.num_tiles = std::min(kBlockTiles, args.num_tiles - tile);
    MatMulRows<true>(block);
    block.a += kFp8BlockDim * int64_t{sizeof(float)};
    block.b += kBlockTiles * kTileElems;
    block.row_scales += args.row_scale_stride;
    block.from_zero = false;
  }
}

// Chains of FMA in registers, as many as the widest Block has.
int64_t Burn(int64_t rounds) {
  constexpr int64_t kChains = 12;
  const DF df;
  const VF factor = hn::Set(df, 0.999F);
  VF sums[kChains];
  for (VF& sum : sums) {
    sum = hn::Set(df, 1.0F);
  }
  for (int64_t i = 0; i < rounds; ++i) {
    HWY_UNROLL(12)
    for (VF& sum : sums) {
      sum = hn::MulAdd(sum, factor, factor);
    }
  }
  VF total = hn::Zero(df);
  for (const VF& sum : sums) {
    total = hn::Add(total, sum);
  }
  // Depends on the result, so that the loop stays.
  const int64_t extra = hn::GetLane(total) < 0.0F ? 1 : 0;
  return rounds * kChains * kLanes * 2 + extra;
}

void Nothing() {}

constexpr MatMulKernel kMatMulKernel = {.a_elem_bytes = 4,
                                        .row_step = 1,
                                        .attention_rows = 24,
                                        .begin = Nothing,
                                        .end = Nothing,
                                        .matmul = MatMul,
                                        .has_row_scales = true,
                                        .burn = Burn};

#endif  // OCTAVO_CPU_TARGET

}  // namespace octavo::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace octavo::cpu {

const MatMulKernel* FindMatMulKernel(VectorTarget target) {
  switch (target) {
    case VectorTarget::kAvx2:
#if HWY_TARGETS & HWY_AVX2
      return &N_AVX2::kMatMulKernel;
#else
      return nullptr;
#endif
    case VectorTarget::kAvx512:
#if HWY_TARGETS & HWY_AVX3
      return &N_AVX3::kMatMulKernel;
#else
      return nullptr;
#endif
    case VectorTarget::kAvx512Vbmi:
#if HWY_TARGETS & HWY_AVX3_DL
      return &N_AVX3_DL::kMatMulKernel;
#else
      return nullptr;
#endif
  }
  return nullptr;
}

}  // namespace octavo::cpu
#endif  // HWY_ONCE
