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
  max.Add(reinterpret_cast<const T*>(values.data), static_cast<size_t>(NumElements(values.shape)));
  return max.Fp32Bits();
}

uint32_t MaxBits(const ConstTensorView& values) {
  return values.dtype == DType::kF32 ? MaxBitsOf<float>(values) : MaxBitsOf<uint16_t>(values);
}

constexpr auto kDim = static_cast<size_t>(kFp8BlockDim);
// Blocks of a block row that are worked on together: their rows are long enough for the
// processor to fetch ahead, and all of them stay in the second-level cache between two readings.
constexpr size_t kChunkBlocks = 8;
constexpr size_t kRowsAhead = 3;  // Of a chunk, to fetch.

// A chunk of a block row: rows [rows, up to kChunkBlocks * 128 columns] of a matrix.
template <typename T>
struct Chunk {
  const T* values;
  uint8_t* codes;
  size_t rows;
  size_t cols;
  size_t stride;
};

// Bits of the largest magnitude of each block.
template <typename T>
HWY_INLINE void BlockMaxima(const Chunk<T>& chunk, uint32_t* maxima) {
  MaxMagnitude<T> max[kChunkBlocks];
  for (size_t n = 0; n < chunk.rows; ++n) {
    for (size_t k = 0; k < chunk.cols; k += kDim) {
      max[k / kDim].Add(chunk.values + n * chunk.stride + k, std::min(kDim, chunk.cols - k),
                        kRowsAhead * chunk.stride);
    }
  }
  for (size_t k = 0; k < chunk.cols; k += kDim) {
    maxima[k / kDim] = max[k / kDim].Fp32Bits();
  }
}

template <typename T, bool kPowerOfTwo>
HWY_INLINE uint32_t EncodeChunk(const Chunk<T>& chunk, float* scales) {
  std::array<uint32_t, kChunkBlocks> maxima{};
  BlockMaxima(chunk, maxima.data());
  const uint32_t largest = *std::max_element(maxima.begin(), maxima.end());
  if (largest >= kInfinityBits) {
    return largest;
  }
  for (size_t k = 0; k < chunk.cols; k += kDim) {
    const auto amax = std::bit_cast<float>(maxima[k / kDim]);
    const float scale = kPowerOfTwo ? Fp8BlockUe8m0Scale(amax) : Fp8BlockScale(amax);
    scales[k / kDim] = scale;
    const size_t cols = std::min(kDim, chunk.cols - k);
    const RowEncoder<T, kPowerOfTwo> encoder(scale, chunk.rows * cols);
    for (size_t n = 0; n < chunk.rows; ++n) {
      const size_t begin = n * chunk.stride + k;
      encoder.Encode(chunk.values + begin, cols, chunk.codes + begin);
    }
  }
  return largest;
}

template <typename T, bool kPowerOfTwo>
uint32_t EncodeBlocks(const QuantizeArgs& args) {
  const auto rows = static_cast<size_t>(args.values.shape[0]);
  const auto cols = static_cast<size_t>(args.values.shape[1]);
  const auto* values = reinterpret_cast<const T*>(args.values.data);
  auto* scales = reinterpret_cast<float*>(args.scales.data());
  uint32_t largest = 0;
  for (size_t n = 0; n < rows; n += kDim) {
    for (size_t k = 0; k < cols; k += kChunkBlocks * kDim) {
      const Chunk<T> chunk = {.values = values + n * cols + k,
                              .codes = args.codes.data() + n * cols + k,
                              .rows = std::min(kDim, rows - n),
                              .cols = std::min(kChunkBlocks * kDim, cols - k),
                              .stride = cols};
      largest = std::max(largest, EncodeChunk<T, kPowerOfTwo>(chunk, scales));
      if (largest >= kInfinityBits) {
        return largest;
      }
      scales += (chunk.cols + kDim - 1) / kDim;
    }
  }
  return largest;
}

template <typename T>
uint32_t EncodeChannels(const QuantizeArgs& args) {
  const auto rows = static_cast<size_t>(args.values.shape[0]);
  const auto cols = static_cast<size_t>(args.values.shape[1]);
  const auto* values = reinterpret_cast<const T*>(args.values.data);
  auto* scales = reinterpret_cast<float*>(args.scales.data());
  uint32_t largest = 0;
  for (size_t n = 0; n < rows && cols > 0; ++n) {
    MaxMagnitude<T> max;
    max.Add(values + n * cols, cols);
    largest = std::max(largest, max.Fp32Bits());
    if (largest >= kInfinityBits) {
      return largest;
    }
    scales[n] = Fp8ChannelScale(std::bit_cast<float>(max.Fp32Bits()));
    RowEncoder<T, false>(scales[n], cols).Encode(values + n * cols, cols, &args.codes[n * cols]);
  }
  return largest;
}

// A piece is searched for its largest magnitude and encoded while it is in the first-level cache.
template <typename T>
uint32_t EncodeTensor(const QuantizeArgs& args) {
  constexpr size_t kPiece = 4096;
  const auto count = static_cast<size_t>(NumElements(args.values.shape));
  const auto* values = reinterpret_cast<const T*>(args.values.data);
  const RowEncoder<T, false> encoder(Fp8TensorScale(args.amax), count);
  MaxMagnitude<T> max;
  for (size_t i = 0; i < count; i += kPiece) {
    const size_t piece = std::min(kPiece, count - i);
    max.Add(values + i, piece);
    encoder.Encode(values + i, piece, &args.codes[i]);
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
