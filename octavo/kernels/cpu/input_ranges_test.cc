// Method: inputs whose groups leave the range of E4M3's normal numbers at planted places, counted
// by hand; then every path and the reference over all modes of the input scale, rows of zeros, NaN
// and infinity, several weights, and experts with one scale or their own: all count alike, whatever
// the number of threads, and as CountInputRanges does row by row.

#include "octavo/kernels/input_ranges.h"

#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <ostream>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/formats/format.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/cpu/linear_for_test.h"
#include "octavo/kernels/cpu/test_paths.h"
#include "octavo/kernels/linear_input.h"
#include "octavo/kernels/matrix.h"
#include "octavo/kernels/ops.h"
#include "octavo/kernels/test_tensors.h"

namespace octavo {

void PrintTo(const InputRanges& ranges, std::ostream* os) {
  *os << ranges.num_groups << " groups, " << ranges.num_above << " above, " << ranges.num_below
      << " below";
}

namespace {

constexpr std::array kModes = {InputForm::kNvfp4Token, InputForm::kNvfp4Pow2,
                               InputForm::kNvfp4Static, InputForm::kNvfp4Batch};

std::vector<float> RowOf(const TestActivations& x, int64_t t) {
  std::vector<float> row;
  row.reserve(static_cast<size_t>(x.view().cols));
  for (int64_t c = 0; c < x.view().cols; ++c) {
    row.push_back(x.At(t, c));
  }
  return row;
}

// Ones, and in rows that are told apart by their number groups that are too large or too small for
// pow2, zeros, and what is not finite. cols: at least 64.
TestActivations Planted(int64_t rows, int64_t cols) {
  TestActivations x(DType::kBf16, rows, cols);
  for (int64_t t = 0; t < rows; ++t) {
    for (int64_t c = 0; c < cols; ++c) {
      x.Set(t, c, c % 3 == 0 ? -1.0F : 0.75F);
    }
    for (int64_t c = 16; c < 32; ++c) {
      const float small = t % 7 == 3 ? 0.0F : 0x1p-9F;
      x.Set(t, c, t % 7 == 1 ? -4096.0F : (t % 7 == 2 || t % 7 == 3 ? small : x.At(t, c)));
    }
    if (t % 7 == 4) {
      x.Set(t, cols - 1, std::numeric_limits<float>::quiet_NaN());
    } else if (t % 7 == 5) {
      x.Set(t, 3, -std::numeric_limits<float>::infinity());
    }
  }
  return x;
}

// --- The definition ------------------------------------------------------------------------------

TEST(CountInputRanges, HoldsTheEdgesOfTheNormalRange) {
  const auto count = [](float amax) {
    return CountInputRanges(InputForm::kNvfp4Pow2, 1.0F, std::vector<float>{0.0F, -amax});
  };
  // pow2 wants amax / 6. It rounds to 448 up to 464, which is 2784 / 6; the next BF16 is 2800.
  EXPECT_EQ(count(2784.0F), (InputRanges{1, 0, 0}));
  EXPECT_EQ(count(2800.0F), (InputRanges{1, 1, 0}));
  // And to 2^-6 from 15/16 of it, a tie: 0.087890625 / 6; the BF16 before is 0.08740234375.
  EXPECT_EQ(count(0.087890625F), (InputRanges{1, 0, 0}));
  EXPECT_EQ(count(0.08740234375F), (InputRanges{1, 0, 1}));
  EXPECT_EQ(count(0x1p-100F), (InputRanges{1, 0, 1}));  // Wants 0.
  EXPECT_EQ(count(0.0F), (InputRanges{1, 0, 0}));       // Loses nothing.
}

TEST(CountInputRanges, CountsShortGroupsAndNoRowsThatAreNotFinite) {
  std::vector<float> row(40, 1.0F);
  EXPECT_EQ(CountInputRanges(InputForm::kNvfp4Pow2, 1.0F, row), (InputRanges{3, 0, 0}));
  row[39] = 4096.0F;
  row[0] = row[15] = 0.0F;
  EXPECT_EQ(CountInputRanges(InputForm::kNvfp4Pow2, 1.0F, row), (InputRanges{3, 1, 0}));
  EXPECT_EQ(CountInputRanges(InputForm::kMxfp8, 1.0F, row), InputRanges());
  row[20] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(CountInputRanges(InputForm::kNvfp4Pow2, 1.0F, row), InputRanges());
}

TEST(CountInputRanges, FollowsTheModesFactor) {
  std::vector<float> row(32, 1.0F);
  row[0] = 3.2e4F;  // The second group, of amax 1, then wants 448 / 3.2e4: below 2^-6 * 15 / 16.
  EXPECT_EQ(CountInputRanges(InputForm::kNvfp4Token, 1.0F, row), (InputRanges{2, 0, 1}));
  EXPECT_EQ(CountInputRanges(InputForm::kNvfp4Pow2, 1.0F, row), (InputRanges{2, 1, 0}));
  // Calibrated for magnitudes up to 3.2e4, and up to 1.
  EXPECT_EQ(CountInputRanges(InputForm::kNvfp4Static, 3.2e4F / 2688.0F, row),
            (InputRanges{2, 0, 1}));
  EXPECT_EQ(CountInputRanges(InputForm::kNvfp4Static, 1.0F / 2688.0F, row), (InputRanges{2, 1, 0}));
}

// --- Backends ------------------------------------------------------------------------------------

class InputRangesPaths : public PathTest {};

TEST_P(InputRangesPaths, CountWhatWasPlanted) {
  // Seven rows of five groups each; two of the rows are not finite.
  const TestActivations x = Planted(7, 80);
  const auto made = Make(1);
  for (Backend* backend : {reference_.get(), made.get()}) {
    const InputRanges before = backend->input_ranges();
    const TestMatrix weight(WeightFormat::kNvfp4, InputForm::kNvfp4Pow2, 33, 80, 1);
    RunLinear(backend, weight.PackFor(*backend), x);
    InputRanges expected = before;
    expected += {.num_groups = 25, .num_above = 1, .num_below = 1};
    EXPECT_EQ(backend->input_ranges(), expected) << backend->name();
  }
}

TEST_P(InputRangesPaths, CountEveryRowOnceForAllWeightsThatReadIt) {
  for (const int num_threads : {1, 3}) {
    const auto backend = Make(num_threads);
    for (const int64_t rows : {1, 9, 257}) {
      const TestActivations x = Planted(rows, 208);
      for (const InputForm mode : kModes) {
        TestMatrix made_a(WeightFormat::kNvfp4, mode, 48, 208, 1);
        TestMatrix made_b(WeightFormat::kNvfp4, mode, 17, 208, 2);
        made_a.canonical().input_scale = made_b.canonical().input_scale = 0.01F;
        InputRanges expected;
        float batch_amax = 0.0F;
        for (int64_t t = 0; t < rows; ++t) {
          const float amax = FiniteAmax(RowOf(x, t));
          batch_amax = amax > batch_amax ? amax : batch_amax;  // Not for NaN.
        }
        for (int64_t t = 0; t < rows; ++t) {
          expected += CountInputRanges(mode, mode == InputForm::kNvfp4Batch ? batch_amax : 0.01F,
                                       RowOf(x, t));
        }
        for (Backend* one : {reference_.get(), backend.get()}) {
          const PackedMatrix a = made_a.PackFor(*one);
          const PackedMatrix b = made_b.PackFor(*one);
          TestActivations y(DType::kBf16, rows, 48);
          TestActivations z(DType::kBf16, rows, 17);
          const std::array parts = {LinearPart{&a, y.view()}, LinearPart{&b, z.view()}};
          InputRanges want = one->input_ranges();
          want += expected;
          ASSERT_TRUE(one->Linear({x.view(), parts}).ok());
          EXPECT_EQ(one->input_ranges(), want)
              << one->name() << ", mode " << static_cast<int>(mode) << ", rows " << rows;
        }
      }
    }
  }
}

// Three experts over nine rows; the last one has none.
TEST_P(InputRangesPaths, CountWhatExpertsRead) {
  const TestActivations x = Planted(9, 160);
  const std::vector<int32_t> source_rows = {0, 1, 2, 3, 4, 1, 6, 8, 2};
  const std::vector<int32_t> offsets = {0, 5, 9, 9};
  for (const InputForm mode : kModes) {
    for (const bool has_own : {false, true}) {
      std::array<InputRanges, 2> counted;
      const auto made = Make(2);
      const std::array<Backend*, 2> backends = {reference_.get(), made.get()};
      for (size_t i = 0; i < backends.size(); ++i) {
        Backend& backend = *backends[i];
        std::vector<PackedMatrix> weights;
        for (int e = 0; e < 3; ++e) {
          TestMatrix weight(WeightFormat::kNvfp4, mode, 48, 160, static_cast<uint64_t>(e));
          weight.canonical().input_scale = has_own ? 0.001F + 0.5F * static_cast<float>(e) : 0.01F;
          weights.push_back(weight.PackFor(backend));
        }
        const std::vector<const PackedMatrix*> experts = {weights.data(), &weights[1], &weights[2]};
        TestActivations y(DType::kBf16, 9, 48);
        TestActivations z(DType::kBf16, 9, 48);
        const std::array parts = {GroupedPart{experts, y.view()}, GroupedPart{experts, z.view()}};
        const InputRanges before = backend.input_ranges();
        ASSERT_TRUE(backend.GroupedLinear({x.view(), source_rows, offsets, parts}).ok());
        const InputRanges after = backend.input_ranges();
        counted[i] = {.num_groups = after.num_groups - before.num_groups,
                      .num_above = after.num_above - before.num_above,
                      .num_below = after.num_below - before.num_below};
      }
      EXPECT_EQ(counted[0], counted[1]) << static_cast<int>(mode) << " " << has_own;
      // Rows 4 and 5 are not finite. Once for x, or for each of two weights what an expert reads.
      const bool by_expert = has_own && mode == InputForm::kNvfp4Static;
      EXPECT_EQ(counted[0].num_groups, (by_expert ? 2 * 8 : 7) * 10) << static_cast<int>(mode);
    }
  }
}

TEST_P(InputRangesPaths, OfOtherFormatsIsNothing) {
  const auto backend = Make(1);
  const TestActivations x = Planted(9, 128);
  for (const FormCase& form : kForms) {
    if (!IsNvfp4Input(form.input)) {
      RunLinear(backend.get(), TestMatrix(form.format, form.input, 48, 128, 1).PackFor(*backend),
                x);
    }
  }
  EXPECT_EQ(backend->input_ranges(), InputRanges());
}

INSTANTIATE_TEST_SUITE_P(Paths, InputRangesPaths, ::testing::ValuesIn(AllPaths()),
                         [](const auto& info) { return info.param.name; });
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(InputRangesPaths);

}  // namespace
}  // namespace octavo
