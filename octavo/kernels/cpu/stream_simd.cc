// Quantized panels: multiplied with few rows straight from their codes, and decoded to BF16 for the
// matmul kernel when there are many rows.

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "octavo/kernels/cpu/stream_simd.cc"
#ifndef HWY_WANT_AVX3_DL
#define HWY_WANT_AVX3_DL
#endif
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4)

// What the AVX targets use; the baseline target, which tools look at, is empty.
// NOLINTBEGIN(misc-include-cleaner)
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

#include <algorithm>

#include "octavo/formats/fp8_block.h"
#include "octavo/kernels/cpu/fp8-inl.h"
#include "octavo/kernels/cpu/fp8_table.h"
#include "octavo/kernels/cpu/kernel_table.h"
#include "octavo/kernels/cpu/layout.h"
#include "octavo/kernels/cpu/vec-inl.h"
#include "octavo/kernels/cpu/weight_decode-inl.h"
// NOLINTEND(misc-include-cleaner)

HWY_BEFORE_NAMESPACE();
namespace octavo::cpu::HWY_NAMESPACE {

#if OCTAVO_CPU_TARGET

constexpr int kColVecs = static_cast<int>(kVecs);

// FP32 vectors of kRows rows and one panel: chains or sums.
template <int kRows>
struct Accumulators {
  VF at[kRows][kColVecs];

  HWY_INLINE void Clear() {
    for (auto& row : at) {
      for (VF& value : row) {
        value = hn::Zero(DF());
      }
    }
  }
};

// The chains over kTiles tiles of 32 depths are added to `sums`, tile by tile. Tiles side by side
// are independent chains for the FMA units when there are few rows.
template <class Decoder, int kRows, int kTiles>
HWY_INLINE void AddTiles(const Decoder& decoder, const Panel& panel, int64_t tile,
                         const StreamArgs& args, Accumulators<kRows>& sums) {
  const int64_t depth = tile * kTileDepth;
  const auto* a = reinterpret_cast<const float*>(args.a) + depth;
  Accumulators<kRows> even[kTiles];
  Accumulators<kRows> odd[kTiles];
  typename Decoder::Scales scales[kTiles];
  HWY_UNROLL(4)
  for (int t = 0; t < kTiles; ++t) {
    even[t].Clear();
    odd[t].Clear();
    scales[t] = decoder.LoadScales(panel, tile + t);
  }
  const auto step = [&]<int kHalf>(int t, int64_t i) HWY_ATTR {
    HWY_UNROLL(2)
    for (int v = 0; v < kColVecs; ++v) {
      VF w[4];
      decoder.template Load<kHalf>(panel, scales[t], depth + i, v, w);
      HWY_UNROLL(8)
      for (int r = 0; r < kRows; ++r) {
        const float* a_row = a + r * args.a_stride + i;
        even[t].at[r][v] = hn::MulAdd(hn::Set(DF(), a_row[0]), w[0], even[t].at[r][v]);
        odd[t].at[r][v] = hn::MulAdd(hn::Set(DF(), a_row[1]), w[1], odd[t].at[r][v]);
        even[t].at[r][v] = hn::MulAdd(hn::Set(DF(), a_row[2]), w[2], even[t].at[r][v]);
        odd[t].at[r][v] = hn::MulAdd(hn::Set(DF(), a_row[3]), w[3], odd[t].at[r][v]);
      }
    }
  };
  HWY_UNROLL(4)
  for (int64_t i = 0; i < kTileDepth; i += 8) {
    HWY_UNROLL(4)
    for (int t = 0; t < kTiles; ++t) {
      step.template operator()<0>(t, t * kTileDepth + i);
      step.template operator()<4>(t, t * kTileDepth + i + 4);
    }
  }
  for (int t = 0; t < kTiles; ++t) {
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kColVecs; ++v) {
        sums.at[r][v] = decoder.AddTile(scales[t], v, hn::Add(even[t].at[r][v], odd[t].at[r][v]),
                                        sums.at[r][v]);
      }
    }
  }
}

// Tiles that are taken together, for these rows.
constexpr int TilesAtOnce(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }

