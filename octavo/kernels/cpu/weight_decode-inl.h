// Weights of a panel (layout.h), exactly, as FP32 vectors of kLanes columns: D of LinearArgs.
// Included once per target (Highway's foreach_target), hence the toggling guard.
//
//   WeightDecoder<code> decoder;
//   const auto scales = decoder.LoadScales(panel, tile);  // Of a tile of 32 depths.
//   decoder.Load<0>(panel, scales, k, v, w);  // w[j] = depth k + j of column vector v, j < 4;
//                                             // k % 8 == 0, or 4 with Load<4>.
//   sum = decoder.AddTile(scales, v, e_plus_o, sum);      // MatMul order's step after a tile.

#if defined(OCTAVO_KERNELS_CPU_WEIGHT_DECODE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef OCTAVO_KERNELS_CPU_WEIGHT_DECODE_INL_H_
#undef OCTAVO_KERNELS_CPU_WEIGHT_DECODE_INL_H_
#else
#define OCTAVO_KERNELS_CPU_WEIGHT_DECODE_INL_H_
#endif

#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include <cstdint>

#include "octavo/formats/nvfp4.h"
#include "octavo/kernels/cpu/fp8-inl.h"
#include "octavo/kernels/cpu/kernel_table.h"
#include "octavo/kernels/cpu/layout.h"
#include "octavo/kernels/cpu/vec-inl.h"

HWY_BEFORE_NAMESPACE();
namespace octavo::cpu::HWY_NAMESPACE {

#if OCTAVO_CPU_TARGET

HWY_INLINE VF EvenBf16(VU32 pairs) { return hn::BitCast(DF(), hn::ShiftLeft<16>(pairs)); }
HWY_INLINE VF OddBf16(VU32 pairs) {
  return hn::BitCast(DF(), hn::And(pairs, hn::Set(DU32(), 0xFFFF0000U)));
}

// How far ahead of the reads codes are fetched: with 8 KiB 31 GB/s of FP8 from memory, against 25
// with 4 and 27 with 16 KiB (AMD EPYC, family 26, one thread).
constexpr int64_t kPrefetchBytes = 8192;

// One panel's codes and, where they lie in runs, scales.
struct Panel {
  const uint8_t* codes = nullptr;
  const uint8_t* scales = nullptr;
};

// Lanes of run `run` of a panel: four bytes of each column.
HWY_INLINE VU32 LoadRun(const uint8_t* panel, int64_t run, int64_t v) {
  return hn::LoadU(DU32(),
                   reinterpret_cast<const uint32_t*>(panel) + run * kPanelCols + v * kLanes);
}

// Group scale `kByte` (of 4) of a run, as FP32: E4M3 from 0x00 to 0x7E, which Pack makes sure of.
template <int kByte>
HWY_INLINE VF GroupScale(VU32 run) {
  const DF d;
  const DU32 du;
  VU32 moved = run;
  if constexpr (kByte < 3) {
    moved = hn::ShiftLeft<20 - 8 * kByte>(run);
  } else {
    moved = hn::ShiftRight<4>(run);
  }
  // Exponents move from bias 7 to 127. Of a subnormal M * 2^-9 this makes 2^-7 (1 + M / 8).
  constexpr uint32_t kRebias = (127U - 7U) << 23;
  const VU32 bits = hn::Add(hn::And(moved, hn::Set(du, 0x07F00000U)), hn::Set(du, kRebias));
  const VF normal = hn::BitCast(d, bits);
  const auto is_small = hn::RebindMask(d, hn::Lt(bits, hn::Set(du, kRebias + (8U << 20))));
  const VF small = hn::MulAdd(normal, hn::Set(d, 2.0F), hn::Set(d, -0x1p-6F));
  return hn::IfThenElse(is_small, small, normal);
}

template <PanelCode kCode>
class WeightDecoder;

template <>
class WeightDecoder<PanelCode::kE4m3> {
 public:
  HWY_INLINE WeightDecoder() {}  // Written out: it must be compiled for the target.
  struct Scales {};
  HWY_INLINE Scales LoadScales(const Panel& /*panel*/, int64_t /*tile*/) const { return {}; }

