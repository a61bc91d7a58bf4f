// Method: the oracle itself against values worked out by hand where an order or a rounding shows,
// and against plain FP64 formulas within bounds derived from the roundings; both builds of its rows
// against each other, bit for bit. Negative space: another summation order and unflushed subnormals
// do give other bits.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "octavo/base/float_env.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/formats/bf16.h"
#include "octavo/formats/format.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/matrix.h"
#include "octavo/kernels/ops.h"
#include "octavo/kernels/reference/row_math.h"
#include "octavo/kernels/test_tensors.h"

namespace octavo {
namespace {

std::vector<float> Bf16Values(uint64_t seed, size_t n) {
  std::vector<float> values(n);
  for (size_t i = 0; i < n; ++i) {
    values[i] = Bf16ToFloat(FloatToBf16(TestValue(seed, i)));
  }
  return values;
}

TEST(MatMulOrder, SumsEvenAndOddDepthsOfATileApart) {
  // e = 2^24 + 1 (rounds to 2^24, ties to even) + 1 -> 2^24; o = 1 + 1 + 1 = 3; e + o = 2^24 + 4
  // (2^24 + 3 ties to even). One chain in order of depth would give 2^24: every 1 is lost.
  std::array<float, 32> a = {};
  std::array<float, 32> b = {};
  b.fill(1.0F);
  a[0] = 0x1p24F;
  a[1] = a[2] = a[3] = a[4] = a[5] = 1.0F;
  EXPECT_EQ(ServingRowMath().dot(a.data(), b.data(), 32), 0x1p24F + 4.0F);
}

TEST(MatMulOrder, AddsTilesInOrder) {
  // C = 2^24, then + 1 (lost), then + 1 (lost): a sum over tiles first would keep 2.
  std::array<float, 96> a = {};
  std::array<float, 96> b = {};
  b.fill(1.0F);
  a[0] = 0x1p24F;
  a[32] = a[64] = 1.0F;
  EXPECT_EQ(ServingRowMath().dot(a.data(), b.data(), 96), 0x1p24F);
}

TEST(MatMulOrder, DiffersFromAPlainChain) {
  const std::vector<float> a = Bf16Values(1, 256);
  const std::vector<float> b = Bf16Values(2, 256);
  float plain = 0.0F;
  for (size_t k = 0; k < 256; ++k) {
    plain = std::fma(a[k], b[k], plain);
  }
  EXPECT_NE(ServingRowMath().dot(a.data(), b.data(), 256), plain);
}

TEST(MatMulOrder, FlushesSubnormalsInOps) {
  // Products of 2^-140 vanish one by one under the guard, and sum up without it.
  const std::vector<float> tiny(32, 0x1p-70F);
  const float ieee = ServingRowMath().dot(tiny.data(), tiny.data(), 32);
  EXPECT_EQ(ieee, 0x1p-135F);
  const ScopedFlushSubnormals flush;
  EXPECT_EQ(std::bit_cast<uint32_t>(ServingRowMath().dot(tiny.data(), tiny.data(), 32)), 0U);
}

TEST(LaneSum, AddsSixteenLanesThenTheirHalves) {
  // x = 0 gives Exp(0 - max) with max = 0: ones. Lane 0 starts with 2^24: Exp cannot give that, so
  // the order shows in RmsNorm instead: squares of 2^12 in lane 0, of 1 in the others.
  std::vector<float> x(32, 1.0F);
  x[0] = 0x1p12F;
  // Lane 0: 2^24 + 1 -> 2^24. Others: 2. l + 8: 2^24 + 2, 4...; l + 4: 2^24 + 2 + 4 = 2^24 + 6, 8;
  // l + 2: 2^24 + 14, 16; l + 1: 2^24 + 30. In order of i every 1 would be lost.
  const std::vector<float> weight(32, 1.0F);
  std::vector<float> y(32);
  ServingRowMath().rms_norm(x.data(), weight.data(), 32, 0.0F, y.data());
  const float inv_rms = 1.0F / std::sqrt((0x1p24F + 30.0F) / 32.0F);
  EXPECT_EQ(y[0], Bf16ToFloat(FloatToBf16(0x1p12F * inv_rms)));
  EXPECT_EQ(y[1], Bf16ToFloat(FloatToBf16(inv_rms)));
}

TEST(ServingRows, HardwareAndLibmFmaGiveTheSameBits) {
  if (!__builtin_cpu_supports("fma")) {
    GTEST_SKIP() << "this processor has no FMA instructions";
  }
  const RowMath& fma = internal::ServingRowMathHardwareFma();
  const RowMath& libm = internal::ServingRowMathLibmFma();
  const std::vector<float> a = Bf16Values(3, 320);
  const std::vector<float> b = Bf16Values(4, 320);
  EXPECT_EQ(fma.dot(a.data(), b.data(), 320), libm.dot(a.data(), b.data(), 320));
  std::vector<float> x(320);
  std::vector<float> y(320);
  fma.rms_norm(a.data(), b.data(), 320, 1e-6F, x.data());
  libm.rms_norm(a.data(), b.data(), 320, 1e-6F, y.data());
  EXPECT_EQ(x, y);
  fma.silu_mul(a.data(), b.data(), 320, x.data());
  libm.silu_mul(a.data(), b.data(), 320, y.data());
  EXPECT_EQ(x, y);
  EXPECT_EQ(fma.exp_sum(a.data(), 320, 2.0F, x.data()),
            libm.exp_sum(a.data(), 320, 2.0F, y.data()));
  EXPECT_EQ(x, y);
}

// --- Whole ops against FP64
// -----------------------------------------------------------------------

TEST(ReferenceAttention, OfOneKeyIsItsValueAndOfEqualKeysTheirMean) {
  for (const Recipe recipe : {Recipe::kServing, Recipe::kFp32}) {
    const auto backend = MakeReferenceBackend(recipe, 1);
    const DType dtype = backend->activation_dtype();
    constexpr int64_t kDim = 16;
    const int64_t page_bytes = backend->KvPageBytes({1, kDim});
    std::vector<std::byte> pages(static_cast<size_t>(2 * page_bytes));
    const KvLayer kv{pages.data(), page_bytes, 2, {1, kDim}};
    constexpr int64_t kTokens = 34;  // Across a page border.
    TestActivations q(dtype, kTokens, 2 * kDim);
    TestActivations k(dtype, kTokens, kDim);
    TestActivations v(dtype, kTokens, kDim);
    q.Fill(1);
    for (int64_t t = 0; t < kTokens; ++t) {
      for (int64_t d = 0; d < kDim; ++d) {
        k.Set(t, d, 0.5F);  // Equal scores: p = 1 for all, l = t + 1.
        v.Set(t, d, static_cast<float>(t));
      }
    }
    const std::vector<int32_t> table = {1, 0};
    const Segment segment{0, kTokens, 0, table};
    TestActivations y(dtype, kTokens, 2 * kDim);
    ASSERT_TRUE(backend->KvStore({k.view(), v.view(), {&segment, 1}, kv}).ok());
    ASSERT_TRUE(backend->Attention({q.view(), y.view(), {&segment, 1}, kv, 2, 0.25F}).ok());
    for (int64_t t = 0; t < kTokens; ++t) {
      for (int64_t c = 0; c < 2 * kDim; ++c) {
        // Mean of 0..t = t / 2: exact in every step, and in BF16 for t < 256.
        EXPECT_EQ(y.At(t, c), static_cast<float>(t) / 2.0F);
      }
    }
  }
}

TEST(ReferenceRope, RotatesPairsHalfAHeadApart) {
  const auto backend = MakeReferenceBackend(Recipe::kServing, 1);
  TestActivations x(DType::kBf16, 1, 8);  // Two heads of 4: pairs (0, 2), (1, 3).
  for (int64_t c = 0; c < 8; ++c) {
    x.Set(0, c, static_cast<float>(c + 1));
  }
  const std::vector<int32_t> positions = {1};
  const std::vector<float> cos = {9.0F, 9.0F, 0.0F, 1.0F};  // Row of position 1: 90 and 0 degrees.
  const std::vector<float> sin = {9.0F, 9.0F, 1.0F, 0.0F};
  ASSERT_TRUE(backend->Rope({x.view(), 2, 4, positions, cos, sin}).ok());
  const std::array<float, 8> expected = {-3.0F, 2.0F, 1.0F, 4.0F, -7.0F, 6.0F, 5.0F, 8.0F};
  for (int64_t c = 0; c < 8; ++c) {
    EXPECT_EQ(x.At(0, c), expected[static_cast<size_t>(c)]);
  }
}

TEST(ReferencePack, KeepsTheCanonicalBytesAndRefusesOtherSizes) {
  const auto backend = MakeReferenceBackend(Recipe::kServing, 1);
  const TestMatrix weight(WeightFormat::kFp8, 130, 20, 3);
  const PackedMatrix packed = weight.PackFor(*backend);
  std::vector<std::byte> band(40);  // Two rows of 20.
  ASSERT_TRUE(backend->UnpackCodes(packed, 127, 2, band).ok());
  EXPECT_TRUE(
      std::equal(band.begin(), band.end(), weight.canonical().codes.begin() + int64_t{127} * 20));

  CanonicalMatrix broken = weight.canonical();
  broken.scales = broken.scales.first(1);
  PackedMatrix out;
  const Status status = backend->Pack(broken, &out);
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), ::testing::HasSubstr("bytes of scales: expected 8, got 1"));
  broken = weight.canonical();
  broken.codes = broken.codes.first(3);
  EXPECT_EQ(backend->Pack(broken, &out).code(), StatusCode::kInvalidArgument);
}

TEST(CheckArgsDeathTest, NamesTheBrokenInvariant) {
  const auto backend = MakeReferenceBackend(Recipe::kServing, 1);
  const TestActivations x(DType::kBf16, 2, 8);
  const TestActivations narrow(DType::kBf16, 2, 6);
  const TestActivations f32(DType::kF32, 2, 8);
  EXPECT_DEATH((void)backend->Add({x.view(), narrow.view()}), "x.cols == y.cols");
  EXPECT_DEATH((void)backend->Add({x.view(), f32.view()}), "x.dtype == dtype");
  const std::vector<int32_t> rows = {0, 2};
  EXPECT_DEATH((void)backend->GatherRows({x.view(), rows, x.view()}), "row < args.x.rows");
}

TEST(MakeCpuBackend, IsTheServingReferenceForScalar) {
  const auto backend = MakeCpuBackend(Isa::kScalar, 1);
  ASSERT_TRUE(backend.has_value());
  EXPECT_EQ((*backend)->name(), "reference/serving");
  EXPECT_EQ((*backend)->recipe(), "serving-1");
  EXPECT_EQ(MakeReferenceBackend(Recipe::kFp32, 1)->activation_dtype(), DType::kF32);
}

}  // namespace
}  // namespace octavo
