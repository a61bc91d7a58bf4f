#include "octavo/model/spec/qwen3_spec.h"

#include <fmt/core.h>

#include <cstdint>
#include <string_view>
#include <utility>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/checkpoint/hf_config.h"
#include "octavo/model/spec/model_spec.h"

namespace octavo {
namespace {

// Beyond these no Qwen3 exists, and shapes stay far from overflow: a product of two is below 2^62.
constexpr int64_t kMaxLayers = 4096;
constexpr int64_t kMaxDim = int64_t{1} << 30;

Status CheckDim(std::string_view key, int64_t value, int64_t max) {
  if (value < 1 || value > max) {
    return InvalidArgument("config.json: {}: expected 1 to {}, got {}", key, max, value);
  }
  return OkStatus();
}

Status CheckConfig(const HfConfig& config) {
  if (config.attention_bias) {
    return Unsupported("config.json: attention_bias: expected false, got true ({} with biases)",
                       config.architecture);
  }
  RETURN_IF_ERROR(CheckDim("hidden_size", config.hidden_size, kMaxDim));
  RETURN_IF_ERROR(CheckDim("num_hidden_layers", config.num_layers, kMaxLayers));
  RETURN_IF_ERROR(CheckDim("num_attention_heads", config.num_heads, kMaxDim));
  RETURN_IF_ERROR(CheckDim("num_key_value_heads", config.num_kv_heads, kMaxDim));
  RETURN_IF_ERROR(CheckDim("head_dim", config.head_dim, kMaxDim));
  RETURN_IF_ERROR(CheckDim("intermediate_size", config.intermediate_size, kMaxDim));
  RETURN_IF_ERROR(CheckDim("vocab_size", config.vocab_size, kMaxDim));
  RETURN_IF_ERROR(
      CheckDim("num_attention_heads * head_dim", config.num_heads * config.head_dim, kMaxDim));
  RETURN_IF_ERROR(CheckDim("max_position_embeddings", config.max_position_embeddings, kMaxDim));
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

void AddLayer(int layer, ModelSpec* spec) {
  const int64_t hidden = spec->hidden_size;
  const int64_t q_dim = spec->num_heads * spec->head_dim;
  const int64_t kv_dim = spec->num_kv_heads * spec->head_dim;
  const int64_t mlp = spec->intermediate_size;
  const auto add = [&](std::string_view name, Role role, Shape shape) {
    spec->weights.push_back(
        {.name = fmt::format("{}layers.{}.{}.weight", spec->prefix, layer, name),
         .role = role,
         .layer = layer,
         .shape = std::move(shape)});
  };
  add("input_layernorm", Role::kNorm, {hidden});
  add("self_attn.q_proj", Role::kAttentionQ, {q_dim, hidden});
  add("self_attn.k_proj", Role::kAttentionK, {kv_dim, hidden});
  add("self_attn.v_proj", Role::kAttentionV, {kv_dim, hidden});
  add("self_attn.q_norm", Role::kNorm, {spec->head_dim});
  add("self_attn.k_norm", Role::kNorm, {spec->head_dim});
  add("self_attn.o_proj", Role::kAttentionO, {hidden, q_dim});
  add("post_attention_layernorm", Role::kNorm, {hidden});
  add("mlp.gate_proj", Role::kMlpGate, {mlp, hidden});
  add("mlp.up_proj", Role::kMlpUp, {mlp, hidden});
  add("mlp.down_proj", Role::kMlpDown, {hidden, mlp});
}

}  // namespace

Result<ModelSpec> MakeQwen3Spec(const HfConfig& config) {
  RETURN_IF_ERROR(CheckConfig(config));
  ModelSpec spec{
      .architecture = config.architecture,
      .hidden_size = config.hidden_size,
      .num_layers = config.num_layers,
      .num_heads = config.num_heads,
      .num_kv_heads = config.num_kv_heads,
      .head_dim = config.head_dim,
      .intermediate_size = config.intermediate_size,
      .vocab_size = config.vocab_size,
      .max_position_embeddings = config.max_position_embeddings,
      .rms_norm_eps = static_cast<float>(config.rms_norm_eps),
      .rope_theta = config.rope_theta,
      .tie_word_embeddings = config.tie_word_embeddings,
      .weights = {},
  };
  const Shape vocab_by_hidden = {spec.vocab_size, spec.hidden_size};
  spec.weights.push_back(
      {.name = "model.embed_tokens.weight", .role = Role::kEmbedding, .shape = vocab_by_hidden});
  for (int layer = 0; layer < static_cast<int>(spec.num_layers); ++layer) {
    AddLayer(layer, &spec);
  }
  spec.weights.push_back(
      {.name = "model.norm.weight", .role = Role::kNorm, .shape = {spec.hidden_size}});
  if (!spec.tie_word_embeddings) {
    spec.weights.push_back(
        {.name = "lm_head.weight", .role = Role::kLmHead, .shape = vocab_by_hidden});
  }
  return spec;
}

}  // namespace octavo
