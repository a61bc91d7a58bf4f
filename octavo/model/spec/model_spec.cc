#include "octavo/model/spec/model_spec.h"

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/checkpoint/hf_config.h"
#include "octavo/model/spec/qwen3_spec.h"

namespace octavo {
namespace {

constexpr std::string_view kWeightSuffix = ".weight";

// The fused module of a member, such as "…self_attn.qkv_proj" for "…self_attn.k_proj"; empty for a
// role that is never fused.
std::string FusedModuleOf(const WeightSpec& weight) {
  std::string_view fused;
  switch (weight.role) {
    case Role::kAttentionQ:
    case Role::kAttentionK:
    case Role::kAttentionV:
      fused = "qkv_proj";
      break;
    case Role::kMlpGate:
    case Role::kMlpUp:
      fused = "gate_up_proj";
      break;
    default:
      return {};
  }
  const std::string_view module = ModuleOfWeight(weight.name);
  return std::string(module.substr(0, module.rfind('.') + 1)).append(fused);
}

}  // namespace

std::string_view RoleName(Role role) {
  switch (role) {
    case Role::kEmbedding:
      return "embedding";
    case Role::kLmHead:
      return "lm_head";
    case Role::kNorm:
      return "norm";
    case Role::kBias:
      return "bias";
    case Role::kAttentionQ:
      return "attention.q";
    case Role::kAttentionK:
      return "attention.k";
    case Role::kAttentionV:
      return "attention.v";
    case Role::kAttentionO:
      return "attention.o";
    case Role::kMlaQA:
      return "mla.q_a";
    case Role::kMlaQB:
      return "mla.q_b";
    case Role::kMlaKvA:
      return "mla.kv_a";
    case Role::kMlaKvB:
      return "mla.kv_b";
    case Role::kMlpGate:
      return "mlp.gate";
    case Role::kMlpUp:
      return "mlp.up";
    case Role::kMlpDown:
      return "mlp.down";
    case Role::kRouter:
      return "router";
    case Role::kRouterBias:
      return "router.bias";
    case Role::kExpertGate:
      return "expert.gate";
    case Role::kExpertUp:
      return "expert.up";
    case Role::kExpertDown:
      return "expert.down";
    case Role::kSharedExpertGate:
      return "shared_expert.gate";
    case Role::kSharedExpertUp:
      return "shared_expert.up";
    case Role::kSharedExpertDown:
      return "shared_expert.down";
    case Role::kMtpProjection:
      return "mtp.projection";
  }
  return "unknown";
}

bool IsLinearRole(Role role) {
  switch (role) {
    case Role::kEmbedding:
    case Role::kLmHead:
    case Role::kNorm:
    case Role::kBias:
    case Role::kRouter:
    case Role::kRouterBias:
    case Role::kMtpProjection:
      return false;
    default:
      return true;
  }
}

bool IsExpertRole(Role role) {
  return role == Role::kExpertGate || role == Role::kExpertUp || role == Role::kExpertDown;
}

Result<ModelSpec> MakeModelSpec(const HfConfig& config, std::string_view prefix) {
  if (prefix != "model.") {
    return Unsupported("names with the prefix {}", prefix);
  }
  if (config.architecture == "Qwen3ForCausalLM") {
    return MakeQwen3Spec(config);
  }
  return Unsupported("config.json: architectures: expected Qwen3ForCausalLM, got {}",
                     config.architecture.empty() ? "none" : config.architecture);
}

int FindWeight(const ModelSpec& spec, std::string_view name) {
  for (size_t i = 0; i < spec.weights.size(); ++i) {
    if (spec.weights[i].name == name) {
      return static_cast<int>(i);
    }
  }
  return -1;
}

std::string_view ModuleOfWeight(std::string_view weight_name) {
  if (weight_name.ends_with(kWeightSuffix)) {
    weight_name.remove_suffix(kWeightSuffix.size());
  }
  return weight_name;
}

std::vector<FusedSet> FusedSetsOf(const ModelSpec& spec) {
  std::vector<FusedSet> sets;
  for (size_t i = 0; i < spec.weights.size(); ++i) {
    std::string module = FusedModuleOf(spec.weights[i]);
    if (module.empty()) {
      continue;
    }
    // Members of a set are neighbours in forward order.
    if (sets.empty() || sets.back().module != module) {
      sets.push_back({std::move(module), {}});
    }
    sets.back().members.push_back(static_cast<int>(i));
  }
  return sets;
}

}  // namespace octavo
