#pragma once
// For tests: small configs of every architecture, and a table as text.

#include <fmt/core.h>

#include <string>

#include "octavo/base/tensor.h"
#include "octavo/checkpoint/hf_config.h"
#include "octavo/model/spec/model_spec.h"

namespace octavo {

// One layer, hidden 8, 4 query and 2 key/value heads of 6, MLP 10, vocabulary 20, untied.
inline HfConfig TinyConfig(const std::string& architecture) {
  HfConfig config;
  config.architecture = architecture;
  config.hidden_size = 8;
  config.num_layers = 1;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 6;
  config.intermediate_size = 10;
  config.vocab_size = 20;
  config.max_position_embeddings = 64;
  config.rms_norm_eps = 1e-5;
  config.rope_theta = 10000.0;
  return config;
}

// Four layers, all sparse: 3 experts of 5, top 2.
inline HfConfig TinyQwen3Moe() {
  HfConfig config = TinyConfig("Qwen3MoeForCausalLM");
  config.num_layers = 4;
  config.moe.num_experts = 3;
  config.moe.num_experts_per_tok = 2;
  config.moe.moe_intermediate_size = 5;
  return config;
}

// Two layers, the first dense, and one for multi-token prediction: 4 experts of 5 in 2 groups, top
// 2 of 1 group, a shared expert twice as wide; 4 heads of 3 + 2 and 7, latents 9 (q) and 11.
inline HfConfig TinyDeepseek() {
  HfConfig config = TinyConfig("DeepseekV3ForCausalLM");
  config.num_layers = 2;
  config.num_kv_heads = 4;
  config.head_dim = 2;
  config.num_mtp_layers = 1;
  config.mla = {.q_lora_rank = 9,
                .kv_lora_rank = 11,
                .qk_nope_head_dim = 3,
                .qk_rope_head_dim = 2,
                .v_head_dim = 7,
                .rope_interleave = {}};
  config.moe.num_experts = 4;
  config.moe.num_experts_per_tok = 2;
  config.moe.moe_intermediate_size = 5;
  config.moe.first_k_dense_replace = 1;
  config.moe.n_group = 2;
  config.moe.topk_group = 1;
  config.moe.n_shared_experts = 2;
  config.moe.routed_scaling_factor = 2.5;
  return config;
}

// A line a row: "NAME ROLE SHAPE", with " layer L", " expert E" and " mtp" where there is one.
inline std::string TableText(const ModelSpec& spec) {
  std::string text;
  for (const WeightSpec& weight : spec.weights) {
    text += fmt::format("{} {} {}", weight.name, RoleName(weight.role), ShapeString(weight.shape));
    text += weight.layer >= 0 ? fmt::format(" layer {}", weight.layer) : "";
    text += weight.expert >= 0 ? fmt::format(" expert {}", weight.expert) : "";
    text += weight.is_mtp ? " mtp\n" : "\n";
  }
  return text;
}

}  // namespace octavo
