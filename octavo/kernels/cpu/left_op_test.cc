// Method: the norm or activation that is left to a linear layer (LinearArgs::norm, silu_mul)
// against the two ops one after the other, bit for bit, outputs and the row between them, for every
// weight format and input form, layers whose parts differ in form, experts with scales of their
// own, and one or two threads; and, for few rows, against the reference.

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

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

class LeftOps : public PathTest {};

INSTANTIATE_TEST_SUITE_P(Paths, LeftOps, ::testing::ValuesIn(AllPaths()),
                         [](const auto& info) { return info.param.name; });
// A processor without any vector path has nothing to compare.
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(LeftOps);

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

// `run(x, y, left)` is a layer's op, whose activation may be left to it.
template <typename RunLayer>
Outcome RunActivated(Backend* backend, int64_t rows, Order order, RunLayer run) {
  TestActivations up(DType::kBf16, rows, kIn);
  up.Fill(7);
  Outcome outcome{TestActivations(DType::kBf16, rows, kIn),
                  TestActivations(DType::kBf16, rows, kOut)};
  outcome.x.Fill(8);
  const Activations gate = outcome.x.view();
  std::optional<SiluMulArgs> left = SiluMulArgs{.gate = gate, .up = up.view(), .y = gate};
  if (order == Order::kOneByOne) {
    EXPECT_TRUE(backend->SiluMul(*left).ok());
    left.reset();
  }
  EXPECT_TRUE(run(gate, outcome.y.view(), left).ok());
  return outcome;
}

Outcome RunDense(Backend* backend, const FormCase& form, int64_t rows, Order order) {
  const PackedMatrix weight = TestMatrix(form.format, form.input, kOut, kIn, 3).PackFor(*backend);
  return RunActivated(backend, rows, order, [&](const auto& x, const auto& y, const auto& left) {
    const LinearPart parts[] = {{&weight, y}};
    return backend->Linear({.x = x, .parts = parts, .silu_mul = left});
  });
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
  return RunActivated(backend, rows, order, [&](const auto& x, const auto& y, const auto& left) {
    const GroupedPart parts[] = {{.weights = experts, .y = y}};
    return backend->GroupedLinear(
        {.x = x, .source_rows = source_rows, .offsets = offsets, .parts = parts, .silu_mul = left});
  });
}

template <typename Run>
void ExpectSameOutcome(Backend* reference, Backend* backend, Run run) {
  for (const FormCase& form : kForms) {
    for (const int64_t rows : kRowCounts) {
      SCOPED_TRACE(fmt::format("{}, {} rows", Describe(form), rows));
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
    ExpectSameOutcome(reference_.get(), Make(num_threads).get(), RunDense);
  }
}

TEST_P(LeftOps, AnActivationBeforeExpertsGivesTheBitsOfTwoOps) {
  for (const int num_threads : {1, 2}) {
    ExpectSameOutcome(reference_.get(), Make(num_threads).get(), RunExperts);
  }
}

}  // namespace
}  // namespace octavo
