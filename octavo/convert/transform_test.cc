// Method: random matrices through every format, dtype, pool size and memory alignment, whose bytes
// must not differ from the scalar quantizer's; then each documented error once. The arithmetic
// itself is tested in formats/.

#include "octavo/convert/transform.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/hash.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/base/thread_pool.h"
#include "octavo/convert/source.h"
#include "octavo/formats/bf16.h"
#include "octavo/formats/bf16_span.h"
#include "octavo/formats/format.h"
#include "octavo/formats/quantize.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"

namespace octavo {
namespace {

using ::testing::HasSubstr;

PrecisionRow Row(WeightFormat format, Shape shape) {
  return {.name = "model.layers.3.mlp.up_proj.weight",
          .role = Role::kMlpUp,
          .layer = 3,
          .shape = std::move(shape),
          .format = format,
          .rule = "--format fp8",
          .reason = "",
          .shadowed = {}};
}

template <typename T>
ConstTensorView View(DType dtype, const Shape& shape, const std::vector<T>& values) {
  return {dtype, shape, reinterpret_cast<const std::byte*>(values.data())};
}

std::vector<float> RandomFloats(int64_t count, unsigned seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0.0F, 0.02F);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) {
    value = normal(rng);
  }
  return values;
}

std::vector<uint16_t> ToBf16(const std::vector<float>& values) {
  std::vector<uint16_t> bits;
  bits.reserve(values.size());
  for (const float value : values) {
    bits.push_back(FloatToBf16(value));
  }
  return bits;
}

std::string Hex(const std::vector<OwnedTensor>& tensors) {
  std::string hex;
  for (const OwnedTensor& tensor : tensors) {
    hex += tensor.name + HashHex(HashBytes(tensor.bytes.bytes()));
  }
  return hex;
}

std::string TransformedHex(const PrecisionRow& row, const ConstTensorView& source,
                           ThreadPool* pool = nullptr) {
  const auto result = TransformWeight(row, source, {.pool = pool});
  EXPECT_TRUE(result.has_value()) << result.error().message();
  return result.has_value() ? Hex(*result) : "";
}

TEST(TransformWeight, GivesTheTensorsOfTheTable) {
  const PrecisionRow row = Row(WeightFormat::kFp8, {130, 260});
  const std::vector<uint16_t> values = ToBf16(RandomFloats(NumElements(row.shape), 1));
  const auto result = TransformWeight(row, View(DType::kBf16, row.shape, values), {});
  ASSERT_TRUE(result.has_value());
  ASSERT_EQ(result->size(), 2U);
  const OwnedTensor& codes = (*result)[0];
  const OwnedTensor& scales = (*result)[1];
  EXPECT_EQ(codes.name, row.name);
  EXPECT_EQ(codes.dtype, DType::kF8E4m3);
  EXPECT_EQ(codes.shape, row.shape);
  EXPECT_EQ(scales.name, row.name + "_scale_inv");
  EXPECT_EQ(scales.dtype, DType::kF32);
  EXPECT_EQ(scales.shape, (Shape{2, 3}));

  std::vector<uint8_t> expected_codes(values.size());
  std::vector<float> expected_scales(6);
  ASSERT_TRUE(QuantizeScalar({.format = WeightFormat::kFp8,
                              .values = View(DType::kBf16, row.shape, values),
                              .codes = expected_codes,
                              .scales = std::as_writable_bytes(std::span(expected_scales))})
                  .ok());
  EXPECT_EQ(std::memcmp(codes.bytes.data(), expected_codes.data(), expected_codes.size()), 0);
  EXPECT_TRUE(std::ranges::equal(scales.bytes.As<float>(), expected_scales));
}

TEST(TransformWeight, IsTheSameForAnyPoolAndLeavesTheSourceAlone) {
  for (const WeightFormat format : {WeightFormat::kBf16, WeightFormat::kFp8}) {
    for (const Shape& shape : {Shape{1, 1}, Shape{127, 33}, Shape{700, 131}}) {
      const PrecisionRow row = Row(format, shape);
      const std::vector<uint16_t> values = ToBf16(RandomFloats(NumElements(shape), 2));
      const ConstTensorView source = View(DType::kBf16, shape, values);
      const Hash128 before = HashBytes(source.Bytes());
      const std::string expected = TransformedHex(row, source);
      for (const int num_threads : {1, 2, 5}) {
        ThreadPool pool(num_threads, {.flush_subnormals = true});
        EXPECT_EQ(TransformedHex(row, source, &pool), expected) << num_threads;
      }
      EXPECT_EQ(HashBytes(source.Bytes()), before);
    }
  }
}