// kRows rows with one panel over the whole depth; all sums stay in registers. kScaled: per 128
// depths P is scaled into acc.
template <class Decoder, int kRows, bool kScaled>
void StreamPanel(const StreamArgs& args, const Panel& panel, float* HWY_RESTRICT c) {
  const Decoder decoder;
  Accumulators<kRows> sums;
  Accumulators<kRows> acc;
  sums.Clear();
  acc.Clear();
  constexpr int64_t kBlockTiles = kFp8BlockDim / kTileDepth;
  constexpr int kTiles = TilesAtOnce(kRows);
  const int64_t num_tiles = args.depth / kTileDepth;
  const int64_t num_blocks = (num_tiles + kBlockTiles - 1) / kBlockTiles;
  for (int64_t block = 0; block < num_blocks; ++block) {
    const int64_t end = std::min((block + 1) * kBlockTiles, num_tiles);
    int64_t tile = block * kBlockTiles;
    for (; tile + kTiles <= end; tile += kTiles) {
      AddTiles<Decoder, kRows, kTiles>(decoder, panel, tile, args, sums);
    }
    for (; kTiles > 1 && tile < end; ++tile) {
      AddTiles<Decoder, kRows, 1>(decoder, panel, tile, args, sums);
    }
    if constexpr (kScaled) {
      for (int r = 0; r < kRows; ++r) {
        const VF scale =
            hn::Set(DF(), args.a_scales[r * num_blocks + block] * args.b_scales[block]);
        for (int v = 0; v < kColVecs; ++v) {
          acc.at[r][v] = hn::MulAdd(sums.at[r][v], scale, acc.at[r][v]);
        }
      }
      sums.Clear();
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kColVecs; ++v) {
      hn::StoreU(kScaled ? acc.at[r][v] : sums.at[r][v], DF(), c + r * args.c_stride + v * kLanes);
    }
  }
}

bool HasModerateScales(const uint8_t* scales, int64_t num_tiles) {
  return SumScaledMxfp8::AllowsScales(scales, num_tiles);
}

template <PanelCode kCode, int kRows, bool kScaled>
void StreamPanels(const StreamArgs& args) {
  for (int64_t p = 0; p < args.num_panels; ++p) {
    const Panel panel{args.codes + p * args.panel_bytes, args.scales + p * args.panel_scale_bytes};
    float* c = args.c + p * kPanelCols;
    if constexpr (kCode == PanelCode::kMxfp8) {
      if (args.a_is_moderate && HasModerateScales(panel.scales, args.depth / kTileDepth)) {
        StreamPanel<SumScaledMxfp8, kRows, kScaled>(args, panel, c);
        continue;
      }
    }
    StreamPanel<WeightDecoder<kCode>, kRows, kScaled>(args, panel, c);
  }
}

// Rows whose chains fit the registers.
constexpr int64_t kBlockRows = kLanes == 16 ? 6 : 2;
// Beyond, decoding once into memory for all rows is faster.
constexpr int64_t kStreamRows = kLanes == 16 ? 24 : 2;

// More rows than a block has go in passes over the codes, all but the first out of a cache.
template <PanelCode kCode, bool kScaled>
void StreamRows(const StreamArgs& args) {
  const int64_t num_passes = (args.num_rows + kBlockRows - 1) / kBlockRows;
  const int64_t step = (args.num_rows + num_passes - 1) / num_passes;
  for (int64_t row = 0; row < args.num_rows; row += step) {
    StreamArgs pass = args;
    pass.a += row * args.a_stride * int64_t{sizeof(float)};
    pass.a_scales += kScaled ? row * ((args.depth + kFp8BlockDim - 1) / kFp8BlockDim) : 0;
    pass.c += row * args.c_stride;
    switch (std::min(step, args.num_rows - row)) {
      case 1:
        StreamPanels<kCode, 1, kScaled>(pass);
        break;
      case 2:
        StreamPanels<kCode, 2, kScaled>(pass);
        break;
#if HWY_TARGET != HWY_AVX2  // Where kBlockRows is 2.
      case 3:
        StreamPanels<kCode, 3, kScaled>(pass);
        break;
      case 4:
        StreamPanels<kCode, 4, kScaled>(pass);
        break;
      case 5:
        StreamPanels<kCode, 5, kScaled>(pass);
        break;
      default:
        StreamPanels<kCode, 6, kScaled>(pass);
        break;
#endif
    }
  }
}

void Stream(PanelCode code, const StreamArgs& args) {
  switch (code) {
    case PanelCode::kE4m3:
      return args.b_scales == nullptr ? StreamRows<PanelCode::kE4m3, false>(args)
                                      : StreamRows<PanelCode::kE4m3, true>(args);
    case PanelCode::kMxfp8:
      return StreamRows<PanelCode::kMxfp8, false>(args);
    case PanelCode::kNvfp4:
      return StreamRows<PanelCode::kNvfp4, false>(args);
    case PanelCode::kBf16:
      return;  // The matmul kernel reads them.
  }
}

// --- To BF16
// --------------------------------------------------------------------------------------

// Into L2: what is decoded meanwhile fills L1.
HWY_INLINE void FetchNext(const uint8_t* line) { __builtin_prefetch(line, 0, 2); }

