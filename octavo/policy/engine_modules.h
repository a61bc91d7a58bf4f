#pragma once
// The modules that an engine builds for a model, and which weights each of them holds: the names
// that a foreign list is held against.

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/module_kind.h"
#include "octavo/policy/sglang_match.h"
#include "octavo/policy/weights_mapper.h"

namespace octavo {

enum class ForeignEngine {
  kSglang,
  kVllm,
  kTransformers,       // Of 2026: one module holds the routed experts of a layer.
  kCompressedTensors,  // The library: unfused names, every expert's projections alone.
  kModelOpt,           // As above, read by the rules of ModelOpt lists.
};

std::span<const ForeignEngine> AllEngines();
// "sglang", "vllm", "transformers", "compressed-tensors", "modelopt": the spelling of --as.
std::string_view EngineName(ForeignEngine engine);
std::optional<ForeignEngine> ParseEngine(std::string_view name);

struct EngineModule {
  std::string name;  // Such as "model.layers.0.self_attn.qkv_proj".
  ModuleKind kind = ModuleKind::kLinear;
  // Positions in spec.weights: for a fused module its shards in order, for a container the weights
  // of all experts.
  std::vector<int> weights;
  bool is_mtp = false;  // Of the multi-token-prediction model, whose class renames entries.
};

// In forward order; every weight is in one module. Biases stand alone under their own names, as a
// kind that is never quantized.
//   sglang        q/k/v, gate/up and q_a/kv_a (fused_qkv_a_proj_with_mqa) fused; one container of
//                 experts a layer; the MTP layer is built as "model.decoder".
//   vllm          the same, with q_a/kv_a as "fused_qkv_a_proj"; MTP keeps its names.
//   transformers  nothing fused, one container of experts a layer.
//   the others    nothing fused, every expert alone.
std::vector<EngineModule> EngineModulesOf(const ModelSpec& spec,
                                          ForeignEngine engine = ForeignEngine::kSglang);

// What the engine's class for this architecture declares as packed_modules_mapping. SGLang's Qwen2,
// Qwen3 and Llama declare nothing; its matcher's own fallback then knows qkv_proj and gate_up_proj.
std::vector<FusedMapping> DeclaredMappingOf(const ModelSpec& spec,
                                            ForeignEngine engine = ForeignEngine::kSglang);

// How the engine's class for the MTP layers renames entries; empty when it does not.
WeightsMapper MtpMapperOf(const ModelSpec& spec, ForeignEngine engine = ForeignEngine::kSglang);

}  // namespace octavo
