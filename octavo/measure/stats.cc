#include "octavo/measure/stats.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <span>
#include <vector>

namespace octavo {

namespace {

std::vector<double> Sorted(std::span<const double> samples) {
  std::vector<double> sorted(samples.begin(), samples.end());
  std::sort(sorted.begin(), sorted.end());
  return sorted;
}

double PercentileOfSorted(std::span<const double> sorted, double percent) {
  if (sorted.empty()) {
    return 0.0;
  }
  const double position = percent / 100.0 * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<size_t>(std::floor(position));
  const size_t above = std::min(below + 1, sorted.size() - 1);
  const double weight = position - std::floor(position);
  return sorted[below] + weight * (sorted[above] - sorted[below]);
}

}  // namespace

double Percentile(std::span<const double> samples, double percent) {
  return PercentileOfSorted(Sorted(samples), percent);
}

double Mean(std::span<const double> samples) {
  return samples.empty() ? 0.0
                         : std::accumulate(samples.begin(), samples.end(), 0.0) /
                               static_cast<double>(samples.size());
}

Spread SpreadOf(std::span<const double> samples) {
  return {Percentile(samples, 50.0), Percentile(samples, 0.0), Percentile(samples, 100.0)};
}

double StandardDeviation(std::span<const double> samples) {
  const double mean = Mean(samples);
  double sum_sq = 0.0;
  for (const double sample : samples) {
    sum_sq += (sample - mean) * (sample - mean);
  }
  return samples.empty() ? 0.0 : std::sqrt(sum_sq / static_cast<double>(samples.size()));
}

LatencySummary SummarizeLatency(std::span<const double> seconds) {
  constexpr double kMsPerSecond = 1000.0;
  const std::vector<double> sorted = Sorted(seconds);
  const auto percentile_ms = [&](double percent) {
    return kMsPerSecond * PercentileOfSorted(sorted, percent);
  };
  return {.mean = kMsPerSecond * Mean(seconds),
          .std = kMsPerSecond * StandardDeviation(seconds),
          .median = percentile_ms(50.0),
          .p90 = percentile_ms(90.0),
          .p95 = percentile_ms(95.0),
          .p99 = percentile_ms(99.0),
          .max = percentile_ms(100.0)};
}

}  // namespace octavo
