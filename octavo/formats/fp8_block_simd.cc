// The vector twins of the FP8 block codec and of the BF16 spans, one source for every target.

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "octavo/formats/fp8_block_simd.cc"
#include "octavo/formats/fp8_block_simd.h"

#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "octavo/formats/bf16.h"
#include "octavo/formats/bf16_span.h"
#include "octavo/formats/e4m3.h"
#include "octavo/formats/fp8_block.h"

HWY_BEFORE_NAMESPACE();
namespace octavo::simd::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using D16 = hn::ScalableTag<uint16_t>;
using D32 = hn::ScalableTag<uint32_t>;
using DF = hn::ScalableTag<float>;
using V16 = hn::Vec<D16>;
using V32 = hn::Vec<D32>;
using VF = hn::Vec<DF>;

// Highway's fallback has one lane of any type, so none of its vectors splits into wider lanes;
// there the scalar loops after the vector loops do all the work.
#if HWY_TARGET != HWY_SCALAR

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

#endif  // HWY_TARGET != HWY_SCALAR

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

// --- Largest magnitude ------------------------------------------------------------------------

// Magnitudes of BF16 order as their bits do, so the search needs no floating point at all.
HWY_INLINE V16 MaxMagnitudeOfRow(const uint16_t* HWY_RESTRICT row, size_t count, V16 max,
                                 uint16_t* tail_max) {
  const D16 d;
  const V16 mask = hn::Set(d, uint16_t{0x7FFF});
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    max = hn::Max(max, hn::And(hn::LoadU(d, row + i), mask));
  }
  for (; i < count; ++i) {
    *tail_max = std::max(*tail_max, static_cast<uint16_t>(row[i] & 0x7FFFU));
  }
  return max;
}

HWY_INLINE uint16_t LargestLane(V16 max, uint16_t tail_max) {
  const D16 d;
  HWY_ALIGN uint16_t lanes[hn::MaxLanes(d)];
  hn::Store(max, d, lanes);
  for (size_t i = 0; i < hn::Lanes(d); ++i) {
    tail_max = std::max(tail_max, lanes[i]);
  }
  return tail_max;
}

uint16_t MaxMagnitude(const uint16_t* values, size_t count) {
  uint16_t tail_max = 0;
  const V16 max = MaxMagnitudeOfRow(values, count, hn::Zero(D16()), &tail_max);
  return LargestLane(max, tail_max);
}

// --- Encode -----------------------------------------------------------------------------------

// fl(x / scale) for x >= 0.
//
// With fma it is Markstein's correction instead of the slow divide: for r = fl(1 / scale) and
// q = fl(x * r), fl(q + r * (x - q * scale)) is the correctly rounded quotient (P. Markstein, IBM
// J. Res. Dev. 34 (1990), theorem 8.3) as long as nothing leaves the normal range. Here scale lies
// in [2^-43, 2^120], so that only quotients below 2^-50 can, and those round to code 0 either way.
HWY_INLINE VF Quotient(VF x, VF scale, [[maybe_unused]] VF reciprocal) {
#if HWY_NATIVE_FMA
  const VF q = hn::Mul(x, reciprocal);
  const VF remainder = hn::NegMulAdd(q, scale, x);
  return hn::MulAdd(remainder, reciprocal, q);
#else
  return hn::Div(x, scale);
#endif
}

// Codes of 0 <= q: the two branches of FloatToE4m3. There is no saturation to do, for no element is
// larger than its block's amax, and fl(amax / scale) <= 448 * (1 + 2^-22) rounds to 448.
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