TEST(TransformWeight, RoundsF32AndF16ToBf16First) {
  for (const WeightFormat format : {WeightFormat::kBf16, WeightFormat::kFp8}) {
    const Shape shape = {300, 70};
    const PrecisionRow row = Row(format, shape);
    const std::vector<float> f32 = RandomFloats(NumElements(shape), 3);
    const std::vector<uint16_t> from_f32 = ToBf16(f32);
    EXPECT_EQ(TransformedHex(row, View(DType::kF32, shape, f32)),
              TransformedHex(row, View(DType::kBf16, shape, from_f32)));

    std::mt19937 rng(4);
    std::vector<uint16_t> f16(f32.size());
    std::vector<uint16_t> from_f16(f32.size());
    for (size_t i = 0; i < f16.size(); ++i) {
      f16[i] = static_cast<uint16_t>(rng() & 0xBBFFU);  // Finite: exponent field below 31.
      from_f16[i] = FloatToBf16(F16ToFloat(f16[i]));
    }
    EXPECT_EQ(TransformedHex(row, View(DType::kF16, shape, f16)),
              TransformedHex(row, View(DType::kBf16, shape, from_f16)));
  }
}

// FP32 straight to E4M3 would give other codes, so the rounding above is seen to matter.
TEST(TransformWeight, BySkippingBf16OtherBytesWouldCome) {
  const Shape shape = {1, 2};
  // 17 * 2^-4 is the tie between 1 and 1.125; one FP32 step above it, BF16 falls back on the tie.
  const float above_tie = std::bit_cast<float>(std::bit_cast<uint32_t>(1.0625F) + 1);
  const std::vector<float> values = {448.0F, above_tie};
  const auto result =
      TransformWeight(Row(WeightFormat::kFp8, shape), View(DType::kF32, shape, values), {});
  ASSERT_TRUE(result.has_value());
  EXPECT_EQ((*result)[0].bytes.As<uint8_t>()[1], 0x38);  // 1.0, the even code; direct: 0x39.
}

TEST(TransformWeight, ReadsSourcesAtAnyAlignment) {
  const Shape shape = {130, 129};
  const std::vector<float> f32 = RandomFloats(NumElements(shape), 5);
  const std::vector<uint16_t> bf16 = ToBf16(f32);
  std::vector<std::byte> shifted(f32.size() * sizeof(float) + 1);
  const PrecisionRow row = Row(WeightFormat::kFp8, shape);
  const std::string expected = TransformedHex(row, View(DType::kBf16, shape, bf16));

  std::memcpy(shifted.data() + 1, bf16.data(), bf16.size() * sizeof(uint16_t));
  EXPECT_EQ(TransformedHex(row, {DType::kBf16, shape, shifted.data() + 1}), expected);
  std::memcpy(shifted.data() + 1, f32.data(), f32.size() * sizeof(float));
  EXPECT_EQ(TransformedHex(row, {DType::kF32, shape, shifted.data() + 1}), expected);
}

TEST(TransformWeight, TakesScalarsVectorsAndEmptyTensors) {
  for (const Shape& shape :
       {Shape{}, Shape{5}, Shape{300}, Shape{0}, Shape{0, 7}, Shape{2, 3, 4}}) {
    const std::vector<uint16_t> values = ToBf16(RandomFloats(NumElements(shape), 6));
    const auto result =
        TransformWeight(Row(WeightFormat::kBf16, shape), View(DType::kBf16, shape, values), {});
    ASSERT_TRUE(result.has_value()) << ShapeString(shape);
    ASSERT_EQ(result->size(), 1U);
    EXPECT_EQ((*result)[0].shape, shape);
    const auto bits = (*result)[0].bytes.As<uint16_t>();
    EXPECT_TRUE(std::equal(bits.begin(), bits.end(), values.begin(), values.end()));
  }
  for (const Shape& shape : {Shape{0, 7}, Shape{7, 0}}) {
    const std::vector<uint16_t> none(1);
    const auto result =
        TransformWeight(Row(WeightFormat::kFp8, shape), View(DType::kBf16, shape, none), {});
    ASSERT_TRUE(result.has_value()) << ShapeString(shape);
    EXPECT_TRUE((*result)[0].bytes.empty());
    EXPECT_TRUE((*result)[1].bytes.empty());
  }
}

