#pragma once
// HF config.json and generation_config.json, of transformers 4 and 5, as plain data.
//
// transformers 5 writes "dtype" for "torch_dtype", and "rope_theta" inside "rope_parameters".

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"

namespace octavo {

struct HfConfig {
  std::string architecture;  // architectures[0], such as "Qwen3ForCausalLM".
  std::string model_type;    // Such as "qwen3".
  int64_t hidden_size = 0;
  int64_t num_layers = 0;    // num_hidden_layers
  int64_t num_heads = 0;     // num_attention_heads
  int64_t num_kv_heads = 0;  // num_key_value_heads; num_heads when absent.
  int64_t head_dim = 0;      // hidden_size / num_heads when absent.
  int64_t intermediate_size = 0;
  int64_t vocab_size = 0;
  int64_t max_position_embeddings = 0;
  double rms_norm_eps = 0.0;
  double rope_theta = 0.0;
  bool tie_word_embeddings = false;
  bool attention_bias = false;
  std::string dtype;                   // "bfloat16"; empty when the file does not say.
  std::vector<int32_t> eos_token_ids;  // Union of config.json and generation_config.json, sorted.
  std::string quantization_config;  // JSON text of quantization_config; empty when there is none.
  std::string config_json;          // The whole config.json as read.
};

// `generation_config_json` may be empty.
// Errors: kCorrupt (not a JSON object), kInvalidArgument (a key missing, of another type or out of
// range: the message names key, expected and actual), kUnsupported (rope scaling, sliding windows
// or other settings that change the forward pass and are not built here, by name).
Result<HfConfig> ParseHfConfig(std::string_view config_json,
                               std::string_view generation_config_json);

}  // namespace octavo
