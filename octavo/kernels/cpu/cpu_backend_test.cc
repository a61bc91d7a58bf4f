// Method: every op of every path that this processor has, and of the AMX loops over the software
// model of the tiles, against the reference's serving recipe: bit for bit, over one list of odd
// shapes (rows around register blocks and tiles, columns and depths off every block size), with one
// to three threads.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <numeric>
#include <optional>
#include <span>
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
#include "octavo/kernels/cpu/kernel_table.h"
#include "octavo/kernels/matrix.h"
#include "octavo/kernels/ops.h"
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
    paths.push_back(model);
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

struct LinearShape {
  int64_t out;
  int64_t in;
};

void ExpectSameLinear(Backend* reference, Backend* backend, WeightFormat format, int64_t rows,
                      LinearShape shape) {
  SCOPED_TRACE(
      fmt::format("{} rows {} out {} in {}", WeightFormatName(format), rows, shape.out, shape.in));
  const TestMatrix weight(format, shape.out, shape.in, 11);
  const PackedMatrix expected_weight = weight.PackFor(*reference);
  const PackedMatrix actual_weight = weight.PackFor(*backend);
  TestActivations x(DType::kBf16, rows, shape.in);
  x.Fill(5);
  for (const DType dtype : {DType::kBf16, DType::kF32}) {
    TestActivations expected(dtype, rows, shape.out);
    TestActivations actual(dtype, rows, shape.out);
    const LinearPart expected_part{&expected_weight, expected.view()};
    const LinearPart actual_part{&actual_weight, actual.view()};
    ASSERT_TRUE(reference->Linear({x.view(), {&expected_part, 1}}).ok());
    ASSERT_TRUE(backend->Linear({x.view(), {&actual_part, 1}}).ok());
    ASSERT_TRUE(SameBits(expected, actual));
  }
}

TEST_P(CpuPathOps, LinearEqualsTheReferenceForEveryRowCount) {
  const auto backend = Make(2);
  for (const WeightFormat format : {WeightFormat::kBf16, WeightFormat::kFp8}) {
    for (const int64_t rows : kRows) {
      ExpectSameLinear(reference_.get(), backend.get(), format, rows, {80, 288});
    }
  }
}

TEST_P(CpuPathOps, LinearEqualsTheReferenceForOddWidths) {
  const auto backend = Make(3);
  for (const WeightFormat format : {WeightFormat::kBf16, WeightFormat::kFp8}) {
    for (const LinearShape shape : {LinearShape{16, 32},
                                    {2, 1},
                                    {17, 31},
                                    {130, 33},
                                    {160, 160},
                                    {31, 127},
                                    {300, 129},
                                    {256, 640},
                                    {97, 1030}}) {
      for (const int64_t rows : {1, 7, 18}) {
        ExpectSameLinear(reference_.get(), backend.get(), format, rows, shape);
      }
    }
  }
}

TEST_P(CpuPathOps, LinearEqualsTheReferenceAcrossChunksOfRows) {
  const auto backend = Make(2);
  for (const WeightFormat format : {WeightFormat::kBf16, WeightFormat::kFp8}) {
    ExpectSameLinear(reference_.get(), backend.get(), format, is_model() ? 305 : 601, {48, 320});
  }
}

TEST_P(CpuPathOps, LinearPartsOfMixedFormatsShareTheirInput) {
  for (const int num_threads : {1, 2, 3}) {
    const auto backend = Make(num_threads);
    const std::array<WeightFormat, 3> formats = {WeightFormat::kFp8, WeightFormat::kBf16,
                                                 WeightFormat::kFp8};
    const std::array<int64_t, 3> outs = {96, 40, 24};
    constexpr int64_t kIn = 200;
    TestActivations x(DType::kBf16, 19, kIn);
    x.Fill(3);
    std::vector<PackedMatrix> packed(6);
    std::vector<TestActivations> y;
    std::vector<LinearPart> parts(6);
    for (size_t i = 0; i < 6; ++i) {
      const TestMatrix weight(formats[i % 3], outs[i % 3], kIn, i % 3);
      packed[i] = weight.PackFor(i < 3 ? *reference_ : *backend);
      y.emplace_back(DType::kBf16, 19, outs[i % 3]);
    }
    for (size_t i = 0; i < 6; ++i) {
      parts[i] = {&packed[i], y[i].view()};
    }
    const std::span<const LinearPart> all(parts);
    ASSERT_TRUE(reference_->Linear({x.view(), all.first(3)}).ok());
    ASSERT_TRUE(backend->Linear({x.view(), all.last(3)}).ok());
    for (size_t i = 0; i < 3; ++i) {
      EXPECT_TRUE(SameBits(y[i], y[i + 3])) << "part " << i << ", threads " << num_threads;
    }
  }
}

