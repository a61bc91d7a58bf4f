#pragma once
// Decoders with grouped-query attention and a gated MLP or a mixture of them:
//
//   Qwen3ForCausalLM     norms of q and k
//   Qwen3MoeForCausalLM  the same; in sparse layers a router and experts for the MLP
//   LlamaForCausalLM     no norms of q and k
//   Qwen2ForCausalLM     biases of q, k and v, whatever the config says; o_proj has none
//
// attention_bias gives q, k, v and o biases in the first three.
// Source: HF transformers modeling_qwen3.py, modeling_qwen3_moe.py, modeling_llama.py,
// modeling_qwen2.py (4.57).

#include <string_view>

#include "octavo/base/status.h"
#include "octavo/checkpoint/hf_config.h"
#include "octavo/model/spec/model_spec.h"

namespace octavo {

bool IsGqaArchitecture(std::string_view architecture);

// Requires IsGqaArchitecture(config.architecture). Errors: as MakeModelSpec.
Result<ModelSpec> MakeGqaSpec(const HfConfig& config, std::string_view prefix);

}  // namespace octavo
