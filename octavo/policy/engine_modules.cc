#include "octavo/policy/engine_modules.h"

#include <cstddef>
#include <string>
#include <vector>

#include "octavo/base/check.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/sglang_fp8.h"
#include "octavo/policy/sglang_match.h"

namespace octavo {
namespace {

ModuleKind KindOfRole(Role role) {
  switch (role) {
    case Role::kEmbedding:
      return ModuleKind::kEmbedding;
    case Role::kLmHead:
      return ModuleKind::kLmHead;
    case Role::kNorm:
      return ModuleKind::kNorm;
    default:
      return ModuleKind::kLinear;
  }
}

}  // namespace

std::vector<EngineModule> EngineModulesOf(const ModelSpec& spec) {
  const std::vector<FusedSet> sets = FusedSetsOf(spec);
  // For each weight, the set that holds it; only its first member makes a module.
  std::vector<const FusedSet*> set_of(spec.weights.size(), nullptr);
  for (const FusedSet& set : sets) {
    for (const int member : set.members) {
      set_of[static_cast<size_t>(member)] = &set;
    }
  }
  std::vector<EngineModule> modules;
  for (size_t i = 0; i < spec.weights.size(); ++i) {
    const WeightSpec& weight = spec.weights[i];
    const FusedSet* set = set_of[i];
    if (set == nullptr) {
      modules.push_back({std::string(ModuleOfWeight(weight.name)),
                         KindOfRole(weight.role),
                         {static_cast<int>(i)}});
    } else if (set->members.front() == static_cast<int>(i)) {
      modules.push_back({set->module, ModuleKind::kLinear, set->members});
    }
  }
  return modules;
}

std::vector<FusedMapping> DeclaredMappingOf(const ModelSpec& spec) {
  CHECK(spec.architecture == "Qwen3ForCausalLM");
  return {};
}

}  // namespace octavo
