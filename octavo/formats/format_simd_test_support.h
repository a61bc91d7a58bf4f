#pragma once
// What the tests of formats/ share: matrices in any format with their codes and scales, and every
// vector path that the machine can run.

#include <gtest/gtest.h>
#include <hwy/highway.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/formats/bf16.h"
#include "octavo/formats/format.h"
#include "octavo/formats/quantize.h"

namespace octavo {

// Runs `body` once on each target, the scalar fallback included, and restores the choice.
template <typename Body>
void ForEachTarget(Body body) {
  for (int64_t rest = hwy::SupportedTargets() | HWY_SCALAR; rest != 0; rest &= rest - 1) {
    const int64_t target = rest & -rest;
    hwy::GetChosenTarget().Update(target);
    SCOPED_TRACE(hwy::TargetName(target));
    body();
  }
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

template <typename Body>
void ForEachQuantizedFormat(Body body) {
  for (const WeightFormat format : AllWeightFormats()) {
    if (format != WeightFormat::kBf16) {
      SCOPED_TRACE(WeightFormatName(format));
      body(format);
    }
  }
}

// A matrix of BF16 (uint16_t) or F32 (float).
template <typename T>
struct TestMatrix {
  int64_t rows;
  int64_t cols;
  std::vector<T> values;

  ConstTensorView View() const { return Rows(0, rows); }
  ConstTensorView Rows(int64_t begin, int64_t count) const {
    return {sizeof(T) == 2 ? DType::kBf16 : DType::kF32,
            {count, cols},
            reinterpret_cast<const std::byte*>(values.data() + begin * cols)};
  }
};

using Bf16Matrix = TestMatrix<uint16_t>;
using F32Matrix = TestMatrix<float>;

// The exact widening.
inline F32Matrix Widened(const Bf16Matrix& matrix) {
  F32Matrix out = {matrix.rows, matrix.cols, {}};
  for (const uint16_t value : matrix.values) {
    out.values.push_back(Bf16ToFloat(value));
  }
  return out;
}

// Any finite bits of the 24 binades below `max_exponent` (biased exponent field), zeros among them.
inline Bf16Matrix RandomBf16(int64_t rows, int64_t cols, uint32_t max_exponent, uint32_t seed) {
  std::mt19937 rng(seed);
  Bf16Matrix out = {rows, cols, std::vector<uint16_t>(static_cast<size_t>(rows * cols))};
  for (uint16_t& value : out.values) {
    const uint32_t exponent =
        max_exponent - static_cast<uint32_t>(rng()) % std::min(max_exponent + 1, 24U);
    value = static_cast<uint16_t>((rng() & 0x807FU) | (rng() % 16 == 0 ? 0U : exponent << 7));
  }
  return out;
}

struct TestCodes {
  TestCodes(WeightFormat format, int64_t rows, int64_t cols)
      : codes(static_cast<size_t>(CodeBytes(format, rows, cols)), 0xAA),
        scale_words(static_cast<size_t>(ScaleBytes(format, rows, cols) / 4 + 1)),
        num_scale_bytes(static_cast<size_t>(ScaleBytes(format, rows, cols))) {}
  bool operator==(const TestCodes&) const = default;

  std::span<std::byte> scales() {
    return std::as_writable_bytes(std::span(scale_words)).first(num_scale_bytes);
  }
  uint32_t ScaleByte(size_t idx) { return static_cast<uint32_t>(scales()[idx]); }
  float ScaleF32(size_t idx) const { return std::bit_cast<float>(scale_words[idx]); }

  std::vector<uint8_t> codes;
  std::vector<uint32_t> scale_words;  // Aligned for F32.
  size_t num_scale_bytes;
};

using QuantizeFn = Status (*)(const QuantizeArgs&);

template <typename T>
TestCodes Encode(QuantizeFn quantize, WeightFormat format, const TestMatrix<T>& matrix,
                 float amax) {
  TestCodes out(format, matrix.rows, matrix.cols);
  const Status status = quantize({.format = format,
                                  .values = matrix.View(),
                                  .amax = amax,
                                  .codes = out.codes,
                                  .scales = out.scales()});
  EXPECT_TRUE(status.ok()) << status.message();
  return out;
}

template <typename T>
TestCodes Encode(QuantizeFn quantize, WeightFormat format, const TestMatrix<T>& matrix) {
  return Encode(quantize, format, matrix, AmaxScalar(matrix.View()));
}

}  // namespace octavo
