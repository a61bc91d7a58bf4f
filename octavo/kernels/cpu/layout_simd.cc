// Whole panels to rows and back: transpositions of 32-bit words (layout.h).

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "octavo/kernels/cpu/layout_simd.cc"
#ifndef HWY_WANT_AVX3_DL
#define HWY_WANT_AVX3_DL
#endif
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4)

// What the AVX targets use; the baseline target, which tools look at, is empty.
// NOLINTBEGIN(misc-include-cleaner)
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

#include <cstddef>
#include <cstdint>

#include "octavo/kernels/cpu/kernel_table.h"
#include "octavo/kernels/cpu/layout.h"
#include "octavo/kernels/cpu/vec-inl.h"
// NOLINTEND(misc-include-cleaner)

HWY_BEFORE_NAMESPACE();
namespace octavo::cpu::HWY_NAMESPACE {

#if OCTAVO_CPU_TARGET

constexpr int64_t kWordBytes = 4;
constexpr int64_t kLineBytes = kPanelCols * kWordBytes;
// Panels and rows come from memory one after the other; across pages only a fetch ahead helps.
constexpr int64_t kPrefetchBytes = 4096;

// Four words of a line of an FP8 panel are the 16-bit units A0 A1 A2 A3 B0 B1 B2 B3; as words of
// rows they are A0 B0, A1 B1, A2 B2, A3 B3.
alignas(16) constexpr uint8_t kFp8ToWords[16] = {0, 1, 8,  9,  2, 3, 10, 11,
                                                 4, 5, 12, 13, 6, 7, 14, 15};
alignas(16) constexpr uint8_t kWordsToFp8[16] = {0, 1, 4, 5, 8,  9,  12, 13,
                                                 2, 3, 6, 7, 10, 11, 14, 15};

HWY_INLINE VU32 Shuffled(VU32 v, const uint8_t* within_blocks) {
  const hn::ScalableTag<uint8_t> d;
  return hn::BitCast(DU32(),
                     hn::TableLookupBytes(hn::BitCast(d, v), hn::LoadDup128(d, within_blocks)));
}

// Lane n of v[i] becomes lane i of v[n].
HWY_INLINE void Transpose(VU32 (&v)[kLanes]) {
  const DU32 d;
  const hn::Repartition<uint64_t, DU32> d64;
  const auto low = [&](VU32 a, VU32 b) HWY_ATTR {
    return hn::BitCast(d, hn::InterleaveLower(d64, hn::BitCast(d64, a), hn::BitCast(d64, b)));
  };
  const auto high = [&](VU32 a, VU32 b) HWY_ATTR {
    return hn::BitCast(d, hn::InterleaveUpper(d64, hn::BitCast(d64, a), hn::BitCast(d64, b)));
  };
  // Four vectors at a time, within blocks of four lanes: block b of t[g + c] is lane 4b + c of
  // v[g .. g + 3].
  VU32 t[kLanes];
  HWY_UNROLL(4)
  for (int64_t g = 0; g < kLanes; g += 4) {
    const VU32 low01 = hn::InterleaveLower(d, v[g], v[g + 1]);
    const VU32 high01 = hn::InterleaveUpper(d, v[g], v[g + 1]);
    const VU32 low23 = hn::InterleaveLower(d, v[g + 2], v[g + 3]);
    const VU32 high23 = hn::InterleaveUpper(d, v[g + 2], v[g + 3]);
    t[g] = low(low01, low23);
    t[g + 1] = high(low01, low23);
    t[g + 2] = low(high01, high23);
    t[g + 3] = high(high01, high23);
  }
  // Then the blocks: block g of v[4b + c] is block b of t[4g + c].
  HWY_UNROLL(4)
  for (int64_t c = 0; c < 4; ++c) {
#if HWY_TARGET == HWY_AVX2
    v[c] = hn::ConcatLowerLower(d, t[4 + c], t[c]);
    v[4 + c] = hn::ConcatUpperUpper(d, t[4 + c], t[c]);
#else
    const __m512i b01_of_01 = _mm512_shuffle_i32x4(t[c].raw, t[4 + c].raw, 0x44);
    const __m512i b01_of_23 = _mm512_shuffle_i32x4(t[8 + c].raw, t[12 + c].raw, 0x44);
    const __m512i b23_of_01 = _mm512_shuffle_i32x4(t[c].raw, t[4 + c].raw, 0xEE);
    const __m512i b23_of_23 = _mm512_shuffle_i32x4(t[8 + c].raw, t[12 + c].raw, 0xEE);
    v[c] = VU32{_mm512_shuffle_i32x4(b01_of_01, b01_of_23, 0x88)};
    v[4 + c] = VU32{_mm512_shuffle_i32x4(b01_of_01, b01_of_23, 0xDD)};
    v[8 + c] = VU32{_mm512_shuffle_i32x4(b23_of_01, b23_of_23, 0x88)};
    v[12 + c] = VU32{_mm512_shuffle_i32x4(b23_of_01, b23_of_23, 0xDD)};
#endif
  }
}

HWY_INLINE VU32 LoadWords(const std::byte* from) {
  return hn::LoadU(DU32(), reinterpret_cast<const uint32_t*>(from));
}
HWY_INLINE void StoreWords(VU32 v, std::byte* to) {
  hn::StoreU(v, DU32(), reinterpret_cast<uint32_t*>(to));
}

// kLanes lines at a time, kLanes of their words.
template <bool kIsFp8>
int64_t UnpackLines(const LinesArgs& args) {
  int64_t line = 0;
  for (; line + kLanes <= args.num_lines; line += kLanes) {
    for (int64_t n = 0; n < kPanelCols; n += kLanes) {
      const std::byte* from = args.from + line * kLineBytes + n * kWordBytes;
      std::byte* to = args.to + n * args.row_bytes + line * kWordBytes;
      VU32 v[kLanes];
      HWY_UNROLL(16)
      for (int64_t i = 0; i < kLanes; ++i) {
        hwy::Prefetch(from + i * kLineBytes + kPrefetchBytes);
        v[i] = LoadWords(from + i * kLineBytes);
        v[i] = kIsFp8 ? Shuffled(v[i], kFp8ToWords) : v[i];
      }
      Transpose(v);
      HWY_UNROLL(16)
      for (int64_t i = 0; i < kLanes; ++i) {
        StoreWords(v[i], to + i * args.row_bytes);
      }
    }
  }
  return line;
}

template <bool kIsFp8>
int64_t PackLines(const LinesArgs& args) {
  int64_t line = 0;
  for (; line + kLanes <= args.num_lines; line += kLanes) {
    for (int64_t n = 0; n < kPanelCols; n += kLanes) {
      const std::byte* from = args.from + n * args.row_bytes + line * kWordBytes;
      std::byte* to = args.to + line * kLineBytes + n * kWordBytes;
      VU32 v[kLanes];
      HWY_UNROLL(16)
      for (int64_t i = 0; i < kLanes; ++i) {
        v[i] = LoadWords(from + i * args.row_bytes);
      }
      Transpose(v);
      HWY_UNROLL(16)
      for (int64_t i = 0; i < kLanes; ++i) {
        v[i] = kIsFp8 ? Shuffled(v[i], kWordsToFp8) : v[i];
        StoreWords(v[i], to + i * kLineBytes);
      }
    }
  }
  return line;
}

int64_t Unpack(const LinesArgs& args) {
  return args.is_fp8 ? UnpackLines<true>(args) : UnpackLines<false>(args);
}
int64_t Pack(const LinesArgs& args) {
  return args.is_fp8 ? PackLines<true>(args) : PackLines<false>(args);
}

constexpr LayoutKernels kLayoutKernels = {.pack = Pack, .unpack = Unpack};

#endif  // OCTAVO_CPU_TARGET

}  // namespace octavo::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace octavo::cpu {

const LayoutKernels* FindLayoutKernels(VectorTarget target) {
  switch (target) {
    case VectorTarget::kAvx2:
#if HWY_TARGETS & HWY_AVX2
      return &N_AVX2::kLayoutKernels;
#else
      return nullptr;
#endif
    case VectorTarget::kAvx512:
#if HWY_TARGETS & HWY_AVX3
      return &N_AVX3::kLayoutKernels;
#else
      return nullptr;
#endif
    case VectorTarget::kAvx512Vbmi:
#if HWY_TARGETS & HWY_AVX3_DL
      return &N_AVX3_DL::kLayoutKernels;
#else
      return nullptr;
#endif
  }
  return nullptr;
}

}  // namespace octavo::cpu
#endif  // HWY_ONCE
