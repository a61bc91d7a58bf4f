// The vector twins of the roundings to BF16, one source for every target.

#include "octavo/formats/bf16_span_simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "octavo/formats/bf16_span_simd.cc"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "octavo/formats/bf16.h"
#include "octavo/formats/bf16_span.h"
#include "octavo/formats/lanes_simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace octavo::simd::HWY_NAMESPACE {

void RoundF32(const float* HWY_RESTRICT in, size_t count, uint16_t* HWY_RESTRICT out) {
  size_t i = 0;
#if HWY_TARGET != HWY_SCALAR
  const hn::Rebind<uint16_t, DF> d_out;
  for (; i + kLanes32 <= count; i += kLanes32) {
    const V32 bits = RoundToBf16Lanes(hn::LoadU(DF(), in + i));
    hn::StoreU(hn::TruncateTo(d_out, bits), d_out, out + i);
  }
#endif
  for (; i < count; ++i) {
    out[i] = FloatToBf16(in[i]);
  }
}

#if HWY_TARGET != HWY_SCALAR

HWY_INLINE V32 F16ToBf16Lanes(V32 half) {
  const D32 d;
  const DF df;
  const V32 magnitude = hn::ShiftLeft<13>(hn::And(half, hn::Set(d, 0x7FFF)));
  // Read as FP32, the bits are the value times 2^-112, subnormals included: exact.
  const VF value = hn::Mul(hn::BitCast(df, magnitude), hn::Set(df, 0x1p112F));
  const auto not_finite = hn::Eq(hn::And(half, hn::Set(d, 0x7C00)), hn::Set(d, 0x7C00));
  const V32 special = hn::Or(magnitude, hn::Set(d, 0x7F800000U));
  const V32 unsigned_bits = hn::IfThenElse(not_finite, special, hn::BitCast(d, value));
  const V32 sign = hn::ShiftLeft<16>(hn::And(half, hn::Set(d, 0x8000)));
  return RoundToBf16Lanes(hn::BitCast(df, hn::Or(unsigned_bits, sign)));
}

#endif

void RoundF16(const uint16_t* HWY_RESTRICT in, size_t count, uint16_t* HWY_RESTRICT out) {
  size_t i = 0;
#if HWY_TARGET != HWY_SCALAR
  const D32 d;
  const hn::Rebind<uint16_t, D32> d_half;
  for (; i + kLanes32 <= count; i += kLanes32) {
    const V32 bf16 = F16ToBf16Lanes(hn::PromoteTo(d, hn::LoadU(d_half, in + i)));
    hn::StoreU(hn::TruncateTo(d_half, bf16), d_half, out + i);
  }
#endif
  for (; i < count; ++i) {
    out[i] = FloatToBf16(F16ToFloat(in[i]));
  }
}

}  // namespace octavo::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace octavo::simd {

HWY_EXPORT(RoundF32);
HWY_EXPORT(RoundF16);

void RoundF32ToBf16(std::span<const float> in, std::span<uint16_t> out) {
  HWY_DYNAMIC_DISPATCH(RoundF32)(in.data(), in.size(), out.data());
}

void RoundF16ToBf16(std::span<const uint16_t> in, std::span<uint16_t> out) {
  HWY_DYNAMIC_DISPATCH(RoundF16)(in.data(), in.size(), out.data());
}

}  // namespace octavo::simd
#endif  // HWY_ONCE
