#include "octavo/convert/source.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "octavo/base/check.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/formats/bf16.h"
#include "octavo/formats/bf16_span.h"
#include "octavo/formats/e8m0.h"
#include "octavo/formats/format.h"
#include "octavo/formats/quantize.h"

namespace octavo {
namespace {

// Source, codes and scales of a piece together stay within a second-level cache of 1 MiB.
constexpr int64_t kPieceElems = int64_t{256} << 10;

int64_t NumBlocks(int64_t extent) { return (extent + kBandRows - 1) / kBandRows; }

template <typename T>
T LoadAt(const std::byte* data, int64_t elem_idx) {
  T value;
  std::memcpy(&value, data + static_cast<size_t>(elem_idx) * sizeof(T), sizeof(T));
  return value;
}

bool IsAligned(const std::byte* data, int64_t elem_bytes) {
  return reinterpret_cast<uintptr_t>(data) % static_cast<size_t>(elem_bytes) == 0;
}

// Scales of the piece, in elements: where they begin, how many.
struct ScaleRange {
  int64_t begin = 0;
  int64_t count = 0;
};
ScaleRange ScalesOf(const WeightSource& source, const RowRange& range) {
  const int64_t per_block_row = NumBlocks(source.cols);
  switch (source.format) {
    case WeightFormat::kFp8:
    case WeightFormat::kFp8Ue8m0:
      return {range.begin / kBandRows * per_block_row, NumBlocks(range.count) * per_block_row};
    case WeightFormat::kFp8Channel:
      return {range.begin, range.count};
    case WeightFormat::kMxfp8:
    case WeightFormat::kNvfp4: {
      const int64_t per_row = source.cols / ColsMultipleOf(source.format);
      return {range.begin * per_row, range.count * per_row};
    }
    default:
      return {};
  }
}

std::span<const std::byte> AsBytes(std::span<const float> values) { return std::as_bytes(values); }

}  // namespace

void WidenScales(const ConstTensorView& scales, int64_t begin, std::span<float> out) {
  for (size_t i = 0; i < out.size(); ++i) {
    const int64_t elem_idx = begin + static_cast<int64_t>(i);
    switch (scales.dtype) {
      case DType::kF32:
        out[i] = LoadAt<float>(scales.data, elem_idx);
        break;
      case DType::kBf16:
        out[i] = Bf16ToFloat(LoadAt<uint16_t>(scales.data, elem_idx));
        break;
      case DType::kF16:
        out[i] = F16ToFloat(LoadAt<uint16_t>(scales.data, elem_idx));
        break;
      default:
        CHECK(DTypeBytes(scales.dtype) == 1);
        out[i] = E8m0ToFloat(LoadAt<uint8_t>(scales.data, elem_idx));
        break;
    }
  }
}

WeightSource PlainSource(const ConstTensorView& values) {
  WeightSource source;
  source.rows = values.shape.empty() ? 1 : values.shape[0];
  source.cols = source.rows == 0 ? 0 : NumElements(values.shape) / source.rows;
  source.codes = values;
  return source;
}

int64_t RowsPerPiece(int64_t cols) {
  const int64_t rows = kPieceElems / std::max<int64_t>(cols, 1);
  return std::max(rows / kBandRows, int64_t{1}) * kBandRows;
}

std::vector<RowRange> PiecesOf(int64_t rows, int64_t cols) {
  std::vector<RowRange> pieces;
  const int64_t step = RowsPerPiece(cols);
  for (int64_t begin = 0; cols > 0 && begin < rows; begin += step) {
    pieces.push_back({.begin = begin, .count = std::min(step, rows - begin)});
  }
  return pieces;
}

// Plain values of the rows, aligned.
ConstTensorView SourceRows::Align(const WeightSource& source, const RowRange& range) {
  const int64_t elem_bytes = DTypeBytes(source.codes.dtype);
  const std::byte* begin = source.codes.data + range.begin * source.cols * elem_bytes;
  ConstTensorView values = {source.codes.dtype, {range.count, source.cols}, begin};
  if (!IsAligned(begin, elem_bytes)) {
    aligned_.resize(static_cast<size_t>(values.NumBytes()));
    std::memcpy(aligned_.data(), begin, aligned_.size());
    values.data = aligned_.data();
  }
  return values;
}

// F16 or F32 to BF16.
ConstTensorView SourceRows::Round(const ConstTensorView& values) {
  const auto count = static_cast<size_t>(NumElements(values.shape));
  bf16_.resize(count);
  if (values.dtype == DType::kF32) {
    RoundF32ToBf16({reinterpret_cast<const float*>(values.data), count}, bf16_);
  } else {
    CHECK(values.dtype == DType::kF16);
    RoundF16ToBf16({reinterpret_cast<const uint16_t*>(values.data), count}, bf16_);
  }
  return {DType::kBf16, values.shape, reinterpret_cast<const std::byte*>(bf16_.data())};
}

// F16 to F32.
ConstTensorView SourceRows::Widen(const ConstTensorView& values) {
  f32_.resize(static_cast<size_t>(NumElements(values.shape)));
  WidenScales(values, 0, f32_);
  return {DType::kF32, values.shape, reinterpret_cast<const std::byte*>(f32_.data())};
}

ConstTensorView SourceRows::Decode(const WeightSource& source, const RowRange& range, DType dtype) {
  const int64_t count = range.count * source.cols;
  TensorView values = {dtype, {range.count, source.cols}, nullptr};
  if (dtype == DType::kF32) {
    f32_.resize(static_cast<size_t>(count));
    values.data = reinterpret_cast<std::byte*>(f32_.data());
  } else {
    bf16_.resize(static_cast<size_t>(count));
    values.data = reinterpret_cast<std::byte*>(bf16_.data());
  }
  const auto bytes_of = [&](int64_t rows) {
    return static_cast<size_t>(CodeBytes(source.format, rows, source.cols));
  };
  const auto* codes = reinterpret_cast<const uint8_t*>(source.codes.data) + bytes_of(range.begin);
  DequantizeArgs args;
  args.format = source.format;
  args.rows = range.count;
  args.cols = source.cols;
  args.codes = {codes, bytes_of(range.count)};
  args.tensor_scale = source.tensor_scale;
  args.tensor_scale_divides = source.tensor_scale_divides;
  args.values = values;
  const ScaleRange scales = ScalesOf(source, range);
  if (source.format == WeightFormat::kMxfp8 || source.format == WeightFormat::kNvfp4) {
    args.scales = {source.scales.data + scales.begin, static_cast<size_t>(scales.count)};
  } else {
    scales_.resize(static_cast<size_t>(scales.count));
    WidenScales(source.scales, scales.begin, scales_);
    args.scales = AsBytes(scales_);
  }
  const Status status = Dequantize(args);
  CHECK(status.ok());  // Shapes were checked when the source was made.
  return values;
}

ConstTensorView SourceRows::Read(const WeightSource& source, const RowRange& range, bool direct) {
  if (source.format != WeightFormat::kBf16) {
    return Decode(source, range, DType::kF32);
  }
  const ConstTensorView values = Align(source, range);
  if (values.dtype == DType::kBf16 || (direct && values.dtype == DType::kF32)) {
    return values;
  }
  return direct ? Widen(values) : Round(values);
}

ConstTensorView SourceRows::ReadBf16(const WeightSource& source, const RowRange& range) {
  return source.format == WeightFormat::kBf16 ? Read(source, range, /*direct=*/false)
                                              : Decode(source, range, DType::kBf16);
}

}  // namespace octavo
