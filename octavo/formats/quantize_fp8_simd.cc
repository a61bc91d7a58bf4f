// The vector twins of the FP8 encoders whose scales are FP32, and of Amax; one source for every
// target.

#ifndef HWY_WANT_AVX3_DL
#define HWY_WANT_AVX3_DL  // VBMI looks up bytes in tables of 128.
#endif
#ifndef HWY_DISABLED_TARGETS
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4)
#endif

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "octavo/formats/quantize_fp8_simd.cc"
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "octavo/formats/e4m3_encode_simd-inl.h"
#include "octavo/formats/format.h"
#include "octavo/formats/fp8_block.h"
#include "octavo/formats/fp8_channel.h"
#include "octavo/formats/lanes_simd-inl.h"
#include "octavo/formats/quantize.h"
#include "octavo/formats/quantize_scalar.h"
#include "octavo/formats/quantize_simd.h"

HWY_BEFORE_NAMESPACE();
namespace octavo::simd::HWY_NAMESPACE {

constexpr uint32_t kInfinityBits = 0x7F800000U;

#if HWY_TARGET == HWY_SCALAR

uint32_t MaxBits(const ConstTensorView& values) {
  return std::bit_cast<uint32_t>(AmaxScalar(values));
}

uint32_t EncodeFp8(const QuantizeArgs& args) {
  const uint32_t bits = MaxBits(args.values);
  if (bits < kInfinityBits) {
    scalar::Quantize(args);
  }
  return bits;
}

#else

template <typename T>
uint32_t MaxBitsOf(const ConstTensorView& values) {
  MaxMagnitude<T> max;
  max.Clear();
  max.Add(reinterpret_cast<const T*>(values.data), static_cast<size_t>(NumElements(values.shape)));
  return max.Fp32Bits();
}

uint32_t MaxBits(const ConstTensorView& values) {
  return values.dtype == DType::kF32 ? MaxBitsOf<float>(values) : MaxBitsOf<uint16_t>(values);
}

constexpr auto kDim = static_cast<size_t>(kFp8BlockDim);
// Blocks of a block row that are worked on together: few enough for the first-level cache to hold
// their encoders, but their rows should be long reads (8192 columns in strips of half the width ran
// at 16 GB/s a thread instead of 19: EPYC, family 26).
constexpr size_t kStripBlocks = 64;
// Values that are encoded between two looks for subnormal codes.
constexpr size_t kPiece = kMostRedone * kRedone;

// A strip of a block row: rows [rows, up to kStripBlocks * 128 columns] of a matrix.
template <typename T>
struct Strip {
  const T* values;
  const T* next;  // Of the strip that is encoded after it.
  uint8_t* codes;
  size_t rows;
  size_t cols;
  size_t stride;
};

template <typename T>
HWY_INLINE void ScanRow(const T* HWY_RESTRICT row, size_t cols, MaxMagnitude<T>* maxima) {
  const size_t whole = cols - cols % kDim;
  for (size_t k = 0; k < whole; k += kDim) {
    maxima[k / kDim].Add(row + k, kDim);
  }
  if (whole < cols) {
    maxima[whole / kDim].Add(row + whole, cols % kDim);
  }
}

// Up to kPiece columns, each block of them or all under one scale. Meanwhile fetches the values
// some way ahead into the first-level cache, and half as many values from `behind` on.
template <bool kOneScale, typename T, bool kPowerOfTwo>
HWY_INLINE void EncodeRow(const T* HWY_RESTRICT row, size_t cols, const T* behind,
                          const RowEncoder<T, kPowerOfTwo>* encoders, uint8_t* HWY_RESTRICT codes) {
  constexpr size_t kLine = 64 / sizeof(T);
  const auto encoder_of = [&](size_t k) HWY_ATTR { return encoders + (kOneScale ? 0 : k / kDim); };
  const size_t whole = cols - cols % kDim;
  uint64_t redo = 0;
  for (size_t k = 0; k < whole; k += kDim) {
    for (size_t i = 0; i < kDim; i += kLine) {
      hwy::Prefetch(row + k + i + kAhead<T>);
    }
    for (size_t i = 0; i < kDim / 2; i += kLine) {
      hwy::Prefetch(behind + k / 2 + i);
    }
    redo |= encoder_of(k)->Encode(row + k, kDim, codes + k) << (k / kRedone);
  }
  if (whole < cols) {
    redo |= encoder_of(whole)->Encode(row + whole, cols % kDim, codes + whole) << (whole / kRedone);
  }
  for (; HWY_UNLIKELY(redo != 0); redo &= redo - 1) {
    const size_t k = static_cast<size_t>(std::countr_zero(redo)) * kRedone;
    encoder_of(k)->EncodeRarely(row + k, kRedone, codes + k);
  }
}

// A block must be read twice, for its largest magnitude and for its codes: strips are read row by
// row as memory lies, so that the processor fetches ahead, and the second time out of a cache. All
// that memory can do meanwhile is to bring the next strip nearer.
template <typename T, bool kPowerOfTwo>
HWY_INLINE uint32_t EncodeStrip(const Strip<T>& strip, float* scales) {
  MaxMagnitude<T> maxima[kStripBlocks];
  for (size_t k = 0; k < strip.cols; k += kDim) {
    maxima[k / kDim].Clear();
  }
  for (size_t n = 0; n < strip.rows; ++n) {
    ScanRow(strip.values + n * strip.stride, strip.cols, maxima);
  }
  uint32_t largest = 0;
  RowEncoder<T, kPowerOfTwo> encoders[kStripBlocks];
  for (size_t k = 0; k < strip.cols; k += kDim) {
    const uint32_t bits = maxima[k / kDim].Fp32Bits();
    largest = std::max(largest, bits);
    const auto amax = std::bit_cast<float>(bits);
    scales[k / kDim] = kPowerOfTwo ? Fp8BlockUe8m0Scale(amax) : Fp8BlockScale(amax);
    encoders[k / kDim].Set(scales[k / kDim], strip.rows * std::min(kDim, strip.cols - k));
  }
  if (largest >= kInfinityBits) {
    return largest;
  }
  for (size_t n = 0; n < strip.rows; ++n) {
    const T* behind = strip.next + n / 2 * strip.stride + n % 2 * (strip.cols / 2);
    for (size_t k = 0; k < strip.cols; k += kPiece) {
      const size_t begin = n * strip.stride + k;
      EncodeRow<false>(strip.values + begin, std::min(kPiece, strip.cols - k), behind + k / 2,
                       encoders + k / kDim, strip.codes + begin);
    }
  }
  return largest;
}

template <typename T, bool kPowerOfTwo>
uint32_t EncodeBlocks(const QuantizeArgs& args) {
  constexpr size_t kCols = kStripBlocks * kDim;
  const auto rows = static_cast<size_t>(args.values.shape[0]);
  const auto cols = static_cast<size_t>(args.values.shape[1]);
  const auto* values = reinterpret_cast<const T*>(args.values.data);
  auto* scales = reinterpret_cast<float*>(args.scales.data());
  uint32_t largest = 0;
  for (size_t n = 0; n < rows && largest < kInfinityBits; n += kDim) {
    for (size_t k = 0; k < cols && largest < kInfinityBits; k += kCols) {
      const size_t begin = n * cols + k;
      const size_t next = k + kCols < cols ? begin + kCols : (n + kDim) * cols;
      const Strip<T> strip = {.values = values + begin,
                              .next = values + next,
                              .codes = args.codes.data() + begin,
                              .rows = std::min(kDim, rows - n),
                              .cols = std::min(kCols, cols - k),
                              .stride = cols};
      largest = std::max(largest, EncodeStrip<T, kPowerOfTwo>(strip, scales));
      scales += (strip.cols + kDim - 1) / kDim;
    }
  }
  return largest;
}

// Where a row under one scale fetches behind what it fetches ahead: the other half of the next
// piece.
template <typename T>
constexpr size_t kBehind = kPiece + kAhead<T>;

template <typename T>
uint32_t EncodeChannels(const QuantizeArgs& args) {
  const auto rows = static_cast<size_t>(args.values.shape[0]);
  const auto cols = static_cast<size_t>(args.values.shape[1]);
  const auto* values = reinterpret_cast<const T*>(args.values.data);
  auto* scales = reinterpret_cast<float*>(args.scales.data());
  uint32_t largest = 0;
  RowEncoder<T, false> encoder;
  for (size_t n = 0; n < rows && cols > 0; ++n) {
    MaxMagnitude<T> max;
    max.Clear();
    max.Add(values + n * cols, cols);
    largest = std::max(largest, max.Fp32Bits());
    if (largest >= kInfinityBits) {
      return largest;
    }
    scales[n] = Fp8ChannelScale(std::bit_cast<float>(max.Fp32Bits()));
    encoder.Set(scales[n], cols);
    for (size_t k = 0; k < cols; k += kPiece) {
      const T* piece = values + n * cols + k;
      EncodeRow<true>(piece, std::min(kPiece, cols - k), piece + kBehind<T>, &encoder,
                      &args.codes[n * cols + k]);
    }
  }
  return largest;
}

// A piece is searched for its largest magnitude and encoded while it is in the first-level cache.
template <typename T>
uint32_t EncodeTensor(const QuantizeArgs& args) {
  const auto count = static_cast<size_t>(NumElements(args.values.shape));
  const auto* values = reinterpret_cast<const T*>(args.values.data);
  RowEncoder<T, false> encoder;
  encoder.Set(Fp8TensorScale(args.amax), count);
  MaxMagnitude<T> max;
  max.Clear();
  for (size_t i = 0; i < count; i += kPiece) {
    const size_t piece = std::min(kPiece, count - i);
    max.Add(values + i, piece);
    EncodeRow<true>(values + i, piece, values + i + kBehind<T>, &encoder, &args.codes[i]);
  }
  return max.Fp32Bits();
}

template <typename T>
uint32_t EncodeFp8Of(const QuantizeArgs& args) {
  switch (args.format) {
    case WeightFormat::kFp8Channel:
      return EncodeChannels<T>(args);
    case WeightFormat::kFp8Tensor:
      return EncodeTensor<T>(args);
    case WeightFormat::kFp8Ue8m0:
      return EncodeBlocks<T, true>(args);
    default:
      return EncodeBlocks<T, false>(args);
  }
}

uint32_t EncodeFp8(const QuantizeArgs& args) {
  return args.values.dtype == DType::kF32 ? EncodeFp8Of<float>(args) : EncodeFp8Of<uint16_t>(args);
}

#endif  // HWY_TARGET == HWY_SCALAR

}  // namespace octavo::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace octavo::simd {

HWY_EXPORT(MaxBits);
HWY_EXPORT(EncodeFp8);

uint32_t MaxMagnitudeBits(const ConstTensorView& values) {
  return HWY_DYNAMIC_DISPATCH(MaxBits)(values);
}

uint32_t QuantizeFp8(const QuantizeArgs& args) { return HWY_DYNAMIC_DISPATCH(EncodeFp8)(args); }

}  // namespace octavo::simd
#endif  // HWY_ONCE
