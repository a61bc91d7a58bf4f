#pragma once
// DeepSeek-V3 and R1 (DeepseekV3ForCausalLM): multi-head latent attention, dense MLPs in the first
// layers, a mixture with a shared expert in the others, and multi-token-prediction layers.
//
// An MTP layer is stored as layer num_hidden_layers and up: a whole sparse decoder layer with
// enorm, hnorm and eh_proj [hidden, 2 * hidden] before it and shared_head.norm and shared_head.head
// behind it, and a copy of the embedding. transformers neither loads nor writes such layers.
// Source: HF transformers modeling_deepseek_v3.py (4.57); the published checkpoints and their
// modeling file for MTP and moe_layer_freq.

#include <string_view>

#include "octavo/base/status.h"
#include "octavo/checkpoint/hf_config.h"
#include "octavo/model/spec/model_spec.h"

namespace octavo {

inline constexpr std::string_view kDeepseekV3Architecture = "DeepseekV3ForCausalLM";

// Requires config.architecture == kDeepseekV3Architecture. Errors: as MakeModelSpec.
Result<ModelSpec> MakeDeepseekV3Spec(const HfConfig& config, std::string_view prefix);

}  // namespace octavo
