// Weights of a panel (layout.h), exactly, as FP32 vectors of kLanes columns: D of LinearArgs.
// Included once per target (Highway's foreach_target), hence the toggling guard.
//
//   WeightDecoder<code> decoder;
//   decoder.SetTile(panel, tile);             // Scales of a tile of 32 depths.
//   decoder.Load<0>(panel, k, v, w);          // w[j] = depth k + j of column vector v, j < 4;
//                                             // k % 8 == 0, or 4 with Load<4>.

#if defined(OCTAVO_KERNELS_CPU_WEIGHT_DECODE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef OCTAVO_KERNELS_CPU_WEIGHT_DECODE_INL_H_
#undef OCTAVO_KERNELS_CPU_WEIGHT_DECODE_INL_H_
#else
#define OCTAVO_KERNELS_CPU_WEIGHT_DECODE_INL_H_
#endif

#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include <cstdint>

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

// E4M3 codes in the low bytes of lanes (anything above them), as FP32.
HWY_INLINE VF E4m3Lanes(VU32 codes) {
  const DF d;
  const DU32 du;
  const VU32 magnitude = hn::And(codes, hn::Set(du, 0x7FU));
  const VU32 sign = hn::ShiftLeft<24>(hn::And(codes, hn::Set(du, 0x80U)));
  const VU32 normal = hn::Add(hn::ShiftLeft<20>(magnitude), hn::Set(du, (127U - 7U) << 23));
  const VF small = hn::Mul(hn::ConvertTo(d, hn::BitCast(DI32(), magnitude)), hn::Set(d, 0x1p-9F));
  const VU32 finite =
      hn::IfThenElse(hn::Lt(magnitude, hn::Set(du, 8U)), hn::BitCast(du, small), normal);
  const VU32 value =
      hn::IfThenElse(hn::Eq(magnitude, hn::Set(du, 0x7FU)), hn::Set(du, 0x7FC00000U), finite);
  return hn::BitCast(d, hn::Or(value, sign));
}

template <PanelCode kCode>
class WeightDecoder;

template <>
class WeightDecoder<PanelCode::kE4m3> {
 public:
  HWY_INLINE WeightDecoder() {}  // Written out: it must be compiled for the target.
  HWY_INLINE void SetTile(const Panel& /*panel*/, int64_t /*tile*/) {}

  template <int kHalf>
  HWY_INLINE void Load(const Panel& panel, int64_t k, int64_t v, VF (&w)[4]) const {
    const uint8_t* from = panel.codes + k * kPanelCols + v * kCodeLanes;
    hwy::Prefetch(from + kPrefetchBytes);
    const Fp8Decoder::Pairs pairs = decoder_.Decode(from);
    w[0] = EvenBf16(pairs.first);
    w[1] = OddBf16(pairs.first);
    w[2] = EvenBf16(pairs.second);
    w[3] = OddBf16(pairs.second);
  }

 private:
  static constexpr int64_t kPrefetchBytes = 4096;
  Fp8Decoder decoder_;
};

template <>
class WeightDecoder<PanelCode::kMxfp8> {
 public:
  HWY_INLINE WeightDecoder() {}
  HWY_INLINE void SetTile(const Panel& panel, int64_t tile) {
    const DU32 d;
    for (int64_t v = 0; v < kVecs; ++v) {
      // Scale bytes are exponents; what Pack accepts beyond them multiplies codes of 0 alone.
      const VU32 byte =
          hn::ShiftRightSame(LoadRun(panel.scales, tile / 4, v), static_cast<int>(tile % 4 * 8));
      scales_[v] = hn::BitCast(DF(), hn::And(hn::ShiftLeft<23>(byte), hn::Set(d, 0x7F800000U)));
    }
  }

  template <int kHalf>
  HWY_INLINE void Load(const Panel& panel, int64_t k, int64_t v, VF (&w)[4]) const {
    codes_.Load<kHalf>(panel, k, v, w);
    for (VF& value : w) {
      value = hn::Mul(value, scales_[v]);
    }
  }

 private:
  WeightDecoder<PanelCode::kE4m3> codes_;
  VF scales_[kVecs];
};

template <>
class WeightDecoder<PanelCode::kNvfp4> {
 public:
#if HWY_TARGET == HWY_AVX2
  HWY_INLINE WeightDecoder() : table_(hn::LoadU(DF(), kMagnitudes)) {}
#else
  HWY_INLINE WeightDecoder() : table_(hn::LoadU(DF(), kValues)) {}
#endif

  HWY_INLINE void SetTile(const Panel& panel, int64_t tile) {
    for (int64_t v = 0; v < kVecs; ++v) {
      const VU32 run = LoadRun(panel.scales, tile / 2, v);
      const VU32 first = hn::ShiftRightSame(run, static_cast<int>(tile % 2 * 16));
      scales_[v][0] = E4m3Lanes(first);
      scales_[v][1] = E4m3Lanes(hn::ShiftRight<8>(first));
    }
  }

  template <int kHalf>
  HWY_INLINE void Load(const Panel& panel, int64_t k, int64_t v, VF (&w)[4]) const {
    const VU32 run = LoadRun(panel.codes, k / 8, v);
    if constexpr (kHalf == 0) {
      hwy::Prefetch(panel.codes + k * kPanelCols / 2 + kPrefetchBytes);
    }
    const VF scale = scales_[v][k / kNvfp4Group % 2];
    w[0] = hn::Mul(Lookup<4 * kHalf>(run), scale);
    w[1] = hn::Mul(Lookup<4 * kHalf + 4>(run), scale);
    w[2] = hn::Mul(Lookup<4 * kHalf + 8>(run), scale);
    w[3] = hn::Mul(Lookup<4 * kHalf + 12>(run), scale);
  }

 private:
  static constexpr int64_t kPrefetchBytes = 2048;
  static constexpr int64_t kNvfp4Group = 16;
  alignas(64) static constexpr float kValues[16] = {0.0F,  0.5F,  1.0F,  1.5F,  2.0F,  3.0F,
                                                    4.0F,  6.0F,  -0.0F, -0.5F, -1.0F, -1.5F,
                                                    -2.0F, -3.0F, -4.0F, -6.0F};

  // The values of the codes in bits [kBit, kBit + 4) of the lanes.
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
  VF scales_[kVecs][2];
};

#endif  // OCTAVO_CPU_TARGET

}  // namespace octavo::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // Toggling guard.
