// dot_stream.h's loops: 64 codes, four depths of 16 columns, become two vectors of pairs by six
// instructions, which all rows of a block use. Compiled for AVX512_BF16 and VBMI
// (kernels/CMakeLists.txt); only reached after CheckDot.

#include <hwy/base.h>
#include <immintrin.h>

#include <algorithm>
#include <cstdint>

#include "octavo/formats/fp8_block.h"
#include "octavo/kernels/cpu/dot-inl.h"
#include "octavo/kernels/cpu/dot_stream.h"
#include "octavo/kernels/cpu/fp8_table.h"
#include "octavo/kernels/cpu/kernel_table.h"
#include "octavo/kernels/cpu/layout.h"

namespace octavo::cpu {
namespace {

// Rows of one pass over the codes: their chains and the tables fit the registers.
constexpr int kBlockRows = 8;
// As far as the FP32 loops fetch ahead (weight_decode-inl.h).
constexpr int64_t kPrefetchBytes = 8192;

class Decoder {
 public:
  Decoder()
      : low0_(_mm512_load_si512(kFp8DecodeTable.low)),
        low1_(_mm512_load_si512(kFp8DecodeTable.low + 64)),
        high0_(_mm512_load_si512(kFp8DecodeTable.high)),
        high1_(_mm512_load_si512(kFp8DecodeTable.high + 64)),
        order_(_mm512_broadcast_i32x4(
            _mm_load_si128(reinterpret_cast<const __m128i*>(kFp8PairOrder)))),
        sign_mask_(_mm512_set1_epi8(-128)) {}

  Pairs Decode(const uint8_t* from) const {
    _mm_prefetch(reinterpret_cast<const char*>(from) + kPrefetchBytes, _MM_HINT_T0);
    const __m512i codes = _mm512_shuffle_epi8(_mm512_loadu_si512(from), order_);
    const __m512i low = _mm512_permutex2var_epi8(low0_, codes, low1_);
    const __m512i high = _mm512_permutex2var_epi8(high0_, codes, high1_);
    // high | (codes & sign_mask_)
    const __m512i signed_high = _mm512_ternarylogic_epi32(high, codes, sign_mask_, 0xF8);
    return {.even = _mm512_unpacklo_epi8(low, signed_high),
            .odd = _mm512_unpackhi_epi8(low, signed_high)};
  }

