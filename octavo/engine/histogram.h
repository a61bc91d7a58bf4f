#pragma once
// Histogram: how often a value fell below each of some bounds, and what they sum to. What
// Prometheus calls one, before it is made cumulative.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace octavo {

// A value type of fixed size: observing allocates nothing. One thread.
class Histogram {
 public:
  static constexpr size_t kMaxBounds = 32;

  // `bounds`: ascending, at most kMaxBounds of them; they must outlive the histogram.
  explicit constexpr Histogram(std::span<const double> bounds) : bounds_(bounds) {}

  void Observe(double value) {
    const auto bucket = std::ranges::lower_bound(bounds_, value) - bounds_.begin();
    ++counts_[static_cast<size_t>(bucket)];
    ++count_;
    sum_ += value;
  }

  std::span<const double> bounds() const { return bounds_; }
  // Values v with bounds[i - 1] < v <= bounds[i]; the last one, i = bounds().size(), has no upper
  // bound.
  int64_t bucket_count(size_t bucket_idx) const { return counts_[bucket_idx]; }
  int64_t count() const { return count_; }
  double sum() const { return sum_; }

 private:
  std::span<const double> bounds_;
  std::array<int64_t, kMaxBounds + 1> counts_ = {};
  int64_t count_ = 0;
  double sum_ = 0.0;
};

}  // namespace octavo
