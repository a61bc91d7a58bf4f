#include "octavo/formats/quantize_scalar.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>

#include "octavo/base/tensor.h"
#include "octavo/formats/bf16.h"
#include "octavo/formats/block_grid.h"
#include "octavo/formats/e2m1.h"
#include "octavo/formats/e4m3.h"
#include "octavo/formats/e8m0.h"
#include "octavo/formats/format.h"
#include "octavo/formats/fp8_block.h"
#include "octavo/formats/fp8_channel.h"
#include "octavo/formats/measure_sums.h"
#include "octavo/formats/mxfp8.h"
#include "octavo/formats/nvfp4.h"
#include "octavo/formats/quantize.h"
#include "octavo/formats/zero_blocks.h"

namespace octavo::scalar {
namespace {

float ToFloat(uint16_t bf16) { return Bf16ToFloat(bf16); }
float ToFloat(float value) { return value; }

void StoreF32(float value, int64_t idx, std::span<std::byte> scales) {
  std::memcpy(&scales[static_cast<size_t>(idx) * sizeof(value)], &value, sizeof(value));
}

float LoadF32(std::span<const std::byte> scales, int64_t idx) {
  float value = 0.0F;
  std::memcpy(&value, &scales[static_cast<size_t>(idx) * sizeof(value)], sizeof(value));
  return value;
}

// A matrix read as FP32.
template <typename T>
struct Matrix {
  explicit Matrix(const ConstTensorView& view)
      : data(reinterpret_cast<const T*>(view.data)), rows(view.shape[0]), cols(view.shape[1]) {}

  float At(int64_t row, int64_t col) const { return ToFloat(data[row * cols + col]); }

  const T* data;
  int64_t rows;
  int64_t cols;
};

// --- Encode -------------------------------------------------------------------------------------

template <typename T>
float BlockAmax(const Matrix<T>& values, const Block& block) {
  float amax = 0.0F;
  for (int64_t n = block.row_begin; n < block.row_end; ++n) {
    for (int64_t k = block.col_begin; k < block.col_end; ++k) {
      amax = std::max(amax, std::fabs(values.At(n, k)));
    }
  }
  return amax;
}

// What one element of a block becomes: E4M3 or E2M1 of x / divisor or of x * factor; the other of
// the two is 1, and so changes nothing.
struct ElementRule {
  float divisor = 1.0F;
  float factor = 1.0F;
};

// Computes and stores the scale of a block.
ElementRule ScaleBlock(const QuantizeArgs& args, float amax, int64_t block_idx) {
  switch (args.format) {
    case WeightFormat::kMxfp8: {
      const uint8_t code = Mxfp8ScaleCode(amax);
      args.scales[static_cast<size_t>(block_idx)] = std::byte{code};
      return {.factor = E8m0Reciprocal(code)};
    }
    case WeightFormat::kNvfp4: {
      const uint8_t code = Nvfp4GroupScale(amax, Nvfp4GroupFactor(args.amax));
      args.scales[static_cast<size_t>(block_idx)] = std::byte{code};
      return {.factor = Nvfp4Multiplier(E4m3ToFloat(code), Nvfp4TensorScale(args.amax))};
    }
    case WeightFormat::kFp8Tensor:
      return {.divisor = Fp8TensorScale(args.amax)};
    default: {
      const float scale = args.format == WeightFormat::kFp8Channel ? Fp8ChannelScale(amax)
                          : args.format == WeightFormat::kFp8Ue8m0 ? Fp8BlockUe8m0Scale(amax)
                                                                   : Fp8BlockScale(amax);
      StoreF32(scale, block_idx, args.scales);
      return {.divisor = scale};
    }
  }
}

template <typename T>
void EncodeBlock(const QuantizeArgs& args, const Matrix<T>& values, const Block& block,
                 const ElementRule& rule) {
  for (int64_t n = block.row_begin; n < block.row_end; ++n) {
    for (int64_t k = block.col_begin; k < block.col_end; ++k) {
      const auto idx = static_cast<size_t>(n * values.cols + k);
      const float x = values.At(n, k) / rule.divisor * rule.factor;
      if (args.format != WeightFormat::kNvfp4) {
        args.codes[idx] = FloatToE4m3(x);
      } else if (idx % 2 == 0) {
        args.codes[idx / 2] = PackE2m1(FloatToE2m1(x), 0);
      } else {
        args.codes[idx / 2] |= PackE2m1(0, FloatToE2m1(x));
      }
    }
  }
}

template <typename T>
void QuantizeMatrix(const QuantizeArgs& args) {
  const Matrix<T> values(args.values);
  BlockGridOf(args.format, values.rows, values.cols).ForEach([&](const Block& block) {
    const ElementRule rule = ScaleBlock(args, BlockAmax(values, block), block.idx);
    EncodeBlock(args, values, block, rule);
  });
}

// --- Decode -------------------------------------------------------------------------------------

// Codes and scales read as FP32 factors.
struct Encoded {
  WeightFormat format;
  std::span<const uint8_t> codes;
  std::span<const std::byte> scales;
  float tensor_scale;
  bool tensor_scale_divides;

