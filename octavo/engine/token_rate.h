#pragma once
// TokenRate: tokens a second over the last few seconds.

#include <array>
#include <cstdint>

namespace octavo {

// One bucket a second; a value type. One thread.
class TokenRate {
 public:
  static constexpr int64_t kWindowSeconds = 5;

  // `second`: of a steady clock, never decreasing.
  void Add(int64_t second, int64_t num_tokens) {
    Bucket& bucket = buckets_[static_cast<size_t>(second % kNumBuckets)];
    if (bucket.second != second) {
      bucket = {.second = second, .num_tokens = 0};
    }
    bucket.num_tokens += num_tokens;
  }

  // Mean of the whole seconds (second - kWindowSeconds, ..., second - 1); the present one is not
  // over and would pull the figure down.
  double PerSecond(int64_t second) const {
    int64_t num_tokens = 0;
    for (const Bucket& bucket : buckets_) {
      if (bucket.second < second && bucket.second >= second - kWindowSeconds) {
        num_tokens += bucket.num_tokens;
      }
    }
    return static_cast<double>(num_tokens) / static_cast<double>(kWindowSeconds);
  }

 private:
  static constexpr int64_t kNumBuckets = kWindowSeconds + 1;
  struct Bucket {
    int64_t second = -1;
    int64_t num_tokens = 0;
  };
  std::array<Bucket, kNumBuckets> buckets_;
};

}  // namespace octavo
