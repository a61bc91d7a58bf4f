#include "octavo/model/spec/deepseek_v3_spec.h"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "octavo/base/status.h"
#include "octavo/checkpoint/hf_config.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/model/spec/spec_builder.h"

namespace octavo {
namespace {

Result<MlaSpec> MakeMla(const HfConfig& config) {
  const HfMlaConfig& mla = config.mla;
  RETURN_IF_ERROR(CheckSpecDim("kv_lora_rank", mla.kv_lora_rank));
  if (mla.q_lora_rank != 0) {
    RETURN_IF_ERROR(CheckSpecDim("q_lora_rank", mla.q_lora_rank));
  }
  RETURN_IF_ERROR(CheckSpecDim("qk_nope_head_dim", mla.qk_nope_head_dim));
  RETURN_IF_ERROR(CheckSpecDim("qk_rope_head_dim", mla.qk_rope_head_dim));
  RETURN_IF_ERROR(CheckSpecDim("v_head_dim", mla.v_head_dim));
  RETURN_IF_ERROR(CheckSpecDim("num_attention_heads * (qk_nope_head_dim + qk_rope_head_dim)",
                               config.num_heads * (mla.qk_nope_head_dim + mla.qk_rope_head_dim)));
  RETURN_IF_ERROR(CheckSpecDim("num_attention_heads * (qk_nope_head_dim + v_head_dim)",
                               config.num_heads * (mla.qk_nope_head_dim + mla.v_head_dim)));
  if (mla.qk_rope_head_dim % 2 != 0) {
    return InvalidArgument("config.json: qk_rope_head_dim: expected an even number, got {}",
                           mla.qk_rope_head_dim);
  }
  if (config.num_kv_heads != config.num_heads) {
    return InvalidArgument(
        "config.json: num_key_value_heads: expected num_attention_heads {} as latent attention "
        "has, got {}",
        config.num_heads, config.num_kv_heads);
  }
  return MlaSpec{.q_lora_rank = mla.q_lora_rank,
                 .kv_lora_rank = mla.kv_lora_rank,
                 .qk_nope_head_dim = mla.qk_nope_head_dim,
                 .qk_rope_head_dim = mla.qk_rope_head_dim,
                 .v_head_dim = mla.v_head_dim,
                 .is_rope_interleaved = mla.rope_interleave.value_or(true)};
}

Status RefuseOtherRouting(const HfConfig& config) {
  const HfMoeConfig& moe = config.moe;
  if (!moe.scoring_func.empty() && moe.scoring_func != "sigmoid") {
    return RefuseSetting(config, "scoring_func", "sigmoid", moe.scoring_func);
  }
  if (!moe.topk_method.empty() && moe.topk_method != "noaux_tc") {
    return RefuseSetting(config, "topk_method", "noaux_tc", moe.topk_method);
  }
  if (moe.decoder_sparse_step != 1) {
    return RefuseSetting(config, "decoder_sparse_step", "1", moe.decoder_sparse_step);
  }
  if (!moe.mlp_only_layers.empty()) {
    return RefuseSetting(config, "mlp_only_layers", "none", moe.mlp_only_layers.size());
  }
  return OkStatus();
}

// A member that a mixture must have: HF's defaults are those of one model and fit no other.
template <typename T>
Status Require(std::string_view key, const std::optional<T>& value) {
  return value ? OkStatus()
               : InvalidArgument("config.json: {}: expected a number, got nothing", key);
}

Status CheckGroups(const MoeSpec& moe) {
  if (moe.num_groups < 1 || moe.num_experts % moe.num_groups != 0) {
    return InvalidArgument(
        "config.json: n_group: expected a divisor of n_routed_experts {}, got {}", moe.num_experts,
        moe.num_groups);
  }
  const int64_t group_experts = moe.num_experts / moe.num_groups;
  if (group_experts < 2) {  // A group's rank is the sum of its two best.
    return InvalidArgument(
        "config.json: n_group: expected groups of 2 experts or more, got {} of {} experts",
        moe.num_groups, moe.num_experts);
  }
  if (moe.top_groups < 1 || moe.top_groups > moe.num_groups) {
    return InvalidArgument("config.json: topk_group: expected 1 to n_group {}, got {}",
                           moe.num_groups, moe.top_groups);
  }
  if (moe.top_k > moe.top_groups * group_experts) {
    return InvalidArgument(
        "config.json: num_experts_per_tok: expected at most {} experts of {} groups, got {}",
        moe.top_groups * group_experts, moe.top_groups, moe.top_k);
  }
  return OkStatus();
}

Status FillMoe(const HfConfig& config, MoeSpec* out) {
  const HfMoeConfig& moe = config.moe;
  RETURN_IF_ERROR(RefuseOtherRouting(config));
  RETURN_IF_ERROR(FillMoeSizes(config, out));
  RETURN_IF_ERROR(CheckSpecDim("moe_layer_freq", moe.moe_layer_freq));
  RETURN_IF_ERROR(Require("first_k_dense_replace", moe.first_k_dense_replace));
  RETURN_IF_ERROR(Require("n_shared_experts", moe.n_shared_experts));
  RETURN_IF_ERROR(Require("n_group", moe.n_group));
  RETURN_IF_ERROR(Require("topk_group", moe.topk_group));
  RETURN_IF_ERROR(Require("routed_scaling_factor", moe.routed_scaling_factor));
  if (*moe.n_shared_experts != 0) {
    RETURN_IF_ERROR(CheckSpecDim("n_shared_experts", *moe.n_shared_experts));
    out->shared_intermediate_size = moe.moe_intermediate_size * *moe.n_shared_experts;
    RETURN_IF_ERROR(
        CheckSpecDim("moe_intermediate_size * n_shared_experts", out->shared_intermediate_size));
  }
  out->scoring = RouterScoring::kSigmoid;
  out->norm_topk_prob = moe.norm_topk_prob.value_or(true);  // The default of HF's class.
  out->num_groups = *moe.n_group;
  out->top_groups = *moe.topk_group;
  out->routed_scaling_factor = *moe.routed_scaling_factor;
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    out->is_sparse.push_back(layer >= *moe.first_k_dense_replace &&
                             layer % moe.moe_layer_freq == 0);
  }
  out->is_sparse.resize(out->is_sparse.size() + static_cast<size_t>(config.num_mtp_layers), true);
  return CheckGroups(*out);
}

void AddAttention(const ModelSpec& spec, TableBuilder* table) {
  const MlaSpec& mla = spec.mla;
  const int64_t hidden = spec.hidden_size;
  const int64_t q_dim = spec.num_heads * spec.head_dim;
  const int64_t kv_a_dim = mla.kv_lora_rank + mla.qk_rope_head_dim;
  const auto add_biased = [&](std::string_view module, Role role, int64_t num_out, bool has_bias) {
    const int64_t num_in = role == Role::kAttentionO ? spec.num_heads * mla.v_head_dim : hidden;
    table->AddLinear(module, role, num_out, num_in);
    if (has_bias) {
      table->AddBias(module, num_out);
    }
  };
  if (mla.q_lora_rank == 0) {
    table->AddLinear("self_attn.q_proj", Role::kAttentionQ, q_dim, hidden);
  } else {
    add_biased("self_attn.q_a_proj", Role::kMlaQA, mla.q_lora_rank, spec.has_qkv_bias);
    table->AddNorm("self_attn.q_a_layernorm", mla.q_lora_rank);
    table->AddLinear("self_attn.q_b_proj", Role::kMlaQB, q_dim, mla.q_lora_rank);
  }
  add_biased("self_attn.kv_a_proj_with_mqa", Role::kMlaKvA, kv_a_dim, spec.has_qkv_bias);
  table->AddNorm("self_attn.kv_a_layernorm", mla.kv_lora_rank);
  table->AddLinear("self_attn.kv_b_proj", Role::kMlaKvB,
                   spec.num_heads * (mla.qk_nope_head_dim + mla.v_head_dim), mla.kv_lora_rank);
  add_biased("self_attn.o_proj", Role::kAttentionO, hidden, spec.has_o_bias);
}

void AddDecoderLayer(const ModelSpec& spec, TableBuilder* table) {
  table->AddNorm("input_layernorm", spec.hidden_size);
  AddAttention(spec, table);
  table->AddNorm("post_attention_layernorm", spec.hidden_size);
  table->AddMlp(/*has_router_bias=*/true);
}

void AddMtpLayer(const ModelSpec& spec, TableBuilder* table) {
  const int64_t hidden = spec.hidden_size;
  table->AddLinear("embed_tokens", Role::kEmbedding, spec.vocab_size, hidden);
  table->AddNorm("enorm", hidden);
  table->AddNorm("hnorm", hidden);
  table->AddLinear("eh_proj", Role::kMtpProjection, hidden, 2 * hidden);
  AddDecoderLayer(spec, table);
  table->AddNorm("shared_head.norm", hidden);
  table->AddLinear("shared_head.head", Role::kLmHead, spec.vocab_size, hidden);
}

}  // namespace

Result<ModelSpec> MakeDeepseekV3Spec(const HfConfig& config, std::string_view prefix) {
  ASSIGN_OR_RETURN(ModelSpec spec, MakeBaseSpec(config, prefix));
  ASSIGN_OR_RETURN(spec.mla, MakeMla(config));
  spec.head_dim = spec.mla.qk_nope_head_dim + spec.mla.qk_rope_head_dim;
  spec.has_qkv_bias = config.attention_bias;
  spec.has_o_bias = config.attention_bias;
  if (config.moe.num_experts != 0) {
    RETURN_IF_ERROR(FillMoe(config, &spec.moe));
  }
  TableBuilder table(&spec);
  table.AddEmbedding();
  for (int64_t layer = 0; layer < spec.num_layers; ++layer) {
    table.BeginLayer(layer);
    AddDecoderLayer(spec, &table);
  }
  table.AddFinalNorm();
  table.AddHead();
  for (int64_t layer = spec.num_layers; layer < spec.num_layers + spec.num_mtp_layers; ++layer) {
    table.BeginLayer(layer);
    AddMtpLayer(spec, &table);
  }
  return spec;
}

}  // namespace octavo
