// Rows of BF16 or F32 to E4M3 codes under one scale. Included once for every target.

#if defined(OCTAVO_FORMATS_E4M3_ENCODE_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef OCTAVO_FORMATS_E4M3_ENCODE_SIMD_INL_H_
#undef OCTAVO_FORMATS_E4M3_ENCODE_SIMD_INL_H_
#else
#define OCTAVO_FORMATS_E4M3_ENCODE_SIMD_INL_H_
#endif

#include <hwy/highway.h>

#include <bit>
#include <cstddef>
#include <cstdint>

#include "octavo/formats/bf16.h"
#include "octavo/formats/e4m3.h"
#include "octavo/formats/lanes_simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace octavo::simd::HWY_NAMESPACE {

#if HWY_TARGET != HWY_SCALAR

// A scale and what stands for the division by it.
struct Divisor {
  Divisor() = default;
  explicit HWY_INLINE Divisor(float s) : scale(s), reciprocal(1.0F / s) {}

  float scale;
  float reciprocal;
};

// fl(x / scale) for the magnitude x of a BF16.
//
// With fma it is Markstein's correction instead of the slow divide: for r = fl(1 / scale) and
// q = fl(x * r), fl(q + r * (x - q * scale)) is the correctly rounded quotient (P. Markstein, IBM
// J. Res. Dev. 34 (1990), theorem 8.3) as long as nothing leaves the normal range; a test tries all
// pairs of mantissas. Here scale lies in [2^-49, 2^120], so that only quotients below 2^-50 can
// leave it, and those round to code 0 either way.
HWY_INLINE VF QuotientOfBf16(VF x, VF scale, [[maybe_unused]] VF reciprocal) {
#if HWY_NATIVE_FMA
  const VF q = hn::Mul(x, reciprocal);
  const VF remainder = hn::NegMulAdd(q, scale, x);
  return hn::MulAdd(remainder, reciprocal, q);
#else
  return hn::Div(x, scale);
#endif
}

// One vector of BF16 to its codes in 16-bit lanes, on any target and for any quotient.
template <bool kPowerOfTwo>
HWY_INLINE V16 Codes(V16 v, VF scale, VF reciprocal) {
  const V16 magnitude = Magnitude(v);
  const VF even = EvenBf16(magnitude);
  const VF odd = OddBf16(magnitude);
  const V16 codes = kPowerOfTwo
                        ? Interleave(MagnitudeCodes(hn::Mul(even, reciprocal)),
                                     MagnitudeCodes(hn::Mul(odd, reciprocal)))
                        : Interleave(MagnitudeCodes(QuotientOfBf16(even, scale, reciprocal)),
                                     MagnitudeCodes(QuotientOfBf16(odd, scale, reciprocal)));
  return hn::Or(codes, hn::And(hn::ShiftRight<8>(v), hn::Set(D16(), uint16_t{0x80})));
}

HWY_INLINE void StoreCodes(V16 codes, uint8_t* HWY_RESTRICT out) {
  const hn::Half<hn::Repartition<uint8_t, D16>> d8;
  hn::StoreU(hn::DemoteTo(d8, hn::BitCast(hn::RebindToSigned<D16>(), codes)), d8, out);
}

template <bool kPowerOfTwo>
HWY_INLINE float ScalarQuotient(float x, const Divisor& by) {
  return kPowerOfTwo ? x * by.reciprocal : x / by.scale;
}

// BF16 rows by arithmetic.
template <bool kPowerOfTwo>
HWY_INLINE void EncodeByArithmetic(const uint16_t* HWY_RESTRICT row, size_t count,
                                   const Divisor& by, uint8_t* HWY_RESTRICT codes) {
  const VF scale = hn::Set(DF(), by.scale);
  const VF reciprocal = hn::Set(DF(), by.reciprocal);
  const size_t whole = count - count % kLanes16;
  for (size_t i = 0; i < whole; i += kLanes16) {
    StoreCodes(Codes<kPowerOfTwo>(hn::LoadU(D16(), row + i), scale, reciprocal), codes + i);
  }
  for (size_t i = whole; i < count; ++i) {
    codes[i] = FloatToE4m3(ScalarQuotient<kPowerOfTwo>(Bf16ToFloat(row[i]), by));
  }
}

