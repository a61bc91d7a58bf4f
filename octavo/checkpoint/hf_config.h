#pragma once
// HF config.json and generation_config.json, of transformers 4 and 5, as plain data.
//
// transformers 5 writes "dtype" for "torch_dtype", "rope_theta" and the rope scaling inside
// "rope_parameters", and "num_local_experts" for Qwen3-MoE's "num_experts". A model that wraps its
// text model nests the latter's members in "text_config".

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"

namespace octavo {

enum class RopeType {
  kDefault,  // No scaling.
  kLlama3,   // Wavelengths beyond a bound are stretched, with a ramp between two bounds.
  kYarn,     // A ramp over the dimensions, and a factor on attention.
};

// "default", "llama3", "yarn": HF's spelling of rope_type.
std::string_view RopeTypeName(RopeType type);

// How rotary frequencies are stretched beyond the context of pre-training. Members that a type does
// not use keep their defaults.
// Source: HF transformers modeling_rope_utils.py (4.51 to 5).
struct RopeScaling {
  RopeType type = RopeType::kDefault;
  double factor = 1.0;  // Both: how far contexts are stretched, >= 1.
  // Both: positions of pre-training; max_position_embeddings when the file does not say.
  int64_t original_max_position_embeddings = 0;
  double low_freq_factor = 0.0;   // llama3: wavelengths above original / low are divided by factor.
  double high_freq_factor = 0.0;  // llama3: wavelengths below original / high stay; above low.
  double beta_fast = 32.0;        // YaRN: rotations at which the ramp begins; >= beta_slow.
  double beta_slow = 1.0;         // YaRN: rotations at which it ends.
  double attention_factor = 0.0;  // YaRN: on cos and sin; 0: from factor and the two mscales.
  double mscale = 0.0;            // YaRN; 0 when absent: HF then leaves both out of account.
  double mscale_all_dim = 0.0;
  bool truncate = true;  // YaRN: the ramp's ends are rounded to whole dimensions.

  bool operator==(const RopeScaling&) const = default;
};

// A mixture of experts, as config.json spells it. Absent members keep these defaults; which of them
// an architecture needs, and what HF's class takes for those that it lacks, the model's spec knows.
struct HfMoeConfig {
  int64_t num_experts = 0;          // num_experts, num_local_experts or n_routed_experts; 0: dense.
  int64_t num_experts_per_tok = 0;  // Experts that a token is sent to.
  int64_t moe_intermediate_size = 0;
  std::optional<bool> norm_topk_prob;  // Chosen probabilities are divided by their sum.
  // Qwen3-MoE: layer i is sparse if (i + 1) % decoder_sparse_step == 0 and it is not listed.
  int64_t decoder_sparse_step = 1;
  std::vector<int64_t> mlp_only_layers;  // Sorted, distinct, below num_layers.
  // DeepSeek: layer i is sparse if i >= first_k_dense_replace and i % moe_layer_freq == 0.
  std::optional<int64_t> first_k_dense_replace;
  int64_t moe_layer_freq = 1;
  std::optional<int64_t> n_group;           // Groups of experts.
  std::optional<int64_t> topk_group;        // Groups that a token may choose from.
  std::optional<int64_t> n_shared_experts;  // Width of the shared expert in routed ones.
  std::optional<double> routed_scaling_factor;
  std::string scoring_func;  // "softmax", "sigmoid"; empty when absent.
  std::string topk_method;   // "noaux_tc", ...; empty when absent.

  bool operator==(const HfMoeConfig&) const = default;
};

// Multi-head latent attention. kv_lora_rank 0: another attention.
struct HfMlaConfig {
  int64_t q_lora_rank = 0;  // 0: null, q has no latent.
  int64_t kv_lora_rank = 0;
  int64_t qk_nope_head_dim = 0;
  int64_t qk_rope_head_dim = 0;
  int64_t v_head_dim = 0;
  std::optional<bool> rope_interleave;  // Rotary pairs are (2i, 2i + 1) in the checkpoint.

  bool operator==(const HfMlaConfig&) const = default;
};

struct HfConfig {
  // architectures[0], such as "Qwen3ForCausalLM". Of a nested text model: its own architectures[0],
  // or what its model_type stands for, or the wrapper's when neither says.
  std::string architecture;
  std::string model_type;  // Such as "qwen3"; of a nested text model its own.
  // architectures[0] of the model that wraps text_config, such as
  // "LlavaForConditionalGeneration"; empty when nothing is nested.
  std::string wrapper_architecture;
  int64_t hidden_size = 0;
  int64_t num_layers = 0;    // num_hidden_layers
  int64_t num_heads = 0;     // num_attention_heads
  int64_t num_kv_heads = 0;  // num_key_value_heads; num_heads when absent.
  // Absent: 128 in Qwen3, hidden_size / num_heads elsewhere, as in HF. With MLA qk_rope_head_dim.
  int64_t head_dim = 0;
  int64_t intermediate_size = 0;
  int64_t vocab_size = 0;
  int64_t max_position_embeddings = 0;
  double rms_norm_eps = 0.0;
  double rope_theta = 0.0;
  RopeScaling rope_scaling;
  bool tie_word_embeddings = false;
  bool attention_bias = false;
  int64_t num_mtp_layers = 0;  // num_nextn_predict_layers
  HfMoeConfig moe;
  HfMlaConfig mla;
  std::string dtype;                   // "bfloat16"; empty when the file does not say.
  std::vector<int32_t> eos_token_ids;  // Union of config.json and generation_config.json, sorted.
  // JSON text of quantization_config, at the top or in text_config, or of compression_config, or of
  // hf_quant_config.json; empty when there is none.
  std::string quantization_config;
  // The first setting that changes the forward pass in a way that is not built (rope scaling of
  // another type or with members that are not known, sliding windows, ...), with what is expected;
  // empty: there is none. It changes no tensor, so such a model is planned, converted and audited,
  // and is never served (CheckServedConfig); its rotary members mean nothing.
  std::string not_served;
  std::string config_json;  // The whole config.json as read.
};

// The further files that config.json may have beside it; empty: there is none.
struct HfConfigFiles {
  std::string_view generation_config_json = {};
  // ModelOpt's. Looked at only where config.json declares no quantization, as engines do.
  std::string_view hf_quant_config_json = {};
};

// Errors: kCorrupt (not a JSON object), kInvalidArgument (a key missing, of another type or out of
// range: the message names key, expected and actual), kUnsupported (settings under which it cannot
// be said which tensors the model has, by name).
Result<HfConfig> ParseHfConfig(std::string_view config_json, const HfConfigFiles& files);
Result<HfConfig> ParseHfConfig(std::string_view config_json,
                               std::string_view generation_config_json);

// kUnsupported for a config with `not_served`: for everything that runs the model.
Status CheckServedConfig(const HfConfig& config);

}  // namespace octavo
