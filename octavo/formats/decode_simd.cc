// The vector twins of Dequantize and MeasureQuantization; one source for every target.

#ifndef HWY_WANT_AVX3_DL
#define HWY_WANT_AVX3_DL
#endif
#ifndef HWY_DISABLED_TARGETS
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4)
#endif

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "octavo/formats/decode_simd.cc"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "octavo/formats/block_grid.h"
#include "octavo/formats/e4m3.h"
#include "octavo/formats/e8m0.h"
#include "octavo/formats/format.h"
#include "octavo/formats/lanes_simd-inl.h"
#include "octavo/formats/measure_sums.h"
#include "octavo/formats/quantize.h"
#include "octavo/formats/quantize_scalar.h"
#include "octavo/formats/quantize_simd.h"
#include "octavo/formats/zero_blocks.h"

HWY_BEFORE_NAMESPACE();
namespace octavo::simd::HWY_NAMESPACE {

// Vectors hold half a chunk at least (below); narrower targets take the scalar code.
#if HWY_TARGET == HWY_SCALAR || HWY_MAX_BYTES < 32

void DecodeMatrix(const DequantizeArgs& args) { scalar::Dequantize(args); }
QuantizationError MeasureMatrix(const MeasureArgs& args) { return scalar::Measure(args); }

#else

// Work goes by chunks of 32 columns: one vector of 16-bit lanes or several. A scale covers a whole
// chunk, or for nvfp4 a half of it.
constexpr size_t kChunk = kMeasureLanes;
constexpr size_t kVectorsOfChunk = kChunk / kLanes16;
constexpr size_t kHalf = kChunk / 2;
static_assert(kLanes16 % kHalf == 0);

// Elements of even and of odd position of one vector of 16-bit lanes.
struct Pair {
  VF even;
  VF odd;
};

HWY_INLINE Pair E4m3Values(const uint8_t* HWY_RESTRICT codes) {
  const hn::Half<hn::Repartition<uint8_t, D16> > d8;
  const V32 wide = hn::BitCast(D32(), hn::PromoteTo(D16(), hn::LoadU(d8, codes)));
  return {CodesToFloat(hn::And(wide, hn::Set(D32(), 0xFFFF))),
          CodesToFloat(hn::ShiftRight<16>(wide))};
}

// The low four bits of each lane, as E2M1.
HWY_INLINE VF E2m1Value(V32 code) {
  const DF df;
  const D32 d;
  HWY_ALIGN static constexpr float kMagnitudes[16] = {0.0F, 0.5F, 1.0F, 1.5F, 2.0F, 3.0F,
                                                      4.0F, 6.0F, 0.0F, 0.5F, 1.0F, 1.5F,
                                                      2.0F, 3.0F, 4.0F, 6.0F};
  const auto idx = hn::IndicesFromVec(df, hn::And(code, hn::Set(d, 7)));
  const VF magnitude = hn::TableLookupLanes(hn::Load(df, kMagnitudes), idx);
  const V32 sign = hn::ShiftLeft<28>(hn::And(code, hn::Set(d, 8)));
  return hn::BitCast(df, hn::Or(hn::BitCast(d, magnitude), sign));
}

HWY_INLINE Pair E2m1Values(const uint8_t* HWY_RESTRICT pairs) {
  const hn::Rebind<uint8_t, D32> d8;
  const V32 wide = hn::PromoteTo(D32(), hn::LoadU(d8, pairs));
  return {E2m1Value(wide), E2m1Value(hn::ShiftRight<4>(wide))};
}

// The scales (or limits) of the halves of a chunk.
struct Halves {
  float first;
  float second;
};

// What multiplies the lanes of even, and of odd, elements of vector `idx` of a chunk.
HWY_INLINE VF HalvesOfVector(const Halves& halves, size_t idx) {
  const DF df;
  if constexpr (kLanes16 == kHalf) {
    return hn::Set(df, idx == 0 ? halves.first : halves.second);
  } else {
    const auto in_first = hn::FirstN(df, kLanes32 / 2);
    return hn::IfThenElse(in_first, hn::Set(df, halves.first), hn::Set(df, halves.second));
  }
}

// The values of vector `idx` of a chunk, whose codes begin at `codes`.
template <bool kNvfp4>
HWY_INLINE Pair DecodeVector(const uint8_t* HWY_RESTRICT codes, const Halves& scales, size_t idx) {
  const Pair values =
      kNvfp4 ? E2m1Values(codes + idx * kLanes16 / 2) : E4m3Values(codes + idx * kLanes16);
  const VF scale = kNvfp4 ? HalvesOfVector(scales, idx) : hn::Set(DF(), scales.first);
  return {hn::Mul(values.even, scale), hn::Mul(values.odd, scale)};
}

// Scales by position, as FP32 factors. A NaN is always 0x7FC00000, so that a product has one NaN
// whatever the order of its factors.
class ScaleReader {
 public:
  HWY_INLINE ScaleReader(WeightFormat format, int64_t rows, int64_t cols, const std::byte* scales,
                         float tensor_scale, bool divides)
      : format_(format),
        grid_(BlockGridOf(format, rows, cols)),
        scales_(scales),
        tensor_scale_(tensor_scale),
        byte_scales_(format == WeightFormat::kMxfp8 || format == WeightFormat::kNvfp4),
        col_shift_(grid_.NumBlockCols() <= 1
                       ? 63
                       : std::countr_zero(static_cast<uint64_t>(grid_.block_cols))) {
    for (uint32_t code = 0; code < (byte_scales_ ? of_byte_.size() : 0); ++code) {
      const auto byte = static_cast<uint8_t>(code);
      of_byte_[code] = OneNaN(format == WeightFormat::kMxfp8 ? E8m0ToFloat(byte)
                              : divides                      ? E4m3ToFloat(byte) / tensor_scale
                                                             : E4m3ToFloat(byte) * tensor_scale);
    }
  }

