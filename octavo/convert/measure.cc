#include "octavo/convert/measure.h"

#include <cstdint>
#include <cstring>
#include <vector>

#include "octavo/base/check.h"
#include "octavo/base/tensor.h"
#include "octavo/base/thread_pool.h"
#include "octavo/convert/bf16_bands.h"
#include "octavo/formats/fp8_block.h"

namespace octavo {

Fp8BlockError MeasureStored(const ConstTensorView& source, const ConstTensorView& codes,
                            const ConstTensorView& scales, ThreadPool* pool) {
  CHECK(source.shape.size() == 2U);
  CHECK(NumElements(codes.shape) == NumElements(source.shape));
  CHECK(scales.dtype == DType::kF32);
  const Bf16Bands shape(source);
  const int64_t cols = shape.cols();
  const auto scale_cols = static_cast<size_t>(NumFp8Blocks(cols));
  std::vector<Fp8BlockError> band_errors(static_cast<size_t>(shape.num_bands()));
  const auto measure = [&](int64_t begin, int64_t end, int /*worker_idx*/) {
    Bf16Bands bands(source);
    std::vector<float> band_scales(scale_cols);  // A copy, for files align nothing.
    for (int64_t band_idx = begin; band_idx < end; ++band_idx) {
      const auto first = static_cast<size_t>(band_idx) * scale_cols;
      const auto count = static_cast<size_t>(bands.BandRows(band_idx) * cols);
      if (count == 0) {
        continue;
      }
      std::memcpy(band_scales.data(), scales.data + first * sizeof(float),
                  scale_cols * sizeof(float));
      const auto* band_codes = reinterpret_cast<const uint8_t*>(codes.data) +
                               static_cast<size_t>(bands.BandBegin(band_idx) * cols);
      band_errors[static_cast<size_t>(band_idx)] =
          MeasureFp8Block({.rows = bands.BandRows(band_idx),
                           .cols = cols,
                           .values = bands.Read(band_idx),
                           .codes = {band_codes, count},
                           .scales = band_scales});
    }
  };
  if (pool != nullptr) {
    pool->ParallelFor(shape.num_bands(), measure);
  } else {
    measure(0, shape.num_bands(), 0);
  }
  Fp8BlockError total;
  for (const Fp8BlockError& error : band_errors) {
    total += error;
  }
  return total;
}

}  // namespace octavo
