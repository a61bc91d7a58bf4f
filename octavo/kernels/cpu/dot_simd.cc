// dot.h's loops. Compiled for AVX512_BF16 (kernels/CMakeLists.txt); only reached after CheckDot.
//
// A elements are BF16 bits, each four depths in the order 2, 0, 3, 1, so that a 32-bit word is a
// pair of the instruction. Two lines of a panel, four depths of 16 columns, become two lines of
// pairs: once for many rows (MatMulArgs::b_is_paired), when they are loaded for few. Registers hold
// kMaxRows x panels x 2 chains: enough independent ones to fill two units of latency 6.

#include <hwy/base.h>
#include <immintrin.h>

#include <bit>
#include <cstdint>
#include <cstring>

#include "octavo/base/float_env.h"
#include "octavo/kernels/cpu/dot.h"
#include "octavo/kernels/cpu/kernel_table.h"
#include "octavo/kernels/cpu/layout.h"

namespace octavo::cpu {
namespace {

constexpr int kMaxRows = 6;
constexpr int kBlockPanels = 2;
constexpr int64_t kLanes = 16;
// Depths of two pairs: two lines of a panel, two words of A.
constexpr int64_t kStepDepth = 4;

__m512 Dot(__m512 sum, __m512i a, __m512i b) {
  return _mm512_dpbf16_ps(sum, std::bit_cast<__m512bh>(a), std::bit_cast<__m512bh>(b));
}

__m512i BroadcastPair(const uint16_t* pair) {
  int32_t word = 0;
  std::memcpy(&word, pair, sizeof(word));
  return _mm512_set1_epi32(word);
}

// Two lines of a panel as pairs: depths 0 and 2 of each column, depths 1 and 3.
struct Pairs {
  __m512i even;
  __m512i odd;
};

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

// Chains of kRows rows and kPanels panels over a tile.
template <int kRows, int kPanels>
struct Chains {
  __m512 even[kRows][kPanels];
  __m512 odd[kRows][kPanels];

