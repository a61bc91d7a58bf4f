#pragma once
// For tests: activations and weights filled from a seed, and comparison by bits.

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "octavo/base/random.h"
#include "octavo/formats/bf16.h"
#include "octavo/formats/format.h"
#include "octavo/formats/quantize.h"
#include "octavo/kernels/backend.h"

namespace octavo {

// Roughly normal; every 97th value is 0 and every 89th is tiny (down to 2^-133: products of such
// values are subnormal, and some BF16 inputs are too).
inline float TestValue(uint64_t seed, uint64_t i) {
  const auto words = Philox(seed, i);
  if (i % 97 == 13) {
    return 0.0F;
  }
  float value = 0.0F;
  for (const uint32_t word : words) {
    value += static_cast<float>(word >> 8) * 0x1p-24F - 0.5F;
  }
  return i % 89 == 7 ? std::ldexp(value, -static_cast<int>(words[0] % 134)) : value;
}

// An activation matrix with its memory; rows are `pad` elements further apart than they are long.
class TestActivations {
 public:
  TestActivations(DType dtype, int64_t rows, int64_t cols, int64_t pad = 3)
      : bytes_(static_cast<size_t>(rows * (cols + pad) * DTypeBytes(dtype)), std::byte{0x7F}),
        view_{dtype, bytes_.data(), rows, cols, cols + pad} {}
  TestActivations(const TestActivations& other) : bytes_(other.bytes_), view_(other.view_) {
    view_.data = bytes_.data();
  }
  TestActivations& operator=(const TestActivations&) = delete;

  const Activations& view() const { return view_; }
  float At(int64_t row, int64_t col) const {
    const int64_t at = row * view_.stride + col;
    return view_.dtype == DType::kBf16
               ? Bf16ToFloat(reinterpret_cast<const uint16_t*>(bytes_.data())[at])
               : reinterpret_cast<const float*>(bytes_.data())[at];
  }
  void Set(int64_t row, int64_t col, float value) {
    const int64_t at = row * view_.stride + col;
    if (view_.dtype == DType::kBf16) {
      reinterpret_cast<uint16_t*>(bytes_.data())[at] = FloatToBf16(value);
    } else {
      reinterpret_cast<float*>(bytes_.data())[at] = value;
    }
  }
  TestActivations& Fill(uint64_t seed, float scale = 1.0F) {
    for (int64_t r = 0; r < view_.rows; ++r) {
      for (int64_t c = 0; c < view_.cols; ++c) {
        Set(r, c, scale * TestValue(seed, static_cast<uint64_t>(r * view_.cols + c)));
      }
    }
    return *this;
  }

 private:
  std::vector<std::byte> bytes_;
  Activations view_;
};

// Every element of `actual` has the bits of the one at its place in `expected`, which may have more
// rows and columns; NaNs count as equal (which NaN an instruction gives differs).
inline ::testing::AssertionResult Begins(const TestActivations& expected,
                                         const TestActivations& actual) {
  for (int64_t r = 0; r < actual.view().rows; ++r) {
    for (int64_t c = 0; c < actual.view().cols; ++c) {
      const float e = expected.At(r, c);
      const float a = actual.At(r, c);
      if (std::bit_cast<uint32_t>(e) != std::bit_cast<uint32_t>(a) &&
          !(std::isnan(e) && std::isnan(a))) {
        return ::testing::AssertionFailure()
               << "[" << r << ", " << c << "]: expected " << e << ", got " << a << " (tolerance 0)";
      }
    }
  }
  return ::testing::AssertionSuccess();
}

// The same for matrices of one shape.
inline ::testing::AssertionResult SameBits(const TestActivations& expected,
                                           const TestActivations& actual) {
  if (expected.view().rows != actual.view().rows || expected.view().cols != actual.view().cols) {
    return ::testing::AssertionFailure()
           << "expected [" << expected.view().rows << ", " << expected.view().cols << "], got ["
           << actual.view().rows << ", " << actual.view().cols << "]";
  }
  return Begins(expected, actual);
}

// The form in which each format's input is quantized unless something else is asked for.
inline InputForm DefaultInput(WeightFormat format) {
  switch (format) {
    case WeightFormat::kBf16:
      return InputForm::kBf16;
    case WeightFormat::kFp8:
    case WeightFormat::kFp8Ue8m0:
      return InputForm::kFp8Group;
    case WeightFormat::kFp8Channel:
    case WeightFormat::kFp8Tensor:
      return InputForm::kFp8Token;
    case WeightFormat::kMxfp8:
      return InputForm::kMxfp8;
    case WeightFormat::kNvfp4:
      return InputForm::kNvfp4Token;
  }
  return InputForm::kBf16;
}

// A weight with canonical bytes: normal BF16, or random codes (no NaN) with scales that differ from
// each other.
class TestMatrix {
 public:
  TestMatrix(WeightFormat format, int64_t rows, int64_t cols, uint64_t seed)
      : TestMatrix(format, DefaultInput(format), rows, cols, seed) {}
  TestMatrix(WeightFormat format, InputForm input, int64_t rows, int64_t cols, uint64_t seed) {
    canonical_.format = format;
    canonical_.rows = rows;
    canonical_.cols = cols;
    canonical_.input = input;
    canonical_.input_scale = 0.03F;
    if (format == WeightFormat::kBf16) {
      FillBf16(seed);
    } else {
      FillCodes(seed);
      FillScales(seed + 1);
    }
    canonical_.codes = codes_;
    canonical_.scales = scales_;
  }
  TestMatrix(const TestMatrix&) = delete;
  TestMatrix& operator=(const TestMatrix&) = delete;

