// Routing and combining of the reference backend.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include "octavo/base/status.h"
#include "octavo/base/thread_pool.h"
#include "octavo/kernels/check_args.h"
#include "octavo/kernels/math.h"
#include "octavo/kernels/ops.h"
#include "octavo/kernels/reference/reference_backend.h"
#include "octavo/kernels/reference/row_math.h"

namespace octavo::reference {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The index of the largest value, the lowest of equal ones; the value becomes -inf.
size_t TakeLargest(std::span<float> values) {
  size_t best = 0;
  for (size_t i = 1; i < values.size(); ++i) {
    best = values[i] > values[best] ? i : best;
  }
  values[best] = -kInfinity;
  return best;
}

// Replaces logits by p of RouteArgs.
void Score(const RowMath& math, const RouteArgs& args, bool is_serving, std::span<float> p) {
  if (args.scoring == RouteScoring::kSigmoid) {
    for (float& x : p) {
      x = 1.0F / (1.0F + (is_serving ? ExpF32(-x) : std::exp(-x)));
    }
    return;
  }
  float max = -kInfinity;
  for (const float x : p) {
    max = x > max ? x : max;
  }
  const float sum = math.exp_sum(p.data(), static_cast<int64_t>(p.size()), max, p.data());
  for (float& x : p) {
    x = x / sum;
  }
}

// Choices outside the best groups become -inf. `ranks` is scratch, one element a group.
void MaskGroups(const RouteArgs& args, std::span<float> choices, std::span<float> ranks) {
  const size_t group_size = choices.size() / ranks.size();
  for (size_t g = 0; g < ranks.size(); ++g) {
    const std::span<float> group = choices.subspan(g * group_size, group_size);
    float first = -kInfinity;
    float second = -kInfinity;
    for (const float choice : group) {
      second = std::max(second, std::min(first, choice));
      first = std::max(first, choice);
    }
    ranks[g] = group_size == 1 ? first : first + second;
  }
  for (int64_t i = 0; i < args.top_groups; ++i) {
    (void)TakeLargest(ranks);
  }
  for (size_t g = 0; g < ranks.size(); ++g) {
    if (ranks[g] != -kInfinity) {
      std::ranges::fill(choices.subspan(g * group_size, group_size), -kInfinity);
    }
  }
}

// One token; `scratch` has 3 * experts elements.
void RouteToken(const RowMath& math, const RouteArgs& args, int64_t token, bool is_serving,
                std::span<float> scratch) {
  const auto num_experts = static_cast<size_t>(args.logits.cols);
  const auto top_k = static_cast<size_t>(args.top_k);
  const std::span<float> p = scratch.first(num_experts);
  const std::span<float> choices = scratch.subspan(num_experts, num_experts);
  const std::span<int32_t> experts =
      args.experts.subspan(static_cast<size_t>(token) * top_k, top_k);
  const std::span<float> weights = args.weights.subspan(static_cast<size_t>(token) * top_k, top_k);
  LoadRow(args.logits, token, 0, args.logits.cols, p.data());
  Score(math, args, is_serving, p);
  for (size_t e = 0; e < num_experts; ++e) {
    choices[e] = args.bias.empty() ? p[e] : p[e] + args.bias[e];
  }
  if (!std::ranges::all_of(choices, [](float x) { return std::isfinite(x); })) {
    for (size_t k = 0; k < top_k; ++k) {
      experts[k] = static_cast<int32_t>(k);
      weights[k] = std::numeric_limits<float>::quiet_NaN();
    }
    return;
  }
  if (args.num_groups > 1) {
    MaskGroups(args, choices,
               scratch.subspan(2 * num_experts, static_cast<size_t>(args.num_groups)));
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

}  // namespace

Status ReferenceBackend::Route(const RouteArgs& args) {
  CheckArgs(args, activation_dtype());
  const OpScope scope(*this);
  ReserveRow(3 * args.logits.cols);
  pool_.ParallelFor(args.logits.rows, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t t = begin; t < end; ++t) {
      RouteToken(math_, args, t, is_serving(), workers_[static_cast<size_t>(worker)].row);
    }
  });
  return OkStatus();
}

Status ReferenceBackend::Combine(const CombineArgs& args) {
  CheckArgs(args, activation_dtype());
  const OpScope scope(*this);
  const int64_t n = args.y.cols;
  ReserveRow(2 * n);
  pool_.ParallelFor(args.y.rows, [&](int64_t begin, int64_t end, int worker) {
    float* sum = workers_[static_cast<size_t>(worker)].row.data();
    float* x = sum + n;
    for (int64_t t = begin; t < end; ++t) {
      std::fill_n(sum, n, 0.0F);
      for (int64_t slot = t * args.top_k; slot < (t + 1) * args.top_k; ++slot) {
        const float weight = args.weights[static_cast<size_t>(slot)];
        LoadRow(args.x, args.row_of_slot[static_cast<size_t>(slot)], 0, n, x);
        for (int64_t i = 0; i < n; ++i) {
          sum[i] = std::fma(weight, x[i], sum[i]);
        }
      }
      if (args.shared.data != nullptr) {
        LoadRow(args.shared, t, 0, n, x);
        for (int64_t i = 0; i < n; ++i) {
          sum[i] = sum[i] + x[i];
        }
      }
      StoreRow(args.y, t, 0, n, sum);
    }
  });
  return OkStatus();
}

}  // namespace octavo::reference
