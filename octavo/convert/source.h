#pragma once
// A weight as a source stores it, in any of the accepted forms, read as rows of numbers.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "octavo/base/tensor.h"
#include "octavo/formats/format.h"

namespace octavo {

// The unit in which matrices may be cut without a trace in the bytes: the block of fp8.
inline constexpr int64_t kBandRows = 128;

// Rows [begin, begin + count); begin is a multiple of kBandRows.
struct RowRange {
  int64_t begin = 0;
  int64_t count = 0;
};

// Views into a checkpoint, which must outlive this. Value type; const is thread-safe.
struct WeightSource {
  // kBf16: `codes` are plain values, BF16, F16 or F32, and there is nothing else.
  WeightFormat format = WeightFormat::kBf16;
  int64_t rows = 0;
  int64_t cols = 0;
  ConstTensorView codes;  // [rows, cols], one after the other; half as many bytes for nvfp4.
  // As stored, for formats that have them (formats/quantize.h): F32, F16 or BF16 for fp8 blocks
  // and channels, or U8 or F8_E8M0 with the value 2^(b - 127); bytes for mxfp8 and nvfp4.
  ConstTensorView scales;
  float tensor_scale = 1.0F;  // fp8-tensor, nvfp4.
  bool tensor_scale_divides = false;
};

// Plain values of their own. A tensor of other rank than 2 is its first extent by the product of
// the others.
WeightSource PlainSource(const ConstTensorView& values);

// How many rows a piece of work should have: whole bands, about as many as a core's cache holds.
int64_t RowsPerPiece(int64_t cols);
// The pieces of [rows, cols], in order. None for a matrix without elements.
std::vector<RowRange> PiecesOf(int64_t rows, int64_t cols);

// Reads rows; owns the scratch for it. One thread each.
class SourceRows {
 public:
  // [range.count, cols] in BF16, or F32 where the source is quantized (codes times scales, never
  // rounded to BF16) or, with `direct`, F16 or F32; without it those are rounded to BF16, nearest
  // even. The source itself where it can be read in place, else scratch that the next call
  // overwrites. NaN codes and scales give NaN.
  ConstTensorView Read(const WeightSource& source, const RowRange& range, bool direct);

  // The same rounded to BF16 once.
  ConstTensorView ReadBf16(const WeightSource& source, const RowRange& range);

 private:
  ConstTensorView Align(const WeightSource& source, const RowRange& range);
  ConstTensorView Round(const ConstTensorView& values);
  ConstTensorView Widen(const ConstTensorView& values);
  ConstTensorView Decode(const WeightSource& source, const RowRange& range, DType dtype);

  std::vector<std::byte> aligned_;  // safetensors may begin a tensor anywhere.
  std::vector<uint16_t> bf16_;
  std::vector<float> f32_;
  std::vector<float> scales_;
};

// Scales [begin, begin + out.size()) of a view in F32, F16, BF16, U8 or F8_E8M0, as F32. All of it
// is exact.
void WidenScales(const ConstTensorView& scales, int64_t begin, std::span<float> out);

}  // namespace octavo