  const CanonicalMatrix& canonical() const { return canonical_; }
  CanonicalMatrix& canonical() { return canonical_; }
  std::vector<std::byte>& codes() { return codes_; }
  std::vector<std::byte>& scales() { return scales_; }
  PackedMatrix PackFor(const Backend& backend) const {
    PackedMatrix packed;
    const Status status = backend.Pack(canonical_, &packed);
    EXPECT_TRUE(status.ok()) << status.message();
    return packed;
  }

 private:
  void FillBf16(uint64_t seed) {
    const int64_t num = canonical_.rows * canonical_.cols;
    codes_.resize(static_cast<size_t>(2 * num));
    auto* bits = reinterpret_cast<uint16_t*>(codes_.data());
    for (int64_t i = 0; i < num; ++i) {
      bits[i] = FloatToBf16(TestValue(seed, static_cast<uint64_t>(i)));
    }
  }
  void FillCodes(uint64_t seed) {
    const bool is_fp4 = canonical_.format == WeightFormat::kNvfp4;
    codes_.resize(
        static_cast<size_t>(CodeBytes(canonical_.format, canonical_.rows, canonical_.cols)));
    for (size_t i = 0; i < codes_.size(); ++i) {
      const auto code = static_cast<uint8_t>(Philox(seed, i)[0] >> 24);
      codes_[i] = std::byte{!is_fp4 && (code & 0x7FU) == 0x7FU ? uint8_t{0} : code};
    }
  }
  void FillScales(uint64_t seed) {
    const WeightFormat format = canonical_.format;
    canonical_.tensor_scale = SharesScale(format) ? 3e-4F : 1.0F;
    scales_.resize(static_cast<size_t>(ScaleBytes(format, canonical_.rows, canonical_.cols)));
    if (format == WeightFormat::kMxfp8 || format == WeightFormat::kNvfp4) {
      for (size_t i = 0; i < scales_.size(); ++i) {
        const uint32_t random = Philox(seed, i)[0];
        scales_[i] = static_cast<std::byte>(format == WeightFormat::kMxfp8 ? 112 + random % 9
                                                                           : random % 0x7F);
      }
      return;
    }
    auto* floats = reinterpret_cast<float*>(scales_.data());
    for (size_t i = 0; i < scales_.size() / sizeof(float); ++i) {
      floats[i] = format == WeightFormat::kFp8Ue8m0
                      ? std::ldexp(1.0F, -13 + static_cast<int>(Philox(seed, i)[0] % 4))
                      : 1e-4F + 1e-3F * UniformFloat(seed, i);
    }
  }

  std::vector<std::byte> codes_;
  std::vector<std::byte> scales_;
  CanonicalMatrix canonical_;
};

}  // namespace octavo
