#pragma once
// The arithmetic of the reference backend, one row at a time. Two recipes: `serving` with every
// rounding and summation order of ops.h, and `fp32` with none of them.

#include <cstdint>

namespace octavo {

// All pointers are FP32; values of BF16 tensors arrive exactly widened. Thread-safe functions.
struct RowMath {
  // sum_k a[k] b[k]; `depth` is a multiple of 32, zero-padded. serving: MatMul order.
  float (*dot)(const float* a, const float* b, int64_t depth);
  // serving alone (null in fp32): acc of LinearArgs for fp8, from exact codes `a` with sa[block of
  // 128] and `b` with sw[block].
  float (*dot_blocks)(const float* a, const float* b, int64_t depth, const float* sa,
                      const float* sw);
  // The formulas of RmsNormArgs, AddArgs, SiluMulArgs and RopeArgs (one head) on one row of n.
  void (*rms_norm)(const float* x, const float* weight, int64_t n, float eps, float* y);
  void (*add)(float* x, const float* delta, int64_t n);
  void (*silu_mul)(const float* gate, const float* up, int64_t n, float* y);
  void (*rope)(float* x, const float* cos, const float* sin, int64_t head_dim);
  // Sum of p[i] = Exp(x[i] - max) (serving: lane sum); y[i] = p[i] unless y is null. y may be x.
  float (*exp_sum)(const float* x, int64_t n, float max, float* y);
};

const RowMath& Fp32RowMath();
// With FMA instructions where the processor has them, by libm's fmaf (the same bits) elsewhere.
const RowMath& ServingRowMath();

namespace internal {
const RowMath& ServingRowMathHardwareFma();
const RowMath& ServingRowMathLibmFma();
}  // namespace internal

}  // namespace octavo
