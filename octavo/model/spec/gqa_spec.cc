#include "octavo/model/spec/gqa_spec.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <string_view>

#include "octavo/base/check.h"
#include "octavo/base/status.h"
#include "octavo/checkpoint/hf_config.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/model/spec/spec_builder.h"

namespace octavo {
namespace {

struct Family {
  std::string_view architecture;
  bool has_qk_norm = false;
  bool is_moe = false;
  bool always_qkv_bias = false;
};

constexpr std::array<Family, 4> kFamilies = {{
    {.architecture = "Qwen3ForCausalLM", .has_qk_norm = true},
    {.architecture = "Qwen3MoeForCausalLM", .has_qk_norm = true, .is_moe = true},
    {.architecture = "LlamaForCausalLM"},
    {.architecture = "Qwen2ForCausalLM", .always_qkv_bias = true},
}};

const Family* FindFamily(std::string_view architecture) {
  for (const Family& family : kFamilies) {
    if (family.architecture == architecture) {
      return &family;
    }
  }
  return nullptr;
}

// What other architectures have and these classes would not look at.
Status RefuseForeignParts(const HfConfig& config, const Family& family) {
  if (config.mla.kv_lora_rank != 0) {
    return RefuseSetting(config, "kv_lora_rank", "nothing", config.mla.kv_lora_rank);
  }
  if (config.num_mtp_layers != 0) {
    return RefuseSetting(config, "num_nextn_predict_layers", "0", config.num_mtp_layers);
  }
  if (!family.is_moe && config.moe.num_experts != 0) {
    return RefuseSetting(config, "num_experts", "nothing", config.moe.num_experts);
  }
  return OkStatus();
}

// Qwen3-MoE: a plain softmax router over all experts, nothing shared.
Status RefuseForeignRouting(const HfConfig& config) {
  const HfMoeConfig& moe = config.moe;
  if (moe.n_shared_experts.value_or(0) != 0) {
    return RefuseSetting(config, "n_shared_experts", "0", *moe.n_shared_experts);
  }
  if (moe.n_group.value_or(1) != 1) {
    return RefuseSetting(config, "n_group", "1", *moe.n_group);
  }
  if (moe.routed_scaling_factor.value_or(1.0) != 1.0) {
    return RefuseSetting(config, "routed_scaling_factor", "1", *moe.routed_scaling_factor);
  }
  if (moe.first_k_dense_replace.value_or(0) != 0) {
    return RefuseSetting(config, "first_k_dense_replace", "0", *moe.first_k_dense_replace);
  }
  if (moe.moe_layer_freq != 1) {
    return RefuseSetting(config, "moe_layer_freq", "1", moe.moe_layer_freq);
  }
  if (!moe.scoring_func.empty() && moe.scoring_func != "softmax") {
    return RefuseSetting(config, "scoring_func", "softmax", moe.scoring_func);
  }
  if (!moe.topk_method.empty() && moe.topk_method != "greedy") {
    return RefuseSetting(config, "topk_method", "greedy", moe.topk_method);
  }
  return OkStatus();
}

Status FillMoe(const HfConfig& config, MoeSpec* out) {
  const HfMoeConfig& moe = config.moe;
  RETURN_IF_ERROR(RefuseForeignRouting(config));
  RETURN_IF_ERROR(FillMoeSizes(config, out));
  RETURN_IF_ERROR(CheckSpecDim("decoder_sparse_step", moe.decoder_sparse_step));
  out->scoring = RouterScoring::kSoftmax;
  out->norm_topk_prob = moe.norm_topk_prob.value_or(false);  // The default of HF's class.
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const bool is_listed =
        std::binary_search(moe.mlp_only_layers.begin(), moe.mlp_only_layers.end(), layer);
    out->is_sparse.push_back(!is_listed && (layer + 1) % moe.decoder_sparse_step == 0);
  }
  return OkStatus();
}

}  // namespace

bool IsGqaArchitecture(std::string_view architecture) {
  return FindFamily(architecture) != nullptr;
}

Result<ModelSpec> MakeGqaSpec(const HfConfig& config, std::string_view prefix) {
  const Family* const family = FindFamily(config.architecture);
  CHECK(family != nullptr);
  ASSIGN_OR_RETURN(ModelSpec spec, MakeBaseSpec(config, prefix));
  RETURN_IF_ERROR(RefuseForeignParts(config, *family));
  spec.has_qk_norm = family->has_qk_norm;
  spec.has_qkv_bias = family->always_qkv_bias || config.attention_bias;
  spec.has_o_bias = !family->always_qkv_bias && config.attention_bias;
  if (family->is_moe) {
    RETURN_IF_ERROR(FillMoe(config, &spec.moe));
  }
  TableBuilder table(&spec);
  table.AddEmbedding();
  for (int64_t layer = 0; layer < spec.num_layers; ++layer) {
    table.BeginLayer(layer);
    table.AddNorm("input_layernorm", spec.hidden_size);
    table.AddGqaAttention();
    table.AddNorm("post_attention_layernorm", spec.hidden_size);
    table.AddMlp(/*has_router_bias=*/false);
  }
  table.AddFinalNorm();
  table.AddHead();
  return spec;
}

}  // namespace octavo
