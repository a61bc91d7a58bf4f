#include "octavo/policy/kept_modules.h"

#include <algorithm>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/formats/format.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/natural_order.h"
#include "octavo/policy/precision_table.h"

namespace octavo {
namespace {

constexpr std::string_view kExperts = "mlp.experts";

bool CouldBeQuantized(Role role) {
  return IsLinearRole(role) || role == Role::kLmHead || role == Role::kRouter ||
         role == Role::kMtpProjection;
}

// "model.layers.3.mlp.experts" of "model.layers.3.mlp.experts.7.up_proj".
std::string_view ContainerOf(std::string_view module) {
  return module.substr(0, module.find(kExperts) + kExperts.size());
}

// The fused module that a member belongs to, by the last part of its name; empty for none.
std::string_view FusedNameOf(Role role) {
  switch (role) {
    case Role::kAttentionQ:
    case Role::kAttentionK:
    case Role::kAttentionV:
      return "qkv_proj";
    case Role::kMlpGate:
    case Role::kMlpUp:
    case Role::kSharedExpertGate:
    case Role::kSharedExpertUp:
      return "gate_up_proj";
    default:
      return {};
  }
}

// A regular expression for everything inside a container.
std::string InsidePattern(std::string_view container) {
  std::string pattern = "re:";
  for (const char c : container) {
    pattern += c == '.' ? "\\." : std::string(1, c);
  }
  return pattern + "\\..*";
}

}  // namespace

std::vector<std::string> KeptModules(const PrecisionTable& table, ListDialect dialect,
                                     std::span<const std::string> more) {
  std::vector<std::string> modules(more.begin(), more.end());
  for (const PrecisionRow& row : table.rows) {
    if (row.format != WeightFormat::kBf16 || !CouldBeQuantized(row.role)) {
      continue;
    }
    const std::string_view module = ModuleOfWeight(row.name);
    if (IsExpertRole(row.role)) {
      modules.emplace_back(ContainerOf(module));
      if (dialect == ListDialect::kCompressedTensors) {
        modules.push_back(InsidePattern(ContainerOf(module)));
      }
      continue;
    }
    modules.emplace_back(module);
    const std::string_view fused = FusedNameOf(row.role);
    if (!fused.empty() && dialect != ListDialect::kModulesToNotConvert) {
      modules.push_back(std::string(module.substr(0, module.rfind('.') + 1)).append(fused));
    }
  }
  std::ranges::sort(modules, NaturalLess);
  const auto repeated = std::ranges::unique(modules);
  modules.erase(repeated.begin(), repeated.end());
  return modules;
}

}  // namespace octavo
