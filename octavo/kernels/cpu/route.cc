#include "octavo/kernels/cpu/route.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include "octavo/base/tensor.h"
#include "octavo/kernels/cpu/cpu_path.h"
#include "octavo/kernels/ops.h"

namespace octavo::cpu {
namespace {

constexpr float kLowest = -std::numeric_limits<float>::infinity();

// The index of the largest value, the lowest of equal ones; the value becomes -inf.
size_t TakeLargest(std::span<float> values) {
  const auto best = std::ranges::max_element(values);
  *best = kLowest;
  return static_cast<size_t>(best - values.begin());
}

// Choices outside the best groups become -inf.
void MaskGroups(const RouteArgs& args, std::span<float> choices) {
  const auto num_groups = static_cast<size_t>(args.num_groups);
  const size_t group_size = choices.size() / num_groups;
  std::array<float, kMaxExperts> rank_storage;
  const std::span<float> ranks = std::span(rank_storage).first(num_groups);
  for (size_t g = 0; g < num_groups; ++g) {
    float first = choices[g * group_size];
    float second = kLowest;
    for (size_t i = 1; i < group_size; ++i) {
      const float choice = choices[g * group_size + i];
      second = std::max(second, std::min(first, choice));
      first = std::max(first, choice);
    }
    ranks[g] = group_size == 1 ? first : first + second;
  }
  std::array<bool, kMaxExperts> is_kept = {};
  for (int64_t i = 0; i < args.top_groups; ++i) {
    is_kept[TakeLargest(ranks)] = true;
  }
  for (size_t g = 0; g < num_groups; ++g) {
    if (!is_kept[g]) {
      std::ranges::fill(choices.subspan(g * group_size, group_size), kLowest);
    }
  }
}

}  // namespace

void RouteToken(const CpuPath& path, const RouteArgs& args, int64_t token) {
  const int64_t num_experts = args.logits.cols;
  const auto top_k = static_cast<size_t>(args.top_k);
  const std::span<int32_t> experts =
      args.experts.subspan(static_cast<size_t>(token) * top_k, top_k);
  const std::span<float> weights = args.weights.subspan(static_cast<size_t>(token) * top_k, top_k);
  std::array<float, kMaxExperts> p;
  const float* logits =
      reinterpret_cast<const float*>(args.logits.data) + token * args.logits.stride;
  if (args.logits.dtype == DType::kBf16) {
    path.rows.load_a32(Bf16Row(args.logits, token), num_experts, p.data());
    logits = p.data();
  }
  if (args.scoring == RouteScoring::kSoftmax) {
    path.rows.softmax(logits, num_experts, p.data());
  } else {
    path.rows.sigmoid(logits, num_experts, p.data());
  }
  std::array<float, kMaxExperts> choice_storage;
  const std::span<float> choices =
      std::span(choice_storage).first(static_cast<size_t>(num_experts));
  bool is_finite = true;
  for (size_t e = 0; e < choices.size(); ++e) {
    choices[e] = args.bias.empty() ? p[e] : p[e] + args.bias[e];
    is_finite = is_finite && std::isfinite(choices[e]);
  }
  if (!is_finite) {
    for (size_t k = 0; k < top_k; ++k) {
      experts[k] = static_cast<int32_t>(k);
      weights[k] = std::numeric_limits<float>::quiet_NaN();
    }
    return;
  }
  if (args.num_groups > 1) {
    MaskGroups(args, choices);
  }
  for (int32_t& expert : experts) {
    expert = static_cast<int32_t>(TakeLargest(choices));
  }
  std::ranges::sort(experts);
  float sum = 0.0F;
  for (size_t k = 0; k < top_k; ++k) {
    weights[k] = p[static_cast<size_t>(experts[k])];
    sum = sum + weights[k];
  }
  for (float& weight : weights) {
    weight = (args.norm_topk_prob ? weight / (sum + args.sum_eps) : weight) * args.scale;
  }
}

}  // namespace octavo::cpu
