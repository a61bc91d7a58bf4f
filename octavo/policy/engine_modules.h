#pragma once
// The modules that an engine builds for a model, and which weights each of them holds: the names
// that a foreign list is held against.

#include <string>
#include <vector>

#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/sglang_fp8.h"

namespace octavo {

struct EngineModule {
  std::string name;  // Such as "model.layers.0.self_attn.qkv_proj".
  ModuleKind kind = ModuleKind::kLinear;
  std::vector<int> weights;  // Positions in spec.weights; for a fused module its shards in order.
};

// As SGLang builds them, in forward order: q/k/v and gate/up fused, everything else alone.
std::vector<EngineModule> EngineModulesOf(const ModelSpec& spec);

// What SGLang's class for this architecture declares as packed_modules_mapping. Qwen3 dense
// declares nothing; the matcher's own fallback then knows qkv_proj and gate_up_proj.
std::vector<FusedMapping> DeclaredMappingOf(const ModelSpec& spec);

}  // namespace octavo