// No need to go by way of FP32.
template <bool kIsPaired>
void DecodeE4m3Panel(const DecodeArgs& args) {
  const Fp8Decoder decoder;
  const VU8 order = hn::LoadDup128(DU8(), kFp8PairOrder);
  auto* to = reinterpret_cast<uint32_t*>(args.pairs);
  const uint8_t* codes = args.codes + args.first_tile * kTileElems;
  for (int64_t i = 0; i < args.num_tiles * kTileElems; i += 4 * kPanelCols) {
    FetchNext(args.next + i);
    for (int v = 0; v < kColVecs; ++v) {
      const VU8 code = hn::LoadU(DU8(), codes + i + v * kCodeLanes);
      const Fp8Decoder::Pairs pairs =
          decoder.Decode(kIsPaired ? hn::TableLookupBytes(code, order) : code);
      hn::StoreU(pairs.first, DU32(), to + v * kLanes);
      hn::StoreU(pairs.second, DU32(), to + kPanelCols + v * kLanes);
    }
    to += 2 * kPanelCols;
  }
}

template <PanelCode kCode, bool kIsPaired>
void DecodePanel(const DecodeArgs& args) {
  constexpr int64_t kCodeBytes = kTileElems / (kCode == PanelCode::kNvfp4 ? 2 : 1);  // Of a tile.
  const Panel panel{args.codes, args.scales};
  const WeightDecoder<kCode> decoder;
  auto* to = reinterpret_cast<uint32_t*>(args.pairs);
  for (int64_t tile = args.first_tile; tile < args.first_tile + args.num_tiles; ++tile) {
    for (int64_t i = 0; i < kCodeBytes; i += 64) {
      FetchNext(args.next + (tile - args.first_tile) * kCodeBytes + i);
    }
    const auto scales = decoder.LoadScales(panel, tile);
    const auto step = [&]<int kHalf>(int64_t k) HWY_ATTR {
      for (int v = 0; v < kColVecs; ++v) {
        VF w[4];
        decoder.template Load<kHalf>(panel, scales, k, v, w);
        for (int pair = 0; pair < 2; ++pair) {
          // The lower halves are zeros: the values are exact in BF16.
          const VU32 lower = hn::BitCast(DU32(), w[kIsPaired ? pair + 2 : 2 * pair]);
          const VU32 upper = hn::BitCast(DU32(), w[kIsPaired ? pair : 2 * pair + 1]);
          hn::StoreU(hn::Or(hn::ShiftRight<16>(lower), upper), DU32(),
                     to + pair * kPanelCols + v * kLanes);
        }
      }
      to += 2 * kPanelCols;
    };
    for (int64_t k = tile * kTileDepth; k < (tile + 1) * kTileDepth; k += 8) {
      step.template operator()<0>(k);
      step.template operator()<4>(k + 4);
    }
  }
}

void Decode(PanelCode code, const DecodeArgs& args) {
  switch (code) {
    case PanelCode::kE4m3:
      return args.is_paired ? DecodeE4m3Panel<true>(args) : DecodeE4m3Panel<false>(args);
    case PanelCode::kMxfp8:
      return args.is_paired ? DecodePanel<PanelCode::kMxfp8, true>(args)
                            : DecodePanel<PanelCode::kMxfp8, false>(args);
    case PanelCode::kNvfp4:
      return args.is_paired ? DecodePanel<PanelCode::kNvfp4, true>(args)
                            : DecodePanel<PanelCode::kNvfp4, false>(args);
    case PanelCode::kBf16:
      return;  // They are.
  }
}

constexpr PanelKernels kPanelKernels = {.stream_rows = kStreamRows,
                                        .stream = Stream,
                                        .has_moderate_scales = HasModerateScales,
                                        .decode = Decode};

#endif  // OCTAVO_CPU_TARGET

}  // namespace octavo::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace octavo::cpu {

const PanelKernels* FindPanelKernels(VectorTarget target) {
  switch (target) {
    case VectorTarget::kAvx2:
#if HWY_TARGETS & HWY_AVX2
      return &N_AVX2::kPanelKernels;
#else
      return nullptr;
#endif
    case VectorTarget::kAvx512:
#if HWY_TARGETS & HWY_AVX3
      return &N_AVX3::kPanelKernels;
#else
      return nullptr;
#endif
    case VectorTarget::kAvx512Vbmi:
#if HWY_TARGETS & HWY_AVX3_DL
      return &N_AVX3_DL::kPanelKernels;
#else
      return nullptr;
#endif
  }
  return nullptr;
}

}  // namespace octavo::cpu
#endif  // HWY_ONCE
