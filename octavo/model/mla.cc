#include "octavo/model/mla.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/ops.h"
#include "octavo/model/activation_buffer.h"
#include "octavo/model/layer_step.h"
#include "octavo/model/model.h"
#include "octavo/model/rope_table.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/model/weight_rows.h"

namespace octavo {

Result<MlaRows> FindMla(const ModelSpec& spec, const LayerRows& layer) {
  MlaRows rows;
  if (spec.mla.q_lora_rank > 0) {
    ASSIGN_OR_RETURN(rows.q_a, layer.Linear("self_attn.q_a_proj"));
    ASSIGN_OR_RETURN(rows.q_a_norm, layer.Weight("self_attn.q_a_layernorm"));
    ASSIGN_OR_RETURN(rows.q, layer.Linear("self_attn.q_b_proj"));
  } else {
    ASSIGN_OR_RETURN(rows.q, layer.Linear("self_attn.q_proj"));
  }
  ASSIGN_OR_RETURN(rows.kv_a, layer.Linear("self_attn.kv_a_proj_with_mqa"));
  ASSIGN_OR_RETURN(rows.kv_a_norm, layer.Weight("self_attn.kv_a_layernorm"));
  ASSIGN_OR_RETURN(rows.o, layer.Linear("self_attn.o_proj"));
  return rows;
}

Result<MlaAttention> MlaAttention::Make(const ModelSpec& spec, const Backend& backend,
                                        const ModelLimits& limits) {
  const MlaSpec& mla = spec.mla;
  const int64_t tokens = limits.max_tokens;
  const int64_t heads = spec.num_heads;
  MlaAttention made;
  made.spec_ = mla;
  made.num_heads_ = heads;
  made.head_dim_ = mla.qk_nope_head_dim + mla.qk_rope_head_dim;
  made.scale_ = static_cast<float>(MlaScoreFactor(spec.rope_scaling) /
                                   std::sqrt(static_cast<double>(made.head_dim_)));
  ASSIGN_OR_RETURN(made.rope_, RopeTable::Make(RopeSpecOf(spec), limits.max_context));
  const int64_t latent_width = mla.kv_lora_rank + mla.qk_rope_head_dim;
  const std::pair<ActivationBuffer*, std::pair<int64_t, int64_t>> shapes[] = {
      {&made.q_latent_, {tokens, mla.q_lora_rank}},
      {&made.q_, {tokens, heads * made.head_dim_}},
      {&made.latent_, {tokens, latent_width}},
      {&made.absorbed_, {tokens, heads * latent_width}},
      {&made.by_head_, {heads * tokens, std::max(mla.kv_lora_rank, mla.v_head_dim)}},
      {&made.attention_, {tokens, heads * mla.kv_lora_rank}},
      {&made.values_, {tokens, heads * mla.v_head_dim}}};
  for (const auto& [buffer, shape] : shapes) {
    ASSIGN_OR_RETURN(*buffer,
                     ActivationBuffer::Make(backend.activation_dtype(), shape.first, shape.second));
  }
  made.token_major_.resize(static_cast<size_t>(heads * tokens));
  made.head_major_.resize(static_cast<size_t>(heads * tokens));
  made.offsets_.resize(static_cast<size_t>(heads) + 1);
  made.matrices_.resize(static_cast<size_t>(heads));
  return made;
}

void MlaAttention::GroupByHead(int64_t tokens) {
  if (tokens == grouped_tokens_) {
    return;
  }
  grouped_tokens_ = tokens;
  for (int64_t h = 0; h <= num_heads_; ++h) {
    offsets_[static_cast<size_t>(h)] = static_cast<int32_t>(h * tokens);
  }
  for (int64_t h = 0; h < num_heads_; ++h) {
    for (int64_t t = 0; t < tokens; ++t) {
      token_major_[static_cast<size_t>(h * tokens + t)] = static_cast<int32_t>(t * num_heads_ + h);
      head_major_[static_cast<size_t>(t * num_heads_ + h)] = static_cast<int32_t>(h * tokens + t);
    }
  }
}

Status MlaAttention::MultiplyHeads(const LayerStep& step, const HeadsArgs& args) {
  const int64_t tokens = step.num_tokens();
  const auto num_rows = static_cast<size_t>(tokens * num_heads_);
  GroupByHead(tokens);
  for (size_t h = 0; h < matrices_.size(); ++h) {
    matrices_[h] = &step.weights.derived[args.first + h];
  }
  // Heads are the groups: one call streams all their matrices. The result comes head by head, which
  // for one token is the order that is wanted.
  const Activations by_head =
      tokens == 1 ? args.y : Columns(by_head_.Rows(args.y.rows), 0, args.y.cols);
  const GroupedPart parts[] = {{.weights = matrices_, .y = by_head}};
  RETURN_IF_ERROR(
      step.backend.GroupedLinear({.x = args.x,
                                  .source_rows = std::span(token_major_).first(num_rows),
                                  .offsets = offsets_,
                                  .parts = parts}));
  if (tokens == 1) {
    return OkStatus();
  }
  return step.backend.GatherRows(
      {.x = by_head, .rows = std::span(head_major_).first(num_rows), .y = args.y});
}

Status MlaAttention::Rotate(const LayerStep& step, Activations x, int64_t num_heads,
                            int64_t head_stride) {
  return step.backend.Rope({.x = x,
                            .num_heads = num_heads,
                            .head_dim = spec_.qk_rope_head_dim,
                            .positions = step.batch.positions,
                            .cos = rope_.cos(),
                            .sin = rope_.sin(),
                            .head_stride = head_stride,
                            .is_interleaved = spec_.is_rope_interleaved});
}

// q and the two parts of latent_, normed but not rotated.
Status MlaAttention::Project(const LayerStep& step, const BlockInput& input, const MlaRows& rows) {
  const int64_t tokens = step.num_tokens();
  const Activations q = q_.Rows(tokens);
  const Activations latent = latent_.Rows(tokens);
  const Activations c = Columns(latent, 0, spec_.kv_lora_rank);
  if (spec_.q_lora_rank > 0) {
    const Activations q_latent = q_latent_.Rows(tokens);
    const LinearPart parts[] = {step.Part(rows.q_a, q_latent), step.Part(rows.kv_a, latent)};
    RETURN_IF_ERROR(step.backend.Linear({.x = input.x, .parts = parts, .norm = input.norm}));
    const LinearPart q_b[] = {step.Part(rows.q, q)};
    RETURN_IF_ERROR(step.backend.Linear({.x = q_latent,
                                         .parts = q_b,
                                         .norm = RmsNormArgs{.x = q_latent,
                                                             .weight = step.Weight(rows.q_a_norm),
                                                             .eps = spec_.latent_norm_eps,
                                                             .y = q_latent}}));
  } else {
    const LinearPart parts[] = {step.Part(rows.q, q), step.Part(rows.kv_a, latent)};
    RETURN_IF_ERROR(step.backend.Linear({.x = input.x, .parts = parts, .norm = input.norm}));
  }
  return step.Norm(c, rows.kv_a_norm, spec_.latent_norm_eps, c);
}

Status MlaAttention::Run(const LayerStep& step, const BlockInput& input, const MlaRows& rows) {
  const int64_t tokens = step.num_tokens();
  const int64_t rope_dim = spec_.qk_rope_head_dim;
  const Activations latent = latent_.Rows(tokens);
  const Activations q_heads = HeadRows(q_.Rows(tokens), num_heads_);
  const Activations absorbed = absorbed_.Rows(tokens);
  const Activations absorbed_heads = HeadRows(absorbed, num_heads_);
  const int64_t latent_width = absorbed_heads.cols;
  const auto heads = static_cast<size_t>(num_heads_);
  const size_t first_matrix = static_cast<size_t>(step.layer) * 2 * heads;

  RETURN_IF_ERROR(Project(step, input, rows));
  RETURN_IF_ERROR(MultiplyHeads(step, {.x = Columns(q_heads, 0, spec_.qk_nope_head_dim),
                                       .first = first_matrix,
                                       .y = Columns(absorbed_heads, 0, spec_.kv_lora_rank)}));
  RETURN_IF_ERROR(step.backend.Copy({.x = Columns(q_heads, spec_.qk_nope_head_dim, rope_dim),
                                     .y = Columns(absorbed_heads, spec_.kv_lora_rank, rope_dim)}));
  // The first head's rotary part starts the view; what is beyond the last one's is never touched.
  Activations rotary = absorbed;
  rotary.data += spec_.kv_lora_rank * DTypeBytes(rotary.dtype);
  RETURN_IF_ERROR(Rotate(step, rotary, num_heads_, latent_width));
  RETURN_IF_ERROR(Rotate(step, Columns(latent, spec_.kv_lora_rank, rope_dim), 1, rope_dim));

  RETURN_IF_ERROR(step.backend.KvStore({.k = latent,
                                        .v = Columns(latent, 0, spec_.kv_lora_rank),
                                        .segments = step.batch.segments,
                                        .kv = step.kv}));
  const Activations attention = attention_.Rows(tokens);
  RETURN_IF_ERROR(step.backend.Attention({.q = absorbed,
                                          .y = attention,
                                          .segments = step.batch.segments,
                                          .kv = step.kv,
                                          .num_heads = num_heads_,
                                          .scale = scale_}));
  const Activations values = values_.Rows(tokens);
  RETURN_IF_ERROR(MultiplyHeads(step, {.x = HeadRows(attention, num_heads_),
                                       .first = first_matrix + heads,
                                       .y = HeadRows(values, num_heads_)}));
  return step.Linear(values, rows.o, step.delta);
}

}  // namespace octavo