  template <int kHalf>
  HWY_INLINE void Load(const Panel& panel, const Scales& /*scales*/, int64_t k, int64_t v,
                       VF (&w)[4]) const {
    const uint8_t* from = panel.codes + k * kPanelCols + v * kCodeLanes;
    hwy::Prefetch(from + kPrefetchBytes);
    const Fp8Decoder::Pairs pairs = decoder_.Decode(from);
    w[0] = EvenBf16(pairs.first);
    w[1] = OddBf16(pairs.first);
    w[2] = EvenBf16(pairs.second);
    w[3] = OddBf16(pairs.second);
  }
  HWY_INLINE VF AddTile(const Scales& /*scales*/, int64_t /*v*/, VF tile_sum, VF sum) const {
    return hn::Add(sum, tile_sum);
  }

 private:
  Fp8Decoder decoder_;
};

template <>
class WeightDecoder<PanelCode::kMxfp8> {
 public:
  HWY_INLINE WeightDecoder() {}
  struct Scales {
    VF at[kVecs];
  };
  HWY_INLINE Scales LoadScales(const Panel& panel, int64_t tile) const {
    const DU32 d;
    Scales scales;
    for (int64_t v = 0; v < kVecs; ++v) {
      // Scale bytes are exponents; what Pack accepts beyond them multiplies codes of 0 alone.
      const VU32 byte =
          hn::ShiftRightSame(LoadRun(panel.scales, tile / 4, v), static_cast<int>(tile % 4 * 8));
      scales.at[v] = hn::BitCast(DF(), hn::And(hn::ShiftLeft<23>(byte), hn::Set(d, 0x7F800000U)));
    }
    return scales;
  }

  template <int kHalf>
  HWY_INLINE void Load(const Panel& panel, const Scales& scales, int64_t k, int64_t v,
                       VF (&w)[4]) const {
    codes_.Load<kHalf>(panel, {}, k, v, w);
    for (VF& value : w) {
      value = hn::Mul(value, scales.at[v]);
    }
  }
  HWY_INLINE VF AddTile(const Scales& /*scales*/, int64_t /*v*/, VF tile_sum, VF sum) const {
    return hn::Add(sum, tile_sum);
  }

 private:
  WeightDecoder<PanelCode::kE4m3> codes_;
};

// MXFP8 with the scale on a tile's sum instead of its weights: powers of two commute with every
// rounding as long as nothing comes near the ends of FP32's range. With inputs that are 0 or of
// magnitudes from 2^-60 to 2^60 and scales from 2^-50 to 2^50 (or groups of zeros) nothing does:
// sums are whole multiples of 2^-60 * 2^-7 * 2^-9, times the scale no less than 2^-126.
class SumScaledMxfp8 {
 public:
  HWY_INLINE SumScaledMxfp8() {}

  using Scales = WeightDecoder<PanelCode::kMxfp8>::Scales;
  HWY_INLINE Scales LoadScales(const Panel& panel, int64_t tile) const {
    return scaled_.LoadScales(panel, tile);
  }
  template <int kHalf>
  HWY_INLINE void Load(const Panel& panel, const Scales& /*scales*/, int64_t k, int64_t v,
                       VF (&w)[4]) const {
    codes_.Load<kHalf>(panel, {}, k, v, w);
  }
  HWY_INLINE VF AddTile(const Scales& scales, int64_t v, VF tile_sum, VF sum) const {
    return hn::MulAdd(tile_sum, scales.at[v], sum);
  }

  // Whether the scales of a panel allow it. 0 is the scale byte of zeros (and of padding).
  static HWY_INLINE bool AllowsScales(const uint8_t* panel_scales, int64_t num_tiles) {
    const DU8 d;
    constexpr int64_t kScalesAhead = 1024;  // They are read in short bursts, a panel at a time.
    constexpr uint8_t kLow = 127 - 50;
    constexpr uint8_t kHigh = 127 + 50;
    const VU8 one = hn::Set(d, 1);
    VU8 lowest = hn::Set(d, 0xFF);
    VU8 highest = hn::Zero(d);
    const int64_t num_bytes = (num_tiles + 3) / 4 * 4 * kPanelCols;
    for (int64_t i = 0; i < num_bytes; i += kCodeLanes) {
      hwy::Prefetch(panel_scales + i + kScalesAhead);
      const VU8 scales = hn::LoadU(d, panel_scales + i);
      lowest = hn::Min(lowest, hn::Sub(scales, one));  // 0 wraps to 255.
      highest = hn::Max(highest, scales);
    }
    const VU8 low = hn::Set(d, kLow - 1);
    const VU8 high = hn::Set(d, kHigh);
    return hn::AllTrue(d, hn::Eq(hn::Min(lowest, low), low)) &&
           hn::AllTrue(d, hn::Eq(hn::Max(highest, high), high));
  }

