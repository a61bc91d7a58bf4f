#pragma once
// The draws of numpy's legacy generator, so that a run with the seed of another benchmark sends the
// same traffic.
//
// Source: numpy's RandomState (numpy/random/src/mt19937 and legacy): MT19937 seeded with one
// number, bounded integers by masked rejection, exponentials by inversion.

#include <cstdint>
#include <random>

namespace octavo {

// One thread.
class NumpyRandom {
 public:
  explicit NumpyRandom(uint32_t seed) : engine_(seed) {}

  // One element of np.random.randint(low, high, size=n): uniform in [low, high). The range must be
  // 1 to 2^32 - 1 values wide.
  int64_t Integer(int64_t low, int64_t high);

  // np.random.exponential(scale).
  double Exponential(double scale);

 private:
  std::mt19937 engine_;
};

}  // namespace octavo