#if HWY_TARGET != HWY_SCALAR
// Encodes whole vectors from the start of a row and returns how many elements those were.
HWY_INLINE size_t EncodeVectors(const uint16_t* HWY_RESTRICT row, size_t count, float scale,
                                uint8_t* HWY_RESTRICT codes) {
  const D16 d;
  const hn::Half<hn::Repartition<uint8_t, D16>> d8;
  const V16 magnitude_mask = hn::Set(d, uint16_t{0x7FFF});
  const V16 sign_mask = hn::Set(d, uint16_t{0x0080});
  const VF scales = hn::Set(DF(), scale);
  const VF reciprocals = hn::Set(DF(), 1.0F / scale);
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const V16 v = hn::LoadU(d, row + i);
    const V16 magnitude = hn::And(v, magnitude_mask);
    const V32 even = MagnitudeCodes(Quotient(EvenBf16(magnitude), scales, reciprocals));
    const V32 odd = MagnitudeCodes(Quotient(OddBf16(magnitude), scales, reciprocals));
    const V16 sign = hn::And(hn::ShiftRight<8>(v), sign_mask);
    const V16 wide = hn::Or(Interleave(even, odd), sign);
    hn::StoreU(hn::DemoteTo(d8, hn::BitCast(hn::RebindToSigned<D16>(), wide)), d8, codes + i);
  }
  return i;
}
#endif  // HWY_TARGET != HWY_SCALAR

HWY_INLINE void EncodeRow(const uint16_t* HWY_RESTRICT row, size_t count, float scale,
                          uint8_t* HWY_RESTRICT codes) {
  size_t i = 0;
#if HWY_TARGET != HWY_SCALAR
  i = EncodeVectors(row, count, scale, codes);
#endif
  for (; i < count; ++i) {
    codes[i] = FloatToE4m3(Bf16ToFloat(row[i]) / scale);
  }
}

// A tile is read twice, and its 32 KiB stay in the cache between: one pass over memory.
bool EncodeBlocks(const Fp8BlockEncodeArgs& args) {
  const auto cols = static_cast<size_t>(args.cols);
  const auto rows = static_cast<size_t>(args.rows);
  constexpr auto kDim = static_cast<size_t>(kFp8BlockDim);
  float* scale = args.scales.data();
  for (size_t n = 0; n < rows; n += kDim) {
    const size_t tile_rows = std::min(kDim, rows - n);
    for (size_t k = 0; k < cols; k += kDim) {
      const size_t tile_cols = std::min(kDim, cols - k);
      const size_t begin = n * cols + k;
      uint16_t tail_max = 0;
      V16 max = hn::Zero(D16());
      for (size_t i = 0; i < tile_rows; ++i) {
        max = MaxMagnitudeOfRow(&args.values[begin + i * cols], tile_cols, max, &tail_max);
      }
      const uint16_t amax = LargestLane(max, tail_max);
      if (amax >= 0x7F80U) {
        return false;
      }
      *scale = Fp8BlockScale(Bf16ToFloat(amax));
      for (size_t i = 0; i < tile_rows; ++i) {
        EncodeRow(&args.values[begin + i * cols], tile_cols, *scale, &args.codes[begin + i * cols]);
      }
      ++scale;
    }
  }
  return true;
}

// --- Decode -----------------------------------------------------------------------------------

// FP32 of the code in the low byte of each lane; 0x7F and 0xFF give the quiet NaN 0x7FC00000.
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

#if HWY_TARGET != HWY_SCALAR
// Decodes whole vectors from the start of a row and returns how many elements those were.
HWY_INLINE size_t DecodeVectors(const uint8_t* HWY_RESTRICT codes, size_t count, float scale,
                                uint16_t* HWY_RESTRICT values) {
  const D16 d;
  const D32 d32;
  const hn::Half<hn::Repartition<uint8_t, D16>> d8;
  const VF scales = hn::Set(DF(), scale);
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const V32 wide = hn::BitCast(d32, hn::PromoteTo(d, hn::LoadU(d8, codes + i)));
    const V32 even_codes = hn::And(wide, hn::Set(d32, 0xFFFF));
    const VF even = hn::Mul(CodesToFloat(even_codes), scales);
    const VF odd = hn::Mul(CodesToFloat(hn::ShiftRight<16>(wide)), scales);
    hn::StoreU(Interleave(RoundToBf16Lanes(even), RoundToBf16Lanes(odd)), d, values + i);
  }
  return i;
}
#endif  // HWY_TARGET != HWY_SCALAR

HWY_INLINE void DecodeRow(const uint8_t* HWY_RESTRICT codes, size_t count, float scale,
                          uint16_t* HWY_RESTRICT values) {
  size_t i = 0;
#if HWY_TARGET != HWY_SCALAR
  i = DecodeVectors(codes, count, scale, values);
#endif
  for (; i < count; ++i) {
    values[i] = FloatToBf16(E4m3ToFloat(codes[i]) * scale);
  }
}

