#pragma once
// What the loops on VDPBF16PS share. Only for files that are compiled for AVX512_BF16
// (kernels/CMakeLists.txt).

#include <hwy/base.h>
#include <immintrin.h>

#include <bit>
#include <cstdint>
#include <cstring>

#include "octavo/formats/fp8_block.h"
#include "octavo/kernels/cpu/layout.h"

namespace octavo::cpu {

// Tiles that one FP8 scale of a column covers.
inline constexpr int64_t kBlockTiles = kFp8BlockDim / kTileDepth;
// Depths of two pairs: two lines of a panel, two words of A.
inline constexpr int64_t kStepDepth = 4;

// Four depths of 16 columns: the pairs of depths 0 and 2 of each column, and of 1 and 3.
struct Pairs {
  __m512i even;
  __m512i odd;
};

HWY_INLINE __m512 Dot(__m512 sum, __m512i a, __m512i b) {
  return _mm512_dpbf16_ps(sum, std::bit_cast<__m512bh>(a), std::bit_cast<__m512bh>(b));
}

// One pair of A elements in every lane.
HWY_INLINE __m512i BroadcastPair(const uint16_t* pair) {
  int32_t word = 0;
  std::memcpy(&word, pair, sizeof(word));
  return _mm512_set1_epi32(word);
}

}  // namespace octavo::cpu
