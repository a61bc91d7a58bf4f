// Everything that works on rows: rounding, norms, rope, softmax.

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "octavo/kernels/cpu/rows_simd.cc"
#ifndef HWY_WANT_AVX3_DL
#define HWY_WANT_AVX3_DL
#endif
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4)

// What the AVX targets use; the baseline target, which tools look at, is empty.
// NOLINTBEGIN(misc-include-cleaner)
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "octavo/kernels/cpu/kernel_table.h"
#include "octavo/kernels/cpu/layout.h"
#include "octavo/kernels/cpu/vec-inl.h"
// NOLINTEND(misc-include-cleaner)

HWY_BEFORE_NAMESPACE();
namespace octavo::cpu::HWY_NAMESPACE {

#if OCTAVO_CPU_TARGET

// An A element is FP32 (AVX paths) or BF16 bits (AMX); `v` already holds a BF16 value.
HWY_INLINE void StoreA(VF v, int64_t count, float* a) { StoreF32(v, count, a); }
HWY_INLINE void StoreA(VF v, int64_t count, uint16_t* a) {
  StoreU16(UpperHalves(hn::BitCast(DU32(), v)), count, a);
}

void LoadA32(const uint16_t* x, int64_t n, float* a) {
  for (int64_t i = 0; i < n; i += kLanes) {
    StoreA(LoadBf16(x + i, n - i), n - i, a + i);
  }
}

// --- Rows of activations ------------------------------------------------------------------------

void RmsNorm(const uint16_t* x, const uint16_t* weight, int64_t n, float eps, uint16_t* y) {
  const DF d;
  VF sums[kVecs];
  for (VF& sum : sums) {
    sum = hn::Zero(d);
  }
  for (int64_t i = 0; i < n; i += 16) {
    for (int64_t v = 0; v < kVecs; ++v) {
      const int64_t at = i + v * kLanes;
      const VF value = LoadBf16(x + at, n - at);
      sums[v] = hn::MulAdd(value, value, sums[v]);
    }
  }
  const float mean = AddLanes(sums) / static_cast<float>(n);
  const VF inv_rms = hn::Set(d, 1.0F / std::sqrt(mean + eps));
  for (int64_t i = 0; i < n; i += kLanes) {
    const VF normed = RoundToBf16(hn::Mul(LoadBf16(x + i, n - i), inv_rms));
    StoreBf16(hn::Mul(LoadBf16(weight + i, n - i), normed), n - i, y + i);
  }
}

void Add(const uint16_t* delta, int64_t n, uint16_t* x) {
  for (int64_t i = 0; i < n; i += kLanes) {
    StoreBf16(hn::Add(LoadBf16(x + i, n - i), LoadBf16(delta + i, n - i)), n - i, x + i);
  }
}

void SiluMul(const uint16_t* gate, const uint16_t* up, int64_t n, uint16_t* y) {
  const DF d;
  for (int64_t i = 0; i < n; i += kLanes) {
    const VF g = LoadBf16(gate + i, n - i);
    const VF silu = RoundToBf16(hn::Div(g, hn::Add(hn::Set(d, 1.0F), Exp(hn::Neg(g)))));
    StoreBf16(hn::Mul(silu, LoadBf16(up + i, n - i)), n - i, y + i);
  }
}

// y[i] and y[half + i] from low and high, which may be y.
HWY_INLINE void RotatePairs(const float* cos, const float* sin, int64_t half, const uint16_t* low,
                            const uint16_t* high, uint16_t* y) {
  for (int64_t i = 0; i < half; i += kLanes) {
    const VF l = LoadBf16(low + i, half - i);
    const VF h = LoadBf16(high + i, half - i);
    const VF c = LoadF32(cos + i, half - i);
    const VF s = LoadF32(sin + i, half - i);
    StoreBf16(hn::MulSub(l, c, hn::Mul(h, s)), half - i, y + i);
    StoreBf16(hn::MulAdd(h, c, hn::Mul(l, s)), half - i, y + half + i);
  }
}

void Rope(const float* cos, const float* sin, int64_t head_dim, uint16_t* x) {
  RotatePairs(cos, sin, head_dim / 2, x, x + head_dim / 2, x);
}

void RopeInterleaved(const float* cos, const float* sin, int64_t head_dim, uint16_t* x) {
  const int64_t half = head_dim / 2;
  HWY_ALIGN uint16_t low[kMaxInterleavedDim / 2];
  HWY_ALIGN uint16_t high[kMaxInterleavedDim / 2];
  for (int64_t i = 0; i < half; ++i) {
    low[i] = x[2 * i];
    high[i] = x[2 * i + 1];
  }
  RotatePairs(cos, sin, half, low, high, x);
}

// --- Mixture of experts -------------------------------------------------------------------------

void CombineRow(const CombineRowArgs& args) {
  const DF d;
  for (int64_t i = 0; i < args.n; i += kLanes) {
    VF sum = hn::Zero(d);
    for (int64_t k = 0; k < args.top_k; ++k) {
      const VF x = LoadBf16(args.x + args.rows[k] * args.x_stride + i, args.n - i);
      sum = hn::MulAdd(hn::Set(d, args.weights[k]), x, sum);
    }
    if (args.shared != nullptr) {
      sum = hn::Add(sum, LoadBf16(args.shared + i, args.n - i));
    }
    StoreBf16(sum, args.n - i, args.y + i);
  }
}

bool Choose(const float* p, const float* bias, int64_t n, float* choices) {
  const DF d;
  const VF infinity = hn::Inf(d);
  auto is_finite = hn::FirstN(d, static_cast<size_t>(kLanes));
  for (int64_t i = 0; i < n; i += kLanes) {
    VF choice = LoadF32(p + i, n - i);
    if (bias != nullptr) {
      choice = hn::Add(choice, LoadF32(bias + i, n - i));
    }
    is_finite = hn::And(is_finite, hn::Lt(hn::Abs(choice), infinity));
    StoreF32(choice, n - i, choices + i);
  }
  return hn::AllTrue(d, is_finite);
}

// Elements from n on are -inf.
HWY_INLINE VF LoadOrLowest(const float* x, int64_t n) {
  const DF d;
  if (HWY_LIKELY(n >= kLanes)) {
    return hn::LoadU(d, x);
  }
  const auto valid = hn::FirstN(d, static_cast<size_t>(n));
  return hn::IfThenElse(valid, LoadF32(x, n), hn::Neg(hn::Inf(d)));
}

int64_t TakeLargest(int64_t n, float* x, float* largest) {
  const DF d;
  VF max = LoadOrLowest(x, n);
  for (int64_t i = kLanes; i < n; i += kLanes) {
    max = hn::Max(max, LoadOrLowest(x + i, n - i));
  }
  max = hn::MaxOfLanes(d, max);
  *largest = hn::GetLane(max);
  for (int64_t i = 0; i < n; i += kLanes) {
    const auto is_largest = hn::Eq(LoadOrLowest(x + i, n - i), max);
    if (!hn::AllFalse(d, is_largest)) {
      const int64_t at = i + hn::FindFirstTrue(d, is_largest);
      x[at] = -std::numeric_limits<float>::infinity();
      return at;
    }
  }
  return 0;
}

void Sigmoid(const float* x, int64_t n, float* p) {
  const VF one = hn::Set(DF(), 1.0F);
  for (int64_t i = 0; i < n; i += kLanes) {
    const VF e = Exp(hn::Neg(LoadF32(x + i, n - i)));
    StoreF32(hn::Div(one, hn::Add(one, e)), n - i, p + i);
  }
}

// --- Softmax ------------------------------------------------------------------------------------

// Of max(a, b) = a > b ? a : b only: a NaN among x does not survive, as in the reference.
HWY_INLINE VF Larger(VF x, VF max) { return hn::IfThenElse(hn::Gt(x, max), x, max); }

HWY_INLINE float LargestLane(VF v) {
  float lanes[kLanes];
  hn::StoreU(v, DF(), lanes);
  return *std::max_element(lanes, lanes + kLanes) + 0.0F;
}

float ScaleMax(float scale, int64_t n, float* s) {
  const DF d;
  const VF factor = hn::Set(d, scale);
  const VF lowest = hn::Neg(hn::Inf(d));
  VF max = lowest;
  for (int64_t i = 0; i < n; i += kLanes) {
    const VF value = hn::Mul(factor, LoadF32(s + i, n - i));
    StoreF32(value, n - i, s + i);
    const auto valid = hn::FirstN(d, static_cast<size_t>(std::min(n - i, kLanes)));
    max = Larger(hn::IfThenElse(valid, value, lowest), max);
  }
  return LargestLane(max);
}

float Max(const float* x, int64_t n) {
  const DF d;
  const VF lowest = hn::Neg(hn::Inf(d));
  VF max[4] = {lowest, lowest, lowest, lowest};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    for (int64_t v = 0; v < 4; ++v) {
      max[v] = Larger(hn::LoadU(d, x + i + v * kLanes), max[v]);
    }
  }
  for (; i < n; i += kLanes) {
    const auto valid = hn::FirstN(d, static_cast<size_t>(std::min(n - i, kLanes)));
    max[0] = Larger(hn::IfThenElse(valid, LoadF32(x + i, n - i), lowest), max[0]);
  }
  return LargestLane(Larger(Larger(max[0], max[1]), Larger(max[2], max[3])));
}

