#include "octavo/convert/transform.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/buffer.h"
#include "octavo/base/function_ref.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/base/thread_pool.h"
#include "octavo/convert/bf16_bands.h"
#include "octavo/convert/stored_values.h"
#include "octavo/formats/bf16_span.h"
#include "octavo/formats/format.h"
#include "octavo/formats/fp8_block.h"
#include "octavo/policy/precision_table.h"

namespace octavo {
namespace {

// The error for a source that some band found NaN or infinite: counts over all of it.
Status NonFiniteError(std::string_view name, const ConstTensorView& source) {
  Bf16Bands bands(source);
  int64_t count = 0;
  int64_t first_idx = -1;
  for (int64_t band_idx = 0; band_idx < bands.num_bands(); ++band_idx) {
    const NonFiniteCount bad = CountNonFinite(bands.Read(band_idx));
    if (count == 0 && bad.count > 0) {
      first_idx = bands.BandBegin(band_idx) * bands.cols() + bad.first_idx;
    }
    count += bad.count;
  }
  return InvalidArgument(
      "{}: expected values that are finite in BF16, got {} NaN or infinite, the first at {}", name,
      count, IndexString(source.shape, first_idx));
}

// Calls body(band_idx, bf16 bits) for every band, on the pool when there is one. False when a call
// returned false.
bool ForEachBand(const ConstTensorView& source, ThreadPool* pool,
                 FunctionRef<bool(int64_t, std::span<const uint16_t>)> body) {
  std::atomic<bool> all_ok = true;
  const auto run = [&](int64_t begin, int64_t end, int /*worker_idx*/) {
    Bf16Bands bands(source);
    for (int64_t band_idx = begin; band_idx < end; ++band_idx) {
      if (!body(band_idx, bands.Read(band_idx))) {
        all_ok.store(false, std::memory_order_relaxed);
        return;
      }
    }
  };
  const int64_t num_bands = Bf16Bands(source).num_bands();
  if (pool != nullptr) {
    pool->ParallelFor(num_bands, run);
  } else {
    run(0, num_bands, 0);
  }
  return all_ok.load();
}

Status CheckSource(const PrecisionRow& row, const ConstTensorView& source) {
  const bool known =
      source.dtype == DType::kBf16 || source.dtype == DType::kF16 || source.dtype == DType::kF32;
  if (!known || source.shape != row.shape) {
    return InvalidArgument("{}: expected {} BF16, F16 or F32, got {} {}", row.name,
                           ShapeString(row.shape), ShapeString(source.shape),
                           DTypeName(source.dtype));
  }
  return OkStatus();
}

// The tensors of StoredTensorsOf(row), with memory.
Result<std::vector<OwnedTensor>> AllocateStored(const PrecisionRow& row, StoredLayout layout) {
  std::vector<OwnedTensor> tensors;
  for (StoredTensorSpec& spec : StoredTensorsOf(row, layout)) {
    const int64_t num_bytes = NumElements(spec.shape) * DTypeBytes(spec.dtype);
    ASSIGN_OR_RETURN(Buffer bytes, Buffer::AllocateHost(num_bytes));
    tensors.push_back({.name = std::move(spec.name),
                       .dtype = spec.dtype,
                       .shape = std::move(spec.shape),
                       .bytes = std::move(bytes)});
  }
  return tensors;
}

bool KeepBf16(const ConstTensorView& source, ThreadPool* pool, std::span<uint16_t> out) {
  const int64_t cols = Bf16Bands(source).cols();
  return ForEachBand(source, pool, [&](int64_t band_idx, std::span<const uint16_t> values) {
    if (CountNonFinite(values).count != 0) {
      return false;
    }
    std::copy(values.begin(), values.end(),
              out.begin() + static_cast<ptrdiff_t>(band_idx * kBandRows * cols));
    return true;
  });
}

bool EncodeFp8(const ConstTensorView& source, ThreadPool* pool, std::span<uint8_t> codes,
               std::span<float> scales) {
  const int64_t cols = source.shape[1];
  const auto scale_cols = static_cast<size_t>(NumFp8Blocks(cols));
  return ForEachBand(source, pool, [&](int64_t band_idx, std::span<const uint16_t> values) {
    const auto begin = static_cast<size_t>(band_idx * kBandRows * cols);
    const int64_t rows = cols == 0 ? 0 : static_cast<int64_t>(values.size()) / cols;
    const size_t num_scales = rows == 0 ? 0 : scale_cols;
    return EncodeFp8Block(
               {.rows = rows,
                .cols = cols,
                .values = values,
                .codes = codes.subspan(begin, values.size()),
                .scales = scales.subspan(static_cast<size_t>(band_idx) * scale_cols, num_scales)})
        .ok();
  });
}

// --- Adopting stored tensors --------------------------------------------------------------------

Status CheckStored(const StoredTensorSpec& spec, const ConstTensorView& view) {
  const bool is_scale = spec.dtype == DType::kF32;
  const bool dtype_ok = view.dtype == spec.dtype || (is_scale && view.dtype == DType::kBf16);
  if (!dtype_ok || view.shape != spec.shape) {
    return InvalidArgument("{}: expected {} {}, got {} {}", spec.name, ShapeString(spec.shape),
                           DTypeName(spec.dtype), ShapeString(view.shape), DTypeName(view.dtype));
  }
  return OkStatus();
}

Status AdoptScales(const StoredTensorSpec& spec, const ConstTensorView& view,
                   std::span<float> out) {
  for (size_t i = 0; i < out.size(); ++i) {
    out[i] = ScaleAt(view, i);
    if (!IsUsableScale(out[i])) {
      return InvalidArgument("{}: expected finite positive scales, got {} at {}", spec.name, out[i],
                             IndexString(view.shape, static_cast<int64_t>(i)));
    }
  }
  return OkStatus();
}

}  // namespace

Status CheckWeight(const PrecisionRow& row, const ConstTensorView& source, ThreadPool* pool) {
  RETURN_IF_ERROR(CheckSource(row, source));
  const bool finite =
      ForEachBand(source, pool, [](int64_t /*band_idx*/, std::span<const uint16_t> values) {
        return CountNonFinite(values).count == 0;
      });
  return finite ? OkStatus() : NonFiniteError(row.name, source);
}

Result<std::vector<OwnedTensor>> TransformWeight(const PrecisionRow& row,
                                                 const ConstTensorView& source,
                                                 const TransformOptions& options) {
  ThreadPool* pool = options.pool;
  RETURN_IF_ERROR(CheckSource(row, source));
  if (row.format == WeightFormat::kFp8 && row.shape.size() != 2) {
    return InvalidArgument("{}: expected a matrix for fp8, got {}", row.name,
                           ShapeString(row.shape));
  }
  ASSIGN_OR_RETURN(std::vector<OwnedTensor> tensors, AllocateStored(row, options.layout));
  bool finite = false;
  switch (row.format) {
    case WeightFormat::kBf16:
      finite = KeepBf16(source, pool, tensors[0].bytes.As<uint16_t>());
      break;
    case WeightFormat::kFp8:
      finite =
          EncodeFp8(source, pool, tensors[0].bytes.As<uint8_t>(), tensors[1].bytes.As<float>());
      break;
    default:
      return Unsupported("{}: format {}", row.name, WeightFormatName(row.format));
  }
  if (!finite) {
    return NonFiniteError(row.name, source);
  }
  return tensors;
}

Result<std::vector<OwnedTensor>> AdoptStored(const PrecisionRow& row,
                                             const std::vector<ConstTensorView>& stored,
                                             StoredLayout layout) {
  const std::vector<StoredTensorSpec> specs = StoredTensorsOf(row, layout);
  if (stored.size() != specs.size()) {
    return InvalidArgument("{}: expected {} stored tensors, got {}", row.name, specs.size(),
                           stored.size());
  }
  if (row.format == WeightFormat::kBf16) {
    return TransformWeight(row, stored[0], {});
  }
  for (size_t i = 0; i < specs.size(); ++i) {
    RETURN_IF_ERROR(CheckStored(specs[i], stored[i]));
  }
  ASSIGN_OR_RETURN(std::vector<OwnedTensor> tensors, AllocateStored(row, layout));
  const std::span<uint8_t> codes = tensors[0].bytes.As<uint8_t>();
  if (!codes.empty()) {
    std::memcpy(codes.data(), stored[0].data, codes.size());
  }
  if (HasNaNCode(codes)) {
    return InvalidArgument("{}: expected E4M3 codes of finite values, got a NaN code", row.name);
  }
  RETURN_IF_ERROR(AdoptScales(specs[1], stored[1], tensors[1].bytes.As<float>()));
  return tensors;
}

}  // namespace octavo
