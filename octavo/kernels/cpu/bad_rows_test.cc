// Method: one layer of experts, over every pair of weight format and form of input, on every path.
// Rows that hold an Inf or a NaN, or zeros alone, stand between good ones, each read by two
// experts, in groups of several rows, of one and of none. Every row must have the bits of the
// reference; good rows must have those of a batch whose bad rows are zeros; bad rows must be NaN
// and zero rows 0. Then the bad rows come from the SwiGLU op that is left to the layer, where two
// finite factors overflow.

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/cpu/linear_for_test.h"
#include "octavo/kernels/cpu/test_paths.h"
#include "octavo/kernels/matrix.h"
#include "octavo/kernels/ops.h"
#include "octavo/kernels/test_tensors.h"

namespace octavo {
namespace {

class BadRows : public PathTest {};

INSTANTIATE_TEST_SUITE_P(Paths, BadRows, ::testing::ValuesIn(AllPaths()),
                         [](const auto& info) { return info.param.name; });
// A processor without any vector path has nothing to compare.
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(BadRows);

constexpr int64_t kIn = 160;  // A short last group of 128.
constexpr int64_t kOut = 48;
constexpr int64_t kTokens = 7;
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// Tokens: 0 and 1 are good and 0 has the largest magnitude, 6 is good and stands behind the bad.
constexpr int64_t kZero = 2;
constexpr std::array<std::pair<int64_t, float>, 3> kBad = {{{3, kInf}, {4, kNaN}, {5, -kInf}}};
constexpr std::array<int64_t, 3> kGood = {0, 1, 6};

// Groups of 0, 8, 1, 5 and 0 rows; every token twice.
constexpr std::array<int32_t, 14> kSourceRows = {0, 1, 2, 3, 4, 5, 6, 3, 0, 1, 2, 4, 5, 6};
constexpr std::array<int32_t, 6> kOffsets = {0, 0, 8, 9, 14, 14};
constexpr size_t kNumGroups = kOffsets.size() - 1;

TestActivations CleanRows() {
  TestActivations x(DType::kBf16, kTokens, kIn);
  x.Fill(1);
  x.Set(0, 0, 50.0F);
  for (const int64_t token : {kZero, kBad[0].first, kBad[1].first, kBad[2].first}) {
    for (int64_t k = 0; k < kIn; ++k) {
      x.Set(token, k, 0.0F);
    }
  }
  return x;
}

// The layer over `x`, or over SwiGLU of `x` and `up`.
TestActivations RunExperts(Backend* backend, const FormCase& form, const TestActivations& x,
                           const TestActivations* up) {
  const TestActivations gate(x);  // The op writes over it.
  std::vector<PackedMatrix> packed;
  std::vector<const PackedMatrix*> experts;
  packed.reserve(kNumGroups);
  for (size_t group = 0; group < kNumGroups; ++group) {
    const TestMatrix made(form.format, form.input, kOut, kIn, 9 + 2 * group);
    packed.push_back(made.PackFor(*backend));
    experts.push_back(&packed.back());
  }
  TestActivations y(DType::kBf16, static_cast<int64_t>(kSourceRows.size()), kOut);
  const GroupedPart part{experts, y.view()};
  GroupedLinearArgs args{
      .x = gate.view(), .source_rows = kSourceRows, .offsets = kOffsets, .parts = {&part, 1}};
  if (up != nullptr) {
    args.silu_mul = SiluMulArgs{.gate = gate.view(), .up = up->view(), .y = gate.view()};
  }
  const Status status = backend->GroupedLinear(args);
  EXPECT_TRUE(status.ok()) << status.message();
  return y;
}

bool Reads(size_t row, std::span<const int64_t> tokens) {
  for (const int64_t token : tokens) {
    if (kSourceRows[row] == token) {
      return true;
    }
  }
  return false;
}

// `clean` is the layer over the rows without the bad ones, whose tokens are `bad`.
void ExpectHarmAlone(const TestActivations& y, const TestActivations& clean,
                     std::span<const int64_t> bad) {
  for (size_t row = 0; row < kSourceRows.size(); ++row) {
    const auto r = static_cast<int64_t>(row);
    for (int64_t n = 0; n < kOut; ++n) {
      if (Reads(row, kGood)) {
        ASSERT_EQ(y.At(r, n), clean.At(r, n)) << "row " << row;
        ASSERT_TRUE(std::isfinite(y.At(r, n))) << "row " << row;
      } else if (Reads(row, bad)) {
        ASSERT_TRUE(std::isnan(y.At(r, n))) << "row " << row;
      }
      if (Reads(row, std::array{kZero})) {
        ASSERT_EQ(y.At(r, n), 0.0F) << "row " << row;
      }
      ASSERT_FALSE(std::isnan(clean.At(r, n)));
    }
  }
}

// Without a quantizer an Inf meets zeros and Infs of either sign: Inf or NaN, as it comes.
std::vector<int64_t> NaNTokens(const FormCase& form) {
  if (form.input == InputForm::kBf16) {
    return {kBad[1].first};
  }
  return {kBad[0].first, kBad[1].first, kBad[2].first};
}

TEST_P(BadRows, OfExpertsHarmThemselvesAlone) {
  const auto backend = Make(2);
  const TestActivations clean = CleanRows();
  TestActivations x(clean);
  for (const auto& [token, value] : kBad) {
    x.Set(token, 7 + 50 * (token - kZero), value);
  }
  for (const FormCase& form : kForms) {
    SCOPED_TRACE(Describe(form));
    const TestActivations y = RunExperts(backend.get(), form, x, nullptr);
    ExpectHarmAlone(y, RunExperts(backend.get(), form, clean, nullptr), NaNTokens(form));
    EXPECT_TRUE(SameBits(RunExperts(reference_.get(), form, x, nullptr), y));
  }
}

TEST_P(BadRows, MadeByAnOverflowOfSwigluHarmThemselvesAlone) {
  const auto backend = Make(2);
  TestActivations clean_gate = CleanRows();
  TestActivations up(DType::kBf16, kTokens, kIn);
  up.Fill(2);
  TestActivations gate(clean_gate);
  // 2^100 * 2^100 is Inf, 2^100 * -2^100 is -Inf; a NaN comes from silu(-Inf) = -Inf / Inf.
  for (const auto& [token, value] : kBad) {
    const int64_t k = 7 + 50 * (token - kZero);
    up.Set(token, k, std::ldexp(value < 0.0F ? -1.0F : 1.0F, 100));
    gate.Set(token, k, std::isnan(value) ? -kInf : std::ldexp(1.0F, 100));
  }
  for (const FormCase& form : kForms) {
    SCOPED_TRACE(Describe(form));
    const TestActivations y = RunExperts(backend.get(), form, gate, &up);
    ExpectHarmAlone(y, RunExperts(backend.get(), form, clean_gate, &up), NaNTokens(form));
    EXPECT_TRUE(SameBits(RunExperts(reference_.get(), form, gate, &up), y));
  }
}

}  // namespace
}  // namespace octavo