  // A NaN is always 0x7FC00000, so that a product has one NaN whatever the order of its factors.
  float Scale(int64_t block_idx) const {
    const float scale = RawScale(block_idx);
    return std::isnan(scale) ? std::numeric_limits<float>::quiet_NaN() : scale;
  }
  float RawScale(int64_t block_idx) const {
    if (format == WeightFormat::kFp8Tensor) {
      return tensor_scale;
    }
    if (format != WeightFormat::kMxfp8 && format != WeightFormat::kNvfp4) {
      return LoadF32(scales, block_idx);
    }
    const auto code = static_cast<uint8_t>(scales[static_cast<size_t>(block_idx)]);
    if (format == WeightFormat::kMxfp8) {
      return E8m0ToFloat(code);
    }
    return tensor_scale_divides ? E4m3ToFloat(code) / tensor_scale
                                : E4m3ToFloat(code) * tensor_scale;
  }
  uint8_t Code(int64_t idx) const {
    if (format != WeightFormat::kNvfp4) {
      return codes[static_cast<size_t>(idx)];
    }
    const uint8_t pair = codes[static_cast<size_t>(idx / 2)];
    return idx % 2 == 0 ? pair & 0x0FU : static_cast<uint8_t>(pair >> 4);
  }
  float CodeValue(uint8_t code) const {
    return format == WeightFormat::kNvfp4 ? E2m1ToFloat(code) : E4m3ToFloat(code);
  }
};

void StoreValue(const TensorView& values, int64_t idx, float value) {
  if (values.dtype == DType::kF32) {
    reinterpret_cast<float*>(values.data)[idx] = value;
  } else {
    reinterpret_cast<uint16_t*>(values.data)[idx] = FloatToBf16(value);
  }
}

// --- Measure ------------------------------------------------------------------------------------

template <typename T>
QuantizationError MeasureMatrix(const MeasureArgs& args) {
  const Matrix<T> values(args.values);
  const Encoded encoded = {.format = args.format,
                           .codes = args.codes,
                           .scales = args.scales,
                           .tensor_scale = args.tensor_scale,
                           .tensor_scale_divides = false};
  MeasureSums sums;
  QuantizationError error;
  const BlockGrid grid = BlockGridOf(args.format, values.rows, values.cols);
  for (int64_t n = 0; n < values.rows; ++n) {
    for (int64_t k = 0; k < values.cols; ++k) {
      const float scale = encoded.Scale(grid.BlockOf(n, k));
      const float value = values.At(n, k);
      const float decoded = encoded.CodeValue(encoded.Code(n * values.cols + k)) * scale;
      sums.Add(static_cast<size_t>(k), decoded - value, value);
      error.num_saturated += std::fabs(value) > SaturationLimit(args.format, scale) ? 1 : 0;
    }
  }
  sums.MoveTo(&error);
  error.num_values = values.rows * values.cols;
  CountBlocks(args, &error);
  return error;
}

}  // namespace

void Quantize(const QuantizeArgs& args) {
  if (args.values.dtype == DType::kF32) {
    QuantizeMatrix<float>(args);
  } else {
    QuantizeMatrix<uint16_t>(args);
  }
}

void Dequantize(const DequantizeArgs& args) {
  const Encoded encoded = {.format = args.format,
                           .codes = args.codes,
                           .scales = args.scales,
                           .tensor_scale = args.tensor_scale,
                           .tensor_scale_divides = args.tensor_scale_divides};
  BlockGridOf(args.format, args.rows, args.cols).ForEach([&](const Block& block) {
    const float scale = encoded.Scale(block.idx);
    for (int64_t n = block.row_begin; n < block.row_end; ++n) {
      for (int64_t k = block.col_begin; k < block.col_end; ++k) {
        const int64_t idx = n * args.cols + k;
        StoreValue(args.values, idx, encoded.CodeValue(encoded.Code(idx)) * scale);
      }
    }
  });
}

QuantizationError Measure(const MeasureArgs& args) {
  return args.values.dtype == DType::kF32 ? MeasureMatrix<float>(args)
                                          : MeasureMatrix<uint16_t>(args);
}

}  // namespace octavo::scalar
