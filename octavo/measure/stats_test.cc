// Method: percentiles worked out by hand from the rule of linear interpolation; an odd and an even
// number of samples, ends, one sample and none.

#include "octavo/measure/stats.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace octavo {
namespace {

TEST(Percentile, InterpolatesBetweenOrderStatistics) {
  const std::vector<double> samples = {40.0, 10.0, 20.0, 30.0};  // Sorted: 10 20 30 40.
  EXPECT_DOUBLE_EQ(Percentile(samples, 0.0), 10.0);
  EXPECT_DOUBLE_EQ(Percentile(samples, 100.0), 40.0);
  EXPECT_DOUBLE_EQ(Percentile(samples, 50.0), 25.0);  // Position 1.5.
  EXPECT_DOUBLE_EQ(Percentile(samples, 90.0), 37.0);  // Position 2.7: 30 + 0.7 * 10.
  EXPECT_DOUBLE_EQ(Percentile(samples, 25.0), 17.5);  // Position 0.75: 10 + 0.75 * 10.
}

TEST(Percentile, HoldsForFewSamples) {
  EXPECT_EQ(Percentile({}, 50.0), 0.0);
  const double one[] = {7.0};
  EXPECT_EQ(Percentile(one, 0.0), 7.0);
  EXPECT_EQ(Percentile(one, 99.0), 7.0);
  const double three[] = {3.0, 1.0, 2.0};
  EXPECT_EQ(Percentile(three, 50.0), 2.0);
}

TEST(Mean, IsTheArithmeticOne) {
  EXPECT_EQ(Mean({}), 0.0);
  const double samples[] = {1.0, 2.0, 6.0};
  EXPECT_DOUBLE_EQ(Mean(samples), 3.0);
}

TEST(StandardDeviation, IsOverThePopulation) {
  EXPECT_EQ(StandardDeviation({}), 0.0);
  const double samples[] = {2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0};
  EXPECT_DOUBLE_EQ(StandardDeviation(samples), 2.0);  // sqrt((9 + 1 + 1 + 1 + 0 + 0 + 4 + 16) / 8)
}

TEST(SpreadOf, GivesMedianAndExtremes) {
  const double samples[] = {5.0, 1.0, 2.0};
  const Spread spread = SpreadOf(samples);
  EXPECT_EQ(spread.median, 2.0);
  EXPECT_EQ(spread.min, 1.0);
  EXPECT_EQ(spread.max, 5.0);
}

TEST(SummarizeLatency, ReportsMilliseconds) {
  std::vector<double> seconds;  // 0 .. 100 ms, so that a percentile is its own value.
  for (int i = 0; i <= 100; ++i) {
    seconds.push_back(1e-3 * i);
  }
  const LatencySummary summary = SummarizeLatency(seconds);
  EXPECT_NEAR(summary.mean, 50.0, 1e-9);
  // The mean of (i - 50)^2 over 101 values is (101^2 - 1) / 12 = 850.
  EXPECT_NEAR(summary.std, std::sqrt(850.0), 1e-9);
  EXPECT_NEAR(summary.median, 50.0, 1e-9);
  EXPECT_NEAR(summary.p90, 90.0, 1e-9);
  EXPECT_NEAR(summary.p95, 95.0, 1e-9);
  EXPECT_NEAR(summary.p99, 99.0, 1e-9);
  EXPECT_NEAR(summary.max, 100.0, 1e-9);
}

}  // namespace
}  // namespace octavo
