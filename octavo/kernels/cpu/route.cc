#include "octavo/kernels/cpu/route.h"

#include <algorithm>
#include <array>
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

// Choices outside the best groups become -inf.
void MaskGroups(const CpuPath& path, const RouteArgs& args, std::span<float> choices) {
  const auto num_groups = static_cast<size_t>(args.num_groups);
  const size_t group_size = choices.size() / num_groups;
  std::array<float, kMaxExperts> ranks;
  std::array<float, kMaxExperts> group;
  for (size_t g = 0; g < num_groups; ++g) {
    std::ranges::copy(choices.subspan(g * group_size, group_size), group.begin());
    const auto size = static_cast<int64_t>(group_size);
    float first = 0.0F;
    float second = 0.0F;
    (void)path.rows.take_largest(size, group.data(), &first);
    if (group_size > 1) {
      (void)path.rows.take_largest(size, group.data(), &second);
    }
    ranks[g] = group_size == 1 ? first : first + second;
  }
  std::array<bool, kMaxExperts> is_kept;
  std::fill_n(is_kept.begin(), num_groups, false);
  for (int64_t i = 0; i < args.top_groups; ++i) {
    float rank = 0.0F;
    const int64_t best = path.rows.take_largest(args.num_groups, ranks.data(), &rank);
    is_kept[static_cast<size_t>(best)] = true;
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
  const bool is_finite = path.rows.choose(p.data(), args.bias.empty() ? nullptr : args.bias.data(),
                                          num_experts, choices.data());
  if (!is_finite) {
    for (size_t k = 0; k < top_k; ++k) {
      experts[k] = static_cast<int32_t>(k);
      weights[k] = std::numeric_limits<float>::quiet_NaN();
    }
    return;
  }
  if (args.num_groups > 1) {
    MaskGroups(path, args, choices);
  }
  for (int32_t& expert : experts) {
    float choice = 0.0F;
    expert = static_cast<int32_t>(path.rows.take_largest(num_experts, choices.data(), &choice));
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
