#pragma once
// The sums behind MeasureQuantization, in an order that every instruction set can follow.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>

#include "octavo/formats/format.h"
#include "octavo/formats/quantize.h"

namespace octavo {

// The element in column k of its row adds to sums k mod 32, in FP64: differences and values are
// FP32, so that a square is exact in FP64 and an fma cannot change a bit. Elements come in
// row-major order; for 128x128 blocks, block after block. At the end the 32 sums are added in
// halves.
inline constexpr size_t kMeasureLanes = 32;

struct MeasureSums {
  void Add(size_t col, float difference, float value) {
    const size_t lane = col % kMeasureLanes;
    sq_error[lane] += double{difference} * double{difference};
    sq_value[lane] += double{value} * double{value};
    max_abs_error = std::max(max_abs_error, std::fabs(difference));
  }
  void MoveTo(QuantizationError* error) {
    for (size_t half = kMeasureLanes / 2; half > 0; half /= 2) {
      for (size_t lane = 0; lane < half; ++lane) {
        sq_error[lane] += sq_error[lane + half];
        sq_value[lane] += sq_value[lane + half];
      }
    }
    error->sum_sq_error = sq_error[0];
    error->sum_sq_value = sq_value[0];
    error->max_abs_error = max_abs_error;
  }

  alignas(64) std::array<double, kMeasureLanes> sq_error{};
  alignas(64) std::array<double, kMeasureLanes> sq_value{};
  float max_abs_error = 0.0F;
};

// The magnitude above which a value's quotient rounds beyond the largest code: halfway from 448 to
// the next E4M3 step, from 6 to the next E2M1 step.
inline float SaturationLimit(WeightFormat format, float scale) {
  return scale * (format == WeightFormat::kNvfp4 ? 7.0F : 464.0F);
}

}  // namespace octavo
