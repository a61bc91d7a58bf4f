// Lane arithmetic that the vector files of formats/ share. Included once for every target.

#if defined(OCTAVO_FORMATS_LANES_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef OCTAVO_FORMATS_LANES_SIMD_INL_H_
#undef OCTAVO_FORMATS_LANES_SIMD_INL_H_
#else
#define OCTAVO_FORMATS_LANES_SIMD_INL_H_
#endif

#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "octavo/formats/bf16.h"

HWY_BEFORE_NAMESPACE();
namespace octavo::simd::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Highway's fallback has one lane of any type; there the scalar reference does all the work.
#if HWY_TARGET != HWY_SCALAR

using D16 = hn::ScalableTag<uint16_t>;
using D32 = hn::ScalableTag<uint32_t>;
using DF = hn::ScalableTag<float>;
using V16 = hn::Vec<D16>;
using V32 = hn::Vec<D32>;
using VF = hn::Vec<DF>;

constexpr size_t kLanes16 = hn::MaxLanes(D16());
constexpr size_t kLanes32 = hn::MaxLanes(D32());

// A vector of BF16 holds its even elements in the low and its odd ones in the high halves of the
// 32-bit lanes. Work on the two kinds apart and no element ever changes its place.
HWY_INLINE VF EvenBf16(V16 v) {
  return hn::BitCast(DF(), hn::ShiftLeft<16>(hn::BitCast(D32(), v)));
}
HWY_INLINE VF OddBf16(V16 v) {
  return hn::BitCast(DF(), hn::And(hn::BitCast(D32(), v), hn::Set(D32(), 0xFFFF0000U)));
}
// Low halves from `even`, high halves from `odd`; both hold values below 2^16.
HWY_INLINE V16 Interleave(V32 even, V32 odd) {
  return hn::BitCast(D16(), hn::Or(even, hn::ShiftLeft<16>(odd)));
}

HWY_INLINE V16 Magnitude(V16 v) { return hn::And(v, hn::Set(D16(), uint16_t{0x7FFF})); }

// Nearest even; a NaN keeps its upper payload and becomes quiet.
HWY_INLINE V32 RoundToBf16Lanes(VF value) {
  const D32 d;
  const V32 bits = hn::BitCast(d, value);
  const V32 upper = hn::ShiftRight<16>(bits);
  const V32 tie = hn::And(upper, hn::Set(d, 1));
  const V32 rounded = hn::ShiftRight<16>(hn::Add(bits, hn::Add(tie, hn::Set(d, 0x7FFF))));
  const V32 quiet = hn::Or(upper, hn::Set(d, 0x40));
  return hn::IfThenElse(hn::RebindMask(d, hn::IsNaN(value)), quiet, rounded);
}

// Writes the low byte of each 32-bit lane. (TruncateTo of Highway 1.0.3 is wrong for AVX3_DL.)
HWY_INLINE void StoreLowBytes(V32 v, uint8_t* HWY_RESTRICT out) {
#if HWY_TARGET == HWY_AVX3_DL
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtepi32_epi8(v.raw));
#else
  const hn::Rebind<uint8_t, D32> d8;
  hn::StoreU(hn::TruncateTo(d8, v), d8, out);
#endif
}

// E4M3 codes of 0 <= q below 464: the two branches of FloatToE4m3, without its saturation.
HWY_INLINE V32 MagnitudeCodes(VF q) {
  const D32 d;
  const DF df;
  const V32 bits = hn::BitCast(d, q);
  const V32 tie = hn::And(hn::ShiftRight<20>(bits), hn::Set(d, 1));
  const V32 bias = hn::Set(d, 0x7FFFFU - ((127U - 7U) << 23));  // Modulo 2^32.
  const V32 normal = hn::ShiftRight<20>(hn::Add(bits, hn::Add(tie, bias)));
  const VF rounder = hn::Set(df, 0x1p14F);  // Its quantum is 2^-9.
  const V32 subnormal = hn::Sub(hn::BitCast(d, hn::Add(q, rounder)), hn::BitCast(d, rounder));
  return hn::IfThenElse(hn::RebindMask(d, hn::Lt(q, hn::Set(df, 0x1p-6F))), subnormal, normal);
}

// FP32 of the E4M3 code in the low byte of each lane; 0x7F and 0xFF give the quiet NaN 0x7FC00000.
HWY_INLINE VF CodesToFloat(V32 code) {
  const D32 d;
  const DF df;
  const V32 magnitude = hn::And(code, hn::Set(d, 0x7F));
  // Read as FP32, the bits are the value times 2^-120, subnormals included: exact.
  const VF small = hn::BitCast(df, hn::ShiftLeft<20>(magnitude));
  const VF value = hn::Mul(small, hn::Set(df, 0x1p120F));
  const V32 sign = hn::ShiftLeft<24>(hn::And(code, hn::Set(d, 0x80)));
  const V32 bits = hn::Or(hn::BitCast(d, value), sign);
  const auto is_nan = hn::Eq(magnitude, hn::Set(d, 0x7F));
  return hn::BitCast(df, hn::IfThenElse(is_nan, hn::Set(d, 0x7FC00000U), bits));
}

// --- Largest magnitude --------------------------------------------------------------------------

// How far ahead of a sequential read the next lines are asked for: 4 KiB.
template <typename T>
inline constexpr size_t kAhead = 4096 / sizeof(T);

// Magnitudes order as their bits do, so the search needs no floating point at all. One keeps the
// largest of many spans, as BF16 or as FP32 bits.
template <typename T>
class MaxMagnitude {
 public:
  using Bits = std::conditional_t<sizeof(T) == 2, uint16_t, uint32_t>;
  using D = hn::ScalableTag<Bits>;

  // Before anything else: there is no constructor, for there are arrays of which a part is used.
  HWY_INLINE void Clear() {
    max_ = hn::Zero(D());
    tail_ = 0;
  }

  // Fetches ahead what lies `ahead` elements behind the ones that it reads.
  HWY_INLINE void Add(const T* HWY_RESTRICT values, size_t count, size_t ahead = kAhead<T>) {
    const D d;
    const auto* bits = reinterpret_cast<const Bits*>(values);
    const auto mask = hn::Set(d, kMask);
    constexpr size_t kLanes = hn::MaxLanes(D());
    auto max = max_;
    auto max2 = max_;
    const size_t whole = count - count % (2 * kLanes);
    for (size_t i = 0; i < whole; i += 2 * kLanes) {
      hwy::Prefetch(bits + i + ahead);
      hwy::Prefetch(bits + i + ahead + kLanes);
      max = hn::Max(max, hn::And(hn::LoadU(d, bits + i), mask));
      max2 = hn::Max(max2, hn::And(hn::LoadU(d, bits + i + kLanes), mask));
    }
    max_ = hn::Max(max, max2);
    for (size_t i = whole; i < count; ++i) {
      tail_ = std::max(tail_, static_cast<Bits>(bits[i] & kMask));
    }
  }

  // Bits of the largest as FP32.
  HWY_INLINE uint32_t Fp32Bits() const {
    const D d;
    HWY_ALIGN Bits lanes[hn::MaxLanes(D())];
    hn::Store(max_, d, lanes);
    Bits max = tail_;
    for (const Bits lane : lanes) {
      max = std::max(max, lane);
    }
    return uint32_t{max} << (sizeof(T) == 2 ? 16 : 0);
  }

 private:
  static constexpr auto kMask = static_cast<Bits>(static_cast<Bits>(~Bits{0}) >> 1);

  hn::Vec<D> max_;
  Bits tail_;
};

#endif  // HWY_TARGET != HWY_SCALAR

}  // namespace octavo::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
