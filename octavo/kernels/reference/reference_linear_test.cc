// Method: linear layers of the reference, every format and form of input, against sums of exactly
// decoded operands in FP64, within bounds derived from the roundings of the formula; the fp32
// recipe against Dequantize; biases, experts and NaN by hand.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "octavo/base/float_env.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/formats/bf16.h"
#include "octavo/formats/format.h"
#include "octavo/formats/quantize.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/linear_input.h"
#include "octavo/kernels/matrix.h"
#include "octavo/kernels/ops.h"
#include "octavo/kernels/reference/weight_row.h"
#include "octavo/kernels/test_tensors.h"

namespace octavo {
namespace {

constexpr int64_t kTokens = 4;
constexpr int64_t kIn = 288;  // Off 128, so that the last block is short.
constexpr int64_t kOut = 20;

std::vector<InputForm> FormsOf(WeightFormat format) {
  switch (format) {
    case WeightFormat::kFp8Tensor:
      return {InputForm::kBf16, InputForm::kFp8Token, InputForm::kFp8Static};
    case WeightFormat::kNvfp4:
      return {InputForm::kBf16, InputForm::kNvfp4Token, InputForm::kNvfp4Pow2,
              InputForm::kNvfp4Static, InputForm::kNvfp4Batch};
    case WeightFormat::kBf16:
      return {InputForm::kBf16};
    default:
      return {InputForm::kBf16, DefaultInput(format)};
  }
}

// The weight's whole values: row-major [kOut, kIn].
std::vector<float> Dequantized(const CanonicalMatrix& w) {
  std::vector<float> values(static_cast<size_t>(w.rows * w.cols));
  if (w.format == WeightFormat::kBf16) {
    const auto* bits = reinterpret_cast<const uint16_t*>(w.codes.data());
    std::transform(bits, bits + values.size(), values.begin(), Bf16ToFloat);
    return values;
  }
  const Status status = DequantizeScalar(
      {.format = w.format,
       .rows = w.rows,
       .cols = w.cols,
       .codes = {reinterpret_cast<const uint8_t*>(w.codes.data()), w.codes.size()},
       .scales = w.scales,
       .tensor_scale = w.tensor_scale,
       .tensor_scale_divides = w.tensor_scale_divides,
       .values = {DType::kF32, {w.rows, w.cols}, reinterpret_cast<std::byte*>(values.data())}});
  EXPECT_TRUE(status.ok()) << status.message();
  return values;
}

// The input as the layer reads it: x^ times its scales, in FP64.
std::vector<double> ReadInput(InputForm form, const CanonicalMatrix& w, const TestActivations& x) {
  const ScopedFlushSubnormals flush;
  std::vector<double> read;
  float batch_amax = 0.0F;
  for (int64_t t = 0; t < kTokens; ++t) {
    for (int64_t k = 0; k < kIn; ++k) {
      batch_amax = std::max(batch_amax, std::fabs(x.At(t, k)));
    }
  }
  for (int64_t t = 0; t < kTokens; ++t) {
    std::vector<float> row(static_cast<size_t>(kIn));
    for (int64_t k = 0; k < kIn; ++k) {
      row[static_cast<size_t>(k)] = x.At(t, k);
    }
    std::array<float, 3> scales = {1.0F, 1.0F, 1.0F};
    const float factor = QuantizeLinearInput(
        form, form == InputForm::kNvfp4Batch ? batch_amax : w.input_scale, row, row, scales);
    for (size_t k = 0; k < row.size(); ++k) {
      read.push_back(double{row[k]} * double{scales[k / 128]} * double{factor});
    }
  }
  return read;
}

TEST(ReferenceLinear, StaysWithinItsRoundingsOfTheExactSum) {
  // Products are exact in FP32; each output sums kIn of them (one rounding each, plus one a tile
  // and one a block) and multiplies by at most 3 scales, each rounding at most 2^-24 relative to
  // the sum of magnitudes. Dequantize rounds a weight once more. So (kIn + kIn / 32 + 16) * 2^-24;
  // subnormals that are flushed are below 2^-126 and do not show.
  const double bound = (kIn + kIn / 32.0 + 16) * 0x1p-24;
  const auto serving = MakeReferenceBackend(Recipe::kServing, 2);
  TestActivations x(DType::kBf16, kTokens, kIn);
  x.Fill(1);
  for (const WeightFormat format : AllWeightFormats()) {
    for (const InputForm form : FormsOf(format)) {
      const TestMatrix weight(format, form, kOut, kIn, 2);
      const PackedMatrix packed = weight.PackFor(*serving);
      const PackedMatrix bias = TestMatrix(WeightFormat::kBf16, 1, kOut, 3).PackFor(*serving);
      TestActivations y(DType::kF32, kTokens, kOut);
      const LinearPart part{&packed, y.view(), &bias};
      ASSERT_TRUE(serving->Linear({x.view(), {&part, 1}}).ok());
      const std::vector<float> w = Dequantized(weight.canonical());
      const std::vector<double> read = ReadInput(form, weight.canonical(), x);
      for (int64_t t = 0; t < kTokens; ++t) {
        for (int64_t n = 0; n < kOut; ++n) {
          const double added = Bf16ToFloat(bias.codes.As<uint16_t>()[static_cast<size_t>(n)]);
          double sum = added;
          double magnitudes = std::fabs(added);
          for (int64_t k = 0; k < kIn; ++k) {
            const double product = read[static_cast<size_t>(t * kIn + k)] *
                                   double{w[static_cast<size_t>(n * kIn + k)]};
            sum += product;
            magnitudes += std::fabs(product);
          }
          ASSERT_NEAR(y.At(t, n), sum, magnitudes * bound)
              << WeightFormatName(format) << " form " << static_cast<int>(form);
        }
      }
    }
  }
}

TEST(ReferenceLinear, Fp32RecipeIsPlainMathematicsOnDequantizedWeights) {
  const auto fp32 = MakeReferenceBackend(Recipe::kFp32, 2);
  TestActivations x(DType::kF32, kTokens, kIn);
  x.Fill(1);
  for (const WeightFormat format : AllWeightFormats()) {
    for (const InputForm form : FormsOf(format)) {
      const TestMatrix weight(format, form, kOut, kIn, 2);
      const PackedMatrix packed = weight.PackFor(*fp32);
      TestActivations y(DType::kF32, kTokens, kOut);
      const LinearPart part{&packed, y.view()};
      ASSERT_TRUE(fp32->Linear({x.view(), {&part, 1}}).ok());
      const std::vector<float> w = Dequantized(weight.canonical());
      for (int64_t t = 0; t < kTokens; ++t) {
        for (int64_t n = 0; n < kOut; ++n) {
          double sum = 0.0;
          double magnitudes = 0.0;
          for (int64_t k = 0; k < kIn; ++k) {
            const double product = double{x.At(t, k)} * double{w[static_cast<size_t>(n * kIn + k)]};
            sum += product;
            magnitudes += std::fabs(product);
          }
          // One rounding of the FP64 sum to FP32; FP64's own are 2^-53 each.
          ASSERT_NEAR(y.At(t, n), sum, std::fabs(sum) * 0x1p-24 + magnitudes * kIn * 0x1p-53)
              << WeightFormatName(format);
        }
      }
    }
  }
}

TEST(ReferenceLinear, Nvfp4DividesByACompressedTensorsGlobalScale) {
  const auto serving = MakeReferenceBackend(Recipe::kServing, 1);
  TestMatrix weight(WeightFormat::kNvfp4, 8, 32, 2);
  weight.canonical().tensor_scale = 0x1p-9F;
  const PackedMatrix multiplies = weight.PackFor(*serving);
  weight.canonical().tensor_scale = 0x1p9F;
  weight.canonical().tensor_scale_divides = true;
  const PackedMatrix divides = weight.PackFor(*serving);
  TestActivations x(DType::kBf16, 2, 32);
  x.Fill(1);
  TestActivations a(DType::kBf16, 2, 8);
  TestActivations b(DType::kBf16, 2, 8);
  const LinearPart parts[] = {{&multiplies, a.view()}, {&divides, b.view()}};
  ASSERT_TRUE(serving->Linear({x.view(), parts}).ok());
  EXPECT_TRUE(SameBits(a, b));
}

TEST(ReferenceLinear, AddsTheBiasInFp32BeforeTheCast) {
  // 1 + 2^-9 rounds to 1 in BF16 (quantum 2^-7); with the bias 2^-8 the sum is 1 + 3 * 2^-9, which
  // rounds to 1 + 2^-7. Adding after the cast would give 1 + 2^-8 -> 1 (a tie, to even).
  const auto serving = MakeReferenceBackend(Recipe::kServing, 1);
  TestMatrix weight(WeightFormat::kBf16, 2, 32, 1);
  TestMatrix bias(WeightFormat::kBf16, 1, 2, 1);
  auto* w = reinterpret_cast<uint16_t*>(weight.codes().data());
  std::fill_n(w, 64, FloatToBf16(0.0F));
  w[0] = w[32] = FloatToBf16(1.0F);
  w[1] = w[33] = FloatToBf16(0x1p-9F);
  auto* b = reinterpret_cast<uint16_t*>(bias.codes().data());
  b[0] = FloatToBf16(0x1p-8F);
  b[1] = FloatToBf16(0.0F);
  TestActivations x(DType::kBf16, 1, 32);
  for (int64_t k = 0; k < 32; ++k) {
    x.Set(0, k, 1.0F);
  }
  const PackedMatrix packed = weight.PackFor(*serving);
  const PackedMatrix packed_bias = bias.PackFor(*serving);
  TestActivations y(DType::kBf16, 1, 2);
  const LinearPart part{&packed, y.view(), &packed_bias};
  ASSERT_TRUE(serving->Linear({x.view(), {&part, 1}}).ok());
  EXPECT_EQ(y.At(0, 0), 1.0F + 0x1p-7F);
  EXPECT_EQ(y.At(0, 1), 1.0F);
}

TEST(ReferenceLinear, ExpertsReadTheirRows) {
  for (const Recipe recipe : {Recipe::kServing, Recipe::kFp32}) {
    const auto backend = MakeReferenceBackend(recipe, 2);
    const DType dtype = backend->activation_dtype();
    const PackedMatrix a = TestMatrix(WeightFormat::kNvfp4, 6, 32, 1).PackFor(*backend);
    const PackedMatrix b = TestMatrix(WeightFormat::kNvfp4, 6, 32, 2).PackFor(*backend);
    const std::array<const PackedMatrix*, 2> experts = {&a, &b};
    TestActivations x(dtype, 3, 32);
    x.Fill(4);
    const std::array<int32_t, 4> source_rows = {2, 0, 1, 2};
    const std::array<int32_t, 3> offsets = {0, 1, 4};
    TestActivations y(dtype, 4, 6);
    const GroupedPart part{experts, y.view()};
    ASSERT_TRUE(backend->GroupedLinear({x.view(), source_rows, offsets, {&part, 1}}).ok());
    TestActivations by_a(dtype, 3, 6);
    TestActivations by_b(dtype, 3, 6);
    const LinearPart parts[] = {{&a, by_a.view()}, {&b, by_b.view()}};
    ASSERT_TRUE(backend->Linear({x.view(), parts}).ok());
    for (int64_t n = 0; n < 6; ++n) {
      EXPECT_EQ(y.At(0, n), by_a.At(2, n));
      EXPECT_EQ(y.At(1, n), by_b.At(0, n));
      EXPECT_EQ(y.At(2, n), by_b.At(1, n));
      EXPECT_EQ(y.At(3, n), by_b.At(2, n));
    }
  }
}

TEST(WeightRow, IsTheDequantizedRowWithoutTheScalesOfTheEpilogue) {
  const auto serving = MakeReferenceBackend(Recipe::kServing, 1);
  for (const WeightFormat format : {WeightFormat::kMxfp8, WeightFormat::kNvfp4}) {
    TestMatrix weight(format, 5, 64, 8);
    weight.canonical().tensor_scale = 1.0F;
    const PackedMatrix packed = weight.PackFor(*serving);
    std::vector<float> decoded(64);
    std::vector<float> dequantized(64);
    for (int64_t n = 0; n < 5; ++n) {
      reference::DecodeWeightRow(packed, n, decoded.data());
      reference::DequantizeWeightRow(packed, n, dequantized.data());
      EXPECT_EQ(decoded, dequantized);
    }
  }
}

}  // namespace
}  // namespace octavo
