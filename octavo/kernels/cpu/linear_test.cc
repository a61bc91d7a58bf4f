// Method: linear layers of every path against the reference's serving recipe, bit for bit, over one
// list: every format with every form of input that goes with it, odd shapes (rows around register
// blocks, tiles and chunks; columns and depths off every block size where the format allows), one
// to three threads, biases, experts. Rows alone, shuffled and in company give the same bits, but
// for kNvfp4Batch, whose dependence is shown. Bad rows (NaN, Inf, zeros) harm themselves alone.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/formats/format.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/cpu/linear_for_test.h"
#include "octavo/kernels/cpu/test_paths.h"
#include "octavo/kernels/matrix.h"
#include "octavo/kernels/ops.h"
#include "octavo/kernels/test_tensors.h"

namespace octavo {
namespace {

struct LinearShape {
  int64_t out;
  int64_t in;
};

class LinearPaths : public PathTest {};

INSTANTIATE_TEST_SUITE_P(Paths, LinearPaths, ::testing::ValuesIn(AllPaths()),
                         [](const auto& info) { return info.param.name; });
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(LinearPaths);

void ExpectSameLinear(Backend* reference, Backend* backend, const FormCase& form, int64_t rows,
                      LinearShape shape) {
  SCOPED_TRACE(fmt::format("{} rows {} out {} in {}", Describe(form), rows, shape.out, shape.in));
  const TestMatrix weight(form.format, form.input, shape.out, shape.in, 11);
  const PackedMatrix expected_weight = weight.PackFor(*reference);
  const PackedMatrix actual_weight = weight.PackFor(*backend);
  const PackedMatrix bias = TestMatrix(WeightFormat::kBf16, 1, shape.out, 12).PackFor(*reference);
  TestActivations x(DType::kBf16, rows, shape.in);
  x.Fill(5);
  const auto run = [&](Backend* on, const PackedMatrix& packed, DType dtype,
                       const PackedMatrix* added) {
    return RunLinear(on, packed, x, dtype, added);
  };
  ASSERT_TRUE(SameBits(run(reference, expected_weight, DType::kF32, nullptr),
                       run(backend, actual_weight, DType::kF32, nullptr)));
  ASSERT_TRUE(SameBits(run(reference, expected_weight, DType::kBf16, &bias),
                       run(backend, actual_weight, DType::kBf16, &bias)));
}

TEST_P(LinearPaths, EqualTheReferenceForEveryRowCount) {
  const auto backend = Make(2);
  for (const FormCase& form : kForms) {
    for (int64_t rows = 1; rows <= 17; ++rows) {
      ExpectSameLinear(reference_.get(), backend.get(), form, rows, {80, 288});
    }
    for (const int64_t rows : {24, 25, 31, 33, 63, 64, 65, 127, 128, 129, 257}) {
      if (!is_model() || rows < 64) {
        ExpectSameLinear(reference_.get(), backend.get(), form, rows, {80, 288});
      }
    }
  }
}

TEST_P(LinearPaths, EqualTheReferenceForOddWidths) {
  const auto backend = Make(3);
  for (const FormCase& form : kForms) {
    for (const LinearShape shape : {LinearShape{16, 32},
                                    {2, 1},
                                    {1, 16},
                                    {17, 31},
                                    {130, 33},
                                    {33, 48},
                                    {160, 160},
                                    {31, 127},
                                    {300, 129},
                                    {129, 144},
                                    {256, 640},
                                    {97, 1030},
                                    {40, 1056}}) {
      const bool is_vector = form.format == WeightFormat::kBf16 && shape.out == 1;
      if (shape.in % ColsMultipleOf(form.format) != 0 || is_vector) {
        continue;
      }
      for (const int64_t rows : {1, 7, 30}) {
        ExpectSameLinear(reference_.get(), backend.get(), form, rows, shape);
      }
    }
  }
}

TEST_P(LinearPaths, EqualTheReferenceAcrossChunksOfRows) {
  const auto backend = Make(2);
  for (const FormCase& form : kForms) {
    ExpectSameLinear(reference_.get(), backend.get(), form, is_model() ? 305 : 601, {48, 320});
  }
}

TEST_P(LinearPaths, PartsOfMixedFormsShareTheirInput) {
  constexpr int64_t kIn = 192;
  constexpr int64_t kTokens = 19;
  TestActivations x(DType::kBf16, kTokens, kIn);
  x.Fill(3);
  for (const int num_threads : {1, 2, 3}) {
    const auto backend = Make(num_threads);
    for (size_t first = 0; first < kForms.size(); ++first) {
      std::vector<PackedMatrix> packed(6);
      std::vector<TestActivations> y;
      y.reserve(6);
      std::vector<LinearPart> parts;
      for (size_t i = 0; i < 6; ++i) {
        const FormCase& form = kForms[(first + i % 3 * 5) % kForms.size()];
        const auto out = static_cast<int64_t>(24 + 40 * (i % 3));
        TestMatrix weight(form.format, form.input, out, kIn, i % 3);
        weight.canonical().input_scale = 0.02F + 0.01F * static_cast<float>(i % 2);
        packed[i] = weight.PackFor(i < 3 ? *reference_ : *backend);
        packed[i].input_scale = packed[i % 3].input_scale;
        y.emplace_back(DType::kBf16, kTokens, out);
        parts.push_back({&packed[i], y[i].view()});
      }
      const std::span<const LinearPart> all(parts);
      ASSERT_TRUE(reference_->Linear({x.view(), all.first(3)}).ok());
      ASSERT_TRUE(backend->Linear({x.view(), all.last(3)}).ok());
      for (size_t i = 0; i < 3; ++i) {
        EXPECT_TRUE(SameBits(y[i], y[i + 3])) << "part " << i << ", threads " << num_threads;
      }
    }
  }
}

TEST_P(LinearPaths, StaticScalesOfPartsAreTheirOwn) {
  const auto backend = Make(2);
  const FormCase form{WeightFormat::kNvfp4, InputForm::kNvfp4Static};
  TestActivations x(DType::kBf16, 4, 64);
  x.Fill(3);
  TestMatrix small(form.format, form.input, 32, 64, 1);
  small.canonical().input_scale = 0.002F;
  TestMatrix large(form.format, form.input, 32, 64, 1);
  large.canonical().input_scale = 0.5F;
  const PackedMatrix packed[] = {small.PackFor(*backend), large.PackFor(*backend)};
  TestActivations first(DType::kBf16, 4, 32);
  TestActivations second(DType::kBf16, 4, 32);
  const LinearPart parts[] = {{&packed[0], first.view()}, {&packed[1], second.view()}};
  ASSERT_TRUE(backend->Linear({x.view(), parts}).ok());
  EXPECT_TRUE(SameBits(RunLinear(backend.get(), packed[0], x), first));
  EXPECT_TRUE(SameBits(RunLinear(backend.get(), packed[1], x), second));
  EXPECT_FALSE(SameBits(first, second));
}

// --- Experts -------------------------------------------------------------------------------------

struct GroupedCase {
  std::vector<int32_t> offsets;
  int64_t tokens;
};

void ExpectSameGrouped(Backend* reference, Backend* backend, const FormCase& form,
                       const GroupedCase& rows) {
  constexpr int64_t kIn = 160;
  const size_t num_groups = rows.offsets.size() - 1;
  const auto num_rows = static_cast<size_t>(rows.offsets.back());
  SCOPED_TRACE(fmt::format("{} rows {}", Describe(form), num_rows));
  std::vector<int32_t> source_rows(num_rows);
  for (size_t i = 0; i < num_rows; ++i) {
    source_rows[i] = static_cast<int32_t>((i * 7 + 3) % static_cast<size_t>(rows.tokens));
  }
  TestActivations x(DType::kBf16, rows.tokens, kIn);
  x.Fill(5);
  std::vector<TestActivations> y;
  y.reserve(4);
  for (Backend* on : {reference, backend}) {
    std::vector<PackedMatrix> packed(2 * num_groups);
    std::vector<const PackedMatrix*> weights;
    for (size_t i = 0; i < packed.size(); ++i) {
      TestMatrix weight(form.format, form.input, i < num_groups ? 50 : 130, kIn, i);
      weight.canonical().input_scale = 0.02F + 0.001F * static_cast<float>(i);
      packed[i] = weight.PackFor(*on);
      weights.push_back(&packed[i]);
    }
    y.emplace_back(DType::kBf16, rows.offsets.back(), 50);
    y.emplace_back(DType::kBf16, rows.offsets.back(), 130);
    const std::span<const PackedMatrix* const> all(weights);
    const GroupedPart parts[] = {{all.first(num_groups), y[y.size() - 2].view()},
                                 {all.last(num_groups), y[y.size() - 1].view()}};
    ASSERT_TRUE(on->GroupedLinear({x.view(), source_rows, rows.offsets, parts}).ok());
  }
  EXPECT_TRUE(SameBits(y[0], y[2]));
  EXPECT_TRUE(SameBits(y[1], y[3]));
}

TEST_P(LinearPaths, ExpertsEqualTheReference) {
  for (const int num_threads : {1, 2, 3}) {
    const auto backend = Make(num_threads);
    for (const FormCase& form : kForms) {
      ExpectSameGrouped(reference_.get(), backend.get(), form, {{0, 0, 1, 1, 6, 40}, 20});
      ExpectSameGrouped(reference_.get(), backend.get(), form, {{0, 2}, 1});
      ExpectSameGrouped(reference_.get(), backend.get(), form, {{0, 0, 0}, 3});
    }
  }
  if (!is_model()) {
    const auto backend = Make(2);
    for (const FormCase& form : kForms) {
      ExpectSameGrouped(reference_.get(), backend.get(), form, {{0, 330, 331, 350}, 100});
    }
  }
}

TEST_P(LinearPaths, AnExpertComputesWhatALinearLayerDoes) {
  const auto backend = Make(2);
  for (const FormCase& form : kForms) {
    const PackedMatrix a = TestMatrix(form.format, form.input, 48, 96, 1).PackFor(*backend);
    const PackedMatrix b = TestMatrix(form.format, form.input, 48, 96, 2).PackFor(*backend);
    const std::array<const PackedMatrix*, 2> weights = {&a, &b};
    TestActivations x(DType::kBf16, 9, 96);
    x.Fill(6);
    const std::array<int32_t, 9> rows = {0, 1, 2, 3, 4, 5, 6, 7, 8};
    const std::array<int32_t, 3> offsets = {0, 0, 9};
    TestActivations y(DType::kBf16, 9, 48);
    const GroupedPart part{weights, y.view()};
    ASSERT_TRUE(backend->GroupedLinear({x.view(), rows, offsets, {&part, 1}}).ok());
    EXPECT_TRUE(SameBits(RunLinear(backend.get(), b, x), y)) << Describe(form);
  }
}

// A kernel of whole row steps reads beyond that row; memory of the op must be there.
TEST_P(LinearPaths, AnExpertMayReadTheLastRowAlone) {
  const auto backend = Make(1);
  for (const int64_t num_rows : {1, 15, 16, 17, 32}) {
    const PackedMatrix weight = TestMatrix(WeightFormat::kBf16, 48, 2048, 1).PackFor(*backend);
    const PackedMatrix* experts[] = {&weight};
    TestActivations x(DType::kBf16, num_rows, 2048);
    x.Fill(6);
    const std::array<int32_t, 1> rows = {static_cast<int32_t>(num_rows - 1)};
    const std::array<int32_t, 2> offsets = {0, 1};
    TestActivations y(DType::kBf16, 1, 48);
    const GroupedPart part{experts, y.view()};
    ASSERT_TRUE(backend->GroupedLinear({x.view(), rows, offsets, {&part, 1}}).ok());
    const std::array<int64_t, 1> last = {num_rows - 1};
    EXPECT_TRUE(SameBits(RunLinear(backend.get(), weight, Rows(x, last)), y)) << num_rows;
  }
}

// --- Company -------------------------------------------------------------------------------------

TEST_P(LinearPaths, ARowDoesNotDependOnItsCompany) {
  const auto backend = Make(2);
  TestActivations x(DType::kBf16, 70, 160);
  x.Fill(7);
  std::vector<int64_t> shuffled(70);
  std::iota(shuffled.begin(), shuffled.end(), 0);
  std::ranges::rotate(shuffled, shuffled.begin() + 23);
  std::swap(shuffled[3], shuffled[60]);
  for (const FormCase& form : kForms) {
    if (form.input == InputForm::kNvfp4Batch) {
      continue;
    }
    SCOPED_TRACE(Describe(form));
    const PackedMatrix weight = TestMatrix(form.format, form.input, 96, 160, 4).PackFor(*backend);
    const TestActivations all = RunLinear(backend.get(), weight, x);
    const TestActivations other = RunLinear(backend.get(), weight, Rows(x, shuffled));
    for (int64_t i = 0; i < 70; ++i) {
      const int64_t row = shuffled[static_cast<size_t>(i)];
      const std::array<int64_t, 1> one = {row};
      EXPECT_TRUE(SameBits(Rows(all, one), Rows(other, std::array<int64_t, 1>{i})));
      if (i % 9 == 0) {
        EXPECT_TRUE(SameBits(Rows(all, one), RunLinear(backend.get(), weight, Rows(x, one))));
      }
    }
  }
}

TEST_P(LinearPaths, TheBatchScaleMakesARowDependOnItsCompany) {
  const auto backend = Make(2);
  TestActivations x(DType::kBf16, 2, 160);
  x.Fill(7);
  x.Set(1, 0, 11.0F);  // Raises the largest magnitude of the batch, which row 0 then shares.
  const auto run = [&](InputForm form) {
    const PackedMatrix weight =
        TestMatrix(WeightFormat::kNvfp4, form, 96, 160, 4).PackFor(*backend);
    const std::array<int64_t, 1> first = {0};
    return std::pair(Rows(RunLinear(backend.get(), weight, x), first),
                     RunLinear(backend.get(), weight, Rows(x, first)));
  };
  const auto [batch, batch_alone] = run(InputForm::kNvfp4Batch);
  EXPECT_FALSE(SameBits(batch, batch_alone));
  const auto [token, token_alone] = run(InputForm::kNvfp4Token);
  EXPECT_TRUE(SameBits(token, token_alone));
}

TEST_P(LinearPaths, BadAndZeroRowsHarmThemselvesAlone) {
  const auto backend = Make(2);
  constexpr int64_t kIn = 256;
  TestActivations clean(DType::kBf16, 6, kIn);
  clean.Fill(1);
  TestActivations x(clean);
  x.Set(2, 130, std::numeric_limits<float>::infinity());
  x.Set(3, 7, std::numeric_limits<float>::quiet_NaN());
  x.Set(5, 255, -std::numeric_limits<float>::infinity());
  for (int64_t k = 0; k < kIn; ++k) {
    x.Set(4, k, 0.0F);
  }
  for (const FormCase& form : kForms) {
    SCOPED_TRACE(Describe(form));
    TestMatrix made(form.format, form.input, 48, kIn, 9);
    const PackedMatrix weight = made.PackFor(*backend);
    // The batch's scale comes from the clean rows: 0 and 1 hold the largest magnitude.
    clean.Set(0, 0, 50.0F);
    x.Set(0, 0, 50.0F);
    const TestActivations expected = RunLinear(backend.get(), weight, clean);
    const TestActivations y = RunLinear(backend.get(), weight, x);
    for (int64_t n = 0; n < 48; ++n) {
      EXPECT_EQ(y.At(0, n), expected.At(0, n));
      EXPECT_EQ(y.At(1, n), expected.At(1, n));
      EXPECT_EQ(y.At(4, n), 0.0F);
      if (form.input != InputForm::kBf16) {  // There Inf * 0 and Inf - Inf decide.
        EXPECT_TRUE(std::isnan(y.At(2, n)));
        EXPECT_TRUE(std::isnan(y.At(5, n)));
      }
      EXPECT_TRUE(std::isnan(y.At(3, n)));
    }
    const PackedMatrix reference_weight = made.PackFor(*reference_);
    EXPECT_TRUE(SameBits(RunLinear(reference_.get(), reference_weight, x), y));
  }
}

TEST_P(LinearPaths, ExtremeInputsEqualTheReference) {
  // Rows scaled from subnormal BF16 to its largest values: group scales of 0, saturation, flushed
  // factors.
  const auto backend = Make(2);
  constexpr int64_t kIn = 128;
  constexpr int64_t kTokens = 66;
  TestActivations x(DType::kBf16, kTokens, kIn);
  for (int64_t t = 0; t < kTokens; ++t) {
    for (int64_t k = 0; k < kIn; ++k) {
      const float value = TestValue(8, static_cast<uint64_t>(t * kIn + k));
      x.Set(t, k, std::ldexp(value, static_cast<int>(4 * t) - 134));
    }
  }
  for (const FormCase& form : kForms) {
    const TestMatrix weight(form.format, form.input, 33, kIn, 9);
    const PackedMatrix expected = weight.PackFor(*reference_);
    const PackedMatrix actual = weight.PackFor(*backend);
    EXPECT_TRUE(SameBits(RunLinear(reference_.get(), expected, x, DType::kF32),
                         RunLinear(backend.get(), actual, x, DType::kF32)))
        << Describe(form);
  }
}

// --- Codes ---------------------------------------------------------------------------------------

// Every code (and every scale byte that may stand beside it) through the identity's columns.
TEST_P(LinearPaths, EveryCodeDecodesExactly) {
  const auto backend = Make(1);
  for (const FormCase& form : kForms) {
    if (form.format == WeightFormat::kBf16) {
      continue;
    }
    constexpr int64_t kIn = 64;
    TestMatrix weight(form.format, form.input, 256, kIn, 1);
    const size_t row_bytes = weight.codes().size() / 256;
    for (size_t row = 0; row < 256; ++row) {
      std::fill_n(weight.codes().begin() + static_cast<ptrdiff_t>(row * row_bytes), row_bytes,
                  static_cast<std::byte>(row));
    }
    TestActivations x(DType::kBf16, 30, kIn);
    x.Fill(0, 0.0F);
    for (int64_t t = 0; t < 30; ++t) {
      x.Set(t, (t * 37) % kIn, 448.0F);
    }
    for (const int64_t rows : {2, 30}) {
      SCOPED_TRACE(fmt::format("{} rows {}", Describe(form), rows));
      std::vector<int64_t> picked(static_cast<size_t>(rows));
      std::iota(picked.begin(), picked.end(), 0);
      const TestActivations some = Rows(x, picked);
      EXPECT_TRUE(
          SameBits(RunLinear(reference_.get(), weight.PackFor(*reference_), some, DType::kF32),
                   RunLinear(backend.get(), weight.PackFor(*backend), some, DType::kF32)));
    }
  }
}

TEST_P(LinearPaths, EveryGroupScaleDecodesExactly) {
  const auto backend = Make(1);
  TestActivations x(DType::kBf16, 30, 64);
  x.Fill(3);
  for (const WeightFormat format : {WeightFormat::kMxfp8, WeightFormat::kNvfp4}) {
    TestMatrix weight(format, InputForm::kBf16, 256, 64, 1);
    const size_t groups = weight.scales().size() / 256;
    for (size_t i = 0; i < weight.scales().size(); ++i) {
      // All bytes that may stand beside values.
      const size_t row = i / groups;
      weight.scales()[i] = static_cast<std::byte>(
          format == WeightFormat::kNvfp4 ? row % 0x7F : std::clamp<size_t>(row, 10, 246));
    }
    for (const int64_t rows : {1, 30}) {
      std::vector<int64_t> picked(static_cast<size_t>(rows));
      std::iota(picked.begin(), picked.end(), 0);
      const TestActivations some = Rows(x, picked);
      EXPECT_TRUE(
          SameBits(RunLinear(reference_.get(), weight.PackFor(*reference_), some, DType::kF32),
                   RunLinear(backend.get(), weight.PackFor(*backend), some, DType::kF32)))
          << WeightFormatName(format);
    }
  }
}

TEST_P(LinearPaths, UnpackIsTheInverseOfPack) {
  const auto backend = Make(1);
  for (const WeightFormat format : AllWeightFormats()) {
    for (const LinearShape shape :
         {LinearShape{1, 48}, {2, 1}, {16, 32}, {33, 35}, {33, 96}, {130, 257}, {300, 64}}) {
      if (shape.in % ColsMultipleOf(format) != 0) {
        continue;
      }
      SCOPED_TRACE(fmt::format("{} [{}, {}]", WeightFormatName(format), shape.out, shape.in));
      TestMatrix weight(format, shape.out, shape.in, 21);
      const PackedMatrix packed = weight.PackFor(*backend);
      const int64_t row_bytes = static_cast<int64_t>(weight.codes().size()) / shape.out;
      for (const int64_t first : {int64_t{0}, shape.out / 3, shape.out - 1}) {
        const int64_t num_rows = shape.out - first;
        std::vector<std::byte> codes(static_cast<size_t>(num_rows * row_bytes));
        ASSERT_TRUE(backend->UnpackCodes(packed, first, num_rows, codes).ok());
        const auto band = std::span(weight.codes()).subspan(static_cast<size_t>(first * row_bytes));
        EXPECT_TRUE(std::ranges::equal(codes, band));
      }
      std::vector<std::byte> scales(weight.scales().size());
      ASSERT_TRUE(backend->UnpackScales(packed, scales).ok());
      EXPECT_EQ(scales, weight.scales());
    }
  }
}

// --- Refusals ------------------------------------------------------------------------------------

TEST_P(LinearPaths, RefuseALayerOfOneOutputByName) {
  const auto backend = Make(1);
  const PackedMatrix packed = TestMatrix(WeightFormat::kBf16, 1, 32, 9).PackFor(*backend);
  const TestActivations x(DType::kBf16, 2, 32);
  const TestActivations y(DType::kBf16, 2, 1);
  const LinearPart part{&packed, y.view()};
  const Status status = backend->Linear({x.view(), {&part, 1}});
  EXPECT_EQ(status.code(), StatusCode::kUnsupported);
  EXPECT_THAT(status.message(), ::testing::HasSubstr("[1, 32]"));
}

TEST_P(LinearPaths, PackRefusesFormsThatDoNotGoWithAFormat) {
  const auto backend = Make(1);
  for (const WeightFormat format : AllWeightFormats()) {
    for (int i = 0; i <= static_cast<int>(InputForm::kNvfp4Batch); ++i) {
      const auto input = static_cast<InputForm>(i);
      const bool goes = std::ranges::any_of(kForms, [&](const FormCase& form) {
        return form.format == format && form.input == input;
      });
      const TestMatrix weight(format, input, 8, 32, 1);
      PackedMatrix packed;
      const Status status = backend->Pack(weight.canonical(), &packed);
      EXPECT_EQ(status.ok(), goes) << WeightFormatName(format) << " " << i;
      if (!goes) {
        EXPECT_EQ(status.code(), StatusCode::kUnsupported);
        EXPECT_THAT(status.message(), ::testing::HasSubstr(std::string(WeightFormatName(format))));
      }
    }
  }
}

TEST_P(LinearPaths, PackRefusesMxfp8ScalesThatAreNotExactInBf16) {
  const auto backend = Make(1);
  PackedMatrix packed;
  for (const int code : {0, 9, 10, 246, 247, 254, 255}) {
    TestMatrix weight(WeightFormat::kMxfp8, 3, 64, 1);
    weight.scales()[3] = static_cast<std::byte>(code);  // Row 1, columns 32 to 63.
    const Status status = backend->Pack(weight.canonical(), &packed);
    const bool is_exact = code >= 10 && code <= 246;
    EXPECT_EQ(status.ok(), is_exact) << code;
    if (!is_exact) {
      EXPECT_EQ(status.code(), StatusCode::kUnsupported);
      EXPECT_THAT(status.message(), ::testing::HasSubstr("row 1, columns from 32"));
    }
    // A group of zeros has any scale but NaN: 2^-127 is what the encoder gives it.
    std::fill_n(weight.codes().begin() + 96, 32, std::byte{0x80});
    EXPECT_EQ(backend->Pack(weight.canonical(), &packed).ok(), code != 255) << code;
    if (code != 255) {
      TestActivations x(DType::kBf16, 2, 64);
      x.Fill(1);
      EXPECT_TRUE(SameBits(RunLinear(reference_.get(), weight.PackFor(*reference_), x),
                           RunLinear(backend.get(), packed, x)));
    }
  }
}

TEST_P(LinearPaths, PackRefusesNegativeAndNanGroupScales) {
  const auto backend = Make(1);
  PackedMatrix packed;
  for (const int code : {0x00, 0x7E, 0x7F, 0x80, 0xFF}) {
    TestMatrix weight(WeightFormat::kNvfp4, 3, 64, 1);
    weight.scales()[6] = static_cast<std::byte>(code);  // Row 1, columns 32 to 47.
    const Status status = backend->Pack(weight.canonical(), &packed);
    EXPECT_EQ(status.ok(), code <= 0x7E) << code;
    if (code > 0x7E) {
      EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
      EXPECT_THAT(status.message(), ::testing::HasSubstr("row 1, columns from 32"));
    }
  }
}

TEST_P(LinearPaths, Mxfp8GivesTheSameBitsAtTheEndsOfTheRange) {
  // Inputs and weights from far below to far above what lets a scale wait for its tile's sum, and
  // on both sides of those limits (2^-60, 2^60 and 2^-50, 2^50).
  const auto backend = Make(2);
  for (const int weight_exponent : {-117, -60, -51, -50, -49, -10, 49, 50, 51, 60, 119}) {
    TestMatrix weight(WeightFormat::kMxfp8, 33, 128, 3);
    for (size_t i = 0; i < weight.scales().size(); i += 3) {
      weight.scales()[i] = static_cast<std::byte>(127 + weight_exponent);
    }
    const PackedMatrix expected = weight.PackFor(*reference_);
    const PackedMatrix actual = weight.PackFor(*backend);
    for (const int input_exponent : {-125, -75, -62, -61, -60, -59, -50, 0, 40, 50, 60, 61, 100}) {
      TestActivations x(DType::kBf16, 2, 128);
      x.Fill(4, std::ldexp(1.0F, input_exponent));
      ASSERT_TRUE(SameBits(RunLinear(reference_.get(), expected, x, DType::kF32),
                           RunLinear(backend.get(), actual, x, DType::kF32)))
          << "weights around 2^" << weight_exponent << ", inputs around 2^" << input_exponent;
    }
  }
}

TEST_P(LinearPaths, PackRefusesScalesThatAreNoNumbers) {
  const auto backend = Make(1);
  PackedMatrix packed;
  for (const float bad : {0.0F, -1.0F, std::numeric_limits<float>::quiet_NaN(),
                          std::numeric_limits<float>::infinity()}) {
    TestMatrix weight(WeightFormat::kNvfp4, InputForm::kNvfp4Static, 8, 32, 1);
    weight.canonical().input_scale = bad;
    Status status = backend->Pack(weight.canonical(), &packed);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(status.message(), ::testing::HasSubstr("input scale of nvfp4"));
    weight.canonical().input_scale = 1.0F;
    weight.canonical().tensor_scale = bad;
    weight.canonical().tensor_scale_divides = bad == 0.0F;
    status = backend->Pack(weight.canonical(), &packed);
    EXPECT_EQ(status.ok(), bad == -1.0F);
  }
  TestMatrix narrow(WeightFormat::kNvfp4, 8, 32, 1);
  narrow.canonical().cols = 24;
  const Status status = backend->Pack(narrow.canonical(), &packed);
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), ::testing::HasSubstr("multiple of 16 columns, got 24"));
}

}  // namespace
}  // namespace octavo