TEST(TransformWeight, RefusesNanAndInfinityByTensorCountAndIndex) {
  const Shape shape = {300, 10};
  for (const WeightFormat format : {WeightFormat::kBf16, WeightFormat::kFp8}) {
    std::vector<uint16_t> values = ToBf16(RandomFloats(NumElements(shape), 7));
    values[2507] = 0x7F80;
    values[2999] = 0xFFC1;
    for (const int num_threads : {1, 3}) {
      ThreadPool pool(num_threads);
      const auto result =
          TransformWeight(Row(format, shape), View(DType::kBf16, shape, values), {.pool = &pool});
      ASSERT_FALSE(result.has_value());
      EXPECT_EQ(result.error().code(), StatusCode::kInvalidArgument);
      EXPECT_EQ(result.error().message(),
                "model.layers.3.mlp.up_proj.weight: expected values that are finite in BF16, got 2 "
                "NaN or infinite, the first at [250, 7]");
    }
  }
}

TEST(TransformWeight, RefusesF32ThatOverflowsBf16) {
  std::vector<float> values(6);
  values[4] = std::numeric_limits<float>::max();  // Rounds to 2^128.
  const auto result =
      TransformWeight(Row(WeightFormat::kBf16, {6}), View(DType::kF32, {6}, values), {});
  ASSERT_FALSE(result.has_value());
  EXPECT_THAT(result.error().message(), HasSubstr("the first at [4]"));
}

TEST(TransformWeight, RefusesAnotherShapeDtypeOrRank) {
  const std::vector<uint16_t> values(12);
  const PrecisionRow row = Row(WeightFormat::kFp8, {3, 4});
  const auto shape = TransformWeight(row, View(DType::kBf16, {4, 3}, values), {});
  EXPECT_EQ(shape.error().message(),
            "model.layers.3.mlp.up_proj.weight: expected [3, 4] BF16, F16 or F32, got [4, 3] BF16");
  const auto dtype = TransformWeight(row, View(DType::kF8E4m3, {3, 4}, values), {});
  EXPECT_THAT(dtype.error().message(), HasSubstr("got [3, 4] F8_E4M3"));
  const auto rank =
      TransformWeight(Row(WeightFormat::kFp8, {12}), View(DType::kBf16, {12}, values), {});
  EXPECT_THAT(rank.error().message(), HasSubstr("expected a matrix for fp8, got [12]"));
}

// --- Every format ------------------------------------------------------------------------------

// Rows, columns: blocks that are cut short at both ends, and more than one piece of work.
constexpr std::array<std::array<int64_t, 2>, 4> kShapes = {
    {{1, 32}, {130, 288}, {576, 160}, {700, 1056}}};

std::vector<WeightFormat> QuantizedFormats() {
  std::vector<WeightFormat> formats;
  std::ranges::copy_if(AllWeightFormats(), std::back_inserter(formats),
                       [](WeightFormat format) { return format != WeightFormat::kBf16; });
  return formats;
}

// The tensor of `part`.
const OwnedTensor& PartOf(const PrecisionRow& row, const std::vector<OwnedTensor>& tensors,
                          StoredPart part, StoredLayout layout = StoredLayout::kDefault) {
  const auto specs = StoredTensorsOf(row, layout);
  const auto spec = std::ranges::find(specs, part, &StoredTensorSpec::part);
  EXPECT_NE(spec, specs.end());
  return tensors[static_cast<size_t>(spec - specs.begin())];
}

