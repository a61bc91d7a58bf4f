#include "octavo/policy/engine_modules.h"

#include <fmt/core.h>

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/fused_shards.h"
#include "octavo/policy/module_kind.h"
#include "octavo/policy/sglang_match.h"
#include "octavo/policy/weights_mapper.h"

namespace octavo {
namespace {

constexpr ForeignEngine kEngines[] = {ForeignEngine::kSglang, ForeignEngine::kVllm,
                                      ForeignEngine::kTransformers,
                                      ForeignEngine::kCompressedTensors, ForeignEngine::kModelOpt};
constexpr std::string_view kExperts = ".experts.";
// The fused down projection of MLA, by engine.
constexpr std::string_view kSglangFusedA = "fused_qkv_a_proj_with_mqa";
constexpr std::string_view kVllmFusedA = "fused_qkv_a_proj";

bool Fuses(ForeignEngine engine) {
  return engine == ForeignEngine::kSglang || engine == ForeignEngine::kVllm;
}
bool HasContainers(ForeignEngine engine) {
  return Fuses(engine) || engine == ForeignEngine::kTransformers;
}

bool IsDeepseek(const ModelSpec& spec) { return spec.mla.kv_lora_rank != 0; }

ModuleKind KindOf(const ModelSpec& spec, const WeightSpec& weight, ForeignEngine engine) {
  switch (weight.role) {
    case Role::kEmbedding:
      return ModuleKind::kEmbedding;
    case Role::kLmHead:
      return ModuleKind::kLmHead;
    case Role::kRouter:
      // vLLM passes the quantization config to the router of Qwen3-MoE: it must be listed.
      return engine == ForeignEngine::kVllm && !IsDeepseek(spec) ? ModuleKind::kLinear
                                                                 : ModuleKind::kRouter;
    case Role::kNorm:
    case Role::kBias:
    case Role::kRouterBias:
      return ModuleKind::kNorm;
    case Role::kMtpProjection:
      return ModuleKind::kRouter;  // A plain torch linear.
    default:
      return ModuleKind::kLinear;
  }
}

// "model.layers.0.mlp.experts" of an expert's weight.
std::string_view ContainerOf(std::string_view weight_name) {
  const size_t at = weight_name.find(kExperts);
  return at == std::string_view::npos ? weight_name
                                      : weight_name.substr(0, at + kExperts.size() - 1);
}

// The name under which `engine` builds a module of the checkpoint.
std::string EngineNameOf(const ModelSpec& spec, ForeignEngine engine, bool is_mtp,
                         std::string name) {
  const std::string mtp_layer = fmt::format("{}layers.{}.", spec.prefix, spec.num_layers);
  if (engine == ForeignEngine::kSglang && is_mtp && name.starts_with(mtp_layer)) {
    const std::string rest = name.substr(mtp_layer.size());
    if (rest == "shared_head.head") {
      return "lm_head";
    }
    for (const std::string_view outside :
         {"eh_proj", "enorm", "hnorm", "shared_head.norm", "embed_tokens"}) {
      if (rest == outside) {
        return "model." + rest;
      }
    }
    return "model.decoder." + rest;
  }
  if (engine == ForeignEngine::kVllm && LastComponent(name) == kSglangFusedA) {
    name.replace(name.size() - kSglangFusedA.size(), kSglangFusedA.size(), kVllmFusedA);
  }
  // Engines build "model." around a text model whose checkpoint leaves it out.
  return spec.prefix.empty() && name != "lm_head" ? "model." + name : name;
}

}  // namespace

std::span<const ForeignEngine> AllEngines() { return kEngines; }

std::string_view EngineName(ForeignEngine engine) {
  switch (engine) {
    case ForeignEngine::kSglang:
      return "sglang";
    case ForeignEngine::kVllm:
      return "vllm";
    case ForeignEngine::kTransformers:
      return "transformers";
    case ForeignEngine::kCompressedTensors:
      return "compressed-tensors";
    case ForeignEngine::kModelOpt:
      return "modelopt";
  }
  return "unknown";
}

std::optional<ForeignEngine> ParseEngine(std::string_view name) {
  for (const ForeignEngine engine : kEngines) {
    if (EngineName(engine) == name) {
      return engine;
    }
  }
  return std::nullopt;
}

std::vector<EngineModule> EngineModulesOf(const ModelSpec& spec, ForeignEngine engine) {
  std::vector<FusedSet> sets;
  if (Fuses(engine)) {
    sets = FusedSetsOf(spec);
  }
  // For each weight, the set that holds it; its first member makes the module.
  std::vector<const FusedSet*> set_of(spec.weights.size(), nullptr);
  for (const FusedSet& set : sets) {
    for (const int member : set.members) {
      set_of[static_cast<size_t>(member)] = &set;
    }
  }
  std::vector<EngineModule> modules;
  std::string_view container;  // Of the last module when that is one.
  for (size_t i = 0; i < spec.weights.size(); ++i) {
    const WeightSpec& weight = spec.weights[i];
    const int weight_idx = static_cast<int>(i);
    const auto add = [&](std::string_view name, ModuleKind kind, std::vector<int> weights) {
      modules.push_back({EngineNameOf(spec, engine, weight.is_mtp, std::string(name)), kind,
                         std::move(weights), weight.is_mtp});
    };
    if (HasContainers(engine) && IsExpertRole(weight.role)) {
      if (ContainerOf(weight.name) == container) {
        modules.back().weights.push_back(weight_idx);
      } else {
        container = ContainerOf(weight.name);
        add(container, ModuleKind::kMoe, {weight_idx});
      }
    } else if (set_of[i] == nullptr) {
      add(ModuleOfWeight(weight.name), KindOf(spec, weight, engine), {weight_idx});
    } else if (set_of[i]->members.front() == weight_idx) {
      add(set_of[i]->module, ModuleKind::kLinear, set_of[i]->members);
    }
  }
  return modules;
}

std::vector<FusedMapping> DeclaredMappingOf(const ModelSpec& spec, ForeignEngine engine) {
  const FusedMapping qkv = {"qkv_proj", {"q_proj", "k_proj", "v_proj"}};
  const FusedMapping gate_up = {"gate_up_proj", {"gate_proj", "up_proj"}};
  if (!Fuses(engine)) {
    return {};
  }
  std::vector<FusedMapping> mapping;
  if (IsDeepseek(spec)) {
    if (engine == ForeignEngine::kVllm) {
      mapping.push_back(gate_up);
    }
    if (spec.mla.q_lora_rank != 0) {
      mapping.push_back({std::string(engine == ForeignEngine::kVllm ? kVllmFusedA : kSglangFusedA),
                         {"q_a_proj", "kv_a_proj_with_mqa"}});
    }
  } else if (engine == ForeignEngine::kVllm || spec.moe.num_experts != 0) {
    mapping = {qkv, gate_up};
  }
  return mapping;
}

WeightsMapper MtpMapperOf(const ModelSpec& spec, ForeignEngine engine) {
  WeightsMapper mapper;
  if (engine == ForeignEngine::kSglang && IsDeepseek(spec)) {
    mapper.substr.push_back(
        {fmt::format("model.layers.{}", spec.num_layers), std::string("model.decoder")});
  }
  return mapper;
}

}  // namespace octavo
