#include "octavo/engine/exp_row.h"

#include <cstddef>
#include <span>

#include "octavo/kernels/math.h"

namespace octavo {
namespace {

void ExpRowPortable(std::span<const float> row, float max, std::span<float> weights) {
  for (size_t i = 0; i < row.size(); ++i) {
    weights[i] = ExpF32(row[i] - max);
  }
}

#if defined(__x86_64__)
// The same source where an FMA is one instruction instead of a call: about ten times as fast, and
// the same bits, since a fused multiply-add is rounded once either way.
[[gnu::target("avx2,fma")]] void ExpRowFma(std::span<const float> row, float max,
                                           std::span<float> weights) {
  const float* x = row.data();
  float* y = weights.data();
  const size_t size = row.size();
  for (size_t i = 0; i < size; ++i) {
    y[i] = ExpF32(x[i] - max);
  }
}
#endif

}  // namespace

void ExpRow(std::span<const float> row, float max, std::span<float> weights) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("fma") && __builtin_cpu_supports("avx2")) {
    ExpRowFma(row, max, weights);
    return;
  }
#endif
  ExpRowPortable(row, max, weights);
}

}  // namespace octavo
