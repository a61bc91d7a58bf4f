// Method: the published row and vectors, cases worked out by hand for each format, each documented
// error once, and what a second encoding of decoded values must give. Run on the dispatched path;
// quantize_simd_test.cc holds every vector path to the scalar one.

#include "octavo/formats/quantize.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/formats/bf16.h"
#include "octavo/formats/e2m1.h"
#include "octavo/formats/e4m3.h"
#include "octavo/formats/format.h"
#include "octavo/formats/format_simd_test_support.h"
#include "octavo/formats/fp8_block.h"
#include "octavo/formats/fp8_channel.h"
#include "octavo/formats/nvfp4.h"

namespace octavo {
namespace {

using ::testing::Each;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

float Fp32(uint32_t bits) { return std::bit_cast<float>(bits); }

const Bf16Matrix& PublishedRow() {
  static const Bf16Matrix row = {
      1, 32, {0x0000, 0x3c00, 0xbc80, 0x3cc0, 0x3d00, 0xbd40, 0x3d80, 0x3dc0,
              0xbe00, 0x3e40, 0x3e80, 0xbec0, 0x3f00, 0x3f20, 0x3f40, 0xbf60,
              0xbda4, 0xbd8f, 0xbd76, 0xbd4d, 0xbd24, 0xbcf6, 0xbca4, 0xbc24,
              0x0000, 0x3c24, 0x3ca4, 0x3cf6, 0x3d24, 0x3d4d, 0x3d76, 0x3d8f}};
  return row;
}

// amax 0.875: every E4M3 format ends at the scale 2^-9.
TEST(Quantize, MatchesThePublishedRow) {
  const std::vector<uint8_t> e4m3 = {0x00, 0x48, 0xd0, 0x54, 0x58, 0xdc, 0x60, 0x64,
                                     0xe8, 0x6c, 0x70, 0xf4, 0x78, 0x7a, 0x7c, 0xfe,
                                     0xe2, 0xe1, 0xdf, 0xdd, 0xda, 0xd7, 0xd2, 0xca,
                                     0x00, 0x4a, 0x52, 0x57, 0x5a, 0x5d, 0x5f, 0x61};
  for (const WeightFormat format :
       {WeightFormat::kFp8, WeightFormat::kFp8Ue8m0, WeightFormat::kFp8Channel}) {
    const TestCodes out = Encode(Quantize, format, PublishedRow());
    EXPECT_THAT(out.codes, ElementsAreArray(e4m3));
    EXPECT_EQ(out.scale_words[0], 0x3b000000U);
  }
  EXPECT_THAT(Encode(Quantize, WeightFormat::kFp8Tensor, PublishedRow()).codes,
              ElementsAreArray(e4m3));
  EXPECT_EQ(TensorScale(WeightFormat::kFp8Tensor, 0.875F), 0x1p-9F);
  TestCodes mxfp8 = Encode(Quantize, WeightFormat::kMxfp8, PublishedRow());
  EXPECT_THAT(mxfp8.codes, ElementsAreArray(e4m3));
  EXPECT_EQ(mxfp8.ScaleByte(0), 0x76U);
  TestCodes nvfp4 = Encode(Quantize, WeightFormat::kNvfp4, PublishedRow());
  EXPECT_THAT(nvfp4.codes, ElementsAreArray({0x00, 0x08, 0x90, 0x11, 0x3a, 0xd3, 0x65, 0xf7, 0xff,
                                             0xee, 0xcd, 0xab, 0x20, 0x43, 0x65, 0x76}));
  EXPECT_EQ(nvfp4.ScaleByte(0), 0x7eU);
  EXPECT_EQ(nvfp4.ScaleByte(1), 0x62U);
  EXPECT_EQ(TensorScale(WeightFormat::kNvfp4, 0.875F), Fp32(0x39aaaaab));
}

// Ties that only correct rounding of the quotient resolves, and FP32 where BF16 differs.
TEST(Quantize, DividesInFp32) {
  EXPECT_EQ(Encode(Quantize, WeightFormat::kFp8, Bf16Matrix{1, 2, {0x3dcc, 0x3b19}}).codes[1],
            0x52);
  const Bf16Matrix tensor = {1, 2, {0x3d93, 0xbb33}};
  EXPECT_EQ(TensorScale(WeightFormat::kFp8Tensor, Bf16ToFloat(0x3d93)), Fp32(0x39280000));
  EXPECT_EQ(Encode(Quantize, WeightFormat::kFp8Tensor, tensor).codes[1], 0xd9);
}

// Where the operations of other converters, in another order, give another byte.
TEST(Nvfp4, MatchesThePublishedVectors) {
  EXPECT_EQ(Nvfp4GroupScale(4.6491623e-05F, Nvfp4GroupFactor(1.015625F)), 0x0b);
  struct Case {
    uint16_t tensor_amax;
    uint16_t group_amax;
    uint16_t x;
    uint32_t tensor_scale;
    uint8_t group_scale;
    uint8_t code;
  };
  for (const Case& c : {Case{0x3de5, 0x3d6c, 0xbbe5, 0x382e79e8, 0x76, 0x9},
                        Case{0x3dd2, 0x3daf, 0x3c96, 0x38200000, 0x7c, 0x3}}) {
    Bf16Matrix matrix = {1, 16, std::vector<uint16_t>(16)};
    matrix.values[0] = c.x;
    matrix.values[1] = c.group_amax;
    const float amax = Bf16ToFloat(c.tensor_amax);
    EXPECT_EQ(TensorScale(WeightFormat::kNvfp4, amax), Fp32(c.tensor_scale));
    TestCodes out = Encode(Quantize, WeightFormat::kNvfp4, matrix, amax);
    EXPECT_EQ(out.ScaleByte(0), c.group_scale);
    EXPECT_EQ(out.codes[0] & 0x0F, c.code);
  }
}

// amax(g) * 448 / A at most 2^-10: the group scale is 0, what is not zero saturates, and all of it
// decodes to zero.
TEST(Nvfp4, GroupUnderAnOutlierUnderflowsToScaleZero) {
  Bf16Matrix matrix = {1, 32, std::vector<uint16_t>(32)};
  matrix.values[0] = FloatToBf16(1.0F);
  matrix.values[16] = FloatToBf16(0x1p-19F);
  matrix.values[17] = FloatToBf16(-0x1p-25F);
  matrix.values[18] = 0x8000;
  TestCodes out = Encode(Quantize, WeightFormat::kNvfp4, matrix);
  EXPECT_EQ(out.ScaleByte(0), 0x7eU);
  EXPECT_EQ(out.ScaleByte(1), 0x00U);
  EXPECT_EQ(out.codes[8], 0xf7);
  EXPECT_EQ(out.codes[9], 0x08);
  const float scale = TensorScale(WeightFormat::kNvfp4, 1.0F);
  std::vector<float> decoded(32, 1.0F);
  ASSERT_TRUE(
      Dequantize({.format = WeightFormat::kNvfp4,
                  .rows = 1,
                  .cols = 32,
                  .codes = out.codes,
                  .scales = out.scales(),
                  .tensor_scale = scale,
                  .values = {DType::kF32, {1, 32}, reinterpret_cast<std::byte*>(decoded.data())}})
          .ok());
  EXPECT_EQ(decoded[16], 0.0F);
  const QuantizationError error = MeasureQuantization({.format = WeightFormat::kNvfp4,
                                                       .values = matrix.View(),
                                                       .codes = out.codes,
                                                       .scales = out.scales(),
                                                       .tensor_scale = scale});
  EXPECT_EQ(error.num_scales, 2);
  EXPECT_EQ(error.num_subnormal_scales, 1);
  EXPECT_EQ(error.num_saturated, 2);
}

// FP64 holds a product of two FP32 exactly, and rounds a quotient of two so finely that rounding it
// again gives the nearest FP32: the formulas of nvfp4.h once more, for every group under every
// binade of tensors.
TEST(Nvfp4, ScalesAreTheirFormulasForEveryBf16Amax) {
  const auto divide = [](double x, double y) { return double{static_cast<float>(x / y)}; };
  const auto multiply = [](double x, double y) { return double{static_cast<float>(x * y)}; };
  const double sixth = divide(1.0, 6.0);
  const auto max = double{std::numeric_limits<float>::max()};
  for (uint32_t bits = 1; bits < 0x7F80; ++bits) {
    const float amax = Bf16ToFloat(static_cast<uint16_t>(bits));
    const double large = std::min(2688.0 / double{amax}, max);
    const double scale = divide(1.0, divide(large, 1.0));
    ASSERT_EQ(double{TensorScale(WeightFormat::kNvfp4, amax)}, scale) << bits;
    if (bits % 131 != 0) {
      continue;
    }
    const double factor = multiply(divide(large, 1.0), sixth);
    for (uint32_t group_bits = 0; group_bits <= bits; ++group_bits) {
      const float group_amax = Bf16ToFloat(static_cast<uint16_t>(group_bits));
      const double wanted = std::min(multiply(double{group_amax}, factor), 448.0);
      const uint8_t code = Nvfp4GroupScale(group_amax, Nvfp4GroupFactor(amax));
      ASSERT_EQ(code, FloatToE4m3(static_cast<float>(wanted))) << bits << ' ' << group_bits;
      const double product = multiply(double{E4m3ToFloat(code)}, scale);
      const double multiplier = product == 0.0 ? max : std::min(1.0 / product, max);
      ASSERT_EQ(Nvfp4Multiplier(E4m3ToFloat(code), static_cast<float>(scale)),
                static_cast<float>(multiplier))
          << bits << ' ' << group_bits;
    }
  }
}

TEST(Nvfp4, TensorScaleIsFiniteAndPositiveForEveryAmax) {
  EXPECT_EQ(TensorScale(WeightFormat::kNvfp4, 0.0F), 1.0F);
  for (uint32_t bits = 0; bits < 0x7F80; ++bits) {
    const float scale = TensorScale(WeightFormat::kNvfp4, Bf16ToFloat(static_cast<uint16_t>(bits)));
    ASSERT_TRUE(std::isfinite(scale) && scale > 0.0F) << bits;
  }
  // 2688 / A overflows and is capped at the largest FP32, whose reciprocal is subnormal.
  EXPECT_EQ(TensorScale(WeightFormat::kNvfp4, 0x1p-133F), Fp32(0x00200000));
}

// An all-zero matrix with one -0: signs stay, values decode to 0, no F32 scale is zero.
TEST(Quantize, ZerosKeepTheirSignsAndDecodeToZero) {
  ForEachQuantizedFormat([](WeightFormat format) {
    Bf16Matrix matrix = {2, 32, std::vector<uint16_t>(64)};
    matrix.values[3] = 0x8000;
    TestCodes out = Encode(Quantize, format, matrix);
    const bool nvfp4 = format == WeightFormat::kNvfp4;
    EXPECT_EQ(nvfp4 ? out.codes[1] : out.codes[3], 0x80);
    out.codes[nvfp4 ? 1 : 3] = 0;
    EXPECT_THAT(out.codes, Each(0));
    if (nvfp4 || format == WeightFormat::kMxfp8) {
      EXPECT_THAT(out.scales(), Each(std::byte{0}));
    }
  });
  const Bf16Matrix zeros = {1, 32, std::vector<uint16_t>(32)};
  EXPECT_EQ(Encode(Quantize, WeightFormat::kFp8, zeros).ScaleF32(0), 1e-10F / 448.0F);
  EXPECT_EQ(Encode(Quantize, WeightFormat::kFp8Ue8m0, zeros).ScaleF32(0), 0x1p-22F);
  EXPECT_EQ(Encode(Quantize, WeightFormat::kFp8Channel, zeros).ScaleF32(0),
            Bf16ToFloat(FloatToBf16(1e-12F)) / 448.0F);
  EXPECT_EQ(TensorScale(WeightFormat::kFp8Tensor, 0.0F), 1e-12F / 448.0F);
}

TEST(Quantize, LargestBf16StaysFiniteUnderExactScales) {
  ForEachQuantizedFormat([](WeightFormat format) {
    const Bf16Matrix matrix = {1, 32, std::vector<uint16_t>(32, 0xFF7F)};
    TestCodes out = Encode(Quantize, format, matrix);
    if (format == WeightFormat::kMxfp8 || format == WeightFormat::kFp8Ue8m0) {
      // 1.99 * 2^127 under the scale 2^120: 255 rounds to 256 = 0x78, and that decodes to 2^128.
      EXPECT_THAT(out.codes, Each(0xF8));
      return;
    }
    EXPECT_THAT(out.codes, Each(format == WeightFormat::kNvfp4 ? 0xFF : 0xFE));
    const QuantizationError error =
        MeasureQuantization({.format = format,
                             .values = matrix.View(),
                             .codes = out.codes,
                             .scales = out.scales(),
                             .tensor_scale = TensorScale(format, Amax(matrix.View()))});
    EXPECT_LT(error.RelativeRms(), 1e-6);
    EXPECT_EQ(error.num_saturated, 0);
  });
}

// Power-of-two scales: decoded values are BF16 without rounding, and encoding them again decodes to
// the same.
TEST(Quantize, ValuesUnderPowersOfTwoSurviveASecondEncoding) {
  for (const WeightFormat format : {WeightFormat::kFp8Ue8m0, WeightFormat::kMxfp8}) {
    const Bf16Matrix matrix = RandomBf16(130, 160, 121, 4);
    TestCodes first = Encode(Quantize, format, matrix);
    Bf16Matrix once = matrix;
    Bf16Matrix twice = matrix;
    F32Matrix exact = Widened(matrix);
    ASSERT_TRUE(Dequantize({.format = format,
                            .rows = 130,
                            .cols = 160,
                            .codes = first.codes,
                            .scales = first.scales(),
                            .values = {DType::kF32,
                                       {130, 160},
                                       reinterpret_cast<std::byte*>(exact.values.data())}})
                    .ok());
    const auto decode = [&](TestCodes* in, Bf16Matrix* out) {
      return Dequantize(
          {.format = format,
           .rows = 130,
           .cols = 160,
           .codes = in->codes,
           .scales = in->scales(),
           .values = {DType::kBf16, {130, 160}, reinterpret_cast<std::byte*>(out->values.data())}});
    };
    ASSERT_TRUE(decode(&first, &once).ok());
    EXPECT_EQ(Widened(once).values, exact.values);
    TestCodes second = Encode(Quantize, format, once);
    ASSERT_TRUE(decode(&second, &twice).ok());
    EXPECT_EQ(twice.values, once.values);
  }
}

TEST(Quantize, RefusesNanAndInfinityWithCountAndFirstIndex) {
  ForEachQuantizedFormat([](WeightFormat format) {
    for (const uint16_t bad : std::vector<uint16_t>{0x7F80, 0xFF80, 0x7FC0, 0xFFFF, 0x7F81}) {
      Bf16Matrix matrix = {130, 288, std::vector<uint16_t>(size_t{130} * 288, 0x3F80)};
      matrix.values[129 * 288 + 3] = bad;
      matrix.values[7 * 288 + 287] = bad;
      const F32Matrix wide = Widened(matrix);
      TestCodes out(format, 130, 288);
      for (const ConstTensorView& view : {matrix.View(), wide.View()}) {
        for (const QuantizeFn quantize : {&Quantize, &QuantizeScalar}) {
          const Status status = quantize({.format = format,
                                          .values = view,
                                          .amax = 1.0F,
                                          .codes = out.codes,
                                          .scales = out.scales()});
          EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
          EXPECT_THAT(status.message(), HasSubstr("2 NaN or infinite"));
          EXPECT_THAT(status.message(), HasSubstr("[7, 287]"));
        }
      }
    }
  });
}

TEST(Quantize, RefusesAnAmaxThatIsTooSmallOrNone) {
  const Bf16Matrix matrix = {1, 32, std::vector<uint16_t>(32, 0x4000)};
  for (const WeightFormat format : {WeightFormat::kFp8Tensor, WeightFormat::kNvfp4}) {
    TestCodes out(format, 1, 32);
    for (const float amax : {1.0F, -1.0F, std::numeric_limits<float>::infinity(),
                             std::numeric_limits<float>::quiet_NaN()}) {
      const Status status = Quantize({.format = format,
                                      .values = matrix.View(),
                                      .amax = amax,
                                      .codes = out.codes,
                                      .scales = out.scales()});
      EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << amax;
      EXPECT_THAT(status.message(), HasSubstr("amax")) << amax;
    }
  }
}

TEST(Quantize, RefusesOtherShapesAndLengths) {
  const Bf16Matrix matrix = {2, 24, std::vector<uint16_t>(48)};
  std::vector<uint8_t> codes(48);
  std::vector<std::byte> scales(4);
  QuantizeArgs args = {
      .format = WeightFormat::kFp8, .values = matrix.View(), .codes = codes, .scales = scales};
  ASSERT_TRUE(Quantize(args).ok());
  args.codes = std::span(codes).first(47);
  EXPECT_THAT(Quantize(args).message(), HasSubstr("fp8 codes: expected 48 bytes, got 47"));
  args.codes = codes;
  args.scales = std::span(scales).first(3);
  EXPECT_THAT(Quantize(args).message(), HasSubstr("fp8 scales: expected 4 bytes, got 3"));
  args.scales = scales;
  args.format = WeightFormat::kMxfp8;
  EXPECT_THAT(Quantize(args).message(), HasSubstr("multiple of 32"));
  args.format = WeightFormat::kNvfp4;
  EXPECT_THAT(Quantize(args).message(), HasSubstr("multiple of 16"));
  args.format = WeightFormat::kBf16;
  EXPECT_EQ(Quantize(args).code(), StatusCode::kInvalidArgument);
  args.format = WeightFormat::kFp8;
  args.values.shape = {48};
  EXPECT_THAT(Quantize(args).message(), HasSubstr("expected a matrix, got [48]"));
  args.values.shape = {int64_t{1} << 60, 64};
  EXPECT_EQ(Quantize(args).code(), StatusCode::kInvalidArgument);
  args.values.shape = {2, 24};
  args.values.dtype = DType::kF16;
  EXPECT_THAT(Quantize(args).message(), HasSubstr("expected BF16 or F32, got F16"));
}

// Codes 1 and -0.5 under scale 2, off by 0.5 and 64, worked out by hand.
TEST(MeasureQuantization, GivesTheErrorOfItsDefinition) {
  Bf16Matrix matrix = {1, 129, std::vector<uint16_t>(129)};
  matrix.values[0] = FloatToBf16(2.0F);
  matrix.values[1] = FloatToBf16(-1.0F);
  matrix.values[128] = FloatToBf16(512.0F);
  TestCodes codes(WeightFormat::kFp8, 1, 129);
  codes.codes.assign(129, 0);
  codes.codes[0] = 0x38;    // 1
  codes.codes[1] = 0xB4;    // -0.75
  codes.codes[128] = 0x7E;  // 448, and 512 lies beyond 464.
  codes.scale_words[0] = std::bit_cast<uint32_t>(2.0F);
  codes.scale_words[1] = std::bit_cast<uint32_t>(1.0F);
  const QuantizationError error = MeasureQuantization({.format = WeightFormat::kFp8,
                                                       .values = matrix.View(),
                                                       .codes = codes.codes,
                                                       .scales = codes.scales()});
  EXPECT_EQ(error.sum_sq_error, 0.25 + 64.0 * 64.0);
  EXPECT_EQ(error.sum_sq_value, 4.0 + 1.0 + 512.0 * 512.0);
  EXPECT_EQ(error.max_abs_error, 64.0);
  EXPECT_EQ(error.num_saturated, 1);
  EXPECT_EQ(error.num_scales, 2);
  EXPECT_EQ(error.num_zero_blocks, 0);
  EXPECT_EQ(QuantizationError().RelativeRms(), 0.0);
}

// NVFP4 by the layout that stores a divisor: E2M1 * fl(E4M3 / divisor).
TEST(Dequantize, DividesWhereTheLayoutDoes) {
  const std::vector<uint8_t> codes(8, 0x71);                // 0.5 and 6.
  const std::vector<std::byte> scales = {std::byte{0x3A}};  // 1.25
  std::vector<float> values(16);
  ASSERT_TRUE(
      Dequantize({.format = WeightFormat::kNvfp4,
                  .rows = 1,
                  .cols = 16,
                  .codes = codes,
                  .scales = scales,
                  .tensor_scale = 3.0F,
                  .tensor_scale_divides = true,
                  .values = {DType::kF32, {1, 16}, reinterpret_cast<std::byte*>(values.data())}})
          .ok());
  EXPECT_EQ(values[0], 0.5F * (1.25F / 3.0F));
  EXPECT_EQ(values[1], 6.0F * (1.25F / 3.0F));
}

}  // namespace
}  // namespace octavo
