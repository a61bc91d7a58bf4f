// Method: the norm or activation that is left to a linear layer (LinearArgs::norm, silu_mul)
// against the two ops one after the other, bit for bit, outputs and the row between them, for every
// weight format and input form, layers whose parts differ in form, experts with scales of their
// own, and one or two threads; and, for few rows, against the reference.

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "octavo/base/tensor.h"
#include "octavo/formats/format.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/cpu/test_paths.h"
#include "octavo/kernels/matrix.h"
#include "octavo/kernels/ops.h"
#include "octavo/kernels/test_tensors.h"

namespace octavo {
namespace {

class LeftOps : public PathTest {};

INSTANTIATE_TEST_SUITE_P(Paths, LeftOps, ::testing::ValuesIn(AllPaths()),
                         [](const auto& info) { return info.param.name; });
// A processor without any vector path has nothing to compare.
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(LeftOps);

struct FormCase {
  WeightFormat format;
  InputForm input;
};

constexpr std::array kForms = {
    FormCase{WeightFormat::kBf16, InputForm::kBf16},
    FormCase{WeightFormat::kFp8, InputForm::kFp8Group},
    FormCase{WeightFormat::kFp8Ue8m0, InputForm::kBf16},
    FormCase{WeightFormat::kFp8Channel, InputForm::kFp8Token},
    FormCase{WeightFormat::kFp8Tensor, InputForm::kFp8Static},
    FormCase{WeightFormat::kMxfp8, InputForm::kMxfp8},
    FormCase{WeightFormat::kNvfp4, InputForm::kNvfp4Token},
    FormCase{WeightFormat::kNvfp4, InputForm::kNvfp4Pow2},
    FormCase{WeightFormat::kNvfp4, InputForm::kNvfp4Static},
    FormCase{WeightFormat::kNvfp4, InputForm::kNvfp4Batch},
};

constexpr int64_t kIn = 160;
constexpr int64_t kOut = 32;
// The last has enough elements for the pool.
constexpr std::array<int64_t, 3> kRowCounts = {1, 5, 110};

// What the layer reads, and its outputs.
struct Outcome {
  TestActivations x;
  TestActivations y;
};

enum class Order { kOneByOne, kLeft };

// Parts of two forms: the second pass finds the rows that the first made.
Outcome RunNormed(Backend* backend, const FormCase& form, int64_t rows, Order order) {
  const PackedMatrix weight = TestMatrix(form.format, form.input, kOut, kIn, 3).PackFor(*backend);
  const PackedMatrix plain = TestMatrix(WeightFormat::kBf16, kOut, kIn, 4).PackFor(*backend);
  const PackedMatrix gain = TestMatrix(WeightFormat::kBf16, 1, kIn, 5).PackFor(*backend);
  TestActivations h(DType::kBf16, rows, kIn);
  h.Fill(6);
  Outcome outcome{TestActivations(DType::kBf16, rows, kIn),
                  TestActivations(DType::kBf16, rows, 2 * kOut)};
  const RmsNormArgs norm{.x = h.view(), .weight = &gain, .eps = 1e-6F, .y = outcome.x.view()};
  Activations first = outcome.y.view();
  first.cols = kOut;
  Activations second = first;
  second.data += kOut * DTypeBytes(DType::kBf16);
  const LinearPart parts[] = {{&weight, first}, {&plain, second}};
  LinearArgs args{.x = outcome.x.view(), .parts = parts};
  if (order == Order::kLeft) {
    args.norm = norm;
  } else {
    EXPECT_TRUE(backend->RmsNorm(norm).ok());
  }
  EXPECT_TRUE(backend->Linear(args).ok());
  return outcome;
}

Outcome RunActivated(Backend* backend, const FormCase& form, int64_t rows, Order order) {
  const PackedMatrix weight = TestMatrix(form.format, form.input, kOut, kIn, 3).PackFor(*backend);
  TestActivations up(DType::kBf16, rows, kIn);
  up.Fill(7);
  Outcome outcome{TestActivations(DType::kBf16, rows, kIn),
                  TestActivations(DType::kBf16, rows, kOut)};
  outcome.x.Fill(8);
  const Activations gate = outcome.x.view();
  const SiluMulArgs silu_mul{.gate = gate, .up = up.view(), .y = gate};
  const LinearPart parts[] = {{&weight, outcome.y.view()}};
  LinearArgs args{.x = gate, .parts = parts};
  if (order == Order::kLeft) {
    args.silu_mul = silu_mul;
  } else {
    EXPECT_TRUE(backend->SiluMul(silu_mul).ok());
  }
  EXPECT_TRUE(backend->Linear(args).ok());
  return outcome;
}

// Three experts, each with an input scale of its own; rows go to them in turn.
Outcome RunExperts(Backend* backend, const FormCase& form, int64_t rows, Order order) {
  constexpr int32_t kExperts = 3;
  std::vector<PackedMatrix> packed;
  for (int32_t e = 0; e < kExperts; ++e) {
    TestMatrix matrix(form.format, form.input, kOut, kIn, 20 + static_cast<uint64_t>(e));
    matrix.canonical().input_scale = 0.01F * static_cast<float>(e + 1);
    packed.push_back(matrix.PackFor(*backend));
  }
  const std::array<const PackedMatrix*, kExperts> experts = {&packed[0], &packed[1], &packed[2]};
  std::vector<int32_t> source_rows;
  std::vector<int32_t> offsets = {0};
  for (int32_t e = 0; e < kExperts; ++e) {
    for (int32_t row = e; row < rows; row += kExperts) {
      source_rows.push_back(row);
    }
    offsets.push_back(static_cast<int32_t>(source_rows.size()));
  }
  TestActivations up(DType::kBf16, rows, kIn);
  up.Fill(7);
  Outcome outcome{TestActivations(DType::kBf16, rows, kIn),
                  TestActivations(DType::kBf16, rows, kOut)};
  outcome.x.Fill(8);
  const Activations gate = outcome.x.view();
  const SiluMulArgs silu_mul{.gate = gate, .up = up.view(), .y = gate};
  const GroupedPart parts[] = {{.weights = experts, .y = outcome.y.view()}};
  GroupedLinearArgs args{.x = gate, .source_rows = source_rows, .offsets = offsets, .parts = parts};
  if (order == Order::kLeft) {
    args.silu_mul = silu_mul;
  } else {
    EXPECT_TRUE(backend->SiluMul(silu_mul).ok());
  }
  EXPECT_TRUE(backend->GroupedLinear(args).ok());
  return outcome;
}

template <typename Run>
void ExpectSameOutcome(Backend* reference, Backend* backend, Run run) {
  for (const FormCase& form : kForms) {
    for (const int64_t rows : kRowCounts) {
      SCOPED_TRACE(fmt::format("{} with input form {}, {} rows", WeightFormatName(form.format),
                               static_cast<int>(form.input), rows));
      const Outcome expected = run(backend, form, rows, Order::kOneByOne);
      const Outcome actual = run(backend, form, rows, Order::kLeft);
      ASSERT_TRUE(SameBits(expected.x, actual.x));
      ASSERT_TRUE(SameBits(expected.y, actual.y));
      if (rows < 10) {
        ASSERT_TRUE(SameBits(run(reference, form, rows, Order::kLeft).y, actual.y));
      }
    }
  }
}

TEST_P(LeftOps, ANormGivesTheBitsOfTwoOps) {
  for (const int num_threads : {1, 2}) {
    ExpectSameOutcome(reference_.get(), Make(num_threads).get(), RunNormed);
  }
}

TEST_P(LeftOps, AnActivationGivesTheBitsOfTwoOps) {
  for (const int num_threads : {1, 2}) {
    ExpectSameOutcome(reference_.get(), Make(num_threads).get(), RunActivated);
  }
}

TEST_P(LeftOps, AnActivationBeforeExpertsGivesTheBitsOfTwoOps) {
  for (const int num_threads : {1, 2}) {
    ExpectSameOutcome(reference_.get(), Make(num_threads).get(), RunExperts);
  }
}

}  // namespace
}  // namespace octavo
