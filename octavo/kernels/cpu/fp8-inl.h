// FP8 weight codes in panel order (layout.h) to pairs of BF16, exactly, NaN codes included.
// Included once per target (Highway's foreach_target), hence the toggling guard.

#if defined(OCTAVO_KERNELS_CPU_FP8_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef OCTAVO_KERNELS_CPU_FP8_INL_H_
#undef OCTAVO_KERNELS_CPU_FP8_INL_H_
#else
#define OCTAVO_KERNELS_CPU_FP8_INL_H_
#endif

#include <hwy/highway.h>

#include <bit>
#include <cstdint>

#include "octavo/kernels/cpu/fp8_table.h"
#include "octavo/kernels/cpu/vec-inl.h"

HWY_BEFORE_NAMESPACE();
namespace octavo::cpu::HWY_NAMESPACE {

#if OCTAVO_CPU_TARGET

using DU8 = hn::ScalableTag<uint8_t>;
using VU8 = hn::Vec<DU8>;
// Codes of one load: a group of 64 on AVX-512, half of it (8 of the 16 columns) on AVX2.
constexpr int64_t kCodeLanes = static_cast<int64_t>(HWY_LANES(uint8_t));

#if HWY_TARGET == HWY_AVX3_DL

// Tables of 128 bytes, looked up by VBMI (VPERMI2B).
class Fp8Decoder {
 public:
  struct Pairs {
    VU32 first;   // Depths 0 and 1 of a group, of the columns of the load.
    VU32 second;  // Depths 2 and 3.
  };

  HWY_INLINE Fp8Decoder()
      : low0_(hn::Load(DU8(), kFp8DecodeTable.low)),
        low1_(hn::Load(DU8(), kFp8DecodeTable.low + 64)),
        high0_(hn::Load(DU8(), kFp8DecodeTable.high)),
        high1_(hn::Load(DU8(), kFp8DecodeTable.high + 64)),
        sign_mask_(hn::Set(DU8(), 0x80)) {}

  HWY_INLINE Pairs Decode(const uint8_t* codes) const { return Decode(hn::LoadU(DU8(), codes)); }
  HWY_INLINE Pairs Decode(VU8 code) const {
    const DU8 d;
    // The indices are the low 7 bits of the codes: signs do not take part.
    const VU8 low{_mm512_permutex2var_epi8(low0_.raw, code.raw, low1_.raw)};
    const VU8 high{_mm512_permutex2var_epi8(high0_.raw, code.raw, high1_.raw)};
    const VU8 signed_high = hn::OrAnd(high, code, sign_mask_);
    return {hn::BitCast(DU32(), hn::InterleaveLower(d, low, signed_high)),
            hn::BitCast(DU32(), hn::InterleaveUpper(d, low, signed_high))};
  }

 private:
  VU8 low0_, low1_, high0_, high1_;
  VU8 sign_mask_;
};

#else

constexpr uint8_t SubnormalByte(int m, int shift) {
  return static_cast<uint8_t>(std::bit_cast<uint32_t>(static_cast<float>(m) * 0x1p-9F) >> shift);
}

// With c = S EEEE MMM = high nibble H, low nibble L, the BF16 of a normal code has the bytes
// low = L << 4 and high = S | (60 + (H & 7)), since 127 - 7 = 120 is even. Where H & 7 == 0, tables
// of 16 by L are right for all: the subnormals M * 2^-9 (L < 8) and EEEE = 1 (L >= 8). NaN (0x7F)
// needs its exponent filled.
class Fp8Decoder {
 public:
  struct Pairs {
    VU32 first;   // Depths 0 and 1 of a group, of the columns of the load.
    VU32 second;  // Depths 2 and 3.
  };

  HWY_INLINE Fp8Decoder()
      : small_low_(hn::LoadDup128(DU8(), kSmallLow)),
        small_high_(hn::LoadDup128(DU8(), kSmallHigh)) {}

  HWY_INLINE Pairs Decode(const uint8_t* codes) const { return Decode(hn::LoadU(DU8(), codes)); }
  HWY_INLINE Pairs Decode(VU8 code) const {
    const DU8 d;
    const hn::Repartition<uint16_t, DU8> d16;
    const VU8 low_nibble = hn::Set(d, 0x0F);
    const VU8 magnitude_mask = hn::Set(d, 0x7F);
    const VU8 low4 = hn::And(code, low_nibble);
    const VU8 high3 = hn::And(code, hn::Set(d, 0x70));
    const auto is_small = hn::Eq(high3, hn::Zero(d));
    // Shifts of 16-bit lanes: nothing crosses between bytes that is not masked.
    const VU8 normal_low = hn::BitCast(d, hn::ShiftLeft<4>(hn::BitCast(d16, low4)));
    const VU8 normal_high =
        hn::Add(hn::BitCast(d, hn::ShiftRight<4>(hn::BitCast(d16, high3))), hn::Set(d, 60));
    const VU8 low = hn::IfThenElse(is_small, hn::TableLookupBytes(small_low_, low4), normal_low);
    const VU8 high = hn::IfThenElse(is_small, hn::TableLookupBytes(small_high_, low4), normal_high);
    const auto is_nan = hn::Eq(hn::And(code, magnitude_mask), magnitude_mask);
    const VU8 with_nan = hn::IfThenElse(is_nan, magnitude_mask, high);
    const VU8 signed_high = hn::OrAnd(with_nan, code, hn::Set(d, 0x80));
    return {hn::BitCast(DU32(), hn::InterleaveLower(d, low, signed_high)),
            hn::BitCast(DU32(), hn::InterleaveUpper(d, low, signed_high))};
  }

 private:
  alignas(16) static constexpr uint8_t kSmallLow[16] = {SubnormalByte(0, 16),
                                                        SubnormalByte(1, 16),
                                                        SubnormalByte(2, 16),
                                                        SubnormalByte(3, 16),
                                                        SubnormalByte(4, 16),
                                                        SubnormalByte(5, 16),
                                                        SubnormalByte(6, 16),
                                                        SubnormalByte(7, 16),
                                                        0x80,
                                                        0x90,
                                                        0xA0,
                                                        0xB0,
                                                        0xC0,
                                                        0xD0,
                                                        0xE0,
                                                        0xF0};
  alignas(16) static constexpr uint8_t kSmallHigh[16] = {SubnormalByte(0, 24),
                                                         SubnormalByte(1, 24),
                                                         SubnormalByte(2, 24),
                                                         SubnormalByte(3, 24),
                                                         SubnormalByte(4, 24),
                                                         SubnormalByte(5, 24),
                                                         SubnormalByte(6, 24),
                                                         SubnormalByte(7, 24),
                                                         60,
                                                         60,
                                                         60,
                                                         60,
                                                         60,
                                                         60,
                                                         60,
                                                         60};
  VU8 small_low_;
  VU8 small_high_;
};

#endif  // HWY_AVX3_DL

#endif  // OCTAVO_CPU_TARGET

}  // namespace octavo::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // Toggling guard.