 private:
  __m512i low0_, low1_, high0_, high1_;
  __m512i order_;
  __m512i sign_mask_;
};

// What becomes of the sum of a tile.
enum class TileSum {
  kAdded,       // To P.
  kScaledTile,  // Times the tile's scales, added to P: kMxfp8.
  kScaledBlock  // Added to P, which is scaled into acc every 128 depths: FP8 blocks.
};

// One panel.
struct Panel {
  const uint8_t* codes = nullptr;
  const uint8_t* scales = nullptr;  // kScaledTile: in runs.
};

// The MXFP8 scales of a tile's columns.
__m512 TileScales(const uint8_t* runs, int64_t tile) {
  const __m512i run = _mm512_loadu_si512(runs + tile / 4 * 4 * kPanelCols);
  const __m512i bytes = _mm512_srl_epi32(run, _mm_cvtsi64_si128(tile % 4 * 8));
  return _mm512_castsi512_ps(
      _mm512_and_si512(_mm512_slli_epi32(bytes, 23), _mm512_set1_epi32(0x7F800000)));
}

// The chains over kTiles tiles are added to `sums`, tile by tile. Tiles side by side are
// independent chains for the units when there are few rows.
template <TileSum kSum, int kRows, int kTiles>
void AddTiles(const Decoder& decoder, const Panel& panel, int64_t tile, const StreamArgs& args,
              __m512 (&sums)[kRows]) {
  const auto* a = reinterpret_cast<const uint16_t*>(args.a) + tile * kTileDepth;
  const uint8_t* codes = panel.codes + tile * kTileElems;
  __m512 even[kTiles][kRows];
  __m512 odd[kTiles][kRows];
  HWY_UNROLL(4)
  for (int t = 0; t < kTiles; ++t) {
    HWY_UNROLL(8)
    for (int r = 0; r < kRows; ++r) {
      even[t][r] = _mm512_setzero_ps();
      odd[t][r] = _mm512_setzero_ps();
    }
  }
  for (int64_t k = 0; k < kTileDepth; k += kStepDepth) {
    HWY_UNROLL(4)
    for (int t = 0; t < kTiles; ++t) {
      const Pairs pairs = decoder.Decode(codes + t * kTileElems + k * kPanelCols);
      HWY_UNROLL(8)
      for (int r = 0; r < kRows; ++r) {
        const uint16_t* a_row = a + r * args.a_stride + t * kTileDepth + k;
        even[t][r] = Dot(even[t][r], BroadcastPair(a_row), pairs.even);
        odd[t][r] = Dot(odd[t][r], BroadcastPair(a_row + 2), pairs.odd);
      }
    }
  }
  HWY_UNROLL(4)
  for (int t = 0; t < kTiles; ++t) {
    const __m512 scales =
        kSum == TileSum::kScaledTile ? TileScales(panel.scales, tile + t) : _mm512_setzero_ps();
    HWY_UNROLL(8)
    for (int r = 0; r < kRows; ++r) {
      const __m512 sum = _mm512_add_ps(even[t][r], odd[t][r]);
      sums[r] = kSum == TileSum::kScaledTile ? _mm512_fmadd_ps(sum, scales, sums[r])
                                             : _mm512_add_ps(sums[r], sum);
    }
  }
}

// Tiles that are taken together, for these rows.
constexpr int TilesAtOnce(int rows) { return rows == 1 ? 4 : rows <= 4 ? 2 : 1; }

// kRows rows with one panel over the whole depth.
template <TileSum kSum, int kRows>
void StreamPanel(const StreamArgs& args, const Decoder& decoder, const Panel& panel, float* c) {
  constexpr int kTiles = TilesAtOnce(kRows);
  const int64_t num_tiles = args.depth / kTileDepth;
  const int64_t num_blocks = (num_tiles + kBlockTiles - 1) / kBlockTiles;
  __m512 sums[kRows];
  __m512 acc[kRows];
  HWY_UNROLL(8)
  for (int r = 0; r < kRows; ++r) {
    sums[r] = _mm512_setzero_ps();
    acc[r] = _mm512_setzero_ps();
  }
  for (int64_t block = 0; block < num_blocks; ++block) {
    const int64_t end = std::min((block + 1) * kBlockTiles, num_tiles);
    int64_t tile = block * kBlockTiles;
    for (; tile + kTiles <= end; tile += kTiles) {
      AddTiles<kSum, kRows, kTiles>(decoder, panel, tile, args, sums);
    }
    for (; kTiles > 1 && tile < end; ++tile) {
      AddTiles<kSum, kRows, 1>(decoder, panel, tile, args, sums);
    }
    if constexpr (kSum == TileSum::kScaledBlock) {
      HWY_UNROLL(8)
      for (int r = 0; r < kRows; ++r) {
        const float scale = args.a_scales[r * num_blocks + block] * args.b_scales[block];
        acc[r] = _mm512_fmadd_ps(sums[r], _mm512_set1_ps(scale), acc[r]);
        sums[r] = _mm512_setzero_ps();
      }
    }
  }
  HWY_UNROLL(8)
  for (int r = 0; r < kRows; ++r) {
    _mm512_storeu_ps(c + r * args.c_stride, kSum == TileSum::kScaledBlock ? acc[r] : sums[r]);
  }
}

template <TileSum kSum, int kRows>
void StreamPanels(const StreamArgs& args) {
  const Decoder decoder;
  for (int64_t p = 0; p < args.num_panels; ++p) {
    const Panel panel{args.codes + p * args.panel_bytes, args.scales + p * args.panel_scale_bytes};
    StreamPanel<kSum, kRows>(args, decoder, panel, args.c + p * kPanelCols);
  }
}

// More rows than a block has go in passes over the codes, all but the first out of a cache.
template <TileSum kSum>
void StreamRows(const StreamArgs& args) {
  const int64_t num_passes = (args.num_rows + kBlockRows - 1) / kBlockRows;
  const int64_t step = (args.num_rows + num_passes - 1) / num_passes;
  for (int64_t row = 0; row < args.num_rows; row += step) {
    StreamArgs pass = args;
    pass.a += row * args.a_stride * int64_t{sizeof(uint16_t)};
    pass.c += row * args.c_stride;
    if constexpr (kSum == TileSum::kScaledBlock) {
      pass.a_scales += row * ((args.depth + kFp8BlockDim - 1) / kFp8BlockDim);
    }
    switch (std::min(step, args.num_rows - row)) {
      case 1:
        StreamPanels<kSum, 1>(pass);
        break;
      case 2:
        StreamPanels<kSum, 2>(pass);
        break;
      case 3:
        StreamPanels<kSum, 3>(pass);
        break;
      case 4:
        StreamPanels<kSum, 4>(pass);
        break;
      case 5:
        StreamPanels<kSum, 5>(pass);
        break;
      case 6:
        StreamPanels<kSum, 6>(pass);
        break;
      case 7:
        StreamPanels<kSum, 7>(pass);
        break;
      default:
        StreamPanels<kSum, kBlockRows>(pass);
        break;
    }
  }
}

}  // namespace

void DotStream(PanelCode code, const StreamArgs& args) {
  if (code == PanelCode::kMxfp8) {
    StreamRows<TileSum::kScaledTile>(args);
  } else if (args.b_scales != nullptr) {
    StreamRows<TileSum::kScaledBlock>(args);
  } else {
    StreamRows<TileSum::kAdded>(args);
  }
}

}  // namespace octavo::cpu
