#include "octavo/measure/stats.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace octavo {

double Percentile(std::span<const double> samples, double percent) {
  if (samples.empty()) {
    return 0.0;
  }
  std::vector<double> sorted(samples.begin(), samples.end());
  std::sort(sorted.begin(), sorted.end());
  const double position = percent / 100.0 * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<size_t>(std::floor(position));
  const size_t above = std::min(below + 1, sorted.size() - 1);
  const double weight = position - std::floor(position);
  return sorted[below] + weight * (sorted[above] - sorted[below]);
}

double Mean(std::span<const double> samples) {
  return samples.empty() ? 0.0
                         : std::accumulate(samples.begin(), samples.end(), 0.0) /
                               static_cast<double>(samples.size());
}

Spread SpreadOf(std::span<const double> samples) {
  return {Percentile(samples, 50.0), Percentile(samples, 0.0), Percentile(samples, 100.0)};
}

LatencySummary SummarizeLatency(std::span<const double> seconds) {
  constexpr double kMsPerSecond = 1000.0;
  return {.mean = kMsPerSecond * Mean(seconds),
          .median = kMsPerSecond * Percentile(seconds, 50.0),
          .p90 = kMsPerSecond * Percentile(seconds, 90.0),
          .p95 = kMsPerSecond * Percentile(seconds, 95.0),
          .p99 = kMsPerSecond * Percentile(seconds, 99.0),
          .max = kMsPerSecond * Percentile(seconds, 100.0)};
}

}  // namespace octavo
