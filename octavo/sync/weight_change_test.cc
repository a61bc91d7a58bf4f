// Method: matrices of every format and of odd sizes, of which some canonical codes are changed;
// what is counted over the packed ones must be what is counted over the canonical ones.

#include "octavo/sync/weight_change.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/thread_pool.h"
#include "octavo/formats/format.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/test_tensors.h"
#include "octavo/model/model.h"

namespace octavo {
namespace {

constexpr int64_t kRows = 53;
constexpr int64_t kCols = 224;

// One value a code; of BF16 its bits.
std::vector<uint16_t> CodesOf(TestMatrix& matrix, WeightFormat format) {
  std::vector<uint16_t> codes;
  for (size_t i = 0; i < matrix.codes().size(); ++i) {
    const auto byte = static_cast<uint16_t>(matrix.codes()[i]);
    if (format == WeightFormat::kNvfp4) {
      codes.push_back(byte & 0x0F);
      codes.push_back(byte >> 4);
    } else if (format == WeightFormat::kBf16 && i % 2 == 1) {
      codes.back() = static_cast<uint16_t>(codes.back() | byte << 8);
    } else {
      codes.push_back(byte);
    }
  }
  return codes;
}

int64_t CountLargest(const std::vector<uint16_t>& codes, WeightFormat format) {
  return std::ranges::count_if(codes, [format](uint16_t code) {
    return format == WeightFormat::kNvfp4 ? (code & 0x7) == 0x7
                                          : format != WeightFormat::kBf16 && (code & 0x7F) == 0x7E;
  });
}

class WeightChangeOf : public ::testing::TestWithParam<WeightFormat> {
 protected:
  ModelWeights Pack(const TestMatrix& matrix) const {
    ModelWeights weights;
    weights.matrices.push_back(matrix.PackFor(*backend_));
    return weights;
  }
  WeightChange Compare(const ModelWeights& before, const ModelWeights& after) {
    const auto changes = CompareWeights(before, after, *backend_, &pool_);
    EXPECT_TRUE(changes.has_value());
    const auto alone = CompareWeights(before, after, *backend_, nullptr);
    EXPECT_EQ(alone->front().num_changed, changes->front().num_changed);
    EXPECT_EQ(alone->front().num_saturated, changes->front().num_saturated);
    return changes->front();
  }

  std::unique_ptr<Backend> backend_ = std::move(*MakeCpuBackend(BestIsa(), 1));
  ThreadPool pool_{3};
};

INSTANTIATE_TEST_SUITE_P(Formats, WeightChangeOf, ::testing::ValuesIn(AllWeightFormats()));

TEST_P(WeightChangeOf, CountsWhatCanonicalCodesSay) {
  const WeightFormat format = GetParam();
  TestMatrix matrix(format, kRows, kCols, 3);
  const ModelWeights before = Pack(matrix);
  EXPECT_EQ(Compare(before, before).num_changed, 0);
  const std::vector<uint16_t> old_codes = CodesOf(matrix, format);
  for (size_t at = 0; at < matrix.codes().size(); at += 37) {
    matrix.codes()[at] ^= std::byte{0x11};  // Of two codes in a byte, both.
  }
  const std::vector<uint16_t> codes = CodesOf(matrix, format);
  int64_t num_changed = 0;
  for (size_t i = 0; i < codes.size(); ++i) {
    num_changed += codes[i] != old_codes[i] ? 1 : 0;
  }
  const WeightChange change = Compare(before, Pack(matrix));
  EXPECT_EQ(change.num_codes, kRows * kCols);
  EXPECT_EQ(change.num_changed, num_changed);
  EXPECT_EQ(change.num_saturated, CountLargest(codes, format));
}

TEST_P(WeightChangeOf, IsEverythingWhereNothingWas) {
  const TestMatrix matrix(GetParam(), kRows, kCols, 3);
  EXPECT_EQ(Compare({}, Pack(matrix)).num_changed, kRows * kCols);
}

TEST(WeightChangeOfScales, CountsSubnormalOnes) {
  const auto backend = std::move(*MakeCpuBackend(BestIsa(), 1));
  TestMatrix matrix(WeightFormat::kNvfp4, kRows, kCols, 3);
  for (const size_t at : {size_t{0}, size_t{5}, size_t{100}}) {
    matrix.scales()[at] = std::byte{0x07};
  }
  matrix.scales()[7] = std::byte{0x08};
  int64_t expected = 0;
  for (const std::byte scale : matrix.scales()) {
    expected += static_cast<uint8_t>(scale) <= 0x07 ? 1 : 0;
  }
  ModelWeights weights;
  weights.matrices.push_back(matrix.PackFor(*backend));
  const auto changes = CompareWeights({}, weights, *backend, nullptr);
  ASSERT_TRUE(changes.has_value());
  EXPECT_EQ(changes->front().num_scales, kRows * kCols / 16);
  EXPECT_GE(expected, 3);
  EXPECT_EQ(changes->front().num_subnormal_scales, expected);
}

}  // namespace
}  // namespace octavo