 private:
  WeightDecoder<PanelCode::kE4m3> codes_;
  WeightDecoder<PanelCode::kMxfp8> scaled_;
};

template <>
class WeightDecoder<PanelCode::kNvfp4> {
 public:
#if HWY_TARGET == HWY_AVX2
  HWY_INLINE WeightDecoder() : table_(hn::LoadU(DF(), kMagnitudes)) {}
#else
  HWY_INLINE WeightDecoder() : table_(hn::LoadU(DF(), kValues)) {}
#endif

  struct Scales {
    VF at[kVecs][2];
  };
  static HWY_INLINE Scales LoadScales(const Panel& panel, int64_t tile) {
    Scales scales;
    for (int64_t v = 0; v < kVecs; ++v) {
      const VU32 run = LoadRun(panel.scales, tile / 2, v);
      scales.at[v][0] = tile % 2 == 0 ? GroupScale<0>(run) : GroupScale<2>(run);
      scales.at[v][1] = tile % 2 == 0 ? GroupScale<1>(run) : GroupScale<3>(run);
    }
    return scales;
  }

  template <int kHalf>
  HWY_INLINE void Load(const Panel& panel, const Scales& scales, int64_t k, int64_t v,
                       VF (&w)[4]) const {
    const VU32 run = LoadRun(panel.codes, k / 8, v);
    if constexpr (kHalf == 0) {
      hwy::Prefetch(panel.codes + k * kPanelCols / 2 + kPrefetchBytes);
    }
    const VF scale = scales.at[v][k / kNvfp4GroupElems % 2];
    w[0] = hn::Mul(Lookup<4 * kHalf>(run), scale);
    w[1] = hn::Mul(Lookup<4 * kHalf + 4>(run), scale);
    w[2] = hn::Mul(Lookup<4 * kHalf + 8>(run), scale);
    w[3] = hn::Mul(Lookup<4 * kHalf + 12>(run), scale);
  }
  HWY_INLINE VF AddTile(const Scales& /*scales*/, int64_t /*v*/, VF tile_sum, VF sum) const {
    return hn::Add(sum, tile_sum);
  }

 private:
  alignas(64) static constexpr float kValues[16] = {0.0F,  0.5F,  1.0F,  1.5F,  2.0F,  3.0F,
                                                    4.0F,  6.0F,  -0.0F, -0.5F, -1.0F, -1.5F,
                                                    -2.0F, -3.0F, -4.0F, -6.0F};

  // The values of the codes in bits [kBit, kBit + 4) of the lanes. Looking up pairs of BF16
  // (VPERMW) and splitting them takes as many instructions and was slower: 23 GB/s of codes from a
  // cache against 30. So was a table of products with the input's code instead of the
  // multiplication by the scale: 24 GB/s (AMD EPYC, family 26, one thread).
  template <int kBit>
  HWY_INLINE VF Lookup(VU32 run) const {
#if HWY_TARGET == HWY_AVX2
    // Tables of 8 lanes: magnitudes, and the sign moved to its place.
    const VU32 codes = hn::ShiftRight<kBit>(run);
    const VF magnitude{_mm256_permutevar8x32_ps(table_.raw, codes.raw)};
    const VU32 sign = hn::And(hn::ShiftLeft<28 - kBit>(run), hn::Set(DU32(), 0x80000000U));
    return hn::Or(magnitude, hn::BitCast(DF(), sign));
#else
    // The instruction looks at the low four bits.
    return VF{_mm512_permutexvar_ps(hn::ShiftRight<kBit>(run).raw, table_.raw)};
#endif
  }

#if HWY_TARGET == HWY_AVX2
  alignas(32) static constexpr float kMagnitudes[8] = {0.0F, 0.5F, 1.0F, 1.5F,
                                                       2.0F, 3.0F, 4.0F, 6.0F};
#endif
  VF table_;
};

#endif  // OCTAVO_CPU_TARGET

}  // namespace octavo::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // Toggling guard.