  void Clear() {
    for (int r = 0; r < kRows; ++r) {
      for (int p = 0; p < kPanels; ++p) {
        even[r][p] = _mm512_setzero_ps();
        odd[r][p] = _mm512_setzero_ps();
      }
    }
  }
  // Four depths. `b` is the first panel's line of the first two.
  template <bool kIsPaired>
  void MulAdd(const MatMulArgs& args, const uint16_t* a, const uint16_t* b) {
    Pairs pairs[kPanels];
    for (int p = 0; p < kPanels; ++p) {
      const uint16_t* lines = b + p * args.panel_stride;
      if constexpr (kIsPaired) {
        pairs[p] = {.even = _mm512_loadu_si512(lines),
                    .odd = _mm512_loadu_si512(lines + 2 * kPanelCols)};
      } else {
        const auto* ahead = reinterpret_cast<const char*>(lines) + args.prefetch_bytes;
        _mm_prefetch(ahead, _MM_HINT_T0);
        _mm_prefetch(ahead + 64, _MM_HINT_T0);
        pairs[p] = PairsOf(lines);
      }
    }
    for (int r = 0; r < kRows; ++r) {
      const __m512i a_even = BroadcastPair(a + r * args.a_stride);
      const __m512i a_odd = BroadcastPair(a + r * args.a_stride + 2);
      for (int p = 0; p < kPanels; ++p) {
        even[r][p] = Dot(even[r][p], a_even, pairs[p].even);
        odd[r][p] = Dot(odd[r][p], a_odd, pairs[p].odd);
      }
    }
  }
};

// What the loops are compiled for.
struct Form {
  bool is_scaled = false;  // MatMulArgs::row_scales are given.
  bool is_paired = false;  // MatMulArgs::b_is_paired.
};

// Where a block begins.
struct BlockAt {
  const uint16_t* a = nullptr;
  const uint16_t* b = nullptr;
  float* c = nullptr;
  const float* scales = nullptr;  // MatMulArgs::row_scales.
};

// One block of kRows rows and kPanels panels, over all tiles.
template <int kRows, int kPanels, Form kForm>
void Block(const MatMulArgs& args, const BlockAt& at) {
  constexpr bool kScaled = kForm.is_scaled;
  Chains<kRows, kPanels> chains;
  alignas(64) float partial[kScaled ? kLanes * kRows * kPanels : 1];  // P before the last tile.
  for (int64_t tile = 0; tile < args.num_tiles; ++tile) {
    chains.Clear();
    for (int64_t k = 0; k < kTileDepth; k += kStepDepth) {
      chains.template MulAdd<kForm.is_paired>(args, at.a + tile * kTileDepth + k,
                                              at.b + tile * kTileElems + k * kPanelCols);
    }
    const bool is_last = tile + 1 == args.num_tiles;
    const bool is_zero = tile == 0 && (kScaled || args.from_zero);
    for (int r = 0; r < kRows; ++r) {
      for (int p = 0; p < kPanels; ++p) {
        float* to = at.c + r * args.c_stride + p * kPanelCols;
        float* sum_at = kScaled ? partial + (r * kPanels + p) * kLanes : to;
        const __m512 before = is_zero ? _mm512_setzero_ps() : _mm512_loadu_ps(sum_at);
        const __m512 sum =
            _mm512_add_ps(before, _mm512_add_ps(chains.even[r][p], chains.odd[r][p]));
        if (kScaled && is_last) {
          const __m512 acc = args.from_zero ? _mm512_setzero_ps() : _mm512_loadu_ps(to);
          _mm512_storeu_ps(to, _mm512_fmadd_ps(sum, _mm512_set1_ps(at.scales[r]), acc));
        } else {
          _mm512_storeu_ps(sum_at, sum);
        }
      }
    }
  }
}

// All rows with kPanels panels: their tiles stay in the L1 cache while rows come from L2. (Taking
// all panels with six rows at a time reads 64 KiB of panels from L2 every 3000 cycles: 8 % slower.)
template <int kPanels, Form kForm>
void Panels(const MatMulArgs& args, int64_t panel) {
  // Blocks of nearly equal size: each reads all tiles.
  const int64_t num_blocks = (args.num_rows + kMaxRows - 1) / kMaxRows;
  for (int64_t row = 0, block = 0; block < num_blocks; ++block) {
    const int64_t end = args.num_rows * (block + 1) / num_blocks;
    const BlockAt at{.a = reinterpret_cast<const uint16_t*>(args.a) + row * args.a_stride,
                     .b = args.b + panel * args.panel_stride,
                     .c = args.c + row * args.c_stride + panel * kPanelCols,
                     .scales = kForm.is_scaled ? args.row_scales + row : nullptr};
    switch (end - row) {
      case 1:
        Block<1, kPanels, kForm>(args, at);
        break;
      case 2:
        Block<2, kPanels, kForm>(args, at);
        break;
      case 3:
        Block<3, kPanels, kForm>(args, at);
        break;
      case 4:
        Block<4, kPanels, kForm>(args, at);
        break;
      case 5:
        Block<5, kPanels, kForm>(args, at);
        break;
      default:
        Block<kMaxRows, kPanels, kForm>(args, at);
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
  if (args.b_is_paired) {
    return args.row_scales == nullptr ? MatMulOf<Form{.is_scaled = false, .is_paired = true}>(args)
                                      : MatMulOf<Form{.is_scaled = true, .is_paired = true}>(args);
  }
  return args.row_scales == nullptr ? MatMulOf<Form{.is_scaled = false, .is_paired = false}>(args)
                                    : MatMulOf<Form{.is_scaled = true, .is_paired = false}>(args);
}

void PairB(const uint16_t* from, int64_t num_elems, uint16_t* to) {
  for (int64_t i = 0; i < num_elems; i += 4 * kPanelCols) {
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
          .has_row_scales = true,
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
