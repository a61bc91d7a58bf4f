#pragma once
// One interface over all weight formats: a matrix into codes and scales, and back.
//
// Source: docs/formats.md; the arithmetic of each format is in its own file (fp8_block.h,
// fp8_channel.h, mxfp8.h, nvfp4.h).

#include <cstdint>
#include <span>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/formats/format.h"

namespace octavo {

// --- Sizes --------------------------------------------------------------------------------------

// Bytes of the codes of [rows, cols] in a quantized format: rows * cols, or half of it for nvfp4.
int64_t CodeBytes(WeightFormat format, int64_t rows, int64_t cols);
// Bytes of the scales that lie beside the codes: F32 [blocks(rows), blocks(cols)] for fp8 and
// fp8-ue8m0, F32 [rows] for fp8-channel, E8M0 [rows, cols / 32] for mxfp8, E4M3 [rows, cols / 16]
// for nvfp4, none for fp8-tensor (its one scale is the tensor scale below).
int64_t ScaleBytes(WeightFormat format, int64_t rows, int64_t cols);

// --- The scale of a tensor ----------------------------------------------------------------------

// The largest magnitude of BF16 or F32 `values` (any shape), 0 for none. It is not finite when one
// of them is not, which is the caller's to refuse. Thread-safe; SIMD, equal to the scalar one.
float Amax(const ConstTensorView& values);
float AmaxScalar(const ConstTensorView& values);

// The NaN and infinite ones among BF16 or F32 `values`, by their position in row-major order.
// Thread-safe; when there are none it costs one Amax.
struct NonFiniteCount {
  int64_t count = 0;
  int64_t first_idx = -1;  // -1 when there is none.
};
NonFiniteCount CountNonFinite(const ConstTensorView& values);
// Errors: kInvalidArgument with the count of NaN and infinite BF16 or F32 values, and the index of
// the first.
[[nodiscard]] Status CheckFiniteValues(const ConstTensorView& values);

// The FP32 scale that belongs to a whole tensor, from the largest magnitude of its sharing set:
// fp8-tensor max(amax, 1e-12) / 448; nvfp4 D = fl(1 / S) with S = fl(2688 / amax) capped, 1 for an
// amax of 0. 1 for the other formats, which have none.
float TensorScale(WeightFormat format, float amax);

// --- Encode -------------------------------------------------------------------------------------

// [rows, cols] BF16 or F32, row-major, finite, to codes and scales. F32 is for sources that are
// not rounded to BF16 first (decoded FP8, --direct): BF16 input gives the same bytes as its exact
// widening. Bands of whole multiples of 128 rows may be encoded by themselves: the result does not
// depend on how a matrix is cut.
struct QuantizeArgs {
  WeightFormat format = WeightFormat::kFp8;  // Not kBf16.
  ConstTensorView values;                    // BF16 or F32 [rows, cols]. Never written.
  float amax = 0.0F;  // Of the sharing set; read for formats with SharesScale alone.
  std::span<uint8_t> codes;
  std::span<std::byte> scales;  // Aligned as its element type.
};
// Errors: kInvalidArgument when a span has another length, the shape or dtype is another, cols is
// no multiple of ColsMultipleOf(format), a value is NaN or infinite (count and first index), or,
// for formats with SharesScale, larger than amax. Thread-safe; allocates nothing on success.
[[nodiscard]] Status Quantize(const QuantizeArgs& args);
// The scalar reference, equal bit for bit.
[[nodiscard]] Status QuantizeScalar(const QuantizeArgs& args);

// --- Decode -------------------------------------------------------------------------------------

// Codes and scales to F32 (one FP32 product, docs/formats.md "Decode") or to BF16 (that product
// rounded once, nearest even). A NaN code or scale gives NaN.
struct DequantizeArgs {
  WeightFormat format = WeightFormat::kFp8;  // Not kBf16.
  int64_t rows = 0;
  int64_t cols = 0;
  std::span<const uint8_t> codes;
  std::span<const std::byte> scales;
  float tensor_scale = 1.0F;  // fp8-tensor, nvfp4: what multiplies, whichever way a file stores it.
  // nvfp4 of the compressed-tensors layout divides by its global scale: value = E2M1 *
  // fl(E4M3 / divisor). Then tensor_scale is that divisor.
  bool tensor_scale_divides = false;
  TensorView values;  // F32 or BF16 [rows, cols].
};
// Errors: kInvalidArgument when a span has another length or the shape or dtype is another.
[[nodiscard]] Status Dequantize(const DequantizeArgs& args);
[[nodiscard]] Status DequantizeScalar(const DequantizeArgs& args);

// --- Measure ------------------------------------------------------------------------------------

// How far an encoded matrix is from its source, in FP64, and the oddities worth reporting.
struct QuantizationError {
  double sum_sq_error = 0.0;  // Over (decoded - value)^2.
  double sum_sq_value = 0.0;
  double max_abs_error = 0.0;
  int64_t num_values = 0;
  // Values whose quotient would round to more than the largest code: above 464 (E4M3), 7 (E2M1).
  int64_t num_saturated = 0;
  int64_t num_scales = 0;            // Blocks, channels or groups; for fp8-tensor the band is one.
  int64_t num_zero_blocks = 0;       // Of those, the ones whose codes are all +-0.
  int64_t num_subnormal_scales = 0;  // nvfp4: E4M3 scale bytes up to 0x07. mxfp8: byte 0.

  QuantizationError& operator+=(const QuantizationError& other);
  // sqrt(sum_sq_error / sum_sq_value); 0 when both are 0.
  double RelativeRms() const;
};

// Of bands whose values Quantize accepted, with their codes and scales. The sums do not depend on
// the instruction set; those of bands are to be added in the order of rows. Thread-safe.
struct MeasureArgs {
  WeightFormat format = WeightFormat::kFp8;
  ConstTensorView values;  // BF16 or F32 [rows, cols].
  std::span<const uint8_t> codes;
  std::span<const std::byte> scales;
  float tensor_scale = 1.0F;
};
QuantizationError MeasureQuantization(const MeasureArgs& args);
QuantizationError MeasureQuantizationScalar(const MeasureArgs& args);

}  // namespace octavo
