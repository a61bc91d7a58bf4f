#include "octavo/convert/transform.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

#include "octavo/base/buffer.h"
#include "octavo/base/check.h"
#include "octavo/base/function_ref.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/base/thread_pool.h"
#include "octavo/convert/source.h"
#include "octavo/convert/stored_check.h"
#include "octavo/convert/stored_values.h"
#include "octavo/formats/format.h"
#include "octavo/formats/nvfp4.h"
#include "octavo/formats/quantize.h"
#include "octavo/policy/precision_table.h"

namespace octavo {
namespace {

// Calls body(rows, reader) for every piece, on the pool when there is one. False when a call
// returned false.
bool ForEachPiece(const WeightSource& source, ThreadPool* pool,
                  FunctionRef<bool(const RowRange&, SourceRows&)> body) {
  std::atomic<bool> all_ok = true;
  const std::vector<RowRange> pieces = PiecesOf(source.rows, source.cols);
  const auto run = [&](int64_t begin, int64_t end, int /*worker_idx*/) {
    SourceRows reader;
    for (int64_t i = begin; i < end; ++i) {
      if (!body(pieces[static_cast<size_t>(i)], reader)) {
        all_ok.store(false, std::memory_order_relaxed);
        return;
      }
    }
  };
  const auto num_pieces = static_cast<int64_t>(pieces.size());
  if (pool != nullptr) {
    pool->ParallelFor(num_pieces, run);
  } else {
    run(0, num_pieces, 0);
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

// The row can be in its format at all.
Status CheckRow(const PrecisionRow& row) {
  if (row.format == WeightFormat::kBf16) {
    return OkStatus();
  }
  if (row.shape.size() != 2) {
    return InvalidArgument("{}: expected a matrix for {}, got {}", row.name,
                           WeightFormatName(row.format), ShapeString(row.shape));
  }
  if (const int64_t multiple = ColsMultipleOf(row.format); row.shape[1] % multiple != 0) {
    return InvalidArgument("{}: expected rows of a multiple of {} values for {}, got {}", row.name,
                           multiple, WeightFormatName(row.format), ShapeString(row.shape));
  }
  return OkStatus();
}

// The tensors of StoredTensorsOf(row), with memory.
Result<std::vector<OwnedTensor>> AllocateStored(const std::vector<StoredTensorSpec>& specs) {
  std::vector<OwnedTensor> tensors;
  for (const StoredTensorSpec& spec : specs) {
    const int64_t num_bytes = NumElements(spec.shape) * DTypeBytes(spec.dtype);
    ASSIGN_OR_RETURN(Buffer bytes, Buffer::AllocateHost(num_bytes));
    tensors.push_back(
        {.name = spec.name, .dtype = spec.dtype, .shape = spec.shape, .bytes = std::move(bytes)});
  }
  return tensors;
}

bool KeepBf16(const WeightSource& source, ThreadPool* pool, std::span<uint16_t> out) {
  return ForEachPiece(source, pool, [&](const RowRange& rows, SourceRows& reader) {
    const ConstTensorView values = reader.ReadBf16(source, rows);
    if (CountNonFinite(values).count != 0) {
      return false;
    }
    std::memcpy(out.data() + rows.begin * source.cols, values.data,
                static_cast<size_t>(values.NumBytes()));
    return true;
  });
}

// Codes and scales of a whole weight.
struct EncodeTarget {
  std::span<uint8_t> codes;
  std::span<std::byte> scales;  // Empty for a format without.
};

bool Encode(const PrecisionRow& row, const WeightSource& source, float amax,
            const TransformOptions& options, const EncodeTarget& out) {
  return ForEachPiece(source, options.pool, [&](const RowRange& rows, SourceRows& reader) {
    const auto part = [&](int64_t (*bytes_of)(WeightFormat, int64_t, int64_t), auto whole) {
      return whole.subspan(static_cast<size_t>(bytes_of(row.format, rows.begin, source.cols)),
                           static_cast<size_t>(bytes_of(row.format, rows.count, source.cols)));
    };
    QuantizeArgs args;
    args.format = row.format;
    args.values = reader.Read(source, rows, options.direct);
    args.amax = amax;
    args.codes = part(CodeBytes, out.codes);
    args.scales = part(ScaleBytes, out.scales);
    return Quantize(args).ok();
  });
}

}  // namespace

float SingleValue(WeightFormat format, StoredPart part, float amax) {
  if (part == StoredPart::kTensorScale) {
    return TensorScale(format, amax);
  }
  return part == StoredPart::kTensorDivisor ? Nvfp4EncodeScale(amax) : 1.0F;
}

Status UnfitSourceError(const PrecisionRow& row, const WeightSource& source, bool direct) {
  const bool wide =
      row.format != WeightFormat::kBf16 && (direct || source.format != WeightFormat::kBf16);
  SourceRows reader;
  int64_t count = 0;
  int64_t first_idx = -1;
  for (const RowRange& rows : PiecesOf(source.rows, source.cols)) {
    const NonFiniteCount bad =
        CountNonFinite(wide ? reader.Read(source, rows, direct) : reader.ReadBf16(source, rows));
    if (count == 0 && bad.count > 0) {
      first_idx = rows.begin * source.cols + bad.first_idx;
    }
    count += bad.count;
  }
  if (count == 0) {
    return InvalidArgument("{}: expected no magnitude above the one that its set shares", row.name);
  }
  return InvalidArgument(
      "{}: expected values that are finite{}, got {} NaN or infinite, the first at {}", row.name,
      wide ? "" : " in BF16", count, IndexString(row.shape, first_idx));
}

Status CheckWeight(const PrecisionRow& row, const ConstTensorView& source, ThreadPool* pool) {
  RETURN_IF_ERROR(CheckSource(row, source));
  const WeightSource values = PlainSource(source);
  const bool finite = ForEachPiece(values, pool, [&](const RowRange& rows, SourceRows& reader) {
    return CountNonFinite(reader.ReadBf16(values, rows)).count == 0;
  });
  if (finite) {
    return OkStatus();
  }
  PrecisionRow kept = row;
  kept.format = WeightFormat::kBf16;
  return UnfitSourceError(kept, values, /*direct=*/false);
}

Result<float> SourceAmax(const PrecisionRow& row, const WeightSource& source,
                         const TransformOptions& options) {
  std::mutex mutex;
  float amax = 0.0F;  // Guarded by mutex.
  const bool finite = ForEachPiece(source, options.pool, [&](const RowRange& rows, auto& reader) {
    const ConstTensorView values = row.format == WeightFormat::kBf16
                                       ? reader.ReadBf16(source, rows)
                                       : reader.Read(source, rows, options.direct);
    const float piece_amax = Amax(values);
    if (!std::isfinite(piece_amax)) {
      return false;
    }
    const std::lock_guard lock(mutex);
    amax = std::max(amax, piece_amax);
    return true;
  });
  return finite ? Result<float>(amax)
                : Result<float>(UnfitSourceError(row, source, options.direct));
}

Result<float> WeightAmax(const PrecisionRow& row, const ConstTensorView& source,
                         const TransformOptions& options) {
  RETURN_IF_ERROR(CheckSource(row, source));
  return SourceAmax(row, PlainSource(source), options);
}

Result<std::vector<OwnedTensor>> TransformSource(const PrecisionRow& row,
                                                 const WeightSource& source,
                                                 const TransformOptions& options) {
  RETURN_IF_ERROR(CheckRow(row));
  const std::vector<StoredTensorSpec> specs = StoredTensorsOf(row, options.layout);
  ASSIGN_OR_RETURN(std::vector<OwnedTensor> tensors, AllocateStored(specs));
  if (row.format == WeightFormat::kBf16) {
    if (!KeepBf16(source, options.pool, tensors[0].bytes.As<uint16_t>())) {
      return UnfitSourceError(row, source, options.direct);
    }
    return tensors;
  }
  float amax = options.shared_amax.value_or(0.0F);
  if (SharesScale(row.format) && !options.shared_amax.has_value()) {
    ASSIGN_OR_RETURN(amax, SourceAmax(row, source, options));
  }
  EncodeTarget target;
  for (size_t i = 0; i < specs.size(); ++i) {
    if (specs[i].part == StoredPart::kCodes) {
      target.codes = tensors[i].bytes.As<uint8_t>();
    } else if (specs[i].part == StoredPart::kScales) {
      target.scales = tensors[i].bytes.bytes();
    } else {
      tensors[i].bytes.As<float>()[0] = SingleValue(row.format, specs[i].part, amax);
    }
  }
  if (!Encode(row, source, amax, options, target)) {
    return UnfitSourceError(row, source, options.direct);
  }
  return tensors;
}

Result<std::vector<OwnedTensor>> TransformWeight(const PrecisionRow& row,
                                                 const ConstTensorView& source,
                                                 const TransformOptions& options) {
  RETURN_IF_ERROR(CheckSource(row, source));
  return TransformSource(row, PlainSource(source), options);
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
    RETURN_IF_ERROR(CheckStoredType(row, specs[i], stored[i]));
  }
  ASSIGN_OR_RETURN(std::vector<OwnedTensor> tensors, AllocateStored(specs));
  for (size_t i = 0; i < specs.size(); ++i) {
    CopyStored(specs[i], stored[i], tensors[i].bytes.bytes());
    if (specs[i].part == StoredPart::kCodes) {
      RETURN_IF_ERROR(CheckStoredCodes(row, tensors[i].bytes.As<uint8_t>()));
    } else {
      RETURN_IF_ERROR(CheckStoredScales(row, specs[i], stored[i]));
    }
  }
  return tensors;
}

}  // namespace octavo