// Holds stored tensors against the scalar quantizer's bytes of `values` (BF16 or F32).
void ExpectQuantized(const PrecisionRow& row, const Result<std::vector<OwnedTensor>>& stored,
                     const ConstTensorView& values) {
  ASSERT_TRUE(stored.has_value()) << stored.error().message();
  SCOPED_TRACE(WeightFormatName(row.format));
  const int64_t rows = row.shape[0];
  const int64_t cols = row.shape[1];
  const float amax = AmaxScalar(values);
  std::vector<uint8_t> codes(static_cast<size_t>(CodeBytes(row.format, rows, cols)));
  std::vector<float> scales(static_cast<size_t>(ScaleBytes(row.format, rows, cols) + 3) / 4);
  const std::span<std::byte> scale_bytes =
      std::as_writable_bytes(std::span(scales))
          .first(static_cast<size_t>(ScaleBytes(row.format, rows, cols)));
  ASSERT_TRUE(QuantizeScalar({row.format, values, amax, codes, scale_bytes}).ok());
  EXPECT_EQ(HashHex(HashBytes((*stored)[0].bytes.bytes())),
            HashHex(HashBytes(std::as_bytes(std::span(codes)))))
      << rows;
  if (!scale_bytes.empty()) {
    const OwnedTensor& part = PartOf(row, *stored, StoredPart::kScales);
    EXPECT_EQ(HashHex(HashBytes(part.bytes.bytes())), HashHex(HashBytes(scale_bytes))) << rows;
  }
  if (SharesScale(row.format)) {
    EXPECT_EQ(PartOf(row, *stored, StoredPart::kTensorScale).bytes.As<float>()[0],
              TensorScale(row.format, amax));
  }
}

TEST(TransformWeight, GivesTheBytesOfTheQuantizerForEveryFormat) {
  for (const WeightFormat format : QuantizedFormats()) {
    for (const auto& [rows, cols] : kShapes) {
      const PrecisionRow row = Row(format, {rows, cols});
      const std::vector<uint16_t> values = ToBf16(RandomFloats(rows * cols, 10));
      const ConstTensorView source = View(DType::kBf16, row.shape, values);
      ExpectQuantized(row, TransformWeight(row, source, {}), source);
    }
  }
}

// Every finite F16 in one matrix: its exact FP32 when direct, else the BF16 nearest to it.
TEST(TransformWeight, GivesTheBytesOfTheQuantizerForEveryF16) {
  std::vector<uint16_t> f16;
  std::vector<float> widened;
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    if ((bits & 0x7C00U) != 0x7C00U) {
      f16.push_back(static_cast<uint16_t>(bits));
      widened.push_back(F16ToFloat(static_cast<uint16_t>(bits)));
    }
  }
  const Shape shape = {62, 1024};
  ASSERT_EQ(static_cast<int64_t>(f16.size()), NumElements(shape));
  const std::vector<uint16_t> rounded = ToBf16(widened);
  for (const WeightFormat format : QuantizedFormats()) {
    const PrecisionRow row = Row(format, shape);
    const ConstTensorView source = View(DType::kF16, shape, f16);
    ExpectQuantized(row, TransformWeight(row, source, {}), View(DType::kBf16, shape, rounded));
    ExpectQuantized(row, TransformWeight(row, source, {.direct = true}),
                    View(DType::kF32, shape, widened));
  }
}

TEST(TransformWeight, GivesTheBytesOfTheQuantizerForF32) {
  for (const WeightFormat format : QuantizedFormats()) {
    for (const auto& [rows, cols] : kShapes) {
      const PrecisionRow row = Row(format, {rows, cols});
      const std::vector<float> values = RandomFloats(rows * cols, 14);
      const std::vector<uint16_t> rounded = ToBf16(values);
      const ConstTensorView source = View(DType::kF32, row.shape, values);
      ExpectQuantized(row, TransformWeight(row, source, {}),
                      View(DType::kBf16, row.shape, rounded));
      ExpectQuantized(row, TransformWeight(row, source, {.direct = true}), source);
    }
  }
}

