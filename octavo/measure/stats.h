#pragma once
// Summaries of measured samples.

#include <span>
#include <vector>

namespace octavo {

// The `percent`-th percentile (0..100) by linear interpolation between order statistics, as numpy
// does: position percent / 100 * (n - 1) of the sorted samples. 0 without samples.
double Percentile(std::span<const double> samples, double percent);
double Mean(std::span<const double> samples);  // 0 without samples.
// sqrt(mean((x - mean)^2)), over the population as numpy's std; 0 without samples.
double StandardDeviation(std::span<const double> samples);

// Median with the extremes of the repeats behind it.
struct Spread {
  double median = 0.0;
  double min = 0.0;
  double max = 0.0;
};
Spread SpreadOf(std::span<const double> samples);

// Of latencies in milliseconds.
struct LatencySummary {
  double mean = 0.0;
  double std = 0.0;  // StandardDeviation.
  double median = 0.0;
  double p90 = 0.0;
  double p95 = 0.0;
  double p99 = 0.0;
  double max = 0.0;
};
// `seconds` become milliseconds.
LatencySummary SummarizeLatency(std::span<const double> seconds);

}  // namespace octavo
