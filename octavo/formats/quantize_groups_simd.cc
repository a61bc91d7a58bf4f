// The vector twins of the MXFP8 and NVFP4 encoders; one source for every target.

#ifndef HWY_WANT_AVX3_DL
#define HWY_WANT_AVX3_DL  // VBMI looks up bytes in tables.
#endif
#ifndef HWY_DISABLED_TARGETS
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4)
#endif

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "octavo/formats/quantize_groups_simd.cc"
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "octavo/formats/e2m1.h"
#include "octavo/formats/e4m3.h"
#include "octavo/formats/e4m3_encode_simd-inl.h"
#include "octavo/formats/e8m0.h"
#include "octavo/formats/lanes_simd-inl.h"
#include "octavo/formats/mxfp8.h"
#include "octavo/formats/nvfp4.h"
#include "octavo/formats/quantize.h"
#include "octavo/formats/quantize_scalar.h"
#include "octavo/formats/quantize_simd.h"

HWY_BEFORE_NAMESPACE();
namespace octavo::simd::HWY_NAMESPACE {

#if HWY_TARGET == HWY_SCALAR

uint32_t EncodeGroups(const QuantizeArgs& args) {
  const uint32_t bits = std::bit_cast<uint32_t>(AmaxScalar(args.values));
  if (bits < 0x7F800000U) {
    scalar::Quantize(args);
  }
  return bits;
}

uint32_t EncodeMxfp8(const QuantizeArgs& args) { return EncodeGroups(args); }
uint32_t EncodeNvfp4(const QuantizeArgs& args) { return EncodeGroups(args); }

#else

constexpr auto kMxGroup = static_cast<size_t>(kMxGroupElems);
constexpr auto kNvGroup = static_cast<size_t>(kNvfp4GroupElems);

// --- MXFP8 --------------------------------------------------------------------------------------

// Groups one by one, on any target. Returns bits of the largest magnitude.
template <typename T>
HWY_INLINE uint32_t EncodeMxGroups(const T* values, size_t num_groups, uint8_t* codes,
                                   uint8_t* scales) {
  uint32_t largest = 0;
  for (size_t g = 0; g < num_groups; ++g) {
    MaxMagnitude<T> max;
    max.Clear();
    max.Add(values + g * kMxGroup, kMxGroup);
    largest = std::max(largest, max.Fp32Bits());
    scales[g] = Mxfp8ScaleCode(std::bit_cast<float>(max.Fp32Bits()));
    EncodeByArithmetic<true>(values + g * kMxGroup, kMxGroup, Divisor(E8m0ToFloat(scales[g])),
                             codes + g * kMxGroup);
  }
  return largest;
}

#if HWY_TARGET == HWY_AVX3_DL

// Vectors that are worked on at a time.
constexpr size_t kVectors = 8;

// Takes pairs of units of `D` from x and y apart and keeps the larger of each: the result holds
// units of x and y by turns, half as many of each within a 128-bit block.
template <typename D>
HWY_INLINE V16 Fold(D d, V16 x, V16 y) {
  const auto xd = hn::BitCast(d, x);
  const auto yd = hn::BitCast(d, y);
  return hn::Max(hn::BitCast(D16(), hn::InterleaveLower(d, xd, yd)),
                 hn::BitCast(D16(), hn::InterleaveUpper(d, xd, yd)));
}

// Lane j of each 128-bit block: the largest of the eight magnitudes of that block in vector j.
HWY_INLINE V16 BlockMaximaOfEight(const uint16_t* HWY_RESTRICT values) {
  const D16 d;
  const auto load = [&](size_t j) {
    hwy::Prefetch(values + j * kLanes16 + kAhead<uint16_t>);
    return Magnitude(hn::LoadU(d, values + j * kLanes16));
  };
  const D32 d32;
  const hn::ScalableTag<uint64_t> d64;
  const V16 first = Fold(d32, Fold(d, load(0), load(1)), Fold(d, load(2), load(3)));
  const V16 second = Fold(d32, Fold(d, load(4), load(5)), Fold(d, load(6), load(7)));
  return Fold(d64, first, second);
}

// Scale codes below this leave no room for the subnormals of BF16, which the table does not know.
constexpr uint16_t kLeastTableScale = 12;

// Of the groups that are worked on at a time, the magnitudes as BF16 bits.
using DMx = hn::Half<hn::Half<D16> >;
using DNv = hn::Half<D16>;

// FP32 bits of the largest.
template <typename D>
HWY_INLINE uint32_t LargestBits(D d, hn::Vec<D> magnitudes) {
  HWY_ALIGN uint16_t bits[hn::MaxLanes(d)];
  hn::Store(magnitudes, d, bits);
  return uint32_t{*std::max_element(bits, bits + hn::MaxLanes(d))} << 16;
}

// A vector is one group.
HWY_INLINE void EncodeEightMxGroups(const CodeTable<true>& table,
                                    const uint16_t* HWY_RESTRICT values,
                                    uint8_t* HWY_RESTRICT codes, uint8_t* HWY_RESTRICT scales,
                                    hn::Vec<DMx>* largest) {
  const DNv d256;
  const DMx d128;
  const V16 maxima = BlockMaximaOfEight(values);
  const auto half = hn::Max(hn::LowerHalf(d256, maxima), hn::UpperHalf(d256, maxima));
  const auto amax = hn::Max(hn::LowerHalf(d128, half), hn::UpperHalf(d128, half));
  // RCEIL of 1.m * 2^e / 448 = 1.m / 1.75 * 2^(e - 8): m beyond 96 carries into the exponent.
  const auto scale = hn::SaturatedSub(hn::ShiftRight<7>(hn::Add(amax, hn::Set(d128, uint16_t{31}))),
                                      hn::Set(d128, uint16_t{8}));
  *largest = hn::Max(*largest, amax);
  const hn::Rebind<uint8_t, decltype(d128)> d8;
  const auto bytes = hn::TruncateTo(d8, scale);
  hn::StoreU(bytes, d8, scales);
  if (!hn::AllTrue(d128, hn::Gt(scale, hn::Set(d128, uint16_t{kLeastTableScale - 1})))) {
    EncodeMxGroups(values, kVectors, codes, scales);
    return;
  }
  const V8 tops{
      _mm512_castsi128_si512(hn::Add(bytes, hn::Set(d8, CodeTable<true>::TopExponent(0))).raw)};
  for (size_t j = 0; j < kVectors; j += 2) {
    const V8 group = hn::Set(D8(), static_cast<uint8_t>(j));
    const V8 idx =
        hn::IfThenElse(hn::FirstN(D8(), kMxGroup), group, hn::Add(group, hn::Set(D8(), 1)));
    const V8 top{_mm512_permutexvar_epi8(idx.raw, tops.raw)};
    V8 pair;
    const bool done = table.Codes(hn::LoadU(D16(), values + j * kMxGroup),
                                  hn::LoadU(D16(), values + (j + 1) * kMxGroup), top, &pair);
    hn::StoreU(pair, D8(), codes + j * kMxGroup);
    if (HWY_UNLIKELY(!done)) {
      EncodeMxGroups(values + j * kMxGroup, 2, codes + j * kMxGroup, scales + j);
    }
  }
}

HWY_INLINE uint32_t EncodeMxValues(const uint16_t* values, size_t num_groups, uint8_t* codes,
                                   uint8_t* scales) {
  CodeTable<true> table;
  table.Set(1.0F);
  auto largest = hn::Zero(DMx());
  const size_t whole = num_groups - num_groups % kVectors;
  for (size_t g = 0; g < whole; g += kVectors) {
    EncodeEightMxGroups(table, values + g * kMxGroup, codes + g * kMxGroup, scales + g, &largest);
  }
  const uint32_t rest = EncodeMxGroups(values + whole * kMxGroup, num_groups - whole,
                                       codes + whole * kMxGroup, scales + whole);
  return std::max(LargestBits(DMx(), largest), rest);
}

#else

HWY_INLINE uint32_t EncodeMxValues(const uint16_t* values, size_t num_groups, uint8_t* codes,
                                   uint8_t* scales) {
  return EncodeMxGroups(values, num_groups, codes, scales);
}

#endif  // HWY_TARGET == HWY_AVX3_DL

HWY_INLINE uint32_t EncodeMxValues(const float* values, size_t num_groups, uint8_t* codes,
                                   uint8_t* scales) {
  return EncodeMxGroups(values, num_groups, codes, scales);
}

// The width is a multiple of the group, so that the matrix is one row of groups.
template <typename T>
HWY_INLINE uint32_t EncodeMxfp8Of(const QuantizeArgs& args) {
  return EncodeMxValues(reinterpret_cast<const T*>(args.values.data), args.scales.size(),
                        args.codes.data(), reinterpret_cast<uint8_t*>(args.scales.data()));
}

uint32_t EncodeMxfp8(const QuantizeArgs& args) {
  return args.values.dtype == DType::kF32 ? EncodeMxfp8Of<float>(args)
                                          : EncodeMxfp8Of<uint16_t>(args);
}

// --- NVFP4 --------------------------------------------------------------------------------------

// What groups share: fl(S * fl(1/6)) and D of nvfp4.h.
struct NvScale {
  float group_factor;
  float tensor_scale;
};

HWY_INLINE VF LoadFloats(const uint16_t* values) {
  const hn::Rebind<uint16_t, D32> d16;
  return hn::BitCast(DF(), hn::ShiftLeft<16>(hn::PromoteTo(D32(), hn::LoadU(d16, values))));
}
HWY_INLINE VF LoadFloats(const float* values) { return hn::LoadU(DF(), values); }

// FloatToE2m1 of y >= 0 by its seven midpoints.
HWY_INLINE V32 E2m1Codes(VF y) {
  const D32 d;
  const DF df;
  const auto one_if = [&](auto mask) {
    return hn::IfThenElseZero(hn::RebindMask(d, mask), hn::Set(d, 1));
  };
  const V32 low = hn::Add(
      hn::Add(one_if(hn::Gt(y, hn::Set(df, 0.25F))), one_if(hn::Ge(y, hn::Set(df, 0.75F)))),
      hn::Add(one_if(hn::Gt(y, hn::Set(df, 1.25F))), one_if(hn::Ge(y, hn::Set(df, 1.75F)))));
  const V32 high =
      hn::Add(one_if(hn::Gt(y, hn::Set(df, 2.5F))),
              hn::Add(one_if(hn::Ge(y, hn::Set(df, 3.5F))), one_if(hn::Gt(y, hn::Set(df, 5.0F)))));
  return hn::Add(low, high);
}

// Groups one by one, on any target. Returns bits of the largest magnitude.
template <typename T>
HWY_INLINE uint32_t EncodeNvGroups(const T* values, size_t num_groups, const NvScale& shared,
                                   uint8_t* codes, uint8_t* scales) {
  uint32_t largest = 0;
  for (size_t g = 0; g < num_groups; ++g) {
    MaxMagnitude<T> max;
    max.Clear();
    max.Add(values + g * kNvGroup, kNvGroup);
    largest = std::max(largest, max.Fp32Bits());
    scales[g] = Nvfp4GroupScale(std::bit_cast<float>(max.Fp32Bits()), shared.group_factor);
    const VF multiplier =
        hn::Set(DF(), Nvfp4Multiplier(E4m3ToFloat(scales[g]), shared.tensor_scale));
    HWY_ALIGN uint8_t group[kNvGroup];
    for (size_t k = 0; k < kNvGroup; k += kLanes32) {
      const VF x = LoadFloats(values + g * kNvGroup + k);
      const V32 sign = hn::ShiftLeft<3>(hn::ShiftRight<31>(hn::BitCast(D32(), x)));
      const V32 code = hn::Or(E2m1Codes(hn::Mul(hn::Abs(x), multiplier)), sign);
      StoreLowBytes(code, group + k);
    }
    for (size_t i = 0; i < kNvGroup / 2; ++i) {
      codes[g * kNvGroup / 2 + i] = PackE2m1(group[2 * i], group[2 * i + 1]);
    }
  }
  return largest;
}

#if HWY_TARGET == HWY_AVX3_DL

// E2M1's midpoints lie on a grid of two mantissa bits. This is the code by twice the place on that
// grid, plus one between two of its points; entry 0 is 0.25, and everything below.
constexpr uint32_t kGridBegin = std::bit_cast<uint32_t>(0.25F) >> 21;
constexpr std::array<uint8_t, 64> MakeE2m1Grid() {
  std::array<uint8_t, 64> grid{};
  for (uint32_t i = 0; i < grid.size(); ++i) {
    grid[i] = FloatToE2m1(std::bit_cast<float>(((kGridBegin + i / 2) << 21) | i % 2));
  }
  return grid;
}
alignas(64) constexpr std::array<uint8_t, 64> kE2m1Grid = MakeE2m1Grid();

// Of 32 BF16 with their multipliers, those of even elements being those of their odd neighbours:
// places in the grid.
HWY_INLINE V16 E2m1Places(V16 v, VF multiplier) {
  const D16 d;
  const D32 d32;
  const V16 magnitude = Magnitude(v);
  const V16 even = hn::BitCast(d, hn::Mul(EvenBf16(magnitude), multiplier));
  const V16 odd = hn::BitCast(d, hn::Mul(OddBf16(magnitude), multiplier));
  // The upper halves of the products in order, with a bit that says whether the lower are 0.
  const V16 upper = hn::OddEven(odd, hn::BitCast(d, hn::ShiftRight<16>(hn::BitCast(d32, even))));
  const V16 lower = hn::OddEven(hn::BitCast(d, hn::ShiftLeft<16>(hn::BitCast(d32, odd))), even);
  const V16 y = hn::Or(upper, hn::Min(lower, hn::Set(d, uint16_t{1})));
  // Rounded down plus rounded up: odd between two points of the grid.
  const V16 place =
      hn::Add(hn::ShiftRight<5>(y), hn::ShiftRight<5>(hn::Add(y, hn::Set(d, uint16_t{31}))));
  return hn::Min(hn::SaturatedSub(place, hn::Set(d, static_cast<uint16_t>(2 * kGridBegin))),
                 hn::Set(d, uint16_t{63}));
}

// 64 BF16 with their places in the grid to 32 bytes.
HWY_INLINE void StoreE2m1(const V16 (&values)[2], const V16 (&places)[2],
                          uint8_t* HWY_RESTRICT codes) {
  const D8 d;
  const D16 d16;
  const auto iota = hn::Iota(d, 0);
  const V8 even = hn::Add(iota, iota);
  const V8 odd = hn::Add(even, hn::Set(d, uint8_t{1}));
  const V8 place{_mm512_permutex2var_epi8(places[0].raw, even.raw, places[1].raw)};
  const V8 upper{_mm512_permutex2var_epi8(values[0].raw, odd.raw, values[1].raw)};
  const V8 magnitude{_mm512_permutexvar_epi8(place.raw, _mm512_load_si512(kE2m1Grid.data()))};
  const V8 shifted = hn::BitCast(d, hn::ShiftRight<4>(hn::BitCast(d16, upper)));
  const V8 code = hn::Or(magnitude, hn::And(shifted, hn::Set(d, uint8_t{8})));
  // The code of the even element plus 16 times that of the odd one.
  const __m512i pairs = _mm512_maddubs_epi16(code.raw, _mm512_set1_epi16(0x1001));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes), _mm512_cvtepi16_epi8(pairs));
}

