#pragma once
// For tests: a small Qwen3 by hand.

#include "octavo/model/spec/model_spec.h"
#include "octavo/model/spec/spec_for_test.h"

namespace octavo {

struct TestSpecArgs {
  int num_layers = 4;
  bool tied = true;
};

// hidden 256, 4 query and 2 key/value heads of 64, MLP 300 (no multiple of 128), vocabulary 690.
inline ModelSpec TestSpec(const TestSpecArgs& args) {
  HfConfig config;
  config.architecture = "Qwen3ForCausalLM";
  config.model_type = "qwen3";
  config.hidden_size = 256;
  config.num_layers = args.num_layers;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 64;
  config.intermediate_size = 300;
  config.vocab_size = 690;
  config.max_position_embeddings = 4096;
  config.rms_norm_eps = 1e-6;
  config.rope_theta = 10000.0;
  config.tie_word_embeddings = args.tied;
  return MakeModelSpec(config).value();
}

// Four layers, all sparse: 3 experts of 64, hidden 128. Rows fit every format.
inline ModelSpec TestMoeSpec() {
  HfConfig config = TinyQwen3Moe();
  config.hidden_size = 128;
  config.head_dim = 32;
  config.intermediate_size = 160;
  config.moe.moe_intermediate_size = 64;
  return MakeModelSpec(config).value();
}

// A dense layer, a sparse one with a shared expert, and one for multi-token prediction. Rows fit
// every format.
inline ModelSpec TestMlaSpec() {
  HfConfig config = TinyDeepseek();
  config.hidden_size = 128;
  config.intermediate_size = 160;
  config.moe.moe_intermediate_size = 64;
  config.mla.q_lora_rank = 96;
  config.mla.kv_lora_rank = 64;
  config.mla.v_head_dim = 32;
  return MakeModelSpec(config).value();
}

}  // namespace octavo
