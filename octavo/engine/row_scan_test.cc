// Method: sums are compared bit for bit with the backends' SoftmaxStats and with the plain form of
// the same source, block sums with a loop; lengths stand around lanes (16) and blocks (256). A bad
// value is put at every kind of place.

#include "octavo/engine/row_scan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <vector>

#include "octavo/base/float_env.h"
#include "octavo/base/random.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/math.h"
#include "octavo/kernels/ops.h"

namespace octavo {
namespace {

constexpr size_t kLengths[] = {1, 15, 16, 17, 255, 256, 257, 271, 512, 1000, 40001};

std::vector<float> RandomRow(size_t length, float spread) {
  std::vector<float> row(length);
  for (size_t i = 0; i < length; ++i) {
    row[i] = spread * (UniformFloat(length, i) - 0.5F);
  }
  return row;
}

struct Stats {
  float max = 0.0F;
  float sum = 0.0F;
};
Stats ByBackend(Backend& backend, std::vector<float> row) {
  Stats stats;
  const auto cols = static_cast<int64_t>(row.size());
  const Status status =
      backend.SoftmaxStats({.x = {.dtype = DType::kF32,
                                  .data = reinterpret_cast<std::byte*>(row.data()),
                                  .rows = 1,
                                  .cols = cols,
                                  .stride = cols},
                            .max = std::span(&stats.max, 1),
                            .sum = std::span(&stats.sum, 1)});
  EXPECT_TRUE(status.ok()) << status.message();
  return stats;
}

TEST(RowScan, HasTheBitsOfSoftmaxStats) {
  std::vector<std::unique_ptr<Backend>> backends;
  backends.push_back(MakeReferenceBackend(Recipe::kServing, 1));
  if (Result<std::unique_ptr<Backend>> cpu = MakeCpuBackend(BestIsa(), 1); cpu.has_value()) {
    backends.push_back(std::move(*cpu));
  }
  const ScopedFlushSubnormals flush;
  for (const size_t length : kLengths) {
    for (const float spread : {1.0F, 30.0F, 250.0F}) {
      const std::vector<float> row = RandomRow(length, spread);
      const auto num_blocks = static_cast<size_t>(NumScanBlocks(static_cast<int64_t>(length)));
      std::vector<float> block_max(num_blocks);
      std::vector<double> block_sum(num_blocks);
      std::vector<double> portable(num_blocks);
      const RowMax scanned = ScanMax(row, block_max);
      const float sum = ScanSum(row, scanned.max, block_sum);
      EXPECT_TRUE(scanned.finite);
      EXPECT_EQ(std::bit_cast<uint32_t>(sum),
                std::bit_cast<uint32_t>(ScanSumPortable(row, scanned.max, portable)));
      EXPECT_EQ(block_sum, portable);
      for (const std::unique_ptr<Backend>& backend : backends) {
        const Stats expected = ByBackend(*backend, row);
        EXPECT_EQ(std::bit_cast<uint32_t>(scanned.max), std::bit_cast<uint32_t>(expected.max));
        EXPECT_EQ(std::bit_cast<uint32_t>(sum), std::bit_cast<uint32_t>(expected.sum))
            << backend->name() << " length " << length << " spread " << spread;
      }
    }
  }
}

TEST(RowScan, BlocksAreMaximaAndSumsOfTheirValues) {
  const ScopedFlushSubnormals flush;
  for (const size_t length : kLengths) {
    const std::vector<float> row = RandomRow(length, 20.0F);
    std::vector<float> block_max(static_cast<size_t>(NumScanBlocks(static_cast<int64_t>(length))));
    std::vector<double> block_sum(block_max.size());
    const float max = ScanMax(row, block_max).max;
    ScanSum(row, max, block_sum);
    for (size_t b = 0; b < block_max.size(); ++b) {
      const size_t begin = b * kScanBlock;
      const auto block =
          std::span(row).subspan(begin, std::min<size_t>(kScanBlock, length - begin));
      EXPECT_EQ(block_max[b], std::ranges::max(block));
      double sum = 0.0;
      for (const float x : block) {
        sum += static_cast<double>(ExpF32(x - max));
      }
      // 16 values a lane, added in FP32: 16 roundings of 2^-24, and four levels of lanes.
      EXPECT_NEAR(block_sum[b], sum, sum * 20.0 * 0x1p-24);
    }
  }
}

TEST(RowScan, SeesEveryBadValue) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  for (const size_t length : {size_t{1}, size_t{16}, size_t{300}, size_t{517}}) {
    std::vector<float> block_max(static_cast<size_t>(NumScanBlocks(static_cast<int64_t>(length))));
    for (size_t place = 0; place < length; place += 1 + length / 20) {
      for (const float bad : {kInf, -kInf, std::numeric_limits<float>::quiet_NaN()}) {
        std::vector<float> row = RandomRow(length, 5.0F);
        EXPECT_TRUE(ScanMax(row, block_max).finite);
        row[place] = bad;
        EXPECT_FALSE(ScanMax(row, block_max).finite) << length << " " << place;
      }
    }
  }
}

TEST(RowScan, DividesEveryValue) {
  for (const size_t length : kLengths) {
    std::vector<float> row = RandomRow(length, 20.0F);
    std::vector<float> expected = row;
    for (float& x : expected) {
      x /= 0.7F;
    }
    DivideRow(row, 0.7F);
    EXPECT_EQ(row, expected);
  }
}

TEST(RowScan, TakesTheLargestFiniteValues) {
  const std::vector<float> row = {-3.0F, std::numeric_limits<float>::max(), -0.0F};
  std::vector<float> block_max(1);
  const RowMax scanned = ScanMax(row, block_max);
  EXPECT_TRUE(scanned.finite);
  EXPECT_EQ(scanned.max, std::numeric_limits<float>::max());
  const std::vector<float> zero = {-0.0F};
  EXPECT_EQ(std::bit_cast<uint32_t>(ScanMax(zero, block_max).max), 0U);  // +0.
}

}  // namespace
}  // namespace octavo
