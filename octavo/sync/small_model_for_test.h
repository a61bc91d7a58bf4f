#pragma once
// For tests of staging: small models of each architecture, and what an offline conversion of them
// holds. Widths fit every format; nothing is a multiple of 128.

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "octavo/base/check.h"
#include "octavo/base/status.h"
#include "octavo/base/thread_pool.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/checkpoint/hf_config.h"
#include "octavo/convert/checkpoint_for_test.h"
#include "octavo/convert/convert.h"
#include "octavo/convert/digest.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"
#include "octavo/sync/weight_plan.h"

namespace octavo {

inline constexpr const char* kSmallDense = R"({
  "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 160,
  "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 48,
  "intermediate_size": 288, "vocab_size": 40, "max_position_embeddings": 64, "rms_norm_eps": 1e-06,
  "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": true})";

inline constexpr const char* kSmallMoe = R"({
  "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 96,
  "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
  "intermediate_size": 160, "vocab_size": 40, "max_position_embeddings": 64, "rms_norm_eps": 1e-06,
  "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": false, "num_experts": 4,
  "num_experts_per_tok": 2, "moe_intermediate_size": 160, "norm_topk_prob": true,
  "decoder_sparse_step": 1, "mlp_only_layers": []})";

// The second layer has experts; layer 2 is for multi-token prediction.
inline constexpr const char* kSmallMla = R"({
  "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "hidden_size": 96,
  "num_hidden_layers": 2, "num_nextn_predict_layers": 1, "num_attention_heads": 2,
  "num_key_value_heads": 2, "q_lora_rank": 64, "kv_lora_rank": 64, "qk_nope_head_dim": 32,
  "qk_rope_head_dim": 16, "v_head_dim": 32, "intermediate_size": 160, "moe_intermediate_size": 64,
  "vocab_size": 40, "max_position_embeddings": 64, "rms_norm_eps": 1e-06, "rope_theta": 10000.0,
  "hidden_act": "silu", "tie_word_embeddings": false, "n_routed_experts": 4,
  "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "n_shared_experts": 1,
  "first_k_dense_replace": 1, "moe_layer_freq": 1, "norm_topk_prob": true,
  "scoring_func": "sigmoid", "topk_method": "noaux_tc", "routed_scaling_factor": 2.5})";

// A model in a folder of its own, in BF16 (the router bias in F32), and things made from it.
class SmallModel {
 public:
  // Other weights for another seed. Without `with_mtp` its layers of multi-token prediction are
  // left out.
  SmallModel(const std::string& dir, const char* config_json, unsigned seed = 1,
             bool with_mtp = true)
      : dir_(dir), spec_(*MakeModelSpec(*ParseHfConfig(config_json, ""))) {
    for (const WeightSpec& weight : spec_.weights) {
      seed += 1;
      if (weight.is_mtp && !with_mtp) {
        continue;
      }
      tensors_[weight.name] = RandomBf16(weight.shape, seed * 7919);
      if (weight.role == Role::kRouterBias) {
        const auto count = static_cast<size_t>(NumElements(weight.shape));
        tensors_[weight.name] = {DType::kF32, weight.shape, std::vector<std::byte>(4 * count)};
        for (size_t i = 0; i < count; ++i) {
          const float value = 0.1F * static_cast<float>(seed + i) + 1e-6F;  // No BF16 value.
          std::memcpy(tensors_[weight.name].bytes.data() + 4 * i, &value, sizeof(value));
        }
      }
    }
    WriteTestCheckpoint(dir, tensors_, 1, config_json);
  }

  const std::string& dir() const { return dir_; }
  const ModelSpec& spec() const { return spec_; }
  const TestTensors& tensors() const { return tensors_; }
  Checkpoint Open() const { return std::move(*Checkpoint::Open(dir_)); }

  PrecisionTable Table(const PolicyOptions& policy) const {
    const auto table = CompilePolicy(spec_, policy);
    EXPECT_TRUE(table.has_value()) << table.error().message();
    return *table;
  }

  // The digest of the files that the converter writes; `out` is their folder.
  std::string Convert(const PrecisionTable& table, const std::string& out) const {
    const Checkpoint source = Open();
    const auto report =
        ConvertCheckpoint(source, spec_, table, {.out_dir = out, .num_threads = 1, .progress = {}});
    EXPECT_TRUE(report.has_value()) << report.error().message();
    return DigestCheckpoint(*Checkpoint::Open(out), nullptr).hex;
  }

 private:
  std::string dir_;
  ModelSpec spec_;
  TestTensors tensors_;
};

}  // namespace octavo