void DecodeBlocks(const Fp8BlockDecodeArgs& args) {
  const int64_t scale_cols = NumFp8Blocks(args.cols);
  for (int64_t n = 0; n < args.rows; ++n) {
    for (int64_t k = 0; k < args.cols; k += kFp8BlockDim) {
      const auto begin = static_cast<size_t>(n * args.cols + k);
      const auto scale_idx =
          static_cast<size_t>((n / kFp8BlockDim) * scale_cols + k / kFp8BlockDim);
      DecodeRow(&args.codes[begin], static_cast<size_t>(std::min(kFp8BlockDim, args.cols - k)),
                args.scales[scale_idx], &args.values[begin]);
    }
  }
}

// --- Rounding to BF16 ---------------------------------------------------------------------------

void RoundF32(const float* HWY_RESTRICT in, size_t count, uint16_t* HWY_RESTRICT out) {
  const DF d;
  const hn::Rebind<uint16_t, DF> d_out;
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const V32 bits = RoundToBf16Lanes(hn::LoadU(d, in + i));
    hn::StoreU(hn::TruncateTo(d_out, bits), d_out, out + i);
  }
  for (; i < count; ++i) {
    out[i] = FloatToBf16(in[i]);
  }
}

void RoundF16(const uint16_t* HWY_RESTRICT in, size_t count, uint16_t* HWY_RESTRICT out) {
  const D32 d;
  const DF df;
  const hn::Rebind<uint16_t, D32> d_half;
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const V32 half = hn::PromoteTo(d, hn::LoadU(d_half, in + i));
    const V32 magnitude = hn::ShiftLeft<13>(hn::And(half, hn::Set(d, 0x7FFF)));
    // Read as FP32, the bits are the value times 2^-112, subnormals included: exact.
    const VF value = hn::Mul(hn::BitCast(df, magnitude), hn::Set(df, 0x1p112F));
    const auto not_finite = hn::Eq(hn::And(half, hn::Set(d, 0x7C00)), hn::Set(d, 0x7C00));
    const V32 special = hn::Or(magnitude, hn::Set(d, 0x7F800000U));
    const V32 unsigned_bits = hn::IfThenElse(not_finite, special, hn::BitCast(d, value));
    const V32 sign = hn::ShiftLeft<16>(hn::And(half, hn::Set(d, 0x8000)));
    const V32 bf16 = RoundToBf16Lanes(hn::BitCast(df, hn::Or(unsigned_bits, sign)));
    hn::StoreU(hn::TruncateTo(d_half, bf16), d_half, out + i);
  }
  for (; i < count; ++i) {
    out[i] = FloatToBf16(F16ToFloat(in[i]));
  }
}

}  // namespace octavo::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace octavo::simd {

HWY_EXPORT(MaxMagnitude);
HWY_EXPORT(EncodeBlocks);
HWY_EXPORT(DecodeBlocks);
HWY_EXPORT(RoundF32);
HWY_EXPORT(RoundF16);

uint16_t MaxMagnitudeBits(std::span<const uint16_t> values) {
  return HWY_DYNAMIC_DISPATCH(MaxMagnitude)(values.data(), values.size());
}

bool EncodeFp8Block(const Fp8BlockEncodeArgs& args) {
  return HWY_DYNAMIC_DISPATCH(EncodeBlocks)(args);
}

void DecodeFp8Block(const Fp8BlockDecodeArgs& args) { HWY_DYNAMIC_DISPATCH(DecodeBlocks)(args); }

void RoundF32ToBf16(std::span<const float> in, std::span<uint16_t> out) {
  HWY_DYNAMIC_DISPATCH(RoundF32)(in.data(), in.size(), out.data());
}

void RoundF16ToBf16(std::span<const uint16_t> in, std::span<uint16_t> out) {
  HWY_DYNAMIC_DISPATCH(RoundF16)(in.data(), in.size(), out.data());
}

}  // namespace octavo::simd
#endif  // HWY_ONCE
