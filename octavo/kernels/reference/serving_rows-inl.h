#pragma once
// The `serving` recipe, written to be checked against the formulas of ops.h line by line.
//
// Included by two files that differ in compiler flags alone: serving_rows_fma.cc (-mfma, so that
// std::fma is one instruction) and serving_rows.cc (std::fma is a libm call: the same bits,
// slower). `Variant` is a tag that keeps their symbols apart.

#include <cmath>
#include <cstdint>

#include "octavo/formats/bf16.h"
#include "octavo/kernels/math.h"
#include "octavo/kernels/reference/row_math.h"

namespace octavo::internal {

template <class Variant>
struct ServingRows {
  // A(v).
  static float Round(float v) { return Bf16ToFloat(FloatToBf16(v)); }

  // Lanes l and l + 8 are added, then l + 4, l + 2, l + 1.
  static float AddLanes(float (&lanes)[16]) {
    for (int step = 8; step >= 1; step /= 2) {
      for (int l = 0; l < step; ++l) {
        lanes[l] = lanes[l] + lanes[l + step];
      }
    }
    return lanes[0];
  }

  static float Dot(const float* a, const float* b, int64_t depth) {
    float c = 0.0F;
    for (int64_t tile = 0; tile < depth; tile += 32) {
      float e = 0.0F;
      float o = 0.0F;
      for (int64_t k = tile; k < tile + 32; k += 2) {
        e = std::fma(a[k], b[k], e);
        o = std::fma(a[k + 1], b[k + 1], o);
      }
      c = c + (e + o);
    }
    return c;
  }

  static float DotBlocks(const float* a, const float* b, int64_t depth, const float* sa,
                         const float* sw) {
    float acc = 0.0F;
    for (int64_t block = 0; block * 128 < depth; ++block) {
      const int64_t k = block * 128;
      const int64_t block_depth = depth - k < 128 ? depth - k : 128;
      const float p = Dot(a + k, b + k, block_depth);
      acc = std::fma(p, sa[block] * sw[block], acc);
    }
    return acc;
  }

  static void RmsNorm(const float* x, const float* weight, int64_t n, float eps, float* y) {
    float lanes[16] = {};
    for (int64_t i = 0; i < n; ++i) {
      lanes[i % 16] = std::fma(x[i], x[i], lanes[i % 16]);
    }
    const float mean = AddLanes(lanes) / static_cast<float>(n);
    const float inv_rms = 1.0F / std::sqrt(mean + eps);
    for (int64_t i = 0; i < n; ++i) {
      y[i] = Round(weight[i] * Round(x[i] * inv_rms));
    }
  }

  static void Add(float* x, const float* delta, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      x[i] = Round(x[i] + delta[i]);
    }
  }

  static void SiluMul(const float* gate, const float* up, int64_t n, float* y) {
    for (int64_t i = 0; i < n; ++i) {
      const float g = gate[i];
      y[i] = Round(Round(g / (1.0F + ExpF32(-g))) * up[i]);
    }
  }

  static void Rope(float* x, const float* cos, const float* sin, int64_t head_dim) {
    const int64_t half = head_dim / 2;
    for (int64_t i = 0; i < half; ++i) {
      const float low = x[i];
      const float high = x[i + half];
      x[i] = Round(std::fma(low, cos[i], -(high * sin[i])));
      x[i + half] = Round(std::fma(high, cos[i], low * sin[i]));
    }
  }

  static float ExpSum(const float* x, int64_t n, float max, float* y) {
    float lanes[16] = {};
    for (int64_t i = 0; i < n; ++i) {
      const float p = ExpF32(x[i] - max);
      lanes[i % 16] = lanes[i % 16] + p;
      if (y != nullptr) {
        y[i] = p;
      }
    }
    return AddLanes(lanes);
  }

  static constexpr RowMath kTable = {.dot = Dot,
                                     .dot_blocks = DotBlocks,
                                     .rms_norm = RmsNorm,
                                     .add = Add,
                                     .silu_mul = SiluMul,
                                     .rope = Rope,
                                     .exp_sum = ExpSum};
};

}  // namespace octavo::internal
