#include "octavo/model/attention.h"

#include <cmath>
#include <cstdint>
#include <utility>

#include "octavo/base/status.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/ops.h"
#include "octavo/model/activation_buffer.h"
#include "octavo/model/layer_step.h"
#include "octavo/model/model.h"
#include "octavo/model/rope_table.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/model/weight_rows.h"

namespace octavo {

Result<AttentionRows> FindAttention(const LayerRows& layer) {
  AttentionRows rows;
  ASSIGN_OR_RETURN(rows.q, layer.Linear("self_attn.q_proj"));
  ASSIGN_OR_RETURN(rows.k, layer.Linear("self_attn.k_proj"));
  ASSIGN_OR_RETURN(rows.v, layer.Linear("self_attn.v_proj"));
  ASSIGN_OR_RETURN(rows.o, layer.Linear("self_attn.o_proj"));
  return rows;
}

Result<GqaAttention> GqaAttention::Make(const ModelSpec& spec, const Backend& backend,
                                        const ModelLimits& limits) {
  GqaAttention made;
  made.num_heads_ = spec.num_heads;
  made.num_kv_heads_ = spec.num_kv_heads;
  made.head_dim_ = spec.head_dim;
  made.scale_ = static_cast<float>(1.0 / std::sqrt(static_cast<double>(spec.head_dim)));
  ASSIGN_OR_RETURN(made.rope_, RopeTable::Make(RopeSpecOf(spec), limits.max_context));
  const int64_t q_width = spec.num_heads * spec.head_dim;
  const int64_t kv_width = spec.num_kv_heads * spec.head_dim;
  const std::pair<ActivationBuffer*, int64_t> widths[] = {
      {&made.q_, q_width}, {&made.k_, kv_width}, {&made.v_, kv_width}, {&made.attention_, q_width}};
  for (const auto& [buffer, cols] : widths) {
    ASSIGN_OR_RETURN(*buffer,
                     ActivationBuffer::Make(backend.activation_dtype(), limits.max_tokens, cols));
  }
  return made;
}

Status GqaAttention::Project(const LayerStep& step, const BlockInput& input,
                             const AttentionRows& rows) {
  const int64_t tokens = step.num_tokens();
  const LinearPart qkv[] = {step.Part(rows.q, q_.Rows(tokens)), step.Part(rows.k, k_.Rows(tokens)),
                            step.Part(rows.v, v_.Rows(tokens))};
  return step.backend.Linear({.x = input.x, .parts = qkv, .norm = input.norm});
}

Status GqaAttention::NormHeads(const LayerStep& step, int q_norm_row, int k_norm_row, float eps) {
  const Activations q = HeadRows(q_.Rows(step.num_tokens()), num_heads_);
  const Activations k = HeadRows(k_.Rows(step.num_tokens()), num_kv_heads_);
  RETURN_IF_ERROR(step.Norm(q, q_norm_row, eps, q));
  return step.Norm(k, k_norm_row, eps, k);
}

Status GqaAttention::Rotate(const LayerStep& step, Activations x, int64_t num_heads) {
  return step.backend.Rope({.x = x,
                            .num_heads = num_heads,
                            .head_dim = head_dim_,
                            .positions = step.batch.positions,
                            .cos = rope_.cos(),
                            .sin = rope_.sin()});
}

Status GqaAttention::Attend(const LayerStep& step, const AttentionRows& rows) {
  const int64_t tokens = step.num_tokens();
  const Activations q = q_.Rows(tokens);
  const Activations k = k_.Rows(tokens);
  RETURN_IF_ERROR(Rotate(step, q, num_heads_));
  RETURN_IF_ERROR(Rotate(step, k, num_kv_heads_));
  RETURN_IF_ERROR(step.backend.KvStore(
      {.k = k, .v = v_.Rows(tokens), .segments = step.batch.segments, .kv = step.kv}));
  const Activations attention = attention_.Rows(tokens);
  RETURN_IF_ERROR(step.backend.Attention({.q = q,
                                          .y = attention,
                                          .segments = step.batch.segments,
                                          .kv = step.kv,
                                          .num_heads = num_heads_,
                                          .scale = scale_}));
  return step.Linear(attention, rows.o, step.delta);
}

}  // namespace octavo
