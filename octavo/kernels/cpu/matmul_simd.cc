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

#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

#include <algorithm>

#include "octavo/kernels/cpu/kernel_table.h"
#include "octavo/kernels/cpu/layout.h"
#include "octavo/kernels/cpu/vec-inl.h"

HWY_BEFORE_NAMESPACE();
namespace octavo::cpu::HWY_NAMESPACE {

#if OCTAVO_CPU_TARGET

// Rows whose chains fit the registers beside one or two panels.
constexpr int kMaxRows = kLanes == 16 ? 6 : 3;
// Up to this many rows the loop is bound by reading B, and more panels run at once: more chains,
// and more concurrent streams from memory.
constexpr int kStreamRows = kLanes == 16 ? 3 : 1;
constexpr int kStreamPanels = kLanes == 16 ? 4 : 2;
constexpr int kBlockPanels = kLanes == 16 ? 2 : 1;
constexpr int64_t kPrefetchBytes = 1024;

// One block of kRows rows and kPanels panels, over all tiles.
template <int kRows, int kPanels>
HWY_INLINE void Block(const MatMulArgs& args, const float* HWY_RESTRICT a,
                      const uint16_t* HWY_RESTRICT b, float* HWY_RESTRICT c) {
  constexpr int kCols = kPanels * static_cast<int>(kVecs);
  const DF df;
  const DU32 du;
  const VU32 odd_mask = hn::Set(du, 0xFFFF0000U);
  for (int64_t tile = 0; tile < args.num_tiles; ++tile) {
    VF e[kRows][kCols];
    VF o[kRows][kCols];
    HWY_UNROLL(8)
    for (int r = 0; r < kRows; ++r) {
      HWY_UNROLL(8)
      for (int v = 0; v < kCols; ++v) {
        e[r][v] = hn::Zero(df);
        o[r][v] = hn::Zero(df);
      }
    }
    const float* a_tile = a + tile * kTileDepth;
    const uint16_t* b_tile = b + tile * kTileElems;
    for (int64_t pair = 0; pair < kTileDepth / 2; ++pair) {
      VF b_even[kCols];
      VF b_odd[kCols];
      HWY_UNROLL(8)
      for (int v = 0; v < kCols; ++v) {
        const uint16_t* from =
            b_tile + v / kVecs * args.panel_stride + pair * 2 * kPanelCols + v % kVecs * 2 * kLanes;
        hwy::Prefetch(reinterpret_cast<const std::byte*>(from) + kPrefetchBytes);
        const VU32 bits = hn::LoadU(du, reinterpret_cast<const uint32_t*>(from));
        b_even[v] = hn::BitCast(df, hn::ShiftLeft<16>(bits));
        b_odd[v] = hn::BitCast(df, hn::And(bits, odd_mask));
      }
      HWY_UNROLL(8)
      for (int r = 0; r < kRows; ++r) {
        const VF a_even = hn::Set(df, a_tile[r * args.a_stride + 2 * pair]);
        const VF a_odd = hn::Set(df, a_tile[r * args.a_stride + 2 * pair + 1]);
        HWY_UNROLL(8)
        for (int v = 0; v < kCols; ++v) {
          e[r][v] = hn::MulAdd(a_even, b_even[v], e[r][v]);
          o[r][v] = hn::MulAdd(a_odd, b_odd[v], o[r][v]);
        }
      }
    }
    const bool is_first = tile == 0 && args.from_zero;
    HWY_UNROLL(8)
    for (int r = 0; r < kRows; ++r) {
      HWY_UNROLL(8)
      for (int v = 0; v < kCols; ++v) {
        float* to = c + r * args.c_stride + v * kLanes;
        const VF before = is_first ? hn::Zero(df) : hn::LoadU(df, to);
        hn::StoreU(hn::Add(before, hn::Add(e[r][v], o[r][v])), df, to);
      }
    }
  }
}

// kRows rows with all panels, kPanels at a time and the rest singly.
template <int kRows, int kPanels>
void Rows(const MatMulArgs& args, const float* a, float* c) {
  int64_t p = 0;
  for (; p + kPanels <= args.num_panels; p += kPanels) {
    Block<kRows, kPanels>(args, a, args.b + p * args.panel_stride, c + p * kPanelCols);
  }
  for (; p < args.num_panels; ++p) {
    Block<kRows, 1>(args, a, args.b + p * args.panel_stride, c + p * kPanelCols);
  }
}

template <int kRows>
HWY_INLINE void RowsOfBestShape(const MatMulArgs& args, const float* a, float* c) {
  Rows<kRows, (kRows <= kStreamRows ? kStreamPanels : kBlockPanels)>(args, a, c);
}

void MatMul(const MatMulArgs& args) {
  for (int64_t row = 0; row < args.num_rows;) {
    const auto* a = reinterpret_cast<const float*>(args.a) + row * args.a_stride;
    float* c = args.c + row * args.c_stride;
    const int64_t rows = std::min<int64_t>(kMaxRows, args.num_rows - row);
    switch (rows) {
      case 1:
        RowsOfBestShape<1>(args, a, c);
        break;
      case 2:
        RowsOfBestShape<2>(args, a, c);
        break;
      case 3:
        RowsOfBestShape<3>(args, a, c);
        break;
#if HWY_TARGET != HWY_AVX2  // Where kMaxRows is 3.
      case 4:
        RowsOfBestShape<4>(args, a, c);
        break;
      case 5:
        RowsOfBestShape<5>(args, a, c);
        break;
      default:
        RowsOfBestShape<6>(args, a, c);
        break;
#endif
    }
    row += rows;
  }
}

void Nothing() {}

constexpr MatMulKernel kMatMulKernel = {.a_elem_bytes = 4,
                                        .row_step = 1,
                                        .attention_rows = 24,
                                        .begin = Nothing,
                                        .end = Nothing,
                                        .matmul = MatMul};

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
    case VectorTarget::kAvx512Vbmi:  // VBMI is for bytes: nothing in here.
#if HWY_TARGETS & HWY_AVX3
      return &N_AVX3::kMatMulKernel;
#else
      return nullptr;
#endif
  }
  return nullptr;
}

}  // namespace octavo::cpu
#endif  // HWY_ONCE