  HWY_INLINE void SetRow(int64_t row) { row_begin_ = grid_.BlockOf(row, 0); }

  HWY_INLINE float At(int64_t col) const {
    const int64_t idx = row_begin_ + (col >> col_shift_);
    if (byte_scales_) {
      return of_byte_[static_cast<uint8_t>(scales_[idx])];
    }
    float scale = tensor_scale_;
    if (format_ != WeightFormat::kFp8Tensor) {
      std::memcpy(&scale, scales_ + idx * static_cast<int64_t>(sizeof(scale)), sizeof(scale));
    }
    return OneNaN(scale);
  }

  // Of the chunk that begins at column `col`; one half of it may lie beyond the row.
  template <bool kNvfp4>
  HWY_INLINE Halves OfChunk(int64_t col) const {
    const float first = At(col);
    if constexpr (kNvfp4) {
      const int64_t second = col + static_cast<int64_t>(kHalf);
      return {first, second < grid_.cols ? At(second) : 0.0F};
    }
    return {first, first};
  }

 private:
  static HWY_INLINE float OneNaN(float scale) {
    return std::isnan(scale) ? std::numeric_limits<float>::quiet_NaN() : scale;
  }

  WeightFormat format_;
  BlockGrid grid_;
  const std::byte* scales_;
  float tensor_scale_;
  bool byte_scales_;
  std::array<float, 256> of_byte_;  // What a scale of one byte stands for.
  int col_shift_;  // Blocks of which there are several in a row have a power of two of columns.
  int64_t row_begin_ = 0;
};

// --- Decode
// ---------------------------------------------------------------------------------------

HWY_INLINE void StoreValues(const Pair& values, uint16_t* HWY_RESTRICT out) {
  hn::StoreU(Interleave(RoundToBf16Lanes(values.even), RoundToBf16Lanes(values.odd)), D16(), out);
}
HWY_INLINE void StoreValues(const Pair& values, float* HWY_RESTRICT out) {
  hn::StoreInterleaved2(values.even, values.odd, DF(), out);
}

template <bool kNvfp4, typename T>
HWY_INLINE void DecodeChunk(const uint8_t* HWY_RESTRICT codes, const Halves& scales,
                            T* HWY_RESTRICT out) {
  for (size_t i = 0; i < kVectorsOfChunk; ++i) {
    StoreValues(DecodeVector<kNvfp4>(codes, scales, i), out + i * kLanes16);
  }
}

template <bool kNvfp4, typename T>
HWY_INLINE void DecodeRows(const DequantizeArgs& args) {
  constexpr int64_t kStep = kChunk;
  constexpr int64_t kPerByte = kNvfp4 ? 2 : 1;
  ScaleReader scales(args.format, args.rows, args.cols, args.scales.data(), args.tensor_scale,
                     args.tensor_scale_divides);
  auto* values = reinterpret_cast<T*>(args.values.data);
  for (int64_t n = 0; n < args.rows; ++n) {
    scales.SetRow(n);
    const uint8_t* codes = args.codes.data() + n * args.cols / kPerByte;
    T* out = values + n * args.cols;
    int64_t k = 0;
    for (; k + kStep <= args.cols; k += kStep) {
      DecodeChunk<kNvfp4>(codes + k / kPerByte, scales.OfChunk<kNvfp4>(k), out + k);
    }
    if (k < args.cols) {
      const auto rest = static_cast<size_t>(args.cols - k);
      uint8_t rest_codes[kChunk] = {};
      T rest_values[kChunk];
      std::memcpy(rest_codes, codes + k / kPerByte, rest / kPerByte);
      DecodeChunk<kNvfp4>(rest_codes, scales.OfChunk<kNvfp4>(k), rest_values);
      std::memcpy(out + k, rest_values, rest * sizeof(T));
    }
  }
}

template <bool kNvfp4>
HWY_INLINE void DecodeTo(const DequantizeArgs& args) {
  if (args.values.dtype == DType::kF32) {
    DecodeRows<kNvfp4, float>(args);
  } else {
    DecodeRows<kNvfp4, uint16_t>(args);
  }
}

void DecodeMatrix(const DequantizeArgs& args) {
  if (args.format == WeightFormat::kNvfp4) {
    DecodeTo<true>(args);
  } else {
    DecodeTo<false>(args);
  }
}

// --- Measure
// --------------------------------------------------------------------------------------

using DD = hn::ScalableTag<double>;
using VD = hn::Vec<DD>;

HWY_INLINE Pair LoadPair(const uint16_t* HWY_RESTRICT values) {
  const V16 v = hn::LoadU(D16(), values);
  return {EvenBf16(v), OddBf16(v)};
}
HWY_INLINE Pair LoadPair(const float* HWY_RESTRICT values) {
  const DF d;
  const VF low = hn::LoadU(d, values);
  const VF high = hn::LoadU(d, values + kLanes32);
  return {hn::ConcatEven(d, high, low), hn::ConcatOdd(d, high, low)};
}

// FP64 sums of squares, one for each column of a chunk (measure_sums.h): of vector i the even
// elements' lower and upper half, then the odd ones'.
struct SquareSums {
  VD of[kVectorsOfChunk][4];