// Exp(x[at + lane] - max), zero from element n on.
HWY_INLINE VF ExpLanes(const float* x, int64_t at, int64_t n, VF max) {
  const DF d;
  const VF p = Exp(hn::Sub(LoadF32(x + at, n - at), max));
  if (HWY_LIKELY(n - at >= kLanes)) {
    return p;
  }
  return hn::IfThenElseZero(hn::FirstN(d, static_cast<size_t>(std::max<int64_t>(n - at, 0))), p);
}

float ExpSum(const float* x, int64_t n, float max) {
  const DF d;
  VF sums[kVecs];
  for (VF& sum : sums) {
    sum = hn::Zero(d);
  }
  for (int64_t i = 0; i < n; i += 16) {
    for (int64_t v = 0; v < kVecs; ++v) {
      sums[v] = hn::Add(sums[v], ExpLanes(x, i + v * kLanes, n, hn::Set(d, max)));
    }
  }
  return AddLanes(sums);
}

void Softmax(const float* x, int64_t n, float* p) {
  const DF d;
  const VF max = hn::Set(d, Max(x, n));
  VF sums[kVecs];
  for (VF& sum : sums) {
    sum = hn::Zero(d);
  }
  for (int64_t i = 0; i < n; i += 16) {
    for (int64_t v = 0; v < kVecs; ++v) {
      const int64_t at = i + v * kLanes;
      const VF e = ExpLanes(x, at, n, max);
      sums[v] = hn::Add(sums[v], e);
      StoreF32(e, n - at, p + at);
    }
  }
  const VF sum = hn::Set(d, AddLanes(sums));
  for (int64_t i = 0; i < n; i += kLanes) {
    StoreF32(hn::Div(LoadF32(p + i, n - i), sum), n - i, p + i);
  }
}

