// Method: every op of every path that this processor has, and of the AMX loops over the software
// model of the tiles, against the reference's serving recipe: bit for bit, over one list of odd
// shapes (rows around register blocks and tiles, columns and depths off every block size), with one
// to three threads.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/formats/format.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/cpu/amx/amx.h"
#include "octavo/kernels/cpu/cpu_dispatch.h"
#include "octavo/kernels/cpu/cpu_path.h"
#include "octavo/kernels/cpu/dot.h"
#include "octavo/kernels/cpu/kernel_table.h"
#include "octavo/kernels/matrix.h"
#include "octavo/kernels/test_tensors.h"

namespace octavo {
namespace {

constexpr std::array<int64_t, 11> kRows = {1, 2, 3, 15, 16, 17, 31, 33, 64, 127, 129};

struct PathCase {
  std::string name;
  cpu::CpuPath path;
};

std::vector<PathCase> AllPaths() {
  std::vector<PathCase> paths;
  using cpu::VectorTarget;
  for (const auto& [name, target] :
       {std::pair<const char*, VectorTarget>{"Avx2", VectorTarget::kAvx2},
        {"Avx512", VectorTarget::kAvx512},
        {"Avx512Vbmi", VectorTarget::kAvx512Vbmi}}) {
    Result<cpu::CpuPath> path = cpu::FindVectorPath(target);
    if (path.has_value()) {
      paths.push_back({name, *path});
    }
  }
  if (!paths.empty()) {
    PathCase model = {"AmxModel", paths.back().path};
    model.path.matmul = cpu::AmxModelMatMulKernel();
    model.path.wide = model.path.matmul;
    paths.push_back(model);
  }
  Result<cpu::CpuPath> dot = cpu::FindDotPath();
  if (dot.has_value()) {
    paths.push_back({"Avx512Dot", *dot});
  }
  Result<cpu::CpuPath> amx = cpu::FindPath(Isa::kAmx);
  if (amx.has_value()) {
    paths.push_back({"Amx", *amx});
  }
  return paths;
}

class CpuPathOps : public ::testing::TestWithParam<PathCase> {
 protected:
  std::unique_ptr<Backend> Make(int num_threads) const {
    return cpu::MakeBackendOfPath(GetParam().path, num_threads);
  }
  // The software model is slow: it skips what only repeats the shapes of other paths.
  bool is_model() const { return GetParam().name == "AmxModel"; }

