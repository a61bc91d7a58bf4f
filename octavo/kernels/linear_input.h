#pragma once
// How each InputForm reads a row of activations: the scalar definition, which the reference runs
// and every other backend reproduces bit for bit. The numerics are those of ops.h: FP32, one
// operation after the other, subnormals flushed.
//
//   form          group                     x^                     factor of the row
//   kBf16         -                         x                      1
//   kFp8Group     128: s[g] = max(amax, 1e-10) / 448
//                                           E4M3(x / s[g])         1 (s[g] goes with the group)
//   kFp8Token     row: s = amax / 448,
//                 inv = s == 0 ? 0 : 1 / s  E4M3(x * inv)          s
//   kFp8Static    -                         E4M3(x * (1 / scale))  scale
//   kMxfp8        32: b = Mxfp8ScaleCode(amax)
//                                           E4M3(x * 2^(127 - b)) * 2^(b - 127)      1
//   kNvfp4*       16: sb = Nvfp4GroupScale(amax, F), m = Nvfp4Multiplier(sb, D)
//                                           E2M1(x * m) * sb       D
//
// with, for the forms of nvfp4 (functions of nvfp4.h),
//   kNvfp4Token   F = Nvfp4GroupFactor(A), D = Nvfp4TensorScale(A), A = amax of the row
//   kNvfp4Batch   the same, A = the largest amax of the rows that are finite
//   kNvfp4Pow2    F = fl(1 / 6), D = 1
//   kNvfp4Static  F = fl(min(1 / scale, FLT_MAX) * fl(1 / 6)), D = scale
//
// The last group of a row may be short. x^ is exact in BF16, and so is its product with a weight's
// D in FP32. 2^-127 is a subnormal and counts as 0: groups of kMxfp8 below 448 * 2^-126 vanish.
//
// A NaN or infinity in a row harms that row alone and makes all its outputs NaN: kFp8Group makes
// the group's scale NaN and its x^ 0, kMxfp8 the group's x^ NaN, the others the row's factor NaN
// and its x^ 0.
// Source: docs/numerics.md.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include "octavo/formats/e2m1.h"
#include "octavo/formats/e4m3.h"
#include "octavo/formats/e8m0.h"
#include "octavo/formats/mxfp8.h"
#include "octavo/formats/nvfp4.h"
#include "octavo/kernels/input_ranges.h"
#include "octavo/kernels/matrix.h"

