// FP8 in the KV cache: encoding of tokens, decoding of pages.

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "octavo/kernels/cpu/kv_simd.cc"
#ifndef HWY_WANT_AVX3_DL
#define HWY_WANT_AVX3_DL
#endif
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4)

// What the AVX targets use; the baseline target, which tools look at, is empty.
// NOLINTBEGIN(misc-include-cleaner)
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

#include <algorithm>

#include "octavo/formats/e4m3.h"
#include "octavo/kernels/cpu/fp8-inl.h"
#include "octavo/kernels/cpu/kernel_table.h"
#include "octavo/kernels/cpu/layout.h"
#include "octavo/kernels/cpu/vec-inl.h"
// NOLINTEND(misc-include-cleaner)

HWY_BEFORE_NAMESPACE();
namespace octavo::cpu::HWY_NAMESPACE {

#if OCTAVO_CPU_TARGET

// FloatToE4m3 of finite |v| <= 448, in the low bytes.
HWY_INLINE VU32 E4m3Codes(VF v) {
  const DF d;
  const DU32 du;
  const VF magnitude = hn::Abs(v);
  const VU32 bits = hn::BitCast(du, magnitude);
  const VU32 tie = hn::And(hn::ShiftRight<20>(bits), hn::Set(du, 1));
  const VU32 rounded = hn::Add(bits, hn::Add(tie, hn::Set(du, 0x7FFFFU)));
  const VU32 normal = hn::Sub(hn::ShiftRight<20>(rounded), hn::Set(du, (127U - 7U) << 3));
  const VF rounder = hn::Set(d, 0x1p14F);  // Its quantum is 2^-9, that of codes below 2^-6.
  const VU32 quanta =
      hn::Sub(hn::BitCast(du, hn::Add(magnitude, rounder)), hn::BitCast(du, rounder));
  const auto is_small = hn::RebindMask(du, hn::Lt(magnitude, hn::Set(d, 0x1p-6F)));
  const VU32 sign = hn::And(hn::ShiftRight<24>(hn::BitCast(du, v)), hn::Set(du, 0x80));
  return hn::Or(hn::IfThenElse(is_small, quanta, normal), sign);
}

void EncodeE4m3(const uint16_t* x, int64_t n, float factor, uint8_t* codes) {
  const hn::Rebind<uint8_t, DF> d8;
  const VF f = hn::Set(DF(), factor);
  for (int64_t i = 0; i < n; i += kLanes) {
    const auto bytes =
        hn::DemoteTo(d8, hn::BitCast(DI32(), E4m3Codes(hn::Mul(LoadBf16(x + i, n - i), f))));
    if (HWY_LIKELY(n - i >= kLanes)) {
      hn::StoreU(bytes, d8, codes + i);
    } else {
      HWY_ALIGN uint8_t padded[kLanes];
      hn::Store(bytes, d8, padded);
      std::copy_n(padded, n - i, codes + i);
    }
  }
}

// A token's value is one half of each pair of a row of 16 columns in every panel.
void StoreValues(const uint16_t* v, int64_t n, int64_t t, uint16_t* panels) {
  const DU32 d;
  const VU32 upper = hn::Set(d, 0xFFFF0000U);
  for (int64_t i = 0; i < n; i += kLanes) {
    // LoadBf16 widens: the value is in the upper half.
    const VU32 value = hn::BitCast(d, LoadBf16(v + i, n - i));
    auto* pairs = reinterpret_cast<uint32_t*>(panels + i / kPanelCols * kTileElems +
                                              t / 2 * (2 * kPanelCols)) +
                  i % kPanelCols;
    const VU32 before = hn::LoadU(d, pairs);
    hn::StoreU(t % 2 == 1 ? hn::Or(hn::AndNot(upper, before), value)
                          : hn::Or(hn::And(before, upper), hn::ShiftRight<16>(value)),
               d, pairs);
  }
}

// --- Decoding -----------------------------------------------------------------------------------

using D16 = hn::Repartition<uint16_t, DU32>;

// Pairs of BF16 times 2^k, where `addends` has k << 7 per 16-bit lane; zeros stay.
HWY_INLINE VU32 AddExponents(VU32 pairs, VU32 addends) {
  const D16 d;
  const auto v = hn::BitCast(d, pairs);
  const auto is_zero = hn::Eq(hn::And(v, hn::Set(d, 0x7FFF)), hn::Zero(d));
  const auto sum = hn::Add(v, hn::BitCast(d, addends));
  return hn::BitCast(DU32(), hn::IfThenElse(is_zero, v, sum));
}

// What AddExponents needs for scale code b, in one 16-bit lane.
HWY_INLINE uint32_t Addend(uint8_t scale) { return ((uint32_t{scale} - 127U) << 7) & 0xFFFFU; }

// The same for the keys of a load, both lanes of a pair alike: a pair belongs to one key.
HWY_INLINE VU32 KeyAddends(const uint8_t* scales) {
  const DU32 d;
  const VU32 codes = hn::PromoteTo(d, hn::LoadU(hn::Rebind<uint8_t, DU32>(), scales));
  const VU32 addends =
      hn::And(hn::ShiftLeft<7>(hn::Sub(codes, hn::Set(d, 127))), hn::Set(d, 0xFFFF));
  return hn::Or(addends, hn::ShiftLeft<16>(addends));
}

// The same for the pairs of tokens of V, whatever the column.
HWY_INLINE void FillValueAddends(const uint8_t* scales, uint32_t* addends) {
  for (int64_t pair = 0; pair < kTileDepth / 2; ++pair) {
    addends[pair] = Addend(scales[2 * pair]) | (Addend(scales[2 * pair + 1]) << 16);
  }
}

void DecodeKeys(const KvDecodeArgs& args) {
  const Fp8Decoder decoder;
  for (int64_t panel = 0; panel < args.num_panels; ++panel) {
    const uint8_t* codes = args.codes + panel * args.panel_elems;
    uint16_t* pairs = args.pairs + panel * args.panel_elems;
    VU32 addends[kVecs];
    for (int64_t v = 0; v < kVecs; ++v) {
      addends[v] = KeyAddends(args.scales + panel * kPanelCols + v * kLanes);
    }
    for (int64_t i = 0; i < args.panel_elems; i += 64) {
      hwy::Prefetch(codes + i + args.prefetch_bytes);
      auto* to = reinterpret_cast<uint32_t*>(pairs + i);
      for (int64_t v = 0; v < kVecs; ++v) {
        const Fp8Decoder::Pairs decoded = decoder.Decode(codes + i + v * kCodeLanes);
        hn::StoreU(AddExponents(decoded.first, addends[v]), DU32(), to + v * kLanes);
        hn::StoreU(AddExponents(decoded.second, addends[v]), DU32(), to + kPanelCols + v * kLanes);
      }
    }
  }
}

void DecodeValues(const KvDecodeArgs& args) {
  const Fp8Decoder decoder;
  HWY_ALIGN uint32_t addends[kTileDepth / 2];
  FillValueAddends(args.scales, addends);
  for (int64_t panel = 0; panel < args.num_panels; ++panel) {
    const uint8_t* codes = args.codes + panel * kTileElems;
    uint16_t* pairs = args.pairs + panel * kTileElems;
    for (int64_t i = 0; i < kTileElems; i += 64) {
      hwy::Prefetch(codes + i + args.prefetch_bytes);
      const VU32 first = hn::Set(DU32(), addends[i / 32]);
      const VU32 second = hn::Set(DU32(), addends[i / 32 + 1]);
      auto* to = reinterpret_cast<uint32_t*>(pairs + i);
      for (int64_t v = 0; v < kVecs; ++v) {
        const Fp8Decoder::Pairs decoded = decoder.Decode(codes + i + v * kCodeLanes);
        hn::StoreU(AddExponents(decoded.first, first), DU32(), to + v * kLanes);
        hn::StoreU(AddExponents(decoded.second, second), DU32(), to + kPanelCols + v * kLanes);
      }
    }
  }
}

// --- Few rows, decoded on the way ---------------------------------------------------------------

constexpr int64_t kMaxFusedRows = kLanes == 16 ? 4 : 2;

// The MatMul order, for kRows rows with one panel of args.b.panel_elems codes. Scale(k, v) is that
// of depth k of a tile.
template <int kRows, typename Scale>
HWY_INLINE void FusedPanel(const KvMatMulArgs& args, int64_t panel, const Fp8Decoder& decoder,
                           const Scale& scale) {
  const DF d;
  const auto* a = reinterpret_cast<const float*>(args.a);
  const uint8_t* codes = args.b.codes + panel * args.b.panel_elems;
  float* c = args.c + panel * kPanelCols;
  VF sums[kRows][kVecs];
  for (int r = 0; r < kRows; ++r) {
    for (int64_t v = 0; v < kVecs; ++v) {
      sums[r][v] = args.from_zero ? hn::Zero(d) : hn::LoadU(d, c + r * args.c_stride + v * kLanes);
    }
  }
  for (int64_t tile = 0; tile < args.b.panel_elems / kTileElems; ++tile) {
    VF even[kRows][kVecs];
    VF odd[kRows][kVecs];
    for (int r = 0; r < kRows; ++r) {
      for (int64_t v = 0; v < kVecs; ++v) {
        even[r][v] = hn::Zero(d);
        odd[r][v] = hn::Zero(d);
      }
    }
    const auto multiply = [&](int64_t k, int64_t v, VU32 pairs) HWY_ATTR {
      const VF b_even = hn::Mul(hn::BitCast(d, hn::ShiftLeft<16>(pairs)), scale(k, v));
      const VF b_odd =
          hn::Mul(hn::BitCast(d, hn::And(pairs, hn::Set(DU32(), 0xFFFF0000U))), scale(k + 1, v));
      HWY_UNROLL(4)
      for (int r = 0; r < kRows; ++r) {
        const float* at = a + r * args.a_stride + tile * kTileDepth + k;
        even[r][v] = hn::MulAdd(hn::Set(d, at[0]), b_even, even[r][v]);
        odd[r][v] = hn::MulAdd(hn::Set(d, at[1]), b_odd, odd[r][v]);
      }
    };
    HWY_UNROLL(8)
    for (int64_t k = 0; k < kTileDepth; k += 4) {
      const uint8_t* from = codes + tile * kTileElems + k * kPanelCols;
      hwy::Prefetch(from + args.b.prefetch_bytes);
      HWY_UNROLL(2)
      for (int64_t v = 0; v < kVecs; ++v) {
        const Fp8Decoder::Pairs decoded = decoder.Decode(from + v * kCodeLanes);
        multiply(k, v, decoded.first);
        multiply(k + 2, v, decoded.second);
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int64_t v = 0; v < kVecs; ++v) {
        sums[r][v] = hn::Add(sums[r][v], hn::Add(even[r][v], odd[r][v]));
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int64_t v = 0; v < kVecs; ++v) {
      hn::StoreU(sums[r][v], d, c + r * args.c_stride + v * kLanes);
    }
  }
}

// Scale codes are never 0 where codes are not, nor 255: their exponents are those of FP32.
template <int kRows>
void ScoreKeyRows(const KvMatMulArgs& args) {
  const DU32 du;
  const Fp8Decoder decoder;
  for (int64_t panel = 0; panel < args.b.num_panels; ++panel) {
    VF of_keys[kVecs];
    for (int64_t v = 0; v < kVecs; ++v) {
      const uint8_t* scales = args.b.scales + panel * kPanelCols + v * kLanes;
      const VU32 bytes = hn::PromoteTo(du, hn::LoadU(hn::Rebind<uint8_t, DU32>(), scales));
      of_keys[v] = hn::BitCast(DF(), hn::ShiftLeft<23>(bytes));
    }
    FusedPanel<kRows>(args, panel, decoder,
                      [&](int64_t /*k*/, int64_t v) HWY_ATTR { return of_keys[v]; });
  }
}

template <int kRows>
void WeighValueRows(const KvMatMulArgs& args) {
  const Fp8Decoder decoder;
  HWY_ALIGN uint32_t of_tokens[kTileDepth];
  for (int64_t t = 0; t < kTileDepth; ++t) {
    of_tokens[t] = uint32_t{args.b.scales[t]} << 23;
  }
  for (int64_t panel = 0; panel < args.b.num_panels; ++panel) {
    FusedPanel<kRows>(args, panel, decoder, [&](int64_t k, int64_t /*v*/) HWY_ATTR {
      return hn::BitCast(DF(), hn::Set(DU32(), of_tokens[k]));
    });
  }
}

void ScoreKeys(const KvMatMulArgs& args) {
  switch (args.num_rows) {
    case 1:
      return ScoreKeyRows<1>(args);
    case 2:
      return ScoreKeyRows<2>(args);
    case 3:
      return ScoreKeyRows<3>(args);
    default:
      return ScoreKeyRows<4>(args);
  }
}

void WeighValues(const KvMatMulArgs& args) {
  switch (args.num_rows) {
    case 1:
      return WeighValueRows<1>(args);
    case 2:
      return WeighValueRows<2>(args);
    case 3:
      return WeighValueRows<3>(args);
    default:
      return WeighValueRows<4>(args);
  }
}

constexpr KvKernels kKvKernels = {.encode_e4m3 = EncodeE4m3,
                                  .store_values = StoreValues,
                                  .decode_keys = DecodeKeys,
                                  .decode_values = DecodeValues,
                                  .max_fused_rows = kMaxFusedRows,
                                  .score_keys = ScoreKeys,
                                  .weigh_values = WeighValues};

#endif  // OCTAVO_CPU_TARGET

}  // namespace octavo::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace octavo::cpu {

const KvKernels* FindKvKernels(VectorTarget target) {
  switch (target) {
    case VectorTarget::kAvx2:
#if HWY_TARGETS & HWY_AVX2
      return &N_AVX2::kKvKernels;
#else
      return nullptr;
#endif
    case VectorTarget::kAvx512:
#if HWY_TARGETS & HWY_AVX3
      return &N_AVX3::kKvKernels;
#else
      return nullptr;
#endif
    case VectorTarget::kAvx512Vbmi:
#if HWY_TARGETS & HWY_AVX3_DL
      return &N_AVX3_DL::kKvKernels;
#else
      return nullptr;
#endif
  }
  return nullptr;
}

}  // namespace octavo::cpu
#endif  // HWY_ONCE