// Two groups a vector. Stores the scales of sixteen groups, and returns their multipliers.
HWY_INLINE VF ScaleSixteenNvGroups(const uint16_t* HWY_RESTRICT values, const NvScale& shared,
                                   uint8_t* HWY_RESTRICT scales, hn::Vec<DNv>* largest) {
  const DF df;
  const D32 d32;
  const DNv d256;
  const DMx d128;
  const V16 half_groups = BlockMaximaOfEight(values);
  const V16 groups = hn::Max(half_groups, hn::SwapAdjacentBlocks(half_groups));
  const auto even = hn::LowerHalf(d128, hn::LowerHalf(d256, groups));
  const auto odd = hn::LowerHalf(d128, hn::UpperHalf(d256, groups));
  const auto in_order =
      hn::Combine(d256, hn::InterleaveUpper(d128, even, odd), hn::InterleaveLower(d128, even, odd));
  *largest = hn::Max(*largest, in_order);

  const VF amax = hn::BitCast(df, hn::ShiftLeft<16>(hn::PromoteTo(d32, in_order)));
  const VF wanted = hn::Min(hn::Mul(amax, hn::Set(df, shared.group_factor)), hn::Set(df, kE4m3Max));
  const V32 scale_codes = MagnitudeCodes(wanted);
  StoreLowBytes(scale_codes, scales);
  const VF scale = hn::Mul(CodesToFloat(scale_codes), hn::Set(df, shared.tensor_scale));
  // 1 / 0 is infinite, and the least of the two is finite.
  return hn::Min(hn::Div(hn::Set(df, 1.0F), scale), hn::Set(df, std::numeric_limits<float>::max()));
}

