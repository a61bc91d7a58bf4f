// Method: what the KV cache and rope leave, read back through attention over one key (p = 1, so y
// is the cached v) and worked out by hand. Negative space: the recipe without FP8, bad tokens.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/ops.h"
#include "octavo/kernels/test_tensors.h"

namespace octavo {
namespace {

using ::testing::ElementsAre;

// v after the cache, in one page of one kv head: attention of the only token.
std::vector<float> ThroughCache(const std::vector<float>& values, float key, DType dtype) {
  const auto backend = MakeReferenceBackend(Recipe::kServing, 1);
  const auto dim = static_cast<int64_t>(values.size());
  const KvShape shape{.num_kv_heads = 1, .head_dim = 2, .value_dim = dim, .dtype = dtype};
  const int64_t page_bytes = backend->KvPageBytes(shape);
  std::vector<std::byte> page(static_cast<size_t>(page_bytes));
  const KvLayer kv{page.data(), page_bytes, 1, shape};
  TestActivations q(DType::kBf16, 1, 2);
  q.Fill(0, 0.0F);
  TestActivations k(DType::kBf16, 1, 2);
  TestActivations v(DType::kBf16, 1, dim);
  k.Set(0, 0, key);
  k.Set(0, 1, 1.0F);
  for (int64_t d = 0; d < dim; ++d) {
    v.Set(0, d, values[static_cast<size_t>(d)]);
  }
  const TestActivations y(DType::kBf16, 1, dim);
  const std::vector<int32_t> table = {0};
  const Segment segment{0, 1, 0, table};
  EXPECT_TRUE(backend->KvStore({k.view(), v.view(), {&segment, 1}, kv}).ok());
  EXPECT_TRUE(backend->Attention({q.view(), y.view(), {&segment, 1}, kv, 1, 1.0F}).ok());
  std::vector<float> result(values.size());
  for (int64_t d = 0; d < dim; ++d) {
    result[static_cast<size_t>(d)] = y.At(0, d);
  }
  return result;
}

TEST(ReferenceKvCache, RoundsToE4m3UnderThePowerOfTwoOfTheToken) {
  // amax 300 <= 448: scale 1. 300 = 9.375 * 32 -> 288; 7 is a code; 2^-9 is the smallest one.
  EXPECT_THAT(ThroughCache({300.0F, -7.0F, 0x1p-9F, 0x1p-11F}, 1.0F, DType::kF8E4m3),
              ElementsAre(288.0F, -7.0F, 0x1p-9F, 0.0F));
  // 450 > 448: scale 2. 225 = 14.06 * 16 -> 14 * 16 * 2; 7 / 2 is a code; 2^-10 is a tie with 0.
  EXPECT_THAT(ThroughCache({450.0F, 7.0F, 0x1p-9F, 0.0F}, 1.0F, DType::kF8E4m3),
              ElementsAre(448.0F, 7.0F, 0.0F, 0.0F));
  // Small tokens have small scales: 1.75 * 2^-30 = 448 * 2^-38.
  EXPECT_THAT(ThroughCache({1.75F * 0x1p-30F, 0x1p-47F}, 1.0F, DType::kF8E4m3),
              ElementsAre(1.75F * 0x1p-30F, 0x1p-47F));
}

TEST(ReferenceKvCache, KeepsScalesWhereDecodedValuesAreNormalBf16) {
  // The least scale is 2^-117, so the quantum is 2^-126: 2^-125 stays, 2^-127 (a subnormal) is 0.
  EXPECT_THAT(ThroughCache({0x1p-125F, 0x1p-127F}, 1.0F, DType::kF8E4m3),
              ElementsAre(0x1p-125F, 0.0F));
  EXPECT_THAT(ThroughCache({0.0F, -0.0F}, 1.0F, DType::kF8E4m3), ElementsAre(0.0F, 0.0F));
  // The largest magnitude below 2^127 is rounded to 2^127, which is not infinite.
  EXPECT_THAT(ThroughCache({0x1.FEp126F, 1.0F}, 1.0F, DType::kF8E4m3), ElementsAre(0x1p127F, 0.0F));
}

TEST(ReferenceKvCache, MakesNanOfABadToken) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  for (const DType dtype : {DType::kBf16, DType::kF8E4m3}) {
    for (const float y : ThroughCache({1.0F, kInf}, 1.0F, dtype)) {
      EXPECT_TRUE(std::isnan(y));
    }
    for (const float y : ThroughCache({1.0F, 2.0F}, std::nanf(""), dtype)) {
      EXPECT_TRUE(std::isnan(y));
    }
  }
  EXPECT_TRUE(std::isnan(ThroughCache({0x1p127F, 1.0F}, 1.0F, DType::kF8E4m3)[0]));
  EXPECT_EQ(ThroughCache({0x1p127F, 1.0F}, 1.0F, DType::kBf16)[0], 0x1p127F);
}

TEST(ReferenceKvCache, RefusesFp8InTheFp32RecipeByName) {
  const auto backend = MakeReferenceBackend(Recipe::kFp32, 1);
  const KvShape shape{.num_kv_heads = 1, .head_dim = 2, .dtype = DType::kF8E4m3};
  const int64_t page_bytes = backend->KvPageBytes(shape);
  std::vector<std::byte> page(static_cast<size_t>(page_bytes));
  const KvLayer kv{page.data(), page_bytes, 1, shape};
  const TestActivations x(DType::kF32, 1, 2);
  const TestActivations y(DType::kF32, 1, 2);
  const std::vector<int32_t> table = {0};
  const Segment segment{0, 1, 0, table};
  const Status store = backend->KvStore({x.view(), x.view(), {&segment, 1}, kv});
  EXPECT_EQ(store.code(), StatusCode::kUnsupported);
  EXPECT_THAT(store.message(), ::testing::HasSubstr("FP8 KV cache on reference/fp32"));
  EXPECT_EQ(backend->Attention({x.view(), y.view(), {&segment, 1}, kv, 1, 1.0F}).code(),
            StatusCode::kUnsupported);
}

TEST(ReferenceRope, OfInterleavedPairsPutsThemHalfAHeadApart) {
  const auto backend = MakeReferenceBackend(Recipe::kServing, 1);
  // Two heads of 4 with a stride of 6: pairs (0, 1) and (2, 3), by 90 and 0 degrees.
  TestActivations x(DType::kBf16, 1, 12);
  for (int64_t c = 0; c < 12; ++c) {
    x.Set(0, c, static_cast<float>(c + 1));
  }
  const std::vector<int32_t> positions = {0};
  const std::vector<float> cos = {0.0F, 1.0F};
  const std::vector<float> sin = {1.0F, 0.0F};
  ASSERT_TRUE(backend
                  ->Rope({.x = x.view(),
                          .num_heads = 2,
                          .head_dim = 4,
                          .positions = positions,
                          .cos = cos,
                          .sin = sin,
                          .head_stride = 6,
                          .is_interleaved = true})
                  .ok());
  std::array<float, 12> y = {};
  for (int64_t c = 0; c < 12; ++c) {
    y[static_cast<size_t>(c)] = x.At(0, c);
  }
  EXPECT_THAT(y, ElementsAre(-2, 3, 1, 4, 5, 6, -8, 9, 7, 10, 11, 12));
}

}  // namespace
}  // namespace octavo