  HWY_INLINE void Clear() {
    for (auto& vector : of) {
      for (VD& sum : vector) {
        sum = hn::Zero(DD());
      }
    }
  }
  HWY_INLINE void Add(size_t vector, const Pair& values) {
    AddHalves(&of[vector][0], values.even);
    AddHalves(&of[vector][2], values.odd);
  }
  // The product of two equal FP32 is exact in FP64: an fma is a multiplication and an addition.
  HWY_INLINE static void AddHalves(VD* sums, VF values) {
    const DD d;
    const hn::Half<DF> d_half;
    const VD low = hn::PromoteTo(d, hn::LowerHalf(d_half, values));
    const VD high = hn::PromoteTo(d, hn::UpperHalf(d_half, values));
    sums[0] = hn::MulAdd(low, low, sums[0]);
    sums[1] = hn::MulAdd(high, high, sums[1]);
  }
  HWY_INLINE void Store(double* lanes) const {
    constexpr size_t kLanes64 = hn::MaxLanes(DD());
    HWY_ALIGN double part[kLanes64];
    for (size_t i = 0; i < kVectorsOfChunk; ++i) {
      for (size_t j = 0; j < 4; ++j) {
        hn::Store(of[i][j], DD(), part);
        for (size_t lane = 0; lane < kLanes64; ++lane) {
          lanes[i * kLanes16 + 2 * (j % 2 * kLanes64 + lane) + j / 2] = part[lane];
        }
      }
    }
  }
};

struct Meter {
  SquareSums errors;
  SquareSums values;
  VF max_error;
  int64_t num_saturated;
};

template <bool kNvfp4, typename T>
HWY_INLINE void MeasureChunk(const T* HWY_RESTRICT source, const uint8_t* HWY_RESTRICT codes,
                             const Halves& scales, Meter* meter) {
  const DF df;
  const Halves limits = {
      SaturationLimit(kNvfp4 ? WeightFormat::kNvfp4 : WeightFormat::kFp8, scales.first),
      SaturationLimit(kNvfp4 ? WeightFormat::kNvfp4 : WeightFormat::kFp8, scales.second)};
  for (size_t i = 0; i < kVectorsOfChunk; ++i) {
    const Pair x = LoadPair(source + i * kLanes16);
    const Pair decoded = DecodeVector<kNvfp4>(codes, scales, i);
    const Pair error = {hn::Sub(decoded.even, x.even), hn::Sub(decoded.odd, x.odd)};
    const VF limit = kNvfp4 ? HalvesOfVector(limits, i) : hn::Set(df, limits.first);
    meter->num_saturated += static_cast<int64_t>(hn::CountTrue(df, hn::Gt(hn::Abs(x.even), limit)) +
                                                 hn::CountTrue(df, hn::Gt(hn::Abs(x.odd), limit)));
    meter->max_error = hn::Max(hn::Abs(error.even), meter->max_error);
    meter->max_error = hn::Max(hn::Abs(error.odd), meter->max_error);
    meter->errors.Add(i, error);
    meter->values.Add(i, x);
  }
}

template <bool kNvfp4, typename T>
HWY_INLINE void MeasureRow(const T* row, const uint8_t* codes, int64_t cols,
                           const ScaleReader& scales, Meter* meter) {
  constexpr int64_t kStep = kChunk;
  constexpr int64_t kPerByte = kNvfp4 ? 2 : 1;
  int64_t k = 0;
  for (; k + kStep <= cols; k += kStep) {
    MeasureChunk<kNvfp4>(row + k, codes + k / kPerByte, scales.OfChunk<kNvfp4>(k), meter);
  }
  if (k < cols) {  // Zeros, under codes for zero, add nothing.
    const auto rest = static_cast<size_t>(cols - k);
    uint8_t rest_codes[kChunk] = {};
    T rest_values[kChunk] = {};
    std::memcpy(rest_codes, codes + k / kPerByte, rest / kPerByte);
    std::memcpy(rest_values, row + k, rest * sizeof(T));
    MeasureChunk<kNvfp4>(rest_values, rest_codes, scales.OfChunk<kNvfp4>(k), meter);
  }
}

template <bool kNvfp4, typename T>
HWY_INLINE QuantizationError MeasureRows(const MeasureArgs& args) {
  const int64_t rows = args.values.shape[0];
  const int64_t cols = args.values.shape[1];
  const auto* values = reinterpret_cast<const T*>(args.values.data);
  ScaleReader scales(args.format, rows, cols, args.scales.data(), args.tensor_scale, false);
  Meter meter;
  meter.errors.Clear();
  meter.values.Clear();
  meter.max_error = hn::Zero(DF());
  meter.num_saturated = 0;
  for (int64_t n = 0; n < rows; ++n) {
    scales.SetRow(n);
    MeasureRow<kNvfp4>(values + n * cols, args.codes.data() + n * cols / (kNvfp4 ? 2 : 1), cols,
                       scales, &meter);
  }
  MeasureSums sums;
  meter.errors.Store(sums.sq_error.data());
  meter.values.Store(sums.sq_value.data());
  HWY_ALIGN float max_error[kLanes32];
  hn::Store(meter.max_error, DF(), max_error);
  sums.max_abs_error = *std::max_element(max_error, max_error + kLanes32);
  QuantizationError error;
  sums.MoveTo(&error);
  error.num_values = rows * cols;
  error.num_saturated = meter.num_saturated;
  CountBlocks(args, &error);
  return error;
}

template <bool kNvfp4>
HWY_INLINE QuantizationError MeasureOf(const MeasureArgs& args) {
  return args.values.dtype == DType::kF32 ? MeasureRows<kNvfp4, float>(args)
                                          : MeasureRows<kNvfp4, uint16_t>(args);
}

QuantizationError MeasureMatrix(const MeasureArgs& args) {
  return args.format == WeightFormat::kNvfp4 ? MeasureOf<true>(args) : MeasureOf<false>(args);
}

#endif  // HWY_TARGET == HWY_SCALAR || HWY_MAX_BYTES < 32

}  // namespace octavo::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace octavo::simd {

HWY_EXPORT(DecodeMatrix);
HWY_EXPORT(MeasureMatrix);

void Dequantize(const DequantizeArgs& args) { HWY_DYNAMIC_DISPATCH(DecodeMatrix)(args); }

QuantizationError Measure(const MeasureArgs& args) {
  return HWY_DYNAMIC_DISPATCH(MeasureMatrix)(args);
}

}  // namespace octavo::simd
#endif  // HWY_ONCE
