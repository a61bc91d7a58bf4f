// The `fp32` recipe: plain mathematics. Activations stay FP32, sums are FP64, exp and sqrt are
// libm's: what an FP32 run of the published model approximates.

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "octavo/kernels/reference/row_math.h"

namespace octavo {
namespace {

double DotF64(const float* a, const float* b, int64_t depth) {
  // Four sums, so that additions overlap: FP64 leaves no trace of the order in an FP32 result.
  double sums[4] = {};
  for (int64_t k = 0; k < depth; k += 4) {
    for (int64_t i = 0; i < 4; ++i) {
      sums[i] += double{a[k + i]} * double{b[k + i]};
    }
  }
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

float Dot(const float* a, const float* b, int64_t depth) {
  return static_cast<float>(DotF64(a, b, depth));
}

void RmsNorm(const float* x, const float* weight, int64_t n, float eps, float* y) {
  double sum_sq = 0.0;
  for (int64_t i = 0; i < n; ++i) {
    sum_sq += double{x[i]} * double{x[i]};
  }
  const double inv_rms = 1.0 / std::sqrt(sum_sq / static_cast<double>(n) + double{eps});
  for (int64_t i = 0; i < n; ++i) {
    y[i] = static_cast<float>(double{x[i]} * inv_rms * double{weight[i]});
  }
}

void Add(float* x, const float* delta, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    x[i] += delta[i];
  }
}

void SiluMul(const float* gate, const float* up, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) {
    y[i] = gate[i] / (1.0F + std::exp(-gate[i])) * up[i];
  }
}

void Rope(float* x, const float* cos, const float* sin, int64_t head_dim) {
  const int64_t half = head_dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float low = x[i];
    const float high = x[i + half];
    x[i] = low * cos[i] - high * sin[i];
    x[i + half] = high * cos[i] + low * sin[i];
  }
}

float ExpSum(const float* x, int64_t n, float max, float* y) {
  double sum = 0.0;
  for (int64_t i = 0; i < n; ++i) {
    const float p = std::exp(x[i] - max);
    sum += double{p};
    if (y != nullptr) {
      y[i] = p;
    }
  }
  return static_cast<float>(sum);
}

constexpr RowMath kTable = {.dot = Dot,
                            .dot_blocks = nullptr,
                            .rms_norm = RmsNorm,
                            .add = Add,
                            .silu_mul = SiluMul,
                            .rope = Rope,
                            .exp_sum = ExpSum};

}  // namespace

const RowMath& Fp32RowMath() { return kTable; }

}  // namespace octavo
