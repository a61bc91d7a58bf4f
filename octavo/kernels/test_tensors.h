#pragma once
// For tests: activations and weights filled from a seed, and comparison by bits.

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "octavo/base/random.h"
#include "octavo/formats/bf16.h"
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

// Every element has the same bits; NaNs count as equal (which NaN an instruction gives differs).
inline ::testing::AssertionResult SameBits(const TestActivations& expected,
                                           const TestActivations& actual) {
  for (int64_t r = 0; r < expected.view().rows; ++r) {
    for (int64_t c = 0; c < expected.view().cols; ++c) {
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

// A weight with canonical bytes: normal BF16, or FP8 with random codes (no NaN) and small scales.
class TestMatrix {
 public:
  TestMatrix(WeightFormat format, int64_t rows, int64_t cols, uint64_t seed) {
    canonical_ = {.format = format, .rows = rows, .cols = cols, .codes = {}, .scales = {}};
    const int64_t num = rows * cols;
    if (format == WeightFormat::kBf16) {
      codes_.resize(static_cast<size_t>(2 * num));
      auto* bits = reinterpret_cast<uint16_t*>(codes_.data());
      for (int64_t i = 0; i < num; ++i) {
        bits[i] = FloatToBf16(TestValue(seed, static_cast<uint64_t>(i)));
      }
    } else {
      codes_.resize(static_cast<size_t>(num));
      for (int64_t i = 0; i < num; ++i) {
        const auto code = static_cast<uint8_t>(Philox(seed, static_cast<uint64_t>(i))[0] >> 24);
        codes_[static_cast<size_t>(i)] = std::byte{(code & 0x7FU) == 0x7FU ? uint8_t{0} : code};
      }
      scales_.resize(static_cast<size_t>(((rows + 127) / 128) * ((cols + 127) / 128)));
      for (size_t i = 0; i < scales_.size(); ++i) {
        scales_[i] = 1e-4F + 1e-3F * UniformFloat(seed + 1, i);
      }
    }
    canonical_.codes = codes_;
    canonical_.scales = std::as_bytes(std::span(scales_));
    if (canonical_.format == WeightFormat::kFp8) {
      canonical_.input = InputForm::kFp8Group;
    }
  }
  TestMatrix(const TestMatrix&) = delete;
  TestMatrix& operator=(const TestMatrix&) = delete;

  const CanonicalMatrix& canonical() const { return canonical_; }
  std::vector<std::byte>& codes() { return codes_; }
  PackedMatrix PackFor(const Backend& backend) const {
    PackedMatrix packed;
    const Status status = backend.Pack(canonical_, &packed);
    EXPECT_TRUE(status.ok()) << status.message();
    return packed;
  }

 private:
  std::vector<std::byte> codes_;
  std::vector<float> scales_;
  CanonicalMatrix canonical_;
};

}  // namespace octavo
