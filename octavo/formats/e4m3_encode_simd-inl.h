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
  size_t i = 0;
  for (; i + kLanes16 <= count; i += kLanes16) {
    StoreCodes(Codes<kPowerOfTwo>(hn::LoadU(D16(), row + i), scale, reciprocal), codes + i);
  }
  for (; i < count; ++i) {
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
  size_t i = 0;
  for (; i + kLanes32 <= count; i += kLanes32) {
    const VF x = hn::LoadU(d, row + i);
    const VF q = kPowerOfTwo ? hn::Mul(hn::Abs(x), reciprocal) : hn::Div(hn::Abs(x), scale);
    const V32 sign = hn::ShiftLeft<7>(hn::ShiftRight<31>(hn::BitCast(D32(), x)));
    StoreLowBytes(hn::Or(MagnitudeCodes(q), sign), codes + i);
  }
  for (; i < count; ++i) {
    codes[i] = FloatToE4m3(ScalarQuotient<kPowerOfTwo>(row[i], by));
  }
}

#if HWY_TARGET == HWY_AVX3_DL

// The quotient of a BF16 depends on the scale through 128 mantissas alone: for a normal code,
//
//   code(2^e * 1.m / (2^f * 1.s)) = code(1.m / 1.s) + 8 (e - f)
//
// so that a table of the 128 codes on the right, made by true divisions, replaces the arithmetic.
// One instruction looks up in it (VBMI's VPERMI2B takes seven bits of an index, the mantissa).
class CodeTable {
 public:
  // The table of the significand of `scale`, which is normal.
  explicit HWY_INLINE CodeTable(float scale) {
    const DF df;
    const uint32_t scale_bits = std::bit_cast<uint32_t>(scale);
    const VF significand =
        hn::Set(df, std::bit_cast<float>((scale_bits & 0x007FFFFFU) | 0x3F800000U));
    HWY_ALIGN uint8_t table[128];
    for (uint32_t m = 0; m < 128; m += kLanes32) {
      const V32 bits = hn::ShiftLeft<16>(hn::Iota(D32(), 0x3F80U + m));
      const VF q = hn::Div(hn::BitCast(df, bits), significand);
      StoreLowBytes(MagnitudeCodes(q), table + m);
    }
    low_ = _mm512_load_si512(table);
    high_ = _mm512_load_si512(table + 64);
    offset_ = Offset(scale_bits >> 23);
  }

  // 8 f as above, for a scale of exponent field `exponent`.
  static HWY_INLINE V16 Offset(uint32_t exponent) {
    return hn::Set(D16(), static_cast<uint16_t>(8 * exponent));
  }

  // Codes in 16-bit lanes, or false where a code is subnormal, whose rounding is another. Zeros,
  // and quotients that round to zero, are far below and need nothing else.
  HWY_INLINE bool Codes(V16 v, V16* codes) const { return Codes(v, offset_, codes); }
  HWY_INLINE bool Codes(V16 v, V16 offset, V16* codes) const {
    const D16 d;
    const hn::RebindToSigned<D16> di;
    const V16 base{_mm512_maskz_permutex2var_epi8(kLowBytes, low_, v.raw, high_)};
    const V16 binade = hn::And(hn::ShiftRight<4>(v), hn::Set(d, uint16_t{0x07F8}));
    const V16 code = hn::Sub(hn::Add(base, binade), offset);
    // -24 is the code that 2^-10 would have here, the largest magnitude that rounds to 0.
    const bool subnormal =
        !hn::AllFalse(d, hn::Lt(hn::Add(code, hn::Set(d, uint16_t{24})), hn::Set(d, uint16_t{32})));
    const auto clamped = hn::Max(hn::BitCast(di, code), hn::Zero(di));
    const V16 sign = hn::And(hn::ShiftRight<8>(v), hn::Set(d, uint16_t{0x80}));
    *codes = hn::Or(hn::BitCast(d, clamped), sign);
    return !subnormal;
  }

 private:
  static constexpr uint64_t kLowBytes = 0x5555555555555555U;

  __m512i low_;
  __m512i high_;
  V16 offset_;
};

// The low bytes of the 16-bit lanes of two vectors.
HWY_INLINE void StoreCodePair(V16 first, V16 second, uint8_t* HWY_RESTRICT out) {
  const auto iota = hn::Iota(hn::ScalableTag<uint8_t>(), 0);
  const __m512i even_bytes = _mm512_add_epi8(iota.raw, iota.raw);
  _mm512_storeu_si512(out, _mm512_permutex2var_epi8(first.raw, even_bytes, second.raw));
}

#endif  // HWY_TARGET == HWY_AVX3_DL

// Encodes rows under one scale. Where a table is quicker and pays, it makes one.
template <typename T, bool kPowerOfTwo>
class RowEncoder {
 public:
  HWY_INLINE RowEncoder(float scale, size_t num_values)
      : by_(scale)
#if HWY_TARGET == HWY_AVX3_DL
        ,
        table_(scale),
        use_table_(sizeof(T) == 2 && num_values >= kTablePays)
#endif
  {
    (void)num_values;
  }

  HWY_INLINE void Encode(const T* HWY_RESTRICT row, size_t count,
                         uint8_t* HWY_RESTRICT codes) const {
#if HWY_TARGET == HWY_AVX3_DL
    if constexpr (sizeof(T) == 2) {
      if (use_table_) {
        EncodeByTable(row, count, codes);
        return;
      }
    }
#endif
    EncodeByArithmetic<kPowerOfTwo>(row, count, by_, codes);
  }

 private:
#if HWY_TARGET == HWY_AVX3_DL
  HWY_INLINE void EncodeByTable(const uint16_t* HWY_RESTRICT row, size_t count,
                                uint8_t* HWY_RESTRICT codes) const {
    const D16 d;
    size_t i = 0;
    for (; i + 2 * kLanes16 <= count; i += 2 * kLanes16) {
      V16 first;
      V16 second;
      const bool first_done = table_.Codes(hn::LoadU(d, row + i), &first);
      const bool second_done = table_.Codes(hn::LoadU(d, row + i + kLanes16), &second);
      StoreCodePair(first, second, codes + i);
      if (HWY_UNLIKELY(!(first_done && second_done))) {
        EncodeByArithmetic<kPowerOfTwo>(row + i, 2 * kLanes16, by_, codes + i);
      }
    }
    EncodeByArithmetic<kPowerOfTwo>(row + i, count - i, by_, codes + i);
  }

  static constexpr size_t kTablePays = 1024;
#endif

  Divisor by_;
#if HWY_TARGET == HWY_AVX3_DL
  CodeTable table_;
  bool use_table_;
#endif
};

#endif  // HWY_TARGET != HWY_SCALAR

}  // namespace octavo::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
