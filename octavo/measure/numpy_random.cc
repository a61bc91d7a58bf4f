#include "octavo/measure/numpy_random.h"

#include <bit>
#include <cmath>
#include <cstdint>

#include "octavo/base/check.h"

namespace octavo {

int64_t NumpyRandom::Integer(int64_t low, int64_t high) {
  CHECK(low < high);
  const auto range = static_cast<uint64_t>(high - low - 1);
  CHECK(range < UINT32_MAX);
  if (range == 0) {
    return low;  // Takes nothing from the generator.
  }
  const auto mask = static_cast<uint32_t>(std::bit_ceil(range + 1) - 1);
  uint32_t draw = 0;
  do {
    draw = static_cast<uint32_t>(engine_()) & mask;
  } while (draw > range);
  return low + int64_t{draw};
}

double NumpyRandom::Exponential(double scale) {
  // 53 bits of two words, in [0, 1).
  const auto high = static_cast<double>(engine_() >> 5);
  const auto low = static_cast<double>(engine_() >> 6);
  const double uniform = (high * 0x1p26 + low) * 0x1p-53;
  return -std::log(1.0 - uniform) * scale;
}

}  // namespace octavo
