#include "octavo/kernels/reference/weight_row.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "octavo/base/check.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/formats/bf16.h"
#include "octavo/formats/e2m1.h"
#include "octavo/formats/e4m3.h"
#include "octavo/formats/e8m0.h"
#include "octavo/formats/format.h"
#include "octavo/formats/fp8_block.h"
#include "octavo/formats/mxfp8.h"
#include "octavo/formats/nvfp4.h"
#include "octavo/formats/quantize.h"
#include "octavo/kernels/matrix.h"

namespace octavo::reference {
namespace {

const uint8_t* RowCodes(const PackedMatrix& weight, int64_t n) {
  return reinterpret_cast<const uint8_t*>(weight.codes.data()) +
         n * (weight.codes.num_bytes() / weight.rows);
}

// mxfp8 and nvfp4: the scale bytes of row n.
const uint8_t* RowScales(const PackedMatrix& weight, int64_t n) {
  return reinterpret_cast<const uint8_t*>(weight.scales.data()) +
         n * (weight.scales.num_bytes() / weight.rows);
}

// Scales of row n alone, as those of a matrix of one row.
std::span<const std::byte> ScalesOfRow(const PackedMatrix& weight, int64_t n) {
  const int64_t bytes = ScaleBytes(weight.format, 1, weight.cols);
  const bool has_blocks =
      weight.format == WeightFormat::kFp8 || weight.format == WeightFormat::kFp8Ue8m0;
  const int64_t row = has_blocks ? n / kFp8BlockDim : n;
  return weight.scales.bytes().subspan(static_cast<size_t>(row * bytes),
                                       static_cast<size_t>(bytes));
}

}  // namespace

void DecodeWeightRow(const PackedMatrix& weight, int64_t n, float* row) {
  const uint8_t* codes = RowCodes(weight, n);
  switch (weight.format) {
    case WeightFormat::kBf16: {
      const auto* bits = reinterpret_cast<const uint16_t*>(codes);
      std::transform(bits, bits + weight.cols, row, Bf16ToFloat);
      return;
    }
    case WeightFormat::kFp8:
    case WeightFormat::kFp8Ue8m0:
    case WeightFormat::kFp8Channel:
    case WeightFormat::kFp8Tensor:
      std::transform(codes, codes + weight.cols, row, E4m3ToFloat);
      return;
    case WeightFormat::kMxfp8: {
      const uint8_t* scales = RowScales(weight, n);
      for (int64_t k = 0; k < weight.cols; ++k) {
        row[k] = E4m3ToFloat(codes[k]) * E8m0ToFloat(scales[k / kMxGroupElems]);
      }
      return;
    }
    case WeightFormat::kNvfp4: {
      const uint8_t* scales = RowScales(weight, n);
      for (int64_t k = 0; k < weight.cols; ++k) {
        const auto code = static_cast<uint8_t>(codes[k / 2] >> (k % 2 * 4));
        row[k] = E2m1ToFloat(code) * E4m3ToFloat(scales[k / kNvfp4GroupElems]);
      }
      return;
    }
  }
}

void DequantizeWeightRow(const PackedMatrix& weight, int64_t n, float* row) {
  if (weight.format == WeightFormat::kBf16) {
    DecodeWeightRow(weight, n, row);
    return;
  }
  const Status status = DequantizeScalar(
      {.format = weight.format,
       .rows = 1,
       .cols = weight.cols,
       .codes = {RowCodes(weight, n),
                 static_cast<size_t>(CodeBytes(weight.format, 1, weight.cols))},
       .scales = ScalesOfRow(weight, n),
       .tensor_scale = weight.tensor_scale,
       .tensor_scale_divides = weight.tensor_scale_divides,
       .values = {DType::kF32, {1, weight.cols}, reinterpret_cast<std::byte*>(row)}});
  CHECK(status.ok());
}

}  // namespace octavo::reference