HWY_INLINE void EncodeSixteenNvGroups(const uint16_t* HWY_RESTRICT values, VF multipliers,
                                      uint8_t* HWY_RESTRICT codes) {
  const DF df;
  const D32 d32;
  const V32 group_of_lane = hn::ShiftRight<3>(hn::Iota(d32, 0));
  for (size_t j = 0; j < kVectors; j += 2) {
    V16 pair[2];
    V16 places[2];
    for (size_t i = 0; i < 2; ++i) {
      const V32 idx = hn::Add(group_of_lane, hn::Set(d32, static_cast<uint32_t>(2 * (j + i))));
      const VF multiplier = hn::TableLookupLanes(multipliers, hn::IndicesFromVec(df, idx));
      pair[i] = hn::LoadU(D16(), values + (j + i) * kLanes16);
      places[i] = E2m1Places(pair[i], multiplier);
    }
    StoreE2m1(pair, places, codes + j * kLanes16 / 2);
  }
}

// The next scales are computed while codes are, for both are long chains of operations.
HWY_INLINE uint32_t EncodeNvValues(const uint16_t* values, size_t num_groups, const NvScale& shared,
                                   uint8_t* codes, uint8_t* scales) {
  constexpr size_t kGroups = 2 * kVectors;
  auto largest = hn::Zero(DNv());
  const size_t whole = num_groups - num_groups % kGroups;
  VF next = hn::Zero(DF());
  if (whole > 0) {
    next = ScaleSixteenNvGroups(values, shared, scales, &largest);
  }
  for (size_t g = 0; g < whole; g += kGroups) {
    const VF multipliers = next;
    if (g + kGroups < whole) {
      next = ScaleSixteenNvGroups(values + (g + kGroups) * kNvGroup, shared, scales + g + kGroups,
                                  &largest);
    }
    EncodeSixteenNvGroups(values + g * kNvGroup, multipliers, codes + g * kNvGroup / 2);
  }
  const uint32_t rest = EncodeNvGroups(values + whole * kNvGroup, num_groups - whole, shared,
                                       codes + whole * kNvGroup / 2, scales + whole);
  return std::max(LargestBits(DNv(), largest), rest);
}