TEST(TransformWeight, EncodesWithTheSharedMagnitude) {
  for (const WeightFormat format : {WeightFormat::kFp8Tensor, WeightFormat::kNvfp4}) {
    const PrecisionRow row = Row(format, {130, 96});
    const std::vector<uint16_t> values = ToBf16(RandomFloats(NumElements(row.shape), 11));
    const ConstTensorView source = View(DType::kBf16, row.shape, values);
    const auto amax = WeightAmax(row, source, {});
    ASSERT_TRUE(amax.has_value());
    EXPECT_EQ(*amax, AmaxScalar(source));
    const auto alone = TransformWeight(row, source, {});
    const auto own = TransformWeight(row, source, {.shared_amax = *amax});
    const auto shared = TransformWeight(row, source, {.shared_amax = 3 * *amax});
    EXPECT_EQ(Hex(*own), Hex(*alone));
    EXPECT_NE(Hex(*shared), Hex(*alone));
    EXPECT_EQ(PartOf(row, *shared, StoredPart::kTensorScale).bytes.As<float>()[0],
              TensorScale(format, 3 * *amax));
    const auto less = TransformWeight(row, source, {.shared_amax = *amax / 2});
    ASSERT_FALSE(less.has_value());
    EXPECT_THAT(less.error().message(), HasSubstr("up_proj.weight: expected no magnitude above"));
  }
}

TEST(TransformWeight, LayoutsDifferInNamesAndInTheGlobalScaleAlone) {
  const PrecisionRow row = Row(WeightFormat::kNvfp4, {130, 96});
  const std::vector<uint16_t> values = ToBf16(RandomFloats(NumElements(row.shape), 12));
  const ConstTensorView source = View(DType::kBf16, row.shape, values);
  const auto ours = TransformWeight(row, source, {});
  const auto theirs = TransformWeight(row, source, {.layout = StoredLayout::kCompressedTensors});
  ASSERT_TRUE(ours.has_value() && theirs.has_value());
  EXPECT_TRUE(std::ranges::equal((*ours)[0].bytes.bytes(), (*theirs)[0].bytes.bytes()));
  EXPECT_TRUE(std::ranges::equal((*ours)[1].bytes.bytes(), (*theirs)[1].bytes.bytes()));
  const OwnedTensor& divisor =
      PartOf(row, *theirs, StoredPart::kTensorDivisor, StoredLayout::kCompressedTensors);
  EXPECT_EQ(divisor.bytes.As<float>()[0], 2688.0F / AmaxScalar(source));
}

TEST(TransformWeight, DirectEncodesWhatIsThere) {
  const Shape shape = {130, 96};
  const std::vector<float> f32 = RandomFloats(NumElements(shape), 13);
  const ConstTensorView source = View(DType::kF32, shape, f32);
  for (const WeightFormat format : QuantizedFormats()) {
    const PrecisionRow row = Row(format, shape);
    const auto rounded = TransformWeight(row, source, {});
    const auto direct = TransformWeight(row, source, {.direct = true});
    ASSERT_TRUE(rounded.has_value() && direct.has_value());
    EXPECT_NE(Hex(*rounded), Hex(*direct)) << WeightFormatName(format);
    const auto amax = WeightAmax(row, source, {.direct = true});
    EXPECT_EQ(*amax, AmaxScalar(source));
  }
}

TEST(TransformWeight, RefusesWidthsThatTheGroupsDoNotDivide) {
  const std::vector<uint16_t> values(3 * 40);
  const auto result =
      TransformWeight(Row(WeightFormat::kMxfp8, {3, 40}), View(DType::kBf16, {3, 40}, values), {});
  EXPECT_EQ(
      result.error().message(),
      "model.layers.3.mlp.up_proj.weight: expected rows of a multiple of 32 values for mxfp8, "
      "got [3, 40]");
}

TEST(TransformSource, DecodesWithoutBf16OnTheWay) {
  // 15 * 2^-3 in E4M3 times a scale with a full mantissa needs 28 bits: more than BF16 has.
  WeightSource source;
  source.format = WeightFormat::kFp8;
  source.rows = 1;
  source.cols = 32;
  const std::vector<uint8_t> codes(32, 0x3F);
  const std::vector<float> scales = {1.0F + 0x1p-20F};
  source.codes = View(DType::kF8E4m3, {1, 32}, codes);
  source.scales = View(DType::kF32, {1, 1}, scales);
  const PrecisionRow row = Row(WeightFormat::kFp8Channel, {1, 32});
  const auto result = TransformSource(row, source, {});
  ASSERT_TRUE(result.has_value()) << result.error().message();
  EXPECT_EQ((*result)[1].bytes.As<float>()[0], 1.875F * (1.0F + 0x1p-20F) / 448.0F);
  const auto kept = TransformSource(Row(WeightFormat::kBf16, {1, 32}), source, {});
  EXPECT_EQ((*kept)[0].bytes.As<uint16_t>()[5], FloatToBf16(1.875F * (1.0F + 0x1p-20F)));
}

