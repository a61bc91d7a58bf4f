#include "octavo/formats/quantize.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "octavo/base/check.h"
#include "octavo/base/float_env.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/formats/block_grid.h"
#include "octavo/formats/format.h"
#include "octavo/formats/fp8_channel.h"
#include "octavo/formats/nvfp4.h"
#include "octavo/formats/quantize_scalar.h"
#include "octavo/formats/quantize_simd.h"

namespace octavo {
namespace {

bool HasByteScales(WeightFormat format) {
  return format == WeightFormat::kMxfp8 || format == WeightFormat::kNvfp4;
}

Status CheckShape(WeightFormat format, const ConstTensorView& values) {
  if (format == WeightFormat::kBf16) {
    return InvalidArgument("quantize: expected a quantized format, got bf16");
  }
  if (values.dtype != DType::kBf16 && values.dtype != DType::kF32) {
    return InvalidArgument("{} values: expected BF16 or F32, got {}", WeightFormatName(format),
                           DTypeName(values.dtype));
  }
  int64_t elems = 0;
  if (values.shape.size() != 2 || values.shape[0] < 0 || values.shape[1] < 0 ||
      __builtin_mul_overflow(values.shape[0], values.shape[1], &elems)) {
    return InvalidArgument("{} values: expected a matrix, got {}", WeightFormatName(format),
                           ShapeString(values.shape));
  }
  const int64_t multiple = ColsMultipleOf(format);
  if (values.shape[1] % multiple != 0) {
    return InvalidArgument("{} values: expected rows of a multiple of {} values, got {}",
                           WeightFormatName(format), multiple, ShapeString(values.shape));
  }
  return OkStatus();
}

Status CheckLength(std::string_view what, WeightFormat format, size_t actual, int64_t expected) {
  if (actual != static_cast<size_t>(expected)) {
    return InvalidArgument("{} {}: expected {} bytes, got {}", WeightFormatName(format), what,
                           expected, actual);
  }
  return OkStatus();
}

Status CheckLengths(WeightFormat format, const ConstTensorView& values, size_t code_bytes,
                    size_t scale_bytes) {
  RETURN_IF_ERROR(CheckShape(format, values));
  const int64_t rows = values.shape[0];
  const int64_t cols = values.shape[1];
  RETURN_IF_ERROR(CheckLength("codes", format, code_bytes, CodeBytes(format, rows, cols)));
  return CheckLength("scales", format, scale_bytes, ScaleBytes(format, rows, cols));
}

Status CheckQuantize(const QuantizeArgs& args) {
  RETURN_IF_ERROR(CheckLengths(args.format, args.values, args.codes.size(), args.scales.size()));
  if (SharesScale(args.format) && !(args.amax >= 0.0F && std::isfinite(args.amax))) {
    return InvalidArgument("{} amax: expected a finite magnitude, got {}",
                           WeightFormatName(args.format), args.amax);
  }
  return OkStatus();
}

// What a value that cannot be encoded is refused with.
Status CheckValues(const QuantizeArgs& args, float amax) {
  RETURN_IF_ERROR(CheckFiniteValues(args.values));
  if (SharesScale(args.format) && amax > args.amax) {
    return InvalidArgument("{} amax: expected at least {}, the largest magnitude, got {}",
                           WeightFormatName(args.format), amax, args.amax);
  }
  return OkStatus();
}

Status CheckDequantize(const DequantizeArgs& args) {
  RETURN_IF_ERROR(CheckLengths(args.format, args.values, args.codes.size(), args.scales.size()));
  if (args.values.shape[0] != args.rows || args.values.shape[1] != args.cols) {
    return InvalidArgument("{} values: expected [{}, {}], got {}", WeightFormatName(args.format),
                           args.rows, args.cols, ShapeString(args.values.shape));
  }
  return OkStatus();
}

}  // namespace

int64_t CodeBytes(WeightFormat format, int64_t rows, int64_t cols) {
  CHECK(format != WeightFormat::kBf16);
  return format == WeightFormat::kNvfp4 ? rows * (cols / 2) : rows * cols;
}

int64_t ScaleBytes(WeightFormat format, int64_t rows, int64_t cols) {
  if (format == WeightFormat::kFp8Tensor) {
    return 0;
  }
  const int64_t num_scales = BlockGridOf(format, rows, cols).NumBlocks();
  return HasByteScales(format) ? num_scales : num_scales * static_cast<int64_t>(sizeof(float));
}

float TensorScale(WeightFormat format, float amax) {
  const ScopedIeeeSubnormals guard;
  switch (format) {
    case WeightFormat::kFp8Tensor:
      return Fp8TensorScale(amax);
    case WeightFormat::kNvfp4:
      return Nvfp4TensorScale(amax);
    default:
      return 1.0F;
  }
}

Status QuantizeScalar(const QuantizeArgs& args) {
  RETURN_IF_ERROR(CheckQuantize(args));
  RETURN_IF_ERROR(CheckValues(args, AmaxScalar(args.values)));
  const ScopedIeeeSubnormals guard;
  scalar::Quantize(args);
  return OkStatus();
}

Status Quantize(const QuantizeArgs& args) {
  RETURN_IF_ERROR(CheckQuantize(args));
  const ScopedIeeeSubnormals guard;
  const uint32_t bits = args.format == WeightFormat::kMxfp8   ? simd::QuantizeMxfp8(args)
                        : args.format == WeightFormat::kNvfp4 ? simd::QuantizeNvfp4(args)
                                                              : simd::QuantizeFp8(args);
  const auto amax = std::bit_cast<float>(bits);
  const bool encoded = std::isfinite(amax) && !(SharesScale(args.format) && amax > args.amax);
  return encoded ? OkStatus() : CheckValues(args, amax);
}

Status DequantizeScalar(const DequantizeArgs& args) {
  RETURN_IF_ERROR(CheckDequantize(args));
  const ScopedIeeeSubnormals guard;
  scalar::Dequantize(args);
  return OkStatus();
}

Status Dequantize(const DequantizeArgs& args) {
  RETURN_IF_ERROR(CheckDequantize(args));
  const ScopedIeeeSubnormals guard;
  simd::Dequantize(args);
  return OkStatus();
}

QuantizationError& QuantizationError::operator+=(const QuantizationError& other) {
  sum_sq_error += other.sum_sq_error;
  sum_sq_value += other.sum_sq_value;
  max_abs_error = std::max(max_abs_error, other.max_abs_error);
  num_values += other.num_values;
  num_saturated += other.num_saturated;
  num_scales += other.num_scales;
  num_zero_blocks += other.num_zero_blocks;
  num_subnormal_scales += other.num_subnormal_scales;
  return *this;
}

double QuantizationError::RelativeRms() const {
  return sum_sq_error == 0.0 ? 0.0 : std::sqrt(sum_sq_error / sum_sq_value);
}

QuantizationError MeasureQuantizationScalar(const MeasureArgs& args) {
  CHECK(CheckLengths(args.format, args.values, args.codes.size(), args.scales.size()).ok());
  const ScopedIeeeSubnormals guard;
  return scalar::Measure(args);
}

QuantizationError MeasureQuantization(const MeasureArgs& args) {
  CHECK(CheckLengths(args.format, args.values, args.codes.size(), args.scales.size()).ok());
  const ScopedIeeeSubnormals guard;
  return simd::Measure(args);
}

}  // namespace octavo
