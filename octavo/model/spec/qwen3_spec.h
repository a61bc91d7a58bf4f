#pragma once
// Qwen3 dense (Qwen3ForCausalLM): the weight table.

#include "octavo/base/status.h"
#include "octavo/checkpoint/hf_config.h"
#include "octavo/model/spec/model_spec.h"

namespace octavo {

// Errors: kUnsupported for attention biases, by name; kInvalidArgument for dimensions that do not
// fit together, with expected and actual.
Result<ModelSpec> MakeQwen3Spec(const HfConfig& config);

}  // namespace octavo