// --- AdoptStored -------------------------------------------------------------------------------

struct Stored {
  PrecisionRow row = Row(WeightFormat::kFp8, {3, 130});
  std::vector<uint8_t> codes = std::vector<uint8_t>(390, 0x38);
  std::vector<float> scales = {0.5F, 0.25F};

  Result<std::vector<OwnedTensor>> Adopt() const {
    return AdoptStored(row,
                       {View(DType::kF8E4m3, row.shape, codes), View(DType::kF32, {1, 2}, scales)});
  }
};

TEST(AdoptStored, CopiesWhatTransformWeightMade) {
  const PrecisionRow row = Row(WeightFormat::kFp8, {129, 257});
  const std::vector<uint16_t> values = ToBf16(RandomFloats(NumElements(row.shape), 8));
  const auto made = TransformWeight(row, View(DType::kBf16, row.shape, values), {});
  ASSERT_TRUE(made.has_value());
  const auto adopted = AdoptStored(row, {(*made)[0].View(), (*made)[1].View()});
  ASSERT_TRUE(adopted.has_value()) << adopted.error().message();
  EXPECT_EQ(Hex(*adopted), Hex(*made));
}

TEST(AdoptStored, WidensBf16Scales) {
  const Stored stored;
  const std::vector<uint16_t> scales = {0x3F00, 0x3E80};
  const auto adopted = AdoptStored(
      stored.row,
      {View(DType::kF8E4m3, stored.row.shape, stored.codes), View(DType::kBf16, {1, 2}, scales)});
  ASSERT_TRUE(adopted.has_value());
  EXPECT_EQ(Hex(*adopted), Hex(*stored.Adopt()));
}

TEST(AdoptStored, RefusesScalesThatAreNotFiniteAndPositive) {
  for (const float bad : {0.0F, -0.0F, -1.0F, std::numeric_limits<float>::infinity(),
                          std::numeric_limits<float>::quiet_NaN()}) {
    Stored stored;
    stored.scales[1] = bad;
    const auto adopted = stored.Adopt();
    ASSERT_FALSE(adopted.has_value()) << bad;
    EXPECT_THAT(adopted.error().message(), HasSubstr("up_proj.weight_scale_inv: expected finite"));
    EXPECT_THAT(adopted.error().message(), HasSubstr("at [0, 1]"));
  }
}

TEST(AdoptStored, RefusesNanCodes) {
  for (const uint8_t bad : {uint8_t{0x7F}, uint8_t{0xFF}}) {
    Stored stored;
    stored.codes[389] = bad;
    EXPECT_THAT(stored.Adopt().error().message(), HasSubstr("NaN code"));
  }
}

TEST(AdoptStored, RefusesAnotherNumberDtypeOrShape) {
  const Stored stored;
  const ConstTensorView codes = View(DType::kF8E4m3, stored.row.shape, stored.codes);
  EXPECT_THAT(AdoptStored(stored.row, {codes}).error().message(),
              HasSubstr("expected 2 stored tensors, got 1"));
  EXPECT_THAT(
      AdoptStored(stored.row, {codes, View(DType::kF32, {2, 1}, stored.scales)}).error().message(),
      HasSubstr("weight_scale_inv: expected [1, 2] F32, got [2, 1] F32"));
  EXPECT_THAT(AdoptStored(stored.row, {View(DType::kU8, stored.row.shape, stored.codes),
                                       View(DType::kF32, {1, 2}, stored.scales)})
                  .error()
                  .message(),
              HasSubstr("expected [3, 130] F8_E4M3, got [3, 130] U8"));
}

TEST(AdoptStored, CopiesEveryFormatInEveryLayout) {
  for (const WeightFormat format : QuantizedFormats()) {
    for (const StoredLayout layout : {StoredLayout::kDefault, StoredLayout::kCompressedTensors}) {
      const PrecisionRow row = Row(format, {130, 288});
      const std::vector<uint16_t> values = ToBf16(RandomFloats(NumElements(row.shape), 15));
      const auto made =
          TransformWeight(row, View(DType::kBf16, row.shape, values), {.layout = layout});
      ASSERT_TRUE(made.has_value()) << made.error().message();
      std::vector<ConstTensorView> views;
      for (const OwnedTensor& tensor : *made) {
        views.push_back(tensor.View());
      }
      const auto adopted = AdoptStored(row, views, layout);
      ASSERT_TRUE(adopted.has_value()) << adopted.error().message();
      EXPECT_EQ(Hex(*adopted), Hex(*made));
    }
  }
}

