#include "octavo/policy/module_kind.h"

#include <optional>
#include <string_view>

namespace octavo {
namespace {

struct KindName {
  ModuleKind kind;
  std::string_view name;
};
constexpr KindName kKindNames[] = {
    {ModuleKind::kLinear, "linear"},  {ModuleKind::kMoe, "moe"},
    {ModuleKind::kLmHead, "lm_head"}, {ModuleKind::kEmbedding, "embedding"},
    {ModuleKind::kRouter, "router"},  {ModuleKind::kNorm, "norm"},
};

}  // namespace

std::string_view ModuleKindName(ModuleKind kind) {
  for (const KindName& candidate : kKindNames) {
    if (candidate.kind == kind) {
      return candidate.name;
    }
  }
  return "unknown";
}

std::optional<ModuleKind> ParseModuleKind(std::string_view name) {
  for (const KindName& candidate : kKindNames) {
    if (candidate.name == name) {
      return candidate.kind;
    }
  }
  return std::nullopt;
}

}  // namespace octavo