#else

HWY_INLINE uint32_t EncodeNvValues(const uint16_t* values, size_t num_groups, const NvScale& shared,
                                   uint8_t* codes, uint8_t* scales) {
  return EncodeNvGroups(values, num_groups, shared, codes, scales);
}

#endif  // HWY_TARGET == HWY_AVX3_DL

HWY_INLINE uint32_t EncodeNvValues(const float* values, size_t num_groups, const NvScale& shared,
                                   uint8_t* codes, uint8_t* scales) {
  return EncodeNvGroups(values, num_groups, shared, codes, scales);
}

template <typename T>
HWY_INLINE uint32_t EncodeNvfp4Of(const QuantizeArgs& args) {
  const NvScale shared = {.group_factor = Nvfp4GroupFactor(args.amax),
                          .tensor_scale = Nvfp4TensorScale(args.amax)};
  return EncodeNvValues(reinterpret_cast<const T*>(args.values.data), args.scales.size(), shared,
                        args.codes.data(), reinterpret_cast<uint8_t*>(args.scales.data()));
}

uint32_t EncodeNvfp4(const QuantizeArgs& args) {
  return args.values.dtype == DType::kF32 ? EncodeNvfp4Of<float>(args)
                                          : EncodeNvfp4Of<uint16_t>(args);
}

#endif  // HWY_TARGET == HWY_SCALAR

}  // namespace octavo::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace octavo::simd {

HWY_EXPORT(EncodeMxfp8);
HWY_EXPORT(EncodeNvfp4);

uint32_t QuantizeMxfp8(const QuantizeArgs& args) { return HWY_DYNAMIC_DISPATCH(EncodeMxfp8)(args); }
uint32_t QuantizeNvfp4(const QuantizeArgs& args) { return HWY_DYNAMIC_DISPATCH(EncodeNvfp4)(args); }

}  // namespace octavo::simd
#endif  // HWY_ONCE