namespace octavo {

inline constexpr int64_t kFp8InputGroup = 128;
inline constexpr float kFp8InputAmaxFloor = 1e-10F;

constexpr bool IsNvfp4Input(InputForm form) {
  return form == InputForm::kNvfp4Token || form == InputForm::kNvfp4Pow2 ||
         form == InputForm::kNvfp4Static || form == InputForm::kNvfp4Batch;
}
// Forms that read input_scale of the weight.
constexpr bool IsStaticInput(InputForm form) {
  return form == InputForm::kFp8Static || form == InputForm::kNvfp4Static;
}

// The largest magnitude; NaN when a value is NaN or infinite.
inline float FiniteAmax(std::span<const float> values) {
  float amax = 0.0F;
  for (const float value : values) {
    if (!std::isfinite(value)) {
      return std::numeric_limits<float>::quiet_NaN();
    }
    amax = std::max(amax, std::fabs(value));
  }
  return amax;
}

// F and D above.
struct Nvfp4RowScales {
  float group_factor = 0.0F;
  float row_factor = 0.0F;
};

// `scale` is input_scale for kNvfp4Static, A for kNvfp4Token and kNvfp4Batch.
inline Nvfp4RowScales Nvfp4InputScales(InputForm form, float scale) {
  switch (form) {
    case InputForm::kNvfp4Pow2:
      return {1.0F / 6.0F, 1.0F};
    case InputForm::kNvfp4Static:
      return {std::min(1.0F / scale, std::numeric_limits<float>::max()) * (1.0F / 6.0F), scale};
    default:
      return {Nvfp4GroupFactor(scale), Nvfp4TensorScale(scale)};
  }
}

// One group of at most 128; returns its scale. `values` (as long as `x`; may be it) gets x^.
inline float QuantizeFp8Group(std::span<const float> x, std::span<float> values) {
  const float amax = FiniteAmax(x);
  if (std::isnan(amax)) {
    std::fill(values.begin(), values.end(), 0.0F);
    return amax;
  }
  const float scale = std::max(amax, kFp8InputAmaxFloor) / kE4m3Max;
  for (size_t i = 0; i < x.size(); ++i) {
    values[i] = E4m3ToFloat(FloatToE4m3(x[i] / scale));
  }
  return scale;
}

inline void QuantizeMxfp8Group(std::span<const float> x, std::span<float> values) {
  const float amax = FiniteAmax(x);
  const uint8_t code = std::isnan(amax) ? kE8m0NaN : Mxfp8ScaleCode(amax);
  const float multiplier = E8m0Reciprocal(code);
  const float scale = E8m0ToFloat(code);
  for (size_t i = 0; i < x.size(); ++i) {
    values[i] = E4m3ToFloat(FloatToE4m3(x[i] * multiplier)) * scale;
  }
}

inline void QuantizeNvfp4Group(std::span<const float> x, const Nvfp4RowScales& scales,
                               std::span<float> values) {
  const float amax = FiniteAmax(x);
  const float group_scale = E4m3ToFloat(Nvfp4GroupScale(amax, scales.group_factor));
  const float multiplier = Nvfp4Multiplier(group_scale, scales.row_factor);
  for (size_t i = 0; i < x.size(); ++i) {
    values[i] = E2m1ToFloat(FloatToE2m1(x[i] * multiplier)) * group_scale;
  }
}

// A wanted group scale above this rounds beyond 448, the largest of E4M3: halfway to what would be
// the next value, 480, where the tie goes to 448, whose code is even.
inline constexpr float kNvfp4WantedScaleMax = 464.0F;
// Codes of E4M3 below this one are zero and the subnormals.
inline constexpr uint8_t kE4m3FirstNormalCode = 0x08;

// What a row of x counts for in InputRanges; nothing for forms other than those of nvfp4. `scale`
// as below. Thread-safe.
inline InputRanges CountInputRanges(InputForm form, float scale, std::span<const float> x) {
  InputRanges ranges;
  const float row_amax = FiniteAmax(x);
  if (!IsNvfp4Input(form) || std::isnan(row_amax)) {
    return ranges;
  }
  const float factor =
      Nvfp4InputScales(form, form == InputForm::kNvfp4Token ? row_amax : scale).group_factor;
  for (size_t at = 0; at < x.size(); at += kNvfp4GroupElems) {
    const size_t size = std::min(static_cast<size_t>(kNvfp4GroupElems), x.size() - at);
    const float amax = FiniteAmax(x.subspan(at, size));
    ++ranges.num_groups;
    ranges.num_above += amax * factor > kNvfp4WantedScaleMax ? 1 : 0;
    ranges.num_below += amax > 0.0F && Nvfp4GroupScale(amax, factor) < kE4m3FirstNormalCode ? 1 : 0;
  }
  return ranges;
}

// One row of x [cols], of values of BF16; `values` (may be x) gets x^, and the row's factor is
// returned. `scale`: input_scale of the static forms, A for kNvfp4Batch, not read for the others.
// `group_scales` [ceil(cols / 128)] is written for kFp8Group alone. Thread-safe.
inline float QuantizeLinearInput(InputForm form, float scale, std::span<const float> x,
                                 std::span<float> values, std::span<float> group_scales) {
  const auto for_groups = [&](int64_t elems, auto quantize) {
    for (size_t at = 0; at < x.size(); at += static_cast<size_t>(elems)) {
      const size_t size = std::min(static_cast<size_t>(elems), x.size() - at);
      quantize(at / static_cast<size_t>(elems), x.subspan(at, size), values.subspan(at, size));
    }
  };
  if (form == InputForm::kBf16) {
    std::copy(x.begin(), x.end(), values.begin());
    return 1.0F;
  }
  if (form == InputForm::kFp8Group) {
    for_groups(kFp8InputGroup,
               [&](size_t g, auto from, auto to) { group_scales[g] = QuantizeFp8Group(from, to); });
    return 1.0F;
  }
  if (form == InputForm::kMxfp8) {
    for_groups(kMxGroupElems, [&](size_t, auto from, auto to) { QuantizeMxfp8Group(from, to); });
    return 1.0F;
  }
  const float amax = FiniteAmax(x);
  if (std::isnan(amax)) {
    std::fill(values.begin(), values.end(), 0.0F);
    return amax;
  }
  if (IsNvfp4Input(form)) {
    const Nvfp4RowScales scales =
        Nvfp4InputScales(form, form == InputForm::kNvfp4Token ? amax : scale);
    for_groups(kNvfp4GroupElems,
               [&](size_t, auto from, auto to) { QuantizeNvfp4Group(from, scales, to); });
    return scales.row_factor;
  }
  const float row_scale = form == InputForm::kFp8Token ? amax / kE4m3Max : scale;
  const float inverse = row_scale == 0.0F ? 0.0F : 1.0F / row_scale;
  for (size_t i = 0; i < x.size(); ++i) {
    values[i] = E4m3ToFloat(FloatToE4m3(x[i] * inverse));
  }
  return row_scale;
}

}  // namespace octavo
