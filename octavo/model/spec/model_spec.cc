#include "octavo/model/spec/model_spec.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/checkpoint/hf_config.h"
#include "octavo/model/spec/deepseek_v3_spec.h"
#include "octavo/model/spec/gqa_spec.h"
#include "octavo/model/spec/text_prefix.h"

namespace octavo {
namespace {

constexpr std::string_view kWeightSuffix = ".weight";

// The last part of the fused module that a role belongs to; empty for a role that is never fused.
std::string_view FusedPart(const ModelSpec& spec, Role role) {
  switch (role) {
    case Role::kAttentionQ:
    case Role::kAttentionK:
    case Role::kAttentionV:
      // An MLA without a latent of q has a lone q_proj.
      return spec.mla.kv_lora_rank == 0 ? "qkv_proj" : "";
    case Role::kMlaQA:
      return "fused_qkv_a_proj_with_mqa";
    case Role::kMlaKvA:
      return spec.mla.q_lora_rank != 0 ? "fused_qkv_a_proj_with_mqa" : "";
    case Role::kMlpGate:
    case Role::kMlpUp:
    case Role::kExpertGate:
    case Role::kExpertUp:
    case Role::kSharedExpertGate:
    case Role::kSharedExpertUp:
      return "gate_up_proj";
    default:
      return {};
  }
}

// "…self_attn.qkv_proj" for "…self_attn.k_proj.weight"; empty for a weight that is never fused.
std::string FusedModuleOf(const ModelSpec& spec, const WeightSpec& weight) {
  const std::string_view part = FusedPart(spec, weight.role);
  if (part.empty()) {
    return {};
  }
  const std::string_view module = ModuleOfWeight(weight.name);
  return std::string(module.substr(0, module.rfind('.') + 1)).append(part);
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
  if (!IsTextPrefix(prefix)) {
    return Unsupported("names with the prefix \"{}\"", prefix);
  }
  ModelSpec spec;
  if (IsGqaArchitecture(config.architecture)) {
    ASSIGN_OR_RETURN(spec, MakeGqaSpec(config, prefix));
  } else if (config.architecture == kDeepseekV3Architecture) {
    ASSIGN_OR_RETURN(spec, MakeDeepseekV3Spec(config, prefix));
  } else {
    return Unsupported(
        "config.json: architectures: expected Qwen3ForCausalLM, Qwen3MoeForCausalLM, "
        "DeepseekV3ForCausalLM, LlamaForCausalLM or Qwen2ForCausalLM, got {}",
        config.architecture.empty() ? "none" : config.architecture);
  }
  IndexWeights(&spec);
  return spec;
}

Result<ModelSpec> MakeCheckpointSpec(const Checkpoint& checkpoint) {
  std::vector<std::string_view> names;
  names.reserve(checkpoint.tensors().size());
  for (const StoredTensor& tensor : checkpoint.tensors()) {
    names.push_back(tensor.name);
  }
  return MakeModelSpec(checkpoint.config(), DetectPrefix(names, checkpoint.config()));
}

bool IsSparseLayer(const ModelSpec& spec, int64_t layer) {
  return layer >= 0 && std::cmp_less(layer, spec.moe.is_sparse.size()) &&
         spec.moe.is_sparse[static_cast<size_t>(layer)];
}

void IndexWeights(ModelSpec* spec) {
  const std::vector<WeightSpec>& weights = spec->weights;
  spec->by_name.resize(weights.size());
  std::iota(spec->by_name.begin(), spec->by_name.end(), 0);
  std::sort(spec->by_name.begin(), spec->by_name.end(), [&weights](int a, int b) {
    return weights[static_cast<size_t>(a)].name < weights[static_cast<size_t>(b)].name;
  });
}

int FindWeight(const ModelSpec& spec, std::string_view name) {
  if (spec.by_name.size() == spec.weights.size()) {
    const auto it = std::lower_bound(
        spec.by_name.begin(), spec.by_name.end(), name, [&spec](int row, std::string_view key) {
          return std::string_view(spec.weights[static_cast<size_t>(row)].name) < key;
        });
    return it != spec.by_name.end() && spec.weights[static_cast<size_t>(*it)].name == name ? *it
                                                                                           : -1;
  }
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
    std::string module = FusedModuleOf(spec, spec.weights[i]);
    if (module.empty()) {
      continue;
    }
    // Nothing of another set comes between the members of one in forward order.
    if (sets.empty() || sets.back().module != module) {
      sets.push_back({std::move(module), {}});
    }
    sets.back().members.push_back(static_cast<int>(i));
  }
  return sets;
}

}  // namespace octavo