// F32 rows. The correction above is not proven for 24 significant bits, so this divides.
template <bool kPowerOfTwo>
HWY_INLINE void EncodeByArithmetic(const float* HWY_RESTRICT row, size_t count, const Divisor& by,
                                   uint8_t* HWY_RESTRICT codes) {
  const DF d;
  const VF scale = hn::Set(d, by.scale);
  const VF reciprocal = hn::Set(d, by.reciprocal);
  const size_t whole = count - count % kLanes32;
  for (size_t i = 0; i < whole; i += kLanes32) {
    const VF x = hn::LoadU(d, row + i);
    const VF q = kPowerOfTwo ? hn::Mul(hn::Abs(x), reciprocal) : hn::Div(hn::Abs(x), scale);
    const V32 sign = hn::ShiftLeft<7>(hn::ShiftRight<31>(hn::BitCast(D32(), x)));
    StoreLowBytes(hn::Or(MagnitudeCodes(q), sign), codes + i);
  }
  for (size_t i = whole; i < count; ++i) {
    codes[i] = FloatToE4m3(ScalarQuotient<kPowerOfTwo>(row[i], by));
  }
}

#if HWY_TARGET == HWY_AVX3_DL

using D8 = hn::ScalableTag<uint8_t>;
using V8 = hn::Vec<D8>;

// The quotient of a BF16 depends on the scale through 128 mantissas alone: for a normal code,
//
//   code(2^e * 1.m / (2^f * 1.s)) = code(1.m / 1.s) + 8 (e - f)
//
// so that a table of the 128 codes on the right, made by true divisions, replaces the arithmetic.
// One instruction looks up in it (VBMI's VPERMI2B takes seven bits of an index, the mantissa). All
// is done in bytes, 64 elements a vector, by steps down from the largest e - f there is; what is
// far below saturates to code 0.
template <bool kPowerOfTwo>
class CodeTable {
 public:
  // Before anything else: makes the table of the significand of `scale`, which is normal.
  HWY_INLINE void Set(float scale) {
    const D32 d;
    const DF df;
    const uint32_t scale_bits = std::bit_cast<uint32_t>(scale);
    const VF significand =
        hn::Set(df, std::bit_cast<float>((scale_bits & 0x007FFFFFU) | 0x3F800000U));
    // Of the code, whose exponent bias is 7 instead of 127; the last bit rounds to even.
    const V32 bias =
        hn::Set(d, 0x7FFFFU - ((127U - 7U) << 23) + ((8 * kMaxBinade + kSubnormalBias) << 20));
    HWY_ALIGN uint8_t table[128];
    for (uint32_t m = 0; m < 128; m += kLanes32) {
      const V32 mantissa = hn::ShiftLeft<16>(hn::Iota(d, 0x3F80U + m));
      const V32 bits = hn::BitCast(d, hn::Div(hn::BitCast(df, mantissa), significand));
      const V32 tie = hn::And(hn::ShiftRight<20>(bits), hn::Set(d, 1));
      StoreLowBytes(hn::ShiftRight<20>(hn::Add(bits, hn::Add(tie, bias))), table + m);
    }
    low_ = hn::Load(D8(), table);
    high_ = hn::Load(D8(), table + 64);
    top_ = hn::Set(D8(), static_cast<uint8_t>(TopExponent(scale_bits >> 23)));
  }

  // The exponent field of the largest BF16 that a scale of exponent field `exponent` allows.
  static constexpr uint32_t TopExponent(uint32_t exponent) { return exponent + kMaxBinade; }

  // The codes of two vectors of BF16, or false where one is subnormal, whose rounding is another.
  HWY_INLINE bool Codes(V16 first, V16 second, V8* codes) const {
    return Codes(first, second, top_, codes);
  }
  HWY_INLINE bool Codes(V16 first, V16 second, V8 top, V8* codes) const {
    const D8 d;
    const D16 d16;
    const auto iota = hn::Iota(d, 0);
    const V8 even = hn::Add(iota, iota);
    const V8 lower{_mm512_permutex2var_epi8(first.raw, even.raw, second.raw)};
    const V8 odd = hn::Add(even, hn::Set(d, uint8_t{1}));
    const V8 upper{_mm512_permutex2var_epi8(first.raw, odd.raw, second.raw)};
    // (upper << 1) | (lower >> 7)
    const V8 shifted = hn::BitCast(d, hn::ShiftRight<7>(hn::BitCast(d16, lower)));
    const V8 exponent = hn::Or(hn::Add(upper, upper), hn::And(shifted, hn::Set(d, uint8_t{1})));
    const V8 binade = hn::Min(hn::SaturatedSub(top, exponent), hn::Set(d, uint8_t{31}));
    const V8 binade8 = hn::BitCast(d, hn::ShiftLeft<3>(hn::BitCast(d16, binade)));
    const V8 base{_mm512_permutex2var_epi8(low_.raw, lower.raw, high_.raw)};
    const V8 biased = hn::SaturatedSub(base, binade8);
    // 0 is below 2^-10, the largest magnitude that rounds to 0; from there to code 8 is subnormal.
    const V8 above = hn::Sub(biased, hn::Set(d, uint8_t{1}));
    const bool subnormal = !hn::AllFalse(d, hn::Lt(above, hn::Set(d, uint8_t{kSubnormalBias + 7})));
    const V8 magnitude = hn::SaturatedSub(biased, hn::Set(d, uint8_t{kSubnormalBias}));
    *codes = hn::Or(magnitude, hn::And(upper, hn::Set(d, uint8_t{0x80})));
    return !subnormal;
  }