  std::unique_ptr<Backend> reference_ = MakeReferenceBackend(Recipe::kServing, 2);
};

INSTANTIATE_TEST_SUITE_P(Paths, CpuPathOps, ::testing::ValuesIn(AllPaths()),
                         [](const auto& info) { return info.param.name; });
// A processor without any vector path has nothing to compare.
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(CpuPathOps);

TEST_P(CpuPathOps, RowOpsEqualTheReference) {
  for (const int num_threads : {1, 2, 3}) {
    const auto backend = Make(num_threads);
    for (const int64_t rows : kRows) {
      for (const int64_t cols : {2, 14, 16, 30, 128, 333, 1024}) {
        SCOPED_TRACE(fmt::format("rows {} cols {}", rows, cols));
        const TestMatrix weight(WeightFormat::kBf16, 1, cols, 2);
        const PackedMatrix expected_weight = weight.PackFor(*reference_);
        const PackedMatrix actual_weight = weight.PackFor(*backend);
        TestActivations x(DType::kBf16, rows, cols);
        x.Fill(7, 4.0F);
        TestActivations other(DType::kBf16, rows, cols, 0);
        other.Fill(8);
        TestActivations expected(DType::kBf16, rows, cols);
        TestActivations actual(DType::kBf16, rows, cols, 5);

        ASSERT_TRUE(reference_->RmsNorm({x.view(), &expected_weight, 1e-6F, expected.view()}).ok());
        ASSERT_TRUE(backend->RmsNorm({x.view(), &actual_weight, 1e-6F, actual.view()}).ok());
        ASSERT_TRUE(SameBits(expected, actual)) << "RmsNorm";

        ASSERT_TRUE(reference_->SiluMul({x.view(), other.view(), expected.view()}).ok());
        ASSERT_TRUE(backend->SiluMul({x.view(), other.view(), actual.view()}).ok());
        ASSERT_TRUE(SameBits(expected, actual)) << "SiluMul";

        TestActivations expected_sum(x);
        TestActivations actual_sum(x);
        ASSERT_TRUE(reference_->Add({expected_sum.view(), other.view()}).ok());
        ASSERT_TRUE(backend->Add({actual_sum.view(), other.view()}).ok());
        ASSERT_TRUE(SameBits(expected_sum, actual_sum)) << "Add";
      }
    }
  }
}

TEST_P(CpuPathOps, RopeEqualsTheReference) {
  const auto backend = Make(2);
  for (const int64_t head_dim : {4, 16, 64, 128}) {
    constexpr int64_t kMaxPositions = 50;
    const int64_t half = head_dim / 2;
    std::vector<float> cos(static_cast<size_t>(kMaxPositions * half));
    std::vector<float> sin(cos.size());
    for (size_t i = 0; i < cos.size(); ++i) {
      cos[i] = std::cos(static_cast<float>(i) * 0.37F);
      sin[i] = std::sin(static_cast<float>(i) * 0.37F);
    }
    for (const int64_t rows : kRows) {
      std::vector<int32_t> positions(static_cast<size_t>(rows));
      for (size_t t = 0; t < positions.size(); ++t) {
        positions[t] = static_cast<int32_t>(t * 7 % kMaxPositions);
      }
      TestActivations expected(DType::kBf16, rows, 3 * head_dim);
      expected.Fill(2);
      TestActivations actual(expected);
      ASSERT_TRUE(reference_->Rope({expected.view(), 3, head_dim, positions, cos, sin}).ok());
      ASSERT_TRUE(backend->Rope({actual.view(), 3, head_dim, positions, cos, sin}).ok());
      ASSERT_TRUE(SameBits(expected, actual)) << "head_dim " << head_dim << " rows " << rows;
    }
  }
}

TEST_P(CpuPathOps, EmbedAndGatherMoveTheRightRows) {
  const auto backend = Make(2);
  const TestMatrix table(WeightFormat::kBf16, 77, 45, 31);
  const PackedMatrix expected_table = table.PackFor(*reference_);
  const PackedMatrix actual_table = table.PackFor(*backend);
  const std::vector<int32_t> ids = {0, 76, 15, 16, 17, 3, 3};
  const auto rows = static_cast<int64_t>(ids.size());
  TestActivations expected(DType::kBf16, rows, 45);
  TestActivations actual(DType::kBf16, rows, 45);
  ASSERT_TRUE(reference_->Embed({ids, &expected_table, expected.view()}).ok());
  ASSERT_TRUE(backend->Embed({ids, &actual_table, actual.view()}).ok());
  EXPECT_TRUE(SameBits(expected, actual));

  const std::vector<int32_t> picked = {6, 0, 0, 4};
  TestActivations gathered(DType::kBf16, 4, 45);
  ASSERT_TRUE(backend->GatherRows({actual.view(), picked, gathered.view()}).ok());
  for (int64_t i = 0; i < 4; ++i) {
    for (int64_t c = 0; c < 45; ++c) {
      ASSERT_EQ(gathered.At(i, c), expected.At(picked[static_cast<size_t>(i)], c));
    }
  }
}

TEST_P(CpuPathOps, SoftmaxStatsEqualTheReference) {
  const auto backend = Make(2);
  for (const int64_t cols : {1, 15, 16, 17, 65, 1000, 40001}) {
    TestActivations x(DType::kF32, 5, cols);
    x.Fill(12, 20.0F);
    x.Set(2, cols / 2, -std::numeric_limits<float>::infinity());
    x.Set(3, cols - 1, std::numeric_limits<float>::quiet_NaN());
    x.Set(4, 0, 100.0F);
    std::vector<float> expected_max(5);
    std::vector<float> expected_sum(5);
    std::vector<float> max(5);
    std::vector<float> sum(5);
    ASSERT_TRUE(reference_->SoftmaxStats({x.view(), expected_max, expected_sum}).ok());
    ASSERT_TRUE(backend->SoftmaxStats({x.view(), max, sum}).ok());
    for (size_t r = 0; r < 5; ++r) {
      EXPECT_EQ(std::bit_cast<uint32_t>(expected_max[r]), std::bit_cast<uint32_t>(max[r]));
      EXPECT_TRUE(std::bit_cast<uint32_t>(expected_sum[r]) == std::bit_cast<uint32_t>(sum[r]) ||
                  (std::isnan(expected_sum[r]) && std::isnan(sum[r])))
          << "row " << r << " cols " << cols << ": " << expected_sum[r] << " vs " << sum[r];
    }
  }
}

TEST(CpuBackend, UsesDotProductsOnlyWhereTheyAreTwoMultiplyAdds) {
  const Result<cpu::CpuPath> path = cpu::FindDotPath();
  if (path.has_value()) {
    EXPECT_TRUE(cpu::DotIsTwoFmas());
    EXPECT_EQ(cpu::FindPath(Isa::kAvx512)->wide.matmul, path->wide.matmul);
  } else {
    EXPECT_EQ(path.error().code(), StatusCode::kUnsupported);
    EXPECT_THAT(path.error().message(), ::testing::HasSubstr("cpu/avx512"));
  }
}

TEST(CpuBackend, GivesEveryIsaOrNamesWhatIsMissing) {
  for (const Isa isa : {Isa::kAmx, Isa::kAvx512, Isa::kAvx2, Isa::kScalar}) {
    EXPECT_EQ(ParseIsa(IsaName(isa)), isa);
    const auto backend = MakeCpuBackend(isa, 1);
    if (backend.has_value()) {
      EXPECT_EQ((*backend)->recipe(), "serving-1");
    } else {
      EXPECT_EQ(backend.error().code(), StatusCode::kUnsupported);
      EXPECT_THAT(backend.error().message(), ::testing::HasSubstr(std::string(IsaName(isa))));
    }
  }
  EXPECT_EQ(ParseIsa("sse9"), std::nullopt);
  EXPECT_TRUE(MakeCpuBackend(BestIsa(), 1).has_value());
}

}  // namespace
}  // namespace octavo
