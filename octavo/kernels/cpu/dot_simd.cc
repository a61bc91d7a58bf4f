// dot.h's loops. Compiled for AVX512_BF16 (kernels/CMakeLists.txt); only reached after CheckDot.
//
// A elements are BF16 bits, each four depths in the order 2, 0, 3, 1, so that a 32-bit word is a
// pair of the instruction. Two lines of a panel, four depths of 16 columns, become two lines of
// pairs: once for many rows (MatMulArgs::b_is_paired), when they are loaded for few. Registers hold
// rows x panels x 2 chains: enough independent ones to fill two units of latency 6. Of pairs there
// are fewer rows, and the sums of tiles stay in registers too: 436 GFLOP/s of 490 instead of 370;
// making pairs takes those registers (AMD EPYC, family 26, one thread, 288 rows).

#include <hwy/base.h>
#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdint>

#include "octavo/base/float_env.h"
#include "octavo/formats/fp8_block.h"
#include "octavo/kernels/cpu/dot-inl.h"
#include "octavo/kernels/cpu/dot.h"
#include "octavo/kernels/cpu/dot_stream.h"
#include "octavo/kernels/cpu/kernel_table.h"
#include "octavo/kernels/cpu/layout.h"

namespace octavo::cpu {
namespace {

constexpr int kMaxRows = 6;
constexpr int kMaxPairedRows = 4;
constexpr int kBlockPanels = 2;
constexpr int64_t kLanes = 16;

// Two lines of a panel as pairs.
Pairs PairsOf(const uint16_t* lines) {
  // Words of the first line, and from 32 on of the second; the upper half of a pair comes first.
  const auto picked = [](int32_t lower, int32_t upper) {
    const __m512i lanes =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    return _mm512_or_si512(
        _mm512_add_epi32(lanes, _mm512_set1_epi32(lower)),
        _mm512_slli_epi32(_mm512_add_epi32(lanes, _mm512_set1_epi32(upper)), 16));
  };
  const __m512i first = _mm512_loadu_si512(lines);
  const __m512i second = _mm512_loadu_si512(lines + 2 * kPanelCols);
  return {.even = _mm512_permutex2var_epi16(first, picked(32, 0), second),
          .odd = _mm512_permutex2var_epi16(first, picked(33, 1), second)};
}

// Where a block begins.
struct BlockAt {
  const uint16_t* a = nullptr;
  const uint16_t* b = nullptr;
  float* c = nullptr;
  const float* scales = nullptr;  // MatMulArgs::row_scales.
};

// Its rows and panels, each by a pointer of its own: with strides GCC 12 runs out of registers.
template <int kRows, int kPanels>
struct Operands {
  const uint16_t* a[kRows];
  const uint16_t* b[kPanels];

  HWY_INLINE Operands(const MatMulArgs& args, const BlockAt& at) {
    HWY_UNROLL(6)
    for (int r = 0; r < kRows; ++r) {
      a[r] = at.a + r * args.a_stride;
    }
    HWY_UNROLL(2)
    for (int p = 0; p < kPanels; ++p) {
      b[p] = at.b + p * args.panel_stride;
    }
  }
};

// Chains of kRows rows and kPanels panels over a tile.
template <int kRows, int kPanels>
struct Chains {
  __m512 even[kRows][kPanels];
  __m512 odd[kRows][kPanels];

  HWY_INLINE void Clear() {
    HWY_UNROLL(6)
    for (int r = 0; r < kRows; ++r) {
      HWY_UNROLL(2)
      for (int p = 0; p < kPanels; ++p) {
        even[r][p] = _mm512_setzero_ps();
        odd[r][p] = _mm512_setzero_ps();
      }
    }
  }
  // Four depths from k on.
  template <bool kIsPaired>
  HWY_INLINE void MulAdd(const Operands<kRows, kPanels>& from, int64_t k, int64_t prefetch_bytes) {
    Pairs pairs[kPanels];
    HWY_UNROLL(2)
    for (int p = 0; p < kPanels; ++p) {
      const uint16_t* lines = from.b[p] + k * kPanelCols;
      if constexpr (kIsPaired) {
        pairs[p] = {.even = _mm512_loadu_si512(lines),
                    .odd = _mm512_loadu_si512(lines + 2 * kPanelCols)};
      } else {
        const auto* ahead = reinterpret_cast<const char*>(lines) + prefetch_bytes;
        _mm_prefetch(ahead, _MM_HINT_T0);
        _mm_prefetch(ahead + 64, _MM_HINT_T0);
        pairs[p] = PairsOf(lines);
      }
    }
    HWY_UNROLL(6)
    for (int r = 0; r < kRows; ++r) {
      const __m512i a_even = BroadcastPair(from.a[r] + k);
      const __m512i a_odd = BroadcastPair(from.a[r] + k + 2);
      HWY_UNROLL(2)
      for (int p = 0; p < kPanels; ++p) {
        even[r][p] = Dot(even[r][p], a_even, pairs[p].even);
        odd[r][p] = Dot(odd[r][p], a_odd, pairs[p].odd);
      }
    }
  }
  // A tile from depth k on.
  template <bool kIsPaired>
  HWY_INLINE void SumTile(const Operands<kRows, kPanels>& from, int64_t k, int64_t prefetch_bytes) {
    Clear();
    for (int64_t end = k + kTileDepth; k < end; k += kStepDepth) {
      MulAdd<kIsPaired>(from, k, prefetch_bytes);
    }
  }
};

// FP32 vectors of kRows rows and kPanels panels.
template <int kRows, int kPanels>
struct Sums {
  __m512 at[kRows][kPanels];

