#pragma once
// For tests: a small Qwen3 by hand.

#include "octavo/model/spec/model_spec.h"

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

}  // namespace octavo