 private:
  // The largest e - f: 448 is 1.75 * 2^8, and a quotient of significands may be less than 1, where
  // scales end below 2^120. Powers of two end there.
  static constexpr uint32_t kMaxBinade = kPowerOfTwo ? 8 : 9;
  static constexpr uint8_t kSubnormalBias = 25;  // 2^-10 would have the code -24.

  V8 low_;
  V8 high_;
  V8 top_;
};

#endif  // HWY_TARGET == HWY_AVX3_DL

// Values that are encoded again together, and of how many such a word of bits tells.
constexpr size_t kRedone = 64;
constexpr size_t kMostRedone = 64;

// Encodes rows under one scale. Where a table is quicker and pays, it makes one.
template <typename T, bool kPowerOfTwo>
class RowEncoder {
 public:
  // Before anything else: there is no constructor, for there are arrays of which a part is used.
  HWY_INLINE void Set(float scale, size_t num_values) {
    by_ = Divisor(scale);
#if HWY_TARGET == HWY_AVX3_DL
    use_table_ = sizeof(T) == 2 && num_values >= kTablePays;
    if (use_table_) {
      table_.Set(scale);
    }
#endif
    (void)num_values;
  }

  // Encodes up to kMostRedone * kRedone values. Bit i of the result says that EncodeRarely must
  // encode values [i * kRedone, (i + 1) * kRedone) again. They are few, and a branch at each of
  // them would be mispredicted: callers look once in many values.
  HWY_INLINE uint64_t Encode(const T* HWY_RESTRICT row, size_t count,
                             uint8_t* HWY_RESTRICT codes) const {
#if HWY_TARGET == HWY_AVX3_DL
    if constexpr (sizeof(T) == 2) {
      if (use_table_) {
        return EncodeByTable(row, count, codes);
      }
    }
#endif
    EncodeByArithmetic<kPowerOfTwo>(row, count, by_, codes);
    return 0;
  }

  // Any number of values. Not inlined, so that loops around Encode keep their registers.
  HWY_NOINLINE void EncodeRarely(const T* HWY_RESTRICT row, size_t count,
                                 uint8_t* HWY_RESTRICT codes) const {
    EncodeByArithmetic<kPowerOfTwo>(row, count, by_, codes);
  }

 private:
#if HWY_TARGET == HWY_AVX3_DL
  HWY_INLINE uint64_t EncodeByTable(const uint16_t* HWY_RESTRICT row, size_t count,
                                    uint8_t* HWY_RESTRICT codes) const {
    static_assert(kRedone == 2 * kLanes16);
    const D16 d;
    const size_t whole = count - count % kRedone;
    uint64_t redo = 0;
    for (size_t i = 0; i < whole; i += kRedone) {
      V8 bytes;
      const bool done =
          table_.Codes(hn::LoadU(d, row + i), hn::LoadU(d, row + i + kLanes16), &bytes);
      hn::StoreU(bytes, D8(), codes + i);
      redo |= uint64_t{!done} << (i / kRedone);
    }
    if (whole < count) {
      EncodeRarely(row + whole, count - whole, codes + whole);
    }
    return redo;
  }

  static constexpr size_t kTablePays = 512;

  CodeTable<kPowerOfTwo> table_;
  bool use_table_;
#endif

  Divisor by_;
};

#endif  // HWY_TARGET != HWY_SCALAR

}  // namespace octavo::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