  HWY_INLINE void Load(const float* c, int64_t stride, bool from_zero) {
    HWY_UNROLL(6)
    for (int r = 0; r < kRows; ++r) {
      HWY_UNROLL(2)
      for (int p = 0; p < kPanels; ++p) {
        at[r][p] =
            from_zero ? _mm512_setzero_ps() : _mm512_loadu_ps(c + r * stride + p * kPanelCols);
      }
    }
  }
  // The chains of a tile.
  HWY_INLINE void Add(const Chains<kRows, kPanels>& chains) {
    HWY_UNROLL(6)
    for (int r = 0; r < kRows; ++r) {
      HWY_UNROLL(2)
      for (int p = 0; p < kPanels; ++p) {
        at[r][p] = _mm512_add_ps(at[r][p], _mm512_add_ps(chains.even[r][p], chains.odd[r][p]));
      }
    }
  }
  HWY_INLINE void Store(float* c, int64_t stride) const {
    HWY_UNROLL(6)
    for (int r = 0; r < kRows; ++r) {
      HWY_UNROLL(2)
      for (int p = 0; p < kPanels; ++p) {
        _mm512_storeu_ps(c + r * stride + p * kPanelCols, at[r][p]);
      }
    }
  }
  // c = fma(sum, the row's scale, c or +0).
  HWY_INLINE void StoreScaled(const float* scales, bool from_zero, float* c, int64_t stride) const {
    HWY_UNROLL(6)
    for (int r = 0; r < kRows; ++r) {
      const __m512 scale = _mm512_set1_ps(scales[r]);
      HWY_UNROLL(2)
      for (int p = 0; p < kPanels; ++p) {
        float* to = c + r * stride + p * kPanelCols;
        const __m512 acc = from_zero ? _mm512_setzero_ps() : _mm512_loadu_ps(to);
        _mm512_storeu_ps(to, _mm512_fmadd_ps(at[r][p], scale, acc));
      }
    }
  }
};

// Between loads and stores of C: otherwise GCC 12 keeps its eight addresses in vector registers,
// which the loop needs (268 GFLOP/s instead of 436).
void ForgetAddresses() { std::atomic_signal_fence(std::memory_order_seq_cst); }

// One block of kRows rows and kPanels panels, over all tiles: panels as they lie, sums in memory.
template <int kRows, int kPanels>
void Block(const MatMulArgs& args, const BlockAt& at) {
  const Operands<kRows, kPanels> from(args, at);
  Chains<kRows, kPanels> chains;
  for (int64_t tile = 0; tile < args.num_tiles; ++tile) {
    chains.template SumTile<false>(from, tile * kTileDepth, args.prefetch_bytes);
    Sums<kRows, kPanels> sums;
    sums.Load(at.c, args.c_stride, tile == 0 && args.from_zero);
    sums.Add(chains);
    sums.Store(at.c, args.c_stride);
  }
}

// The same of pairs, sums in registers. kIsScaled: MatMulArgs with row_scales, of one block of
// depth.
template <int kRows, int kPanels, bool kIsScaled>
HWY_NOINLINE void PairedBlock(const MatMulArgs& args, const BlockAt& at) {
  const Operands<kRows, kPanels> from(args, at);
  Chains<kRows, kPanels> chains;
  Sums<kRows, kPanels> sums;
  sums.Load(at.c, args.c_stride, kIsScaled || args.from_zero);
  for (int64_t tile = 0; tile < args.num_tiles; ++tile) {
    chains.template SumTile<true>(from, tile * kTileDepth, 0);
    sums.Add(chains);
  }
  ForgetAddresses();
  if constexpr (kIsScaled) {
    sums.StoreScaled(at.scales, args.from_zero, at.c, args.c_stride);
  } else {
    sums.Store(at.c, args.c_stride);
  }
}

template <int kRows, int kPanels>
void ScaledBlocks(const MatMulArgs& args, const BlockAt& at) {
  MatMulArgs block = args;
  BlockAt block_at = at;
  for (int64_t tile = 0; tile < args.num_tiles; tile += kBlockTiles) {
    block.num_tiles = std::min(kBlockTiles, args.num_tiles - tile);
    PairedBlock<kRows, kPanels, true>(block, block_at);
    block.from_zero = false;
    block_at.a += kFp8BlockDim;
    block_at.b += kBlockTiles * kTileElems;
    block_at.scales += args.row_scale_stride;
  }
}

enum class Form { kUnpaired, kPaired, kScaled };

template <int kRows, int kPanels, Form kForm>
void BlockOf(const MatMulArgs& args, const BlockAt& at) {
  if constexpr (kForm == Form::kUnpaired) {
    Block<kRows, kPanels>(args, at);
  } else if constexpr (kForm == Form::kPaired) {
    PairedBlock<kRows, kPanels, false>(args, at);
  } else {
    ScaledBlocks<kRows, kPanels>(args, at);
  }
}

// All rows with kPanels panels: their tiles stay in the L1 cache while rows come from L2. (Taking
// all panels with six rows at a time reads 64 KiB of panels from L2 every 3000 cycles: 8 % slower.)
template <int kPanels, Form kForm>
void Panels(const MatMulArgs& args, int64_t panel) {
  // Blocks of nearly equal size: each reads all tiles.
  constexpr int64_t kRows = kForm == Form::kUnpaired ? kMaxRows : kMaxPairedRows;
  const int64_t num_blocks = (args.num_rows + kRows - 1) / kRows;
  for (int64_t row = 0, block = 0; block < num_blocks; ++block) {
    const int64_t end = args.num_rows * (block + 1) / num_blocks;
    const BlockAt at{.a = reinterpret_cast<const uint16_t*>(args.a) + row * args.a_stride,
                     .b = args.b + panel * args.panel_stride,
                     .c = args.c + row * args.c_stride + panel * kPanelCols,
                     .scales = kForm == Form::kScaled ? args.row_scales + row : nullptr};
    switch (end - row) {
      case 1:
        BlockOf<1, kPanels, kForm>(args, at);
        break;
      case 2:
        BlockOf<2, kPanels, kForm>(args, at);
        break;
      case 3:
        BlockOf<3, kPanels, kForm>(args, at);
        break;
      case 4:
        BlockOf<4, kPanels, kForm>(args, at);
        break;
      default:
        if constexpr (kForm == Form::kUnpaired) {
          end - row == 5 ? Block<5, kPanels>(args, at) : Block<6, kPanels>(args, at);
        }
        break;
    }
    row = end;
  }
}

template <Form kForm>
void MatMulOf(const MatMulArgs& args) {
  int64_t panel = 0;
  for (; panel + kBlockPanels <= args.num_panels; panel += kBlockPanels) {
    Panels<kBlockPanels, kForm>(args, panel);
  }
  if (panel < args.num_panels) {
    Panels<1, kForm>(args, panel);
  }
}

void MatMul(const MatMulArgs& args) {
  if (args.row_scales != nullptr) {
    MatMulOf<Form::kScaled>(args);
  } else if (args.b_is_paired) {
    MatMulOf<Form::kPaired>(args);
  } else {
    MatMulOf<Form::kUnpaired>(args);
  }
}

void PairB(const uint16_t* from, int64_t num_elems, const uint16_t* next, uint16_t* to) {
  for (int64_t i = 0; i < num_elems; i += 4 * kPanelCols) {
    _mm_prefetch(reinterpret_cast<const char*>(next + i), _MM_HINT_T1);
    _mm_prefetch(reinterpret_cast<const char*>(next + i + 2 * kPanelCols), _MM_HINT_T1);
    const Pairs pairs = PairsOf(from + i);
    _mm512_storeu_si512(to + i, pairs.even);
    _mm512_storeu_si512(to + i + 2 * kPanelCols, pairs.odd);
  }
}

void OrderA(uint16_t* a, int64_t n) {
  const __m512i order =
      _mm512_broadcast_i32x4(_mm_setr_epi8(4, 5, 0, 1, 6, 7, 2, 3, 12, 13, 8, 9, 14, 15, 10, 11));
  for (int64_t i = 0; i < n; i += 32) {
    _mm512_storeu_si512(a + i, _mm512_shuffle_epi8(_mm512_loadu_si512(a + i), order));
  }
}

// As many chains as the widest Block has.
int64_t Burn(int64_t rounds) {
  constexpr int64_t kChains = 24;
  const __m512i pairs = _mm512_set1_epi32(0x3F003E00);  // 0.5 and 0.125.
  __m512 sums[kChains];
  for (__m512& sum : sums) {
    sum = _mm512_set1_ps(1.0F);
  }
  for (int64_t i = 0; i < rounds; ++i) {
    HWY_UNROLL(24)
    for (__m512& sum : sums) {
      sum = Dot(sum, pairs, pairs);
    }
  }
  __m512 total = _mm512_setzero_ps();
  for (const __m512& sum : sums) {
    total = _mm512_add_ps(total, sum);
  }
  // Depends on the result, so that the loop stays.
  const int64_t extra = _mm512_reduce_add_ps(total) < 0.0F ? 1 : 0;
  return rounds * kChains * kLanes * 4 + extra;
}

void Nothing() {}

// Hard cases of 16 lanes against two FMAs.
bool AreTwoFmas(__m512 sums, __m512i a, __m512i b) {
  const auto upper = [](__m512i pairs) {
    return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(-65536)));
  };
  const auto lower = [](__m512i pairs) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
  };
  const __m512 first = _mm512_fmadd_ps(upper(a), upper(b), sums);
  const __m512 both = _mm512_fmadd_ps(lower(a), lower(b), first);
  const __m512 dots = Dot(sums, a, b);
  const __mmask16 same =
      _mm512_cmpeq_epi32_mask(_mm512_castps_si512(both), _mm512_castps_si512(dots));
  const __mmask16 are_nan =
      _mm512_cmp_ps_mask(both, both, _CMP_UNORD_Q) & _mm512_cmp_ps_mask(dots, dots, _CMP_UNORD_Q);
  return (same | are_nan) == 0xFFFF;
}

}  // namespace

