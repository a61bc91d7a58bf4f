// Vectors of BF16 and FP32 for the kernels of every target: loads, stores, rounding, exp.
// Included once per target (Highway's foreach_target), hence the toggling guard.

#if defined(OCTAVO_KERNELS_CPU_VEC_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef OCTAVO_KERNELS_CPU_VEC_INL_H_
#undef OCTAVO_KERNELS_CPU_VEC_INL_H_
#else
#define OCTAVO_KERNELS_CPU_VEC_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>
#include <cstring>

#include "octavo/kernels/math.h"

HWY_BEFORE_NAMESPACE();
namespace octavo::cpu::HWY_NAMESPACE {

// Paths need FMA: without it the bits would differ. Highway's lesser targets stay empty.
#undef OCTAVO_CPU_TARGET
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
#define OCTAVO_CPU_TARGET 1
#else
#define OCTAVO_CPU_TARGET 0
#endif

#if OCTAVO_CPU_TARGET

namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::ScalableTag<float>;
using DU32 = hn::ScalableTag<uint32_t>;
using DI32 = hn::ScalableTag<int32_t>;
using DU16 = hn::Rebind<uint16_t, DF>;  // As many lanes as DF.
using VF = hn::Vec<DF>;
using VU32 = hn::Vec<DU32>;
using VU16 = hn::Vec<DU16>;

// Lanes of a vector: 8 or 16. The 16 lanes of a "lane sum" are kVecs vectors.
constexpr int64_t kLanes = static_cast<int64_t>(HWY_LANES(float));
constexpr int64_t kVecs = 16 / kLanes;

HWY_INLINE VF WidenBf16(VU16 v) {
  return hn::BitCast(DF(), hn::ShiftLeft<16>(hn::PromoteTo(DU32(), v)));
}

// FP32 bits whose upper half is BF16(v): nearest even, NaN kept and made quiet. The lower half of
// the result is not defined.
HWY_INLINE VU32 RoundToBf16Bits(VF v) {
  const DU32 d;
  const VU32 bits = hn::BitCast(d, v);
  const VU32 tie = hn::And(hn::ShiftRight<16>(bits), hn::Set(d, 1));
  const VU32 rounded = hn::Add(bits, hn::Add(tie, hn::Set(d, 0x7FFFU)));
  const VU32 quiet = hn::Or(bits, hn::Set(d, 0x00400000U));
  return hn::IfThenElse(hn::RebindMask(d, hn::IsNaN(v)), quiet, rounded);
}

// A(v) as FP32.
HWY_INLINE VF RoundToBf16(VF v) {
  return hn::BitCast(DF(), hn::And(RoundToBf16Bits(v), hn::Set(DU32(), 0xFFFF0000U)));
}

HWY_INLINE VU16 UpperHalves(VU32 bits) {
  // Values below 2^16, so that the saturation of DemoteTo never acts.
  return hn::DemoteTo(DU16(), hn::BitCast(DI32(), hn::ShiftRight<16>(bits)));
}

// Elements [0, count) of p, zeros beyond; any count, also <= 0.
HWY_INLINE VF LoadBf16(const uint16_t* p, int64_t count) {
  if (HWY_LIKELY(count >= kLanes)) {
    return WidenBf16(hn::LoadU(DU16(), p));
  }
  HWY_ALIGN uint16_t padded[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) {
    padded[i] = p[i];
  }
  return WidenBf16(hn::Load(DU16(), padded));
}

HWY_INLINE VF LoadF32(const float* p, int64_t count) {
  if (HWY_LIKELY(count >= kLanes)) {
    return hn::LoadU(DF(), p);
  }
  HWY_ALIGN float padded[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) {
    padded[i] = p[i];
  }
  return hn::Load(DF(), padded);
}

// Stores the first `count` lanes.
HWY_INLINE void StoreU16(VU16 v, int64_t count, uint16_t* p) {
  if (HWY_LIKELY(count >= kLanes)) {
    hn::StoreU(v, DU16(), p);
    return;
  }
  HWY_ALIGN uint16_t padded[kLanes];
  hn::Store(v, DU16(), padded);
  for (int64_t i = 0; i < count; ++i) {
    p[i] = padded[i];
  }
}

HWY_INLINE void StoreF32(VF v, int64_t count, float* p) {
  if (HWY_LIKELY(count >= kLanes)) {
    hn::StoreU(v, DF(), p);
    return;
  }
  HWY_ALIGN float padded[kLanes];
  hn::Store(v, DF(), padded);
  for (int64_t i = 0; i < count; ++i) {
    p[i] = padded[i];
  }
}

// Stores BF16(v).
HWY_INLINE void StoreBf16(VF v, int64_t count, uint16_t* p) {
  StoreU16(UpperHalves(RoundToBf16Bits(v)), count, p);
}

// ExpF32 of math.h, the same operations in the same order.
HWY_INLINE VF Exp(VF x) {
  const DF d;
  const DI32 di;
  const VF rounder = hn::Set(d, exp_f32::kRounder);
  const VF shifted = hn::MulAdd(x, hn::Set(d, exp_f32::kInvLn2), rounder);
  const VF n = hn::Sub(shifted, rounder);
  const VF r = hn::NegMulAdd(n, hn::Set(d, exp_f32::kLn2Low),
                             hn::NegMulAdd(n, hn::Set(d, exp_f32::kLn2High), x));
  VF q = hn::MulAdd(hn::Set(d, exp_f32::kQ4), r, hn::Set(d, exp_f32::kQ3));
  q = hn::MulAdd(q, r, hn::Set(d, exp_f32::kQ2));
  q = hn::MulAdd(q, r, hn::Set(d, exp_f32::kQ1));
  q = hn::MulAdd(q, r, hn::Set(d, exp_f32::kQ0));
  const VF p = hn::Add(hn::Set(d, 1.0F), hn::MulAdd(hn::Mul(r, r), q, r));
  const auto exponent = hn::Sub(hn::BitCast(di, shifted), hn::BitCast(di, rounder));
  const auto half = hn::ShiftRight<1>(exponent);
  const auto bias = hn::Set(di, 127);
  const VF scale_a = hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(half, bias)));
  const VF scale_b = hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(hn::Sub(exponent, half), bias)));
  const VF value = hn::Mul(hn::Mul(p, scale_a), scale_b);
  const VF not_small = hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, exp_f32::kMin)), value);
  return hn::IfThenElse(hn::Gt(x, hn::Set(d, exp_f32::kMax)), hn::Inf(d), not_small);
}

// Lanes l and l + 8 are added, then l + 4, l + 2, l + 1.
HWY_INLINE float AddLanes(const VF (&sums)[kVecs]) {
  float lanes[16];
  for (int64_t v = 0; v < kVecs; ++v) {
    hn::StoreU(sums[v], DF(), lanes + v * kLanes);
  }
  for (int step = 8; step >= 1; step /= 2) {
    for (int l = 0; l < step; ++l) {
      lanes[l] = lanes[l] + lanes[l + step];
    }
  }
  return lanes[0];
}

#endif  // OCTAVO_CPU_TARGET

}  // namespace octavo::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // Toggling guard.
