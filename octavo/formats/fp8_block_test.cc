// Method: the scale rules of the FP8 formats with FP32 scales over every BF16 amax, against bounds
// that FP64 holds exactly; then blocks worked out by hand. What all formats have in common is
// quantize_test.cc.

#include "octavo/formats/fp8_block.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "octavo/base/tensor.h"
#include "octavo/formats/bf16.h"
#include "octavo/formats/e4m3.h"
#include "octavo/formats/format.h"
#include "octavo/formats/format_simd_test_support.h"
#include "octavo/formats/fp8_channel.h"
#include "octavo/formats/quantize.h"

namespace octavo {
namespace {

using ::testing::Each;
using ::testing::ElementsAreArray;

std::vector<uint16_t> Decode(int64_t rows, int64_t cols, TestCodes* in) {
  std::vector<uint16_t> values(in->codes.size());
  EXPECT_TRUE(
      Dequantize(
          {.format = WeightFormat::kFp8,
           .rows = rows,
           .cols = cols,
           .codes = in->codes,
           .scales = in->scales(),
           .values = {DType::kBf16, {rows, cols}, reinterpret_cast<std::byte*>(values.data())}})
          .ok());
  return values;
}

// The FP32 nearest to the exact quotient: no neighbour is nearer. A quotient by 448 = 7 * 64 of a
// number that is no multiple of 7 has no tie, for it has no finite binary form.
void ExpectNearestQuotient(float scale, float amax) {
  const double product = double{scale} * 448.0;  // 24 + 3 significant bits: exact.
  const double below = double{std::nextafter(scale, 0.0F)} * 448.0;
  const double above = double{std::nextafter(scale, 1.0F)} * 448.0;
  const double error = std::fabs(product - double{amax});
  ASSERT_LE(error, std::fabs(below - double{amax})) << amax;
  ASSERT_LE(error, std::fabs(above - double{amax})) << amax;
}

// Each rule twice: as a function, and as the scale that Quantize stores for a matrix whose only
// magnitude is amax.
TEST(Fp8Scales, AreTheRoundedQuotientForEveryBf16Amax) {
  for (uint32_t bits = 0; bits < 0x7F80; ++bits) {
    const float amax = Bf16ToFloat(static_cast<uint16_t>(bits));
    const Bf16Matrix matrix = {1, 2, {static_cast<uint16_t>(bits | 0x8000U), 0}};
    struct Rule {
      WeightFormat format;
      float scale;
      float floor;
    };
    for (const Rule& rule :
         {Rule{WeightFormat::kFp8, Fp8BlockScale(amax), 1e-10F},
          Rule{WeightFormat::kFp8Channel, Fp8ChannelScale(amax), Bf16ToFloat(0x2b8d)},
          Rule{WeightFormat::kFp8Tensor, Fp8TensorScale(amax), 1e-12F}}) {
      SCOPED_TRACE(WeightFormatName(rule.format));
      ExpectNearestQuotient(rule.scale, std::max(amax, rule.floor));
      ASSERT_GE(rule.scale, 0x1p-126F) << bits;  // Normal, and finite by the bound above.
      const TestCodes out = Encode(Quantize, rule.format, matrix);
      if (rule.format == WeightFormat::kFp8Tensor) {
        ASSERT_EQ(TensorScale(rule.format, amax), rule.scale) << bits;
      } else {
        ASSERT_EQ(out.ScaleF32(0), rule.scale) << bits;
      }
      ASSERT_EQ(out.codes[0], FloatToE4m3(-amax / rule.scale)) << bits;
      ASSERT_EQ(out.codes[1], 0x00) << bits;
      if (amax >= rule.floor) {
        ASSERT_EQ(out.codes[0], 0xFE) << bits;  // The largest magnitude takes the largest code.
      }
    }
    const TestCodes ue8m0 = Encode(Quantize, WeightFormat::kFp8Ue8m0, matrix);
    ASSERT_EQ(ue8m0.ScaleF32(0), Fp8BlockUe8m0Scale(amax)) << bits;
  }
}

// The same element on a tie that only correct rounding of the quotient resolves.
TEST(Fp8Block, DividesInsteadOfMultiplyingByTheReciprocal) {
  const TestCodes out =
      Encode(QuantizeScalar, WeightFormat::kFp8, Bf16Matrix{1, 2, {0x3dcc, 0x3b19}});
  EXPECT_EQ(out.codes[1], 0x52);
  const float reciprocal = 1.0F / out.ScaleF32(0);
  EXPECT_EQ(FloatToE4m3(Bf16ToFloat(0x3b19) * reciprocal), 0x53);  // What must not be written.
}

TEST(Fp8Block, TinyAmaxUsesTheFloor) {
  const Bf16Matrix matrix = {1, 3, {FloatToBf16(1e-11F), FloatToBf16(-0x1p-133F), 0x0001}};
  const TestCodes out = Encode(Quantize, WeightFormat::kFp8, matrix);
  EXPECT_EQ(out.ScaleF32(0), 1e-10F / 448.0F);
  // 1e-11 / (1e-10 / 448) is about 44.8, between 44 (0x63) and 48 (0x64): BF16(1e-11) is 44.7.
  EXPECT_THAT(out.codes, ElementsAreArray({0x63, 0x80, 0x00}));
}

// [129, 257] has 2 x 3 blocks; each corner block owns its elements alone.
TEST(Fp8Block, EdgeBlocksUseOnlyTheirOwnElements) {
  Bf16Matrix matrix = {129, 257, {}};
  for (int64_t n = 0; n < matrix.rows; ++n) {
    for (int64_t k = 0; k < matrix.cols; ++k) {
      matrix.values.push_back(FloatToBf16(static_cast<float>(1 << (2 * (n / 128) + k / 128))));
    }
  }
  const TestCodes out = Encode(Quantize, WeightFormat::kFp8, matrix);
  for (size_t i = 0; i < 6; ++i) {
    const float amax = std::array{1.0F, 2.0F, 4.0F, 4.0F, 8.0F, 16.0F}[i];
    EXPECT_EQ(out.ScaleF32(i), amax / 448.0F) << i;
  }
  EXPECT_THAT(out.codes, Each(0x7E));
}

TEST(Fp8Block, EmptyMatrixHasNothing) {
  for (const Bf16Matrix& matrix : {Bf16Matrix{0, 64, {}}, Bf16Matrix{64, 0, {}}}) {
    const TestCodes out = Encode(Quantize, WeightFormat::kFp8, matrix);
    EXPECT_TRUE(out.codes.empty());
    EXPECT_EQ(out.num_scale_bytes, 0U);
  }
}

// Every code under a scale that is no power of two; the product has at most 28 bits, so FP64 holds
// it exactly and one rounding to FP32 and one to BF16 are what the definition asks for.
TEST(Fp8Block, DecodesToTheProductRoundedOnce) {
  TestCodes in(WeightFormat::kFp8, 1, 256);
  for (size_t i = 0; i < in.codes.size(); ++i) {
    in.codes[i] = static_cast<uint8_t>(i);
  }
  in.scale_words = {std::bit_cast<uint32_t>(0.0123F), std::bit_cast<uint32_t>(1.7e-5F), 0};
  const std::vector<uint16_t> values = Decode(1, 256, &in);
  for (size_t i = 0; i < values.size(); ++i) {
    const double exact = double{E4m3ToFloat(in.codes[i])} * double{in.ScaleF32(i / 128)};
    EXPECT_EQ(values[i], FloatToBf16(static_cast<float>(exact))) << i;
  }
  EXPECT_EQ(values[0x7F], 0x7FC0);
}

TEST(Fp8Block, BlocksOfPowerOfTwoScaleSurviveARoundTrip) {
  Bf16Matrix matrix = {3, 200, {}};
  for (int64_t i = 0; i < matrix.rows * matrix.cols; ++i) {
    const auto code = static_cast<uint8_t>(i % 127 | (i % 2 != 0 ? 0x80 : 0));
    matrix.values.push_back(FloatToBf16(E4m3ToFloat(code)));
  }
  // Each block holds 448, so its scale is 1.
  TestCodes out = Encode(Quantize, WeightFormat::kFp8, matrix);
  EXPECT_EQ(Decode(3, 200, &out), matrix.values);
}

}  // namespace
}  // namespace octavo