MatMulKernel DotMatMulKernel() {
  return {.a_elem_bytes = 2,
          .row_step = 1,
          .attention_rows = 24,
          .begin = Nothing,
          .end = Nothing,
          .order_a = OrderA,
          .pair_b = PairB,
          .matmul = MatMul,
          .decoded_panels = kBlockPanels,
          .has_row_scales = true,
          .stream_rows = kDotStreamRows,
          .stream = DotStream,
          .burn = Burn};
}

bool DotIsTwoFmas() {
  const ScopedFlushSubnormals flush;
  // Zero, subnormals, the least and the largest normals, mantissas that make ties and long
  // products, infinity: of BF16 and of FP32.
  alignas(32) constexpr uint16_t kFactors[16] = {0x0000, 0x0001, 0x007F, 0x0080, 0x00FF, 0x1F81,
                                                 0x2003, 0x3F80, 0x3F81, 0x3FFF, 0x4049, 0x4B00,
                                                 0x5F7F, 0x7F00, 0x7F7F, 0x7F80};
  alignas(64) constexpr uint32_t kSums[16] = {0x00000000U, 0x00000001U, 0x007FFFFFU, 0x00800000U,
                                              0x00800001U, 0x01000001U, 0x1F810001U, 0x33800000U,
                                              0x3F7FFFFFU, 0x3F800000U, 0x3F800001U, 0x3FFFFFFFU,
                                              0x4B7FFFFFU, 0x5F7FFFFFU, 0x7F7FFFFFU, 0x7F800000U};
  const __m512i sums = _mm512_load_si512(kSums);
  const __m512i factors =
      _mm512_cvtepu16_epi32(_mm256_load_si256(reinterpret_cast<const __m256i*>(kFactors)));
  __m512i lower_a = factors;  // Meets every upper factor, turned by a lane each time.
  const __m512i turn = _mm512_setr_epi32(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 0);
  for (const uint32_t x : kFactors) {
    for (const uint32_t y : kFactors) {
      lower_a = _mm512_permutexvar_epi32(turn, lower_a);
      for (uint32_t signs = 0; signs < 8; ++signs) {
        const auto sign = [signs](uint32_t bit) {
          return _mm512_set1_epi32(std::bit_cast<int32_t>((signs >> bit & 1U) << 31));
        };
        const __m512i upper_a = _mm512_set1_epi32(std::bit_cast<int32_t>(x << 16));
        const __m512i upper_b = _mm512_set1_epi32(std::bit_cast<int32_t>(y << 16));
        const __m512i a = _mm512_or_si512(_mm512_xor_si512(upper_a, sign(0)), lower_a);
        const __m512i b =
            _mm512_or_si512(upper_b, _mm512_xor_si512(factors, _mm512_srli_epi32(sign(1), 16)));
        if (!AreTwoFmas(_mm512_castsi512_ps(_mm512_xor_si512(sums, sign(2))), a, b)) {
          return false;
        }
      }
    }
  }
  return true;
}

}  // namespace octavo::cpu
