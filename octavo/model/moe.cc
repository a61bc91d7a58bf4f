#include "octavo/model/moe.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/formats/bf16.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/matrix.h"
#include "octavo/kernels/ops.h"
#include "octavo/model/activation_buffer.h"
#include "octavo/model/layer_step.h"
#include "octavo/model/mlp.h"
#include "octavo/model/model.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/model/weight_rows.h"

namespace octavo {
namespace {

// What DeepSeek-V3 adds to the sum of the chosen scores before dividing by it.
constexpr float kSigmoidSumEps = 1e-20F;

}  // namespace

Result<MoeRows> FindMoe(const ModelSpec& spec, const LayerRows& layer) {
  MoeRows rows;
  ASSIGN_OR_RETURN(rows.router, layer.Weight("mlp.gate"));
  if (spec.moe.scoring == RouterScoring::kSigmoid) {
    ASSIGN_OR_RETURN(rows.router_bias, layer.Named("mlp.gate.e_score_correction_bias"));
  }
  for (int64_t expert = 0; expert < spec.moe.num_experts; ++expert) {
    ASSIGN_OR_RETURN(const MlpRows mlp, FindMlp(layer, fmt::format("mlp.experts.{}", expert)));
    rows.gate.push_back(mlp.gate.weight);
    rows.up.push_back(mlp.up.weight);
    rows.down.push_back(mlp.down.weight);
  }
  if (spec.moe.shared_intermediate_size > 0) {
    ASSIGN_OR_RETURN(rows.shared, FindMlp(layer, "mlp.shared_experts"));
  }
  return rows;
}

Result<MoeBlock> MoeBlock::Make(const ModelSpec& spec, const Backend& backend,
                                const ModelLimits& limits) {
  const MoeSpec& moe = spec.moe;
  const DType dtype = backend.activation_dtype();
  const int64_t tokens = limits.max_tokens;
  const int64_t slots = tokens * moe.top_k;
  MoeBlock made;
  made.spec_ = moe;
  made.num_layers_ = spec.num_layers;
  // Softmax routers compute in A as HF's do; a sigmoid router's logits stay in FP32.
  ASSIGN_OR_RETURN(made.logits_, ActivationBuffer::Make(
                                     moe.scoring == RouterScoring::kSigmoid ? DType::kF32 : dtype,
                                     tokens, moe.num_experts));
  ASSIGN_OR_RETURN(made.gate_, ActivationBuffer::Make(dtype, slots, moe.intermediate_size));
  ASSIGN_OR_RETURN(made.up_, ActivationBuffer::Make(dtype, slots, moe.intermediate_size));
  ASSIGN_OR_RETURN(made.down_, ActivationBuffer::Make(dtype, slots, spec.hidden_size));
  if (moe.shared_intermediate_size > 0) {
    ASSIGN_OR_RETURN(made.shared_, ActivationBuffer::Make(dtype, tokens, spec.hidden_size));
    ASSIGN_OR_RETURN(made.shared_mlp_, GatedMlp::Make(dtype, tokens, moe.shared_intermediate_size));
  }
  const auto num_slots = static_cast<size_t>(slots);
  const auto num_experts = static_cast<size_t>(moe.num_experts);
  made.experts_.resize(num_slots);
  made.weights_.resize(num_slots);
  made.source_rows_.resize(num_slots);
  made.row_of_slot_.resize(num_slots);
  made.offsets_.resize(num_experts + 1);
  made.sorted_rows_.resize(num_slots);
  std::iota(made.sorted_rows_.begin(), made.sorted_rows_.end(), 0);
  made.bias_.resize(num_experts);
  made.gate_weights_.resize(num_experts);
  made.up_weights_.resize(num_experts);
  made.down_weights_.resize(num_experts);
  made.routed_.resize(num_slots * static_cast<size_t>(spec.num_layers));
  return made;
}

std::span<const PackedMatrix* const> MoeBlock::Experts(const LayerStep& step,
                                                       std::span<const int> rows,
                                                       std::vector<const PackedMatrix*>* experts) {
  for (size_t e = 0; e < rows.size(); ++e) {
    (*experts)[e] = step.Weight(rows[e]);
  }
  return *experts;
}

// A checkpoint has it in F32, or in BF16 as all its other weights.
std::span<const float> MoeBlock::Bias(const PackedMatrix& stored) {
  if (stored.vector_dtype == DType::kF32) {
    return stored.codes.As<float>();
  }
  std::ranges::transform(stored.codes.As<uint16_t>(), bias_.begin(), Bf16ToFloat);
  return bias_;
}

Status MoeBlock::Route(const LayerStep& step, const BlockInput& input, const MoeRows& rows) {
  const int64_t tokens = step.num_tokens();
  const auto slots = static_cast<size_t>(tokens * spec_.top_k);
  const bool is_sigmoid = spec_.scoring == RouterScoring::kSigmoid;
  const Activations logits = logits_.Rows(tokens);
  const LinearPart router[] = {{.weight = step.Weight(rows.router), .y = logits}};
  RETURN_IF_ERROR(step.backend.Linear({.x = input.x, .parts = router, .norm = input.norm}));
  std::span<const float> bias;
  if (const PackedMatrix* stored = step.Weight(rows.router_bias); stored != nullptr) {
    bias = Bias(*stored);
  }
  RETURN_IF_ERROR(
      step.backend.Route({.logits = logits,
                          .scoring = is_sigmoid ? RouteScoring::kSigmoid : RouteScoring::kSoftmax,
                          .bias = bias,
                          .num_groups = spec_.num_groups,
                          .top_groups = spec_.top_groups,
                          .norm_topk_prob = spec_.norm_topk_prob,
                          .sum_eps = is_sigmoid ? kSigmoidSumEps : 0.0F,
                          .scale = static_cast<float>(spec_.routed_scaling_factor),
                          .top_k = spec_.top_k,
                          .experts = std::span(experts_).first(slots),
                          .weights = std::span(weights_).first(slots)}));
  Record(step);
  return step.backend.SortByExpert({.experts = std::span(experts_).first(slots),
                                    .top_k = spec_.top_k,
                                    .source_rows = std::span(source_rows_).first(slots),
                                    .row_of_slot = std::span(row_of_slot_).first(slots),
                                    .offsets = offsets_});
}

void MoeBlock::Record(const LayerStep& step) {
  const auto top_k = static_cast<size_t>(spec_.top_k);
  for (int64_t t = 0; t < step.num_tokens(); ++t) {
    const auto chosen = std::span(experts_).subspan(static_cast<size_t>(t) * top_k, top_k);
    std::ranges::copy(chosen,
                      std::span(routed_)
                          .subspan(static_cast<size_t>(t * num_layers_ + step.layer) * top_k, top_k)
                          .begin());
  }
}

Status MoeBlock::RunExperts(const LayerStep& step, Activations x, const MoeRows& rows) {
  const int64_t slots = step.num_tokens() * spec_.top_k;
  const Activations gate = gate_.Rows(slots);
  const Activations up = up_.Rows(slots);
  const GroupedPart gate_up[] = {{.weights = Experts(step, rows.gate, &gate_weights_), .y = gate},
                                 {.weights = Experts(step, rows.up, &up_weights_), .y = up}};
  RETURN_IF_ERROR(step.backend.GroupedLinear(
      {.x = x,
       .source_rows = std::span(source_rows_).first(static_cast<size_t>(slots)),
       .offsets = offsets_,
       .parts = gate_up}));
  const GroupedPart down[] = {
      {.weights = Experts(step, rows.down, &down_weights_), .y = down_.Rows(slots)}};
  return step.backend.GroupedLinear(
      {.x = gate,
       .source_rows = std::span(sorted_rows_).first(static_cast<size_t>(slots)),
       .offsets = offsets_,
       .parts = down,
       .silu_mul = SiluMulArgs{.gate = gate, .up = up, .y = gate}});
}

Status MoeBlock::Run(const LayerStep& step, const BlockInput& input, const MoeRows& rows) {
  const int64_t tokens = step.num_tokens();
  const auto slots = static_cast<size_t>(tokens * spec_.top_k);
  RETURN_IF_ERROR(Route(step, input, rows));
  RETURN_IF_ERROR(RunExperts(step, input.x, rows));
  Activations shared;
  if (rows.shared) {
    shared = shared_.Rows(tokens);
    RETURN_IF_ERROR(shared_mlp_->Run(step, {.x = input.x}, *rows.shared, shared));
  }
  return step.backend.Combine({.x = down_.Rows(static_cast<int64_t>(slots)),
                               .row_of_slot = std::span(row_of_slot_).first(slots),
                               .weights = std::span(weights_).first(slots),
                               .top_k = spec_.top_k,
                               .shared = shared,
                               .y = step.delta});
}

}  // namespace octavo