TEST(AdoptStored, TakesTheScalesThatOtherWritersStore) {
  const std::vector<uint8_t> codes(3 * 128, 0x38);
  const ConstTensorView code_view = View(DType::kF8E4m3, {3, 128}, codes);
  const std::vector<float> one = {0.25F};
  const auto tensor = AdoptStored(Row(WeightFormat::kFp8Tensor, {3, 128}),
                                  {code_view, View(DType::kF32, {1}, one)});
  ASSERT_TRUE(tensor.has_value()) << tensor.error().message();
  EXPECT_EQ((*tensor)[1].shape, Shape{});
  const std::vector<uint16_t> three = {0x3F00, 0x3E80, 0x3F80};
  const auto channel = AdoptStored(Row(WeightFormat::kFp8Channel, {3, 128}),
                                   {code_view, View(DType::kBf16, {3}, three)});
  ASSERT_TRUE(channel.has_value()) << channel.error().message();
  EXPECT_EQ((*channel)[1].shape, (Shape{3, 1}));
  EXPECT_EQ((*channel)[1].bytes.As<float>()[1], 0.25F);
  const std::vector<uint8_t> power = {125};
  const auto blocks = AdoptStored(Row(WeightFormat::kFp8Ue8m0, {3, 128}),
                                  {code_view, View(DType::kF8E8m0, {1, 1}, power)});
  ASSERT_TRUE(blocks.has_value()) << blocks.error().message();
  EXPECT_EQ((*blocks)[1].bytes.As<float>()[0], 0.25F);
  const auto plain = AdoptStored(Row(WeightFormat::kFp8, {3, 128}),
                                 {code_view, View(DType::kF8E8m0, {1, 1}, power)});
  EXPECT_FALSE(plain.has_value());
}

TEST(AdoptStored, RefusesScalesThatTheFormatCannotHave) {
  const std::vector<uint8_t> codes(64, 0x38);
  const ConstTensorView code_view = View(DType::kF8E4m3, {1, 64}, codes);
  const std::vector<float> odd = {0.75F};
  EXPECT_THAT(AdoptStored(Row(WeightFormat::kFp8Ue8m0, {1, 64}),
                          {code_view, View(DType::kF32, {1, 1}, odd)})
                  .error()
                  .message(),
              HasSubstr("powers of two, got 0.75 at [0, 0]"));
  const std::vector<uint8_t> nan = {0, 0xFF};
  EXPECT_THAT(
      AdoptStored(Row(WeightFormat::kMxfp8, {1, 64}), {code_view, View(DType::kU8, {1, 2}, nan)})
          .error()
          .message(),
      HasSubstr("got nan at [0, 1]"));
  const PrecisionRow row = Row(WeightFormat::kNvfp4, {1, 64});
  const std::vector<uint8_t> groups = {0, 0x38, 0xB8, 0x38};  // The third is negative.
  const std::vector<float> one = {1.0F};
  const ConstTensorView scalar = View(DType::kF32, {}, one);
  const ConstTensorView nibbles = View(DType::kU8, {1, 32}, codes);
  EXPECT_THAT(AdoptStored(row, {nibbles, View(DType::kF8E4m3, {1, 4}, groups), scalar, scalar})
                  .error()
                  .message(),
              HasSubstr("weight_scale: expected finite positive scales, got -1 at [0, 2]"));
}

TEST(AdoptStored, TakesKeptWeightsInAnyFloat) {
  const PrecisionRow row = Row(WeightFormat::kBf16, {2, 3});
  const std::vector<float> f32 = RandomFloats(6, 9);
  const auto adopted = AdoptStored(row, {View(DType::kF32, row.shape, f32)});
  ASSERT_TRUE(adopted.has_value());
  EXPECT_EQ(Hex(*adopted), TransformedHex(row, View(DType::kF32, row.shape, f32)));
}

}  // namespace
}  // namespace octavo
