#include "octavo/model/spec/spec_builder.h"

#include <fmt/core.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/checkpoint/hf_config.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/model/spec/text_prefix.h"

namespace octavo {
namespace {

// Beyond these no model exists, and shapes stay far from overflow: a product of two is below 2^62.
constexpr int64_t kMaxLayers = 4096;
constexpr int64_t kMaxDim = int64_t{1} << 30;
// The largest published models have about 24,000.
constexpr int64_t kMaxExpertsOfModel = int64_t{1} << 18;

Status CheckUpTo(std::string_view key, int64_t value, int64_t max) {
  if (value < 1 || value > max) {
    return InvalidArgument("config.json: {}: expected 1 to {}, got {}", key, max, value);
  }
  return OkStatus();
}

Status CheckBase(const HfConfig& config) {
  RETURN_IF_ERROR(CheckSpecDim("hidden_size", config.hidden_size));
  RETURN_IF_ERROR(CheckUpTo("num_hidden_layers", config.num_layers, kMaxLayers));
  if (config.num_mtp_layers < 0 || config.num_mtp_layers > kMaxLayers) {
    return InvalidArgument("config.json: num_nextn_predict_layers: expected 0 to {}, got {}",
                           kMaxLayers, config.num_mtp_layers);
  }
  RETURN_IF_ERROR(CheckSpecDim("num_attention_heads", config.num_heads));
  RETURN_IF_ERROR(CheckSpecDim("num_key_value_heads", config.num_kv_heads));
  RETURN_IF_ERROR(CheckSpecDim("head_dim", config.head_dim));
  RETURN_IF_ERROR(CheckSpecDim("intermediate_size", config.intermediate_size));
  RETURN_IF_ERROR(CheckSpecDim("vocab_size", config.vocab_size));
  RETURN_IF_ERROR(
      CheckSpecDim("num_attention_heads * head_dim", config.num_heads * config.head_dim));
  RETURN_IF_ERROR(CheckSpecDim("max_position_embeddings", config.max_position_embeddings));
  if (config.num_heads % config.num_kv_heads != 0) {
    return InvalidArgument(
        "config.json: num_attention_heads: expected a multiple of num_key_value_heads ({}), got {}",
        config.num_kv_heads, config.num_heads);
  }
  if (config.head_dim % 2 != 0) {
    return InvalidArgument("config.json: head_dim: expected an even number, got {}",
                           config.head_dim);
  }
  return OkStatus();
}

}  // namespace

Status CheckSpecDim(std::string_view key, int64_t value) { return CheckUpTo(key, value, kMaxDim); }

Result<ModelSpec> MakeBaseSpec(const HfConfig& config, std::string_view prefix) {
  RETURN_IF_ERROR(CheckBase(config));
  ModelSpec spec;
  spec.architecture = config.architecture;
  spec.prefix = prefix;
  spec.hidden_size = config.hidden_size;
  spec.num_layers = config.num_layers;
  spec.num_mtp_layers = config.num_mtp_layers;
  spec.num_heads = config.num_heads;
  spec.num_kv_heads = config.num_kv_heads;
  spec.head_dim = config.head_dim;
  spec.intermediate_size = config.intermediate_size;
  spec.vocab_size = config.vocab_size;
  spec.max_position_embeddings = config.max_position_embeddings;
  spec.rms_norm_eps = static_cast<float>(config.rms_norm_eps);
  spec.rope_theta = config.rope_theta;
  spec.rope_scaling = config.rope_scaling;
  spec.tie_word_embeddings = config.tie_word_embeddings;
  return spec;
}

Status FillMoeSizes(const HfConfig& config, MoeSpec* out) {
  const HfMoeConfig& moe = config.moe;
  const int64_t num_layers = config.num_layers + config.num_mtp_layers;
  RETURN_IF_ERROR(CheckSpecDim("num_experts", moe.num_experts));
  RETURN_IF_ERROR(CheckUpTo("num_hidden_layers * num_experts", num_layers * moe.num_experts,
                            kMaxExpertsOfModel));
  RETURN_IF_ERROR(CheckUpTo("num_experts_per_tok", moe.num_experts_per_tok, moe.num_experts));
  RETURN_IF_ERROR(CheckSpecDim("moe_intermediate_size", moe.moe_intermediate_size));
  out->num_experts = moe.num_experts;
  out->top_k = moe.num_experts_per_tok;
  out->intermediate_size = moe.moe_intermediate_size;
  return OkStatus();
}

void TableBuilder::Add(std::string_view name, Role role, Shape shape) {
  spec_->weights.push_back({.name = layer_prefix_ + std::string(name),
                            .role = role,
                            .layer = layer_,
                            .shape = std::move(shape),
                            .expert = expert_,
                            .is_mtp = layer_ >= spec_->num_layers});
}

void TableBuilder::AddEmbedding() {
  Add(spec_->prefix + "embed_tokens.weight", Role::kEmbedding,
      {spec_->vocab_size, spec_->hidden_size});
}

void TableBuilder::AddFinalNorm() {
  layer_prefix_.clear();
  layer_ = -1;
  Add(spec_->prefix + "norm.weight", Role::kNorm, {spec_->hidden_size});
}

void TableBuilder::AddHead() {
  if (!spec_->tie_word_embeddings) {
    Add(HeadNameOf(spec_->prefix), Role::kLmHead, {spec_->vocab_size, spec_->hidden_size});
  }
}

void TableBuilder::BeginLayer(int64_t layer) {
  layer_ = static_cast<int>(layer);
  layer_prefix_ = fmt::format("{}layers.{}.", spec_->prefix, layer);
}

void TableBuilder::AddNorm(std::string_view module, int64_t dim) {
  Add(std::string(module) + ".weight", Role::kNorm, {dim});
}

void TableBuilder::AddLinear(std::string_view module, Role role, int64_t num_out, int64_t num_in) {
  Add(std::string(module) + ".weight", role, {num_out, num_in});
}

void TableBuilder::AddBias(std::string_view module, int64_t num_out) {
  Add(std::string(module) + ".bias", Role::kBias, {num_out});
}

void TableBuilder::AddGqaAttention() {
  const ModelSpec& spec = *spec_;
  const int64_t hidden = spec.hidden_size;
  const int64_t q_dim = spec.num_heads * spec.head_dim;
  const int64_t kv_dim = spec.num_kv_heads * spec.head_dim;
  const auto add = [this](std::string_view module, Role role, std::pair<int64_t, int64_t> out_in,
                          bool has_bias) {
    AddLinear(module, role, out_in.first, out_in.second);
    if (has_bias) {
      AddBias(module, out_in.first);
    }
  };
  add("self_attn.q_proj", Role::kAttentionQ, {q_dim, hidden}, spec.has_qkv_bias);
  add("self_attn.k_proj", Role::kAttentionK, {kv_dim, hidden}, spec.has_qkv_bias);
  add("self_attn.v_proj", Role::kAttentionV, {kv_dim, hidden}, spec.has_qkv_bias);
  if (spec.has_qk_norm) {
    AddNorm("self_attn.q_norm", spec.head_dim);
    AddNorm("self_attn.k_norm", spec.head_dim);
  }
  add("self_attn.o_proj", Role::kAttentionO, {hidden, q_dim}, spec.has_o_bias);
}

void TableBuilder::AddGatedMlp(std::string_view module, MlpRoles roles, int64_t width) {
  const int64_t hidden = spec_->hidden_size;
  const std::string stem(module);
  AddLinear(stem + ".gate_proj", roles.gate, width, hidden);
  AddLinear(stem + ".up_proj", roles.up, width, hidden);
  AddLinear(stem + ".down_proj", roles.down, hidden, width);
}

void TableBuilder::AddMlp(bool has_router_bias) {
  const MoeSpec& moe = spec_->moe;
  if (!IsSparseLayer(*spec_, layer_)) {
    AddGatedMlp("mlp", {Role::kMlpGate, Role::kMlpUp, Role::kMlpDown}, spec_->intermediate_size);
    return;
  }
  AddLinear("mlp.gate", Role::kRouter, moe.num_experts, spec_->hidden_size);
  if (has_router_bias) {
    Add("mlp.gate.e_score_correction_bias", Role::kRouterBias, {moe.num_experts});
  }
  for (int64_t expert = 0; expert < moe.num_experts; ++expert) {
    expert_ = static_cast<int>(expert);
    AddGatedMlp(fmt::format("mlp.experts.{}", expert),
                {Role::kExpertGate, Role::kExpertUp, Role::kExpertDown}, moe.intermediate_size);
  }
  expert_ = -1;
  if (moe.shared_intermediate_size != 0) {
    AddGatedMlp("mlp.shared_experts",
                {Role::kSharedExpertGate, Role::kSharedExpertUp, Role::kSharedExpertDown},
                moe.shared_intermediate_size);
  }
}

}  // namespace octavo
