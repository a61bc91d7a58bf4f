#include "octavo/engine/row_scan.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include "octavo/kernels/math.h"

namespace octavo {
namespace {

// All loops over lanes have this constant length, which compilers turn into vectors.
constexpr size_t kLanes = 16;
constexpr auto kBlock = static_cast<size_t>(kScanBlock);
static_assert(kBlock % kLanes == 0);

using Lanes = std::array<float, kLanes>;

// Lanes l and l + 8 are added, then l + 4, l + 2, l + 1 (kernels/ops.h).
[[gnu::always_inline]] inline float AddLanes(Lanes lanes) {
  for (size_t width = kLanes / 2; width > 0; width /= 2) {
    for (size_t l = 0; l < width; ++l) {
      lanes[l] += lanes[l + width];
    }
  }
  return lanes[0];
}

// The exponentials of kLanes values, added to two sets of lanes.
[[gnu::always_inline]] inline void AddExps(const float* x, float max, Lanes& row, Lanes& block) {
  for (size_t l = 0; l < kLanes; ++l) {
    const float weight = ExpF32(x[l] - max);
    row[l] += weight;
    block[l] += weight;
  }
}

[[gnu::always_inline]] inline float ScanSumInline(std::span<const float> row, float max,
                                                  std::span<double> block_sum) {
  Lanes row_lanes = {};
  for (size_t b = 0; b < block_sum.size(); ++b) {
    const std::span<const float> block =
        row.subspan(b * kBlock, std::min(kBlock, row.size() - b * kBlock));
    Lanes block_lanes = {};
    size_t i = 0;
    for (; i + kLanes <= block.size(); i += kLanes) {
      AddExps(block.data() + i, max, row_lanes, block_lanes);
    }
    for (; i < block.size(); ++i) {
      const float weight = ExpF32(block[i] - max);
      row_lanes[i % kLanes] += weight;
      block_lanes[i % kLanes] += weight;
    }
    block_sum[b] = static_cast<double>(AddLanes(block_lanes));
  }
  return AddLanes(row_lanes);
}

// The largest magnitude's bits tell whether all are finite; NaNs have the largest of all.
[[gnu::always_inline]] inline RowMax ScanMaxInline(std::span<const float> row,
                                                   std::span<float> block_max) {
  constexpr float kLowest = -std::numeric_limits<float>::infinity();
  std::array<uint32_t, kLanes> magnitude = {};
  float row_max = kLowest;
  for (size_t b = 0; b < block_max.size(); ++b) {
    const std::span<const float> block =
        row.subspan(b * kBlock, std::min(kBlock, row.size() - b * kBlock));
    Lanes lanes;
    lanes.fill(kLowest);
    size_t i = 0;
    for (; i + kLanes <= block.size(); i += kLanes) {
      const float* x = block.data() + i;
      for (size_t l = 0; l < kLanes; ++l) {
        lanes[l] = x[l] > lanes[l] ? x[l] : lanes[l];
        const uint32_t bits = std::bit_cast<uint32_t>(x[l]) & 0x7FFFFFFFU;
        magnitude[l] = bits > magnitude[l] ? bits : magnitude[l];
      }
    }
    for (; i < block.size(); ++i) {
      lanes[0] = std::max(lanes[0], block[i]);
      magnitude[0] = std::max(magnitude[0], std::bit_cast<uint32_t>(block[i]) & 0x7FFFFFFFU);
    }
    block_max[b] = *std::ranges::max_element(lanes);
    row_max = std::max(row_max, block_max[b]);
  }
  return {.finite = *std::ranges::max_element(magnitude) < 0x7F800000U, .max = row_max + 0.0F};
}

[[gnu::always_inline]] inline void DivideRowInline(std::span<float> row, float divisor) {
  size_t i = 0;
  for (; i + kLanes <= row.size(); i += kLanes) {
    float* x = row.data() + i;
    for (size_t l = 0; l < kLanes; ++l) {
      x[l] = x[l] / divisor;
    }
  }
  for (; i < row.size(); ++i) {
    row[i] = row[i] / divisor;
  }
}

#if defined(__x86_64__)
// The same source where an FMA is one instruction instead of a call, and vectors are wider: the
// same bits, since a fused multiply-add is rounded once either way.
[[gnu::target("avx2,fma")]] float ScanSumAvx2(std::span<const float> row, float max,
                                              std::span<double> block_sum) {
  return ScanSumInline(row, max, block_sum);
}
[[gnu::target("avx512f,avx512vl,avx512dq,avx512bw,fma")]] float ScanSumAvx512(
    std::span<const float> row, float max, std::span<double> block_sum) {
  return ScanSumInline(row, max, block_sum);
}
[[gnu::target("avx2")]] RowMax ScanMaxAvx2(std::span<const float> row, std::span<float> block_max) {
  return ScanMaxInline(row, block_max);
}

[[gnu::target("avx2")]] void DivideRowAvx2(std::span<float> row, float divisor) {
  DivideRowInline(row, divisor);
}

bool HasAvx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool HasAvx512() {
  return HasAvx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
}
#endif

}  // namespace

RowMax ScanMax(std::span<const float> row, std::span<float> block_max) {
#if defined(__x86_64__)
  if (HasAvx2()) {
    return ScanMaxAvx2(row, block_max);
  }
#endif
  return ScanMaxInline(row, block_max);
}

float ScanSumPortable(std::span<const float> row, float max, std::span<double> block_sum) {
  return ScanSumInline(row, max, block_sum);
}

float ScanSum(std::span<const float> row, float max, std::span<double> block_sum) {
#if defined(__x86_64__)
  if (HasAvx512()) {
    return ScanSumAvx512(row, max, block_sum);
  }
  if (HasAvx2()) {
    return ScanSumAvx2(row, max, block_sum);
  }
#endif
  return ScanSumPortable(row, max, block_sum);
}

void DivideRow(std::span<float> row, float divisor) {
#if defined(__x86_64__)
  if (HasAvx2()) {
    DivideRowAvx2(row, divisor);
    return;
  }
#endif
  DivideRowInline(row, divisor);
}

}  // namespace octavo