// In place: the A elements are no larger than the FP32 values that they replace, and are written
// behind the reads.
template <typename A>
float ExpSumToA(float max, int64_t n, int64_t padded, float* x) {
  const DF d;
  auto* a = reinterpret_cast<A*>(x);
  VF sums[kVecs];
  for (VF& sum : sums) {
    sum = hn::Zero(d);
  }
  for (int64_t i = 0; i < n; i += 16) {
    for (int64_t v = 0; v < kVecs; ++v) {
      const int64_t at = i + v * kLanes;
      const VF p = ExpLanes(x, at, n, hn::Set(d, max));
      sums[v] = hn::Add(sums[v], p);
      StoreA(RoundToBf16(p), padded - at, a + at);
    }
  }
  for (int64_t i = RoundUp(n, 16); i < padded; i += kLanes) {
    StoreA(hn::Zero(d), padded - i, a + i);
  }
  return AddLanes(sums);
}

void Divide(const float* o, float sum, int64_t n, uint16_t* y) {
  const DF d;
  for (int64_t i = 0; i < n; i += kLanes) {
    const VF quotient = hn::Div(LoadF32(o + i, n - i), hn::Set(d, sum));
    StoreBf16(hn::Add(quotient, hn::Zero(d)), n - i, y + i);
  }
}

constexpr RowKernels kRowKernels = {.load_a32 = LoadA32,
                                    .rms_norm = RmsNorm,
                                    .add = Add,
                                    .silu_mul = SiluMul,
                                    .rope = Rope,
                                    .rope_interleaved = RopeInterleaved,
                                    .softmax = Softmax,
                                    .sigmoid = Sigmoid,
                                    .choose = Choose,
                                    .take_largest = TakeLargest,
                                    .combine = CombineRow,
                                    .scale_max = ScaleMax,
                                    .max = Max,
                                    .exp_sum = ExpSum,
                                    .exp_sum_a32 = ExpSumToA<float>,
                                    .exp_sum_a16 = ExpSumToA<uint16_t>,
                                    .divide = Divide};

#endif  // OCTAVO_CPU_TARGET

}  // namespace octavo::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace octavo::cpu {

const RowKernels* FindRowKernels(VectorTarget target) {
  switch (target) {
    case VectorTarget::kAvx2:
#if HWY_TARGETS & HWY_AVX2
      return &N_AVX2::kRowKernels;
#else
      return nullptr;
#endif
    case VectorTarget::kAvx512:
#if HWY_TARGETS & HWY_AVX3
      return &N_AVX3::kRowKernels;
#else
      return nullptr;
#endif
    case VectorTarget::kAvx512Vbmi:
#if HWY_TARGETS & HWY_AVX3_DL
      return &N_AVX3_DL::kRowKernels;
#else
      return nullptr;
#endif
  }
  return nullptr;
}

}  // namespace octavo::cpu
#endif  // HWY_ONCE
