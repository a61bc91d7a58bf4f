// Both ends of a linear layer, row by row: inputs to quantized A elements (linear_input.h), sums to
// outputs.

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "octavo/kernels/cpu/quantize_input_simd.cc"
#ifndef HWY_WANT_AVX3_DL
#define HWY_WANT_AVX3_DL
#endif
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4)

// What the AVX targets use; the baseline target, which tools look at, is empty.
// NOLINTBEGIN(misc-include-cleaner)
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "octavo/formats/e2m1.h"
#include "octavo/formats/e4m3.h"
#include "octavo/formats/e8m0.h"
#include "octavo/formats/mxfp8.h"
#include "octavo/formats/nvfp4.h"
#include "octavo/kernels/cpu/kernel_table.h"
#include "octavo/kernels/cpu/vec-inl.h"
#include "octavo/kernels/input_ranges.h"
#include "octavo/kernels/linear_input.h"
// NOLINTEND(misc-include-cleaner)

HWY_BEFORE_NAMESPACE();
namespace octavo::cpu::HWY_NAMESPACE {

#if OCTAVO_CPU_TARGET

// An A element is FP32 (AVX paths) or BF16 bits (AMX); `v` already holds a BF16 value.
HWY_INLINE void StoreInput(VF v, int64_t count, float* a) { StoreF32(v, count, a); }
HWY_INLINE void StoreInput(VF v, int64_t count, uint16_t* a) {
  StoreU16(UpperHalves(hn::BitCast(DU32(), v)), count, a);
}

// The E4M3 value nearest to v: what E4m3ToFloat(FloatToE4m3(v)) gives, but for NaN.
HWY_INLINE VF RoundToE4m3(VF v) {
  const DF d;
  const DU32 du;
  const VF magnitude = hn::Min(hn::Abs(v), hn::Set(d, kE4m3Max));
  // Normal codes keep 3 of 23 mantissa bits; below 2^-6 the quantum is 2^-9, that of FP32 at 2^14.
  const VU32 bits = hn::BitCast(du, magnitude);
  const VU32 tie = hn::And(hn::ShiftRight<20>(bits), hn::Set(du, 1));
  const VU32 rounded =
      hn::And(hn::Add(bits, hn::Add(tie, hn::Set(du, 0x7FFFFU))), hn::Set(du, 0xFFF00000U));
  const VF rounder = hn::Set(d, 0x1p14F);
  const VF tiny = hn::Sub(hn::Add(magnitude, rounder), rounder);
  const VF value =
      hn::IfThenElse(hn::Lt(magnitude, hn::Set(d, 0x1p-6F)), tiny, hn::BitCast(d, rounded));
  return hn::CopySign(value, v);
}

// The E2M1 value nearest to v, likewise: one mantissa bit from 1 on, below it the quantum 0.5, that
// of FP32 at 2^22.
HWY_INLINE VF RoundToE2m1(VF v) {
  const DF d;
  const DU32 du;
  const VF magnitude = hn::Min(hn::Abs(v), hn::Set(d, kE2m1Max));
  const VU32 bits = hn::BitCast(du, magnitude);
  const VU32 tie = hn::And(hn::ShiftRight<22>(bits), hn::Set(du, 1));
  const VU32 rounded =
      hn::And(hn::Add(bits, hn::Add(tie, hn::Set(du, 0x1FFFFFU))), hn::Set(du, 0xFFC00000U));
  const VF rounder = hn::Set(d, 0x1p22F);
  const VF tiny = hn::Sub(hn::Add(magnitude, rounder), rounder);
  const VF value =
      hn::IfThenElse(hn::Lt(magnitude, hn::Set(d, 1.0F)), tiny, hn::BitCast(d, rounded));
  return hn::CopySign(value, v);
}

// The largest magnitude of x, or a NaN or infinity if there is one: magnitudes order like their
// bits, and those come out on top.
float LargestMagnitude(const uint16_t* x, int64_t n) {
  const hn::ScalableTag<uint16_t> d;
  constexpr auto kU16Lanes = static_cast<int64_t>(HWY_LANES(uint16_t));
  const auto mask = hn::Set(d, 0x7FFF);
  auto largest = hn::Zero(d);
  int64_t i = 0;
  for (; i + kU16Lanes <= n; i += kU16Lanes) {
    largest = hn::Max(largest, hn::And(hn::LoadU(d, x + i), mask));
  }
  uint16_t bits = hn::GetLane(hn::MaxOfLanes(d, largest));
  for (; i < n; ++i) {
    bits = std::max(bits, static_cast<uint16_t>(x[i] & 0x7FFFU));
  }
  return std::bit_cast<float>(uint32_t{bits} << 16);
}

float FiniteAmaxOf(const uint16_t* x, int64_t n) {
  const float amax = LargestMagnitude(x, n);
  return std::isfinite(amax) ? amax : std::numeric_limits<float>::quiet_NaN();
}

// a[i] = quantize(x[i]) for vectors of a row or group.
template <typename A, typename Quantize>
HWY_INLINE void ForVectors(const uint16_t* x, int64_t n, A* a, Quantize quantize) {
  for (int64_t i = 0; i < n; i += kLanes) {
    StoreInput(quantize(LoadBf16(x + i, n - i)), n - i, a + i);
  }
}

template <typename A>
void QuantizeFp8Groups(const InputRowArgs& args, A* a) {
  for (int64_t k = 0; k < args.cols; k += kFp8InputGroup) {
    const int64_t n = std::min(kFp8InputGroup, args.cols - k);
    const float amax = FiniteAmaxOf(args.x + k, n);
    float& scale = args.group_scales[k / kFp8InputGroup];
    if (std::isnan(amax)) {
      scale = amax;
      std::memset(a + k, 0, static_cast<size_t>(n) * sizeof(A));
      continue;
    }
    scale = std::max(amax, kFp8InputAmaxFloor) / kE4m3Max;
    const VF divisor = hn::Set(DF(), scale);
    ForVectors(args.x + k, n, a + k,
               [&](VF x) HWY_ATTR { return RoundToE4m3(hn::Div(x, divisor)); });
  }
}

// Returns whether the row is moderate: codes that are not 0 are from 2^-9 to 448 < 2^9.
template <typename A>
bool QuantizeMxfp8Groups(const InputRowArgs& args, A* a) {
  constexpr int kLow = 127 - 51;
  constexpr int kHigh = 127 + 51;
  const DF d;
  bool is_moderate = true;
  for (int64_t k = 0; k < args.cols; k += kMxGroupElems) {
    const int64_t n = std::min(kMxGroupElems, args.cols - k);
    const float amax = FiniteAmaxOf(args.x + k, n);
    if (std::isnan(amax)) {
      const VF nan = hn::Set(d, amax);
      ForVectors(args.x + k, n, a + k, [&](VF) HWY_ATTR { return nan; });
      is_moderate = false;
      continue;
    }
    const uint8_t code = Mxfp8ScaleCode(amax);
    // Code 0 stands for 2^-127, which flushes to 0 with its values.
    is_moderate = is_moderate && (code == 0 || (code >= kLow && code <= kHigh));
    const VF multiplier = hn::Set(d, E8m0Reciprocal(code));
    const VF scale = hn::Set(d, E8m0ToFloat(code));
    ForVectors(args.x + k, n, a + k,
               [&](VF x) HWY_ATTR { return hn::Mul(RoundToE4m3(hn::Mul(x, multiplier)), scale); });
  }
  return is_moderate;
}

template <typename A>
void QuantizeNvfp4Groups(const InputRowArgs& args, const Nvfp4RowScales& scales, A* a) {
  const DF d;
  int64_t num_above = 0;
  int64_t num_below = 0;
  for (int64_t k = 0; k < args.cols; k += kNvfp4GroupElems) {
    const int64_t n = std::min(kNvfp4GroupElems, args.cols - k);
    const float amax = LargestMagnitude(args.x + k, n);
    const uint8_t code = Nvfp4GroupScale(amax, scales.group_factor);
    num_above += amax * scales.group_factor > kNvfp4WantedScaleMax ? 1 : 0;
    num_below += amax > 0.0F && code < kE4m3FirstNormalCode ? 1 : 0;
    const float group_scale = E4m3ToFloat(code);
    const VF multiplier = hn::Set(d, Nvfp4Multiplier(group_scale, scales.row_factor));
    const VF scale = hn::Set(d, group_scale);
    ForVectors(args.x + k, n, a + k,
               [&](VF x) HWY_ATTR { return hn::Mul(RoundToE2m1(hn::Mul(x, multiplier)), scale); });
  }
  if (args.ranges != nullptr) {
    const int64_t num_groups = (args.cols + kNvfp4GroupElems - 1) / kNvfp4GroupElems;
    *args.ranges += {.num_groups = num_groups, .num_above = num_above, .num_below = num_below};
  }
}

// Forms whose row factor is NaN when the row is not finite.
template <typename A>
float QuantizeWithRowFactor(const InputRowArgs& args, A* a) {
  const float amax = FiniteAmaxOf(args.x, args.cols);
  if (std::isnan(amax)) {
    std::memset(a, 0, static_cast<size_t>(args.cols) * sizeof(A));
    return amax;
  }
  if (IsNvfp4Input(args.form)) {
    const Nvfp4RowScales scales =
        Nvfp4InputScales(args.form, args.form == InputForm::kNvfp4Token ? amax : args.scale);
    QuantizeNvfp4Groups(args, scales, a);
    return scales.row_factor;
  }
  const float row_scale = args.form == InputForm::kFp8Token ? amax / kE4m3Max : args.scale;
  const VF inverse = hn::Set(DF(), row_scale == 0.0F ? 0.0F : 1.0F / row_scale);
  ForVectors(args.x, args.cols, a, [&](VF x) HWY_ATTR { return RoundToE4m3(hn::Mul(x, inverse)); });
  return row_scale;
}

template <typename A>
InputRow QuantizeInput(const InputRowArgs& args) {
  A* a = reinterpret_cast<A*>(args.a);
  std::memset(a + args.cols, 0, static_cast<size_t>(args.padded - args.cols) * sizeof(A));
  switch (args.form) {
    case InputForm::kBf16:
      ForVectors(args.x, args.cols, a, [](VF x) HWY_ATTR { return x; });
      return {};
    case InputForm::kFp8Group:
      QuantizeFp8Groups(args, a);
      return {};
    case InputForm::kMxfp8:
      return {.factor = 1.0F, .is_moderate = QuantizeMxfp8Groups(args, a)};
    default:
      return {.factor = QuantizeWithRowFactor(args, a), .is_moderate = false};
  }
}

void ScaleAdd(const float* p, float scale, int64_t n, bool from_zero, float* acc) {
  const DF d;
  const VF s = hn::Set(d, scale);
  for (int64_t i = 0; i < n; i += kLanes) {
    const VF before = from_zero ? hn::Zero(d) : LoadF32(acc + i, n - i);
    StoreF32(hn::MulAdd(LoadF32(p + i, n - i), s, before), n - i, acc + i);
  }
}

void StoreOutputs(const OutputRowArgs& args) {
  const DF d;
  const VF factor = hn::Set(d, args.factor);
  const VF col_factor = hn::Set(d, args.col_factor);
  for (int64_t i = 0; i < args.n; i += kLanes) {
    const int64_t count = args.n - i;
    VF v = hn::Mul(LoadF32(args.c + i, count), factor);
    v = hn::Mul(v, args.col_factors == nullptr ? col_factor : LoadF32(args.col_factors + i, count));
    if (args.bias != nullptr) {
      v = hn::Add(v, LoadBf16(args.bias + i, count));
    }
    if (args.is_f32) {
      StoreF32(v, count, static_cast<float*>(args.y) + i);
    } else {
      StoreBf16(v, count, static_cast<uint16_t*>(args.y) + i);
    }
  }
}

constexpr InputKernels kInputKernels = {.quantize_a32 = QuantizeInput<float>,
                                        .quantize_a16 = QuantizeInput<uint16_t>,
                                        .finite_amax = FiniteAmaxOf,
                                        .store_outputs = StoreOutputs,
                                        .scale_add = ScaleAdd};

#endif  // OCTAVO_CPU_TARGET

}  // namespace octavo::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace octavo::cpu {

const InputKernels* FindInputKernels(VectorTarget target) {
  switch (target) {
    case VectorTarget::kAvx2:
#if HWY_TARGETS & HWY_AVX2
      return &N_AVX2::kInputKernels;
#else
      return nullptr;
#endif
    case VectorTarget::kAvx512:
#if HWY_TARGETS & HWY_AVX3
      return &N_AVX3::kInputKernels;
#else
      return nullptr;
#endif
    case VectorTarget::kAvx512Vbmi:
#if HWY_TARGETS & HWY_AVX3_DL
      return &N_AVX3_DL::kInputKernels;
#else
      return nullptr;
#endif
  }
  return nullptr;
}

}  // namespace octavo::cpu
#endif  // HWY_ONCE
