// Method: blocks worked out by hand and the published vectors on the scalar path, each documented
// error once. That the vector paths agree with it is fp8_block_simd_test.cc.

#include "octavo/formats/fp8_block.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/formats/bf16.h"
#include "octavo/formats/e4m3.h"

namespace octavo {
namespace {

using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

// A matrix with room for its encoded form.
struct Matrix {
  Matrix(int64_t num_rows, int64_t num_cols)
      : rows(num_rows),
        cols(num_cols),
        values(static_cast<size_t>(rows * cols)),
        codes(values.size(), 0xAA),
        scales(static_cast<size_t>(NumFp8Blocks(rows) * NumFp8Blocks(cols)), -1.0F) {}

  uint16_t& At(int64_t n, int64_t k) { return values[static_cast<size_t>(n * cols + k)]; }
  uint8_t Code(int64_t n, int64_t k) const { return codes[static_cast<size_t>(n * cols + k)]; }
  Status Encode() {
    return EncodeFp8BlockScalar(
        {.rows = rows, .cols = cols, .values = values, .codes = codes, .scales = scales});
  }

  int64_t rows;
  int64_t cols;
  std::vector<uint16_t> values;
  std::vector<uint8_t> codes;
  std::vector<float> scales;
};

// docs/formats.md, section 8: amax 0.875, so the scale is 2^-9 and each code is E4M3(512 x).
TEST(Fp8Block, MatchesThePublishedRow) {
  Matrix m(1, 32);
  m.values = {0x0000, 0x3c00, 0xbc80, 0x3cc0, 0x3d00, 0xbd40, 0x3d80, 0x3dc0,
              0xbe00, 0x3e40, 0x3e80, 0xbec0, 0x3f00, 0x3f20, 0x3f40, 0xbf60,
              0xbda4, 0xbd8f, 0xbd76, 0xbd4d, 0xbd24, 0xbcf6, 0xbca4, 0xbc24,
              0x0000, 0x3c24, 0x3ca4, 0x3cf6, 0x3d24, 0x3d4d, 0x3d76, 0x3d8f};
  const std::vector<uint8_t> expected = {0x00, 0x48, 0xd0, 0x54, 0x58, 0xdc, 0x60, 0x64,
                                         0xe8, 0x6c, 0x70, 0xf4, 0x78, 0x7a, 0x7c, 0xfe,
                                         0xe2, 0xe1, 0xdf, 0xdd, 0xda, 0xd7, 0xd2, 0xca,
                                         0x00, 0x4a, 0x52, 0x57, 0x5a, 0x5d, 0x5f, 0x61};
  ASSERT_TRUE(m.Encode().ok());
  EXPECT_EQ(std::bit_cast<uint32_t>(m.scales[0]), 0x3b000000U);
  EXPECT_THAT(m.codes, ElementsAreArray(expected));
}

// The same element on a tie that only correct rounding of the quotient resolves.
TEST(Fp8Block, DividesInsteadOfMultiplyingByTheReciprocal) {
  Matrix m(1, 2);
  m.values = {0x3dcc, 0x3b19};
  ASSERT_TRUE(m.Encode().ok());
  EXPECT_EQ(m.codes[1], 0x52);
  const float reciprocal = 1.0F / m.scales[0];
  EXPECT_EQ(FloatToE4m3(Bf16ToFloat(0x3b19) * reciprocal), 0x53);  // What must not be written.
}

TEST(Fp8Block, AllZeroBlockGetsTheFloorAndKeepsSigns) {
  Matrix m(2, 3);
  m.At(1, 1) = 0x8000;  // -0
  ASSERT_TRUE(m.Encode().ok());
  EXPECT_EQ(m.scales[0], 1e-10F / 448.0F);
  EXPECT_GE(m.scales[0], 0x1p-126F);  // Normal.
  EXPECT_THAT(m.codes, ElementsAreArray({0x00, 0x00, 0x00, 0x00, 0x80, 0x00}));
}

TEST(Fp8Block, TinyAmaxUsesTheFloor) {
  Matrix m(1, 3);
  m.values = {FloatToBf16(1e-11F), FloatToBf16(-0x1p-133F), 0x0001};
  ASSERT_TRUE(m.Encode().ok());
  EXPECT_EQ(m.scales[0], 1e-10F / 448.0F);
  // 1e-11 / (1e-10 / 448) is about 44.8, between 44 (0x63) and 48 (0x64): BF16(1e-11) is 44.7.
  EXPECT_EQ(m.codes[0], 0x63);
  EXPECT_EQ(m.codes[1], 0x80);
  EXPECT_EQ(m.codes[2], 0x00);
}

TEST(Fp8Block, LargestBf16StaysFinite) {
  Matrix m(1, 2);
  m.values = {0x7F7F, 0xFF7F};
  ASSERT_TRUE(m.Encode().ok());
  EXPECT_TRUE(std::isfinite(m.scales[0]));
  EXPECT_THAT(m.codes, ElementsAreArray({0x7E, 0xFE}));
}

// [129, 257] has 2 x 3 blocks; each corner block owns its elements alone.
TEST(Fp8Block, EdgeBlocksUseOnlyTheirOwnElements) {
  Matrix m(129, 257);
  for (int64_t n = 0; n < m.rows; ++n) {
    for (int64_t k = 0; k < m.cols; ++k) {
      m.At(n, k) = FloatToBf16(static_cast<float>(1 << (2 * (n / 128) + k / 128)));
    }
  }
  ASSERT_TRUE(m.Encode().ok());
  const std::vector<float> expected = {1.0F / 448.0F, 2.0F / 448.0F, 4.0F / 448.0F,
                                       4.0F / 448.0F, 8.0F / 448.0F, 16.0F / 448.0F};
  EXPECT_THAT(m.scales, ElementsAreArray(expected));
  for (const uint8_t code : m.codes) {
    ASSERT_EQ(code, 0x7E);
  }
}

TEST(Fp8Block, EmptyMatrixHasNothing) {
  Matrix m(0, 64);
  EXPECT_TRUE(m.Encode().ok());
  EXPECT_TRUE(m.scales.empty());
}

TEST(Fp8Block, RefusesNanAndInfinityWithCountAndFirstIndex) {
  for (const uint16_t bad :
       {uint16_t{0x7F80}, uint16_t{0xFF80}, uint16_t{0x7FC0}, uint16_t{0xFFFF}, uint16_t{0x7F81}}) {
    Matrix m(130, 140);
    m.At(129, 3) = bad;
    m.At(7, 139) = bad;
    for (const bool scalar : {true, false}) {
      const Fp8BlockEncodeArgs args = {
          .rows = m.rows, .cols = m.cols, .values = m.values, .codes = m.codes, .scales = m.scales};
      const Status status = scalar ? EncodeFp8BlockScalar(args) : EncodeFp8Block(args);
      EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
      EXPECT_THAT(status.message(), HasSubstr("2 NaN or infinite"));
      EXPECT_THAT(status.message(), HasSubstr("[7, 139]"));
    }
  }
}

TEST(Fp8Block, RefusesSpansOfAnotherLength) {
  Matrix m(4, 130);
  const Fp8BlockEncodeArgs good = {
      .rows = 4, .cols = 130, .values = m.values, .codes = m.codes, .scales = m.scales};
  Fp8BlockEncodeArgs args = good;
  args.values = args.values.first(5);
  EXPECT_THAT(EncodeFp8Block(args).message(), HasSubstr("values: expected 520 elements, got 5"));
  args = good;
  args.codes = args.codes.first(6);
  EXPECT_THAT(EncodeFp8Block(args).message(), HasSubstr("codes: expected 520 elements, got 6"));
  args = good;
  args.scales = args.scales.first(1);
  EXPECT_THAT(EncodeFp8Block(args).message(), HasSubstr("scales: expected 2 elements, got 1"));
  args = good;
  args.rows = -1;
  EXPECT_EQ(EncodeFp8Block(args).code(), StatusCode::kInvalidArgument);
  args.rows = int64_t{1} << 60;
  args.cols = 64;
  EXPECT_EQ(EncodeFp8Block(args).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(EncodeFp8BlockScalar(args).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(DecodeFp8Block({.rows = 4, .cols = 4, .codes = {}, .scales = {}, .values = {}}).code(),
            StatusCode::kInvalidArgument);
}

// Every code under a scale that is no power of two; the product has at most 28 bits, so FP64 holds
// it exactly and one rounding to FP32 and one to BF16 are what the definition asks for.
TEST(Fp8Block, DecodesToTheProductRoundedOnce) {
  std::vector<uint8_t> codes(256);
  for (size_t i = 0; i < codes.size(); ++i) {
    codes[i] = static_cast<uint8_t>(i);
  }
  const std::vector<float> scales = {0.0123F, 1.7e-5F};
  std::vector<uint16_t> values(256);
  ASSERT_TRUE(
      DecodeFp8Block({.rows = 1, .cols = 256, .codes = codes, .scales = scales, .values = values})
          .ok());
  for (size_t i = 0; i < codes.size(); ++i) {
    const double exact = double{E4m3ToFloat(codes[i])} * double{scales[i / 128]};
    EXPECT_EQ(values[i], FloatToBf16(static_cast<float>(exact))) << i;
  }
  EXPECT_EQ(values[0x7F], 0x7FC0);
}

TEST(Fp8Block, FindsTheOnlyNaNCodeAtEveryPosition) {
  for (const size_t length : {1U, 8U, 9U, 31U}) {
    for (unsigned other = 0; other < 256; ++other) {
      std::vector<uint8_t> codes(length, static_cast<uint8_t>(other));
      ASSERT_EQ(HasNaNCode(codes), other == 0x7F || other == 0xFF) << other;
    }
    std::vector<uint8_t> codes(length, 0xFE);
    for (size_t i = 0; i < length; ++i) {
      codes[i] = i % 2 != 0 ? 0x7F : 0xFF;
      EXPECT_TRUE(HasNaNCode(codes)) << i;
      codes[i] = 0xFE;
    }
    EXPECT_FALSE(HasNaNCode(codes));
  }
  EXPECT_FALSE(HasNaNCode({}));
}

TEST(Fp8Block, BlocksOfPowerOfTwoScaleSurviveARoundTrip) {
  Matrix m(3, 200);
  for (int64_t i = 0; i < m.rows * m.cols; ++i) {
    const auto code = static_cast<uint8_t>(i % 127 | (i % 2 != 0 ? 0x80 : 0));
    m.values[static_cast<size_t>(i)] = FloatToBf16(E4m3ToFloat(code));
  }
  ASSERT_TRUE(m.Encode().ok());  // Each block holds 448, so its scale is 1.
  std::vector<uint16_t> decoded(m.values.size());
  ASSERT_TRUE(
      DecodeFp8Block(
          {.rows = m.rows, .cols = m.cols, .codes = m.codes, .scales = m.scales, .values = decoded})
          .ok());
  EXPECT_EQ(decoded, m.values);
}

}  // namespace
}  // namespace octavo