TEST_P(CpuPathOps, ANanInOneTokenStaysInThatToken) {
  const auto backend = Make(2);
  const TestMatrix weight(WeightFormat::kFp8, 48, 256, 9);
  const PackedMatrix packed = weight.PackFor(*backend);
  TestActivations x(DType::kBf16, 5, 256);
  x.Fill(1);
  TestActivations clean(DType::kBf16, 5, 48);
  const LinearPart clean_part{&packed, clean.view()};
  ASSERT_TRUE(backend->Linear({x.view(), {&clean_part, 1}}).ok());
  x.Set(2, 130, std::numeric_limits<float>::infinity());
  x.Set(3, 7, std::numeric_limits<float>::quiet_NaN());
  TestActivations y(DType::kBf16, 5, 48);
  const LinearPart part{&packed, y.view()};
  ASSERT_TRUE(backend->Linear({x.view(), {&part, 1}}).ok());
  for (int64_t n = 0; n < 48; ++n) {
    EXPECT_TRUE(std::isnan(y.At(2, n)));
    EXPECT_TRUE(std::isnan(y.At(3, n)));
    for (const int64_t t : {0, 1, 4}) {
      EXPECT_EQ(y.At(t, n), clean.At(t, n));
    }
  }
}

TEST_P(CpuPathOps, RefusesALinearLayerOfOneOutputByName) {
  const auto backend = Make(1);
  const TestMatrix weight(WeightFormat::kBf16, 1, 32, 9);
  const PackedMatrix packed = weight.PackFor(*backend);
  const TestActivations x(DType::kBf16, 2, 32);
  const TestActivations y(DType::kBf16, 2, 1);
  const LinearPart part{&packed, y.view()};
  const Status status = backend->Linear({x.view(), {&part, 1}});
  EXPECT_EQ(status.code(), StatusCode::kUnsupported);
  EXPECT_THAT(status.message(), ::testing::HasSubstr("[1, 32]"));
}

TEST_P(CpuPathOps, EveryFp8CodeDecodesExactly) {
  // 256 rows of one code each; x picks one depth: y = code * 1 * scales. x = 448 has scale 1.
  const auto backend = Make(1);
  TestMatrix weight(WeightFormat::kFp8, 256, 64, 1);
  for (size_t row = 0; row < 256; ++row) {
    std::fill_n(weight.codes().begin() + static_cast<ptrdiff_t>(row * 64), 64,
                static_cast<std::byte>(row));
  }
  TestActivations x(DType::kBf16, 2, 64);
  x.Fill(0, 0.0F);
  x.Set(0, 0, 448.0F);
  x.Set(1, 37, 448.0F);
  const PackedMatrix expected_weight = weight.PackFor(*reference_);
  const PackedMatrix actual_weight = weight.PackFor(*backend);
  TestActivations expected(DType::kF32, 2, 256);
  TestActivations actual(DType::kF32, 2, 256);
  const LinearPart expected_part{&expected_weight, expected.view()};
  const LinearPart actual_part{&actual_weight, actual.view()};
  ASSERT_TRUE(reference_->Linear({x.view(), {&expected_part, 1}}).ok());
  ASSERT_TRUE(backend->Linear({x.view(), {&actual_part, 1}}).ok());
  EXPECT_TRUE(SameBits(expected, actual));
  EXPECT_TRUE(std::isnan(actual.At(0, 0x7F)));
  EXPECT_TRUE(std::isnan(actual.At(0, 0xFF)));
}

TEST_P(CpuPathOps, UnpackIsTheInverseOfPack) {
  const auto backend = Make(1);
  for (const WeightFormat format : {WeightFormat::kBf16, WeightFormat::kFp8}) {
    const int64_t elem_bytes = format == WeightFormat::kBf16 ? 2 : 1;
    for (const LinearShape shape :
         {LinearShape{1, 40}, {2, 1}, {16, 32}, {33, 35}, {130, 257}, {300, 64}}) {
      const TestMatrix weight(format, shape.out, shape.in, 21);
      const PackedMatrix packed = weight.PackFor(*backend);
      const std::span<const std::byte> canonical = weight.canonical().codes;
      for (const int64_t first : {int64_t{0}, shape.out / 3, shape.out - 1}) {
        const int64_t num_rows = shape.out - first;
        std::vector<std::byte> codes(static_cast<size_t>(num_rows * shape.in * elem_bytes));
        ASSERT_TRUE(backend->UnpackCodes(packed, first, num_rows, codes).ok());
        const auto band = canonical.subspan(static_cast<size_t>(first * shape.in * elem_bytes));
        EXPECT_TRUE(std::equal(codes.begin(), codes.end(), band.begin(), band.end()));
      }
      std::vector<std::byte> scales(weight.canonical().scales.size());
      ASSERT_TRUE(backend->UnpackScales(packed, scales).ok());
      EXPECT_TRUE(std::equal(scales.begin(), scales.end(), weight.canonical().scales.begin()));
    }
  }
}

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
