#include "octavo/policy/modelopt_excluded.h"

#include <cstddef>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/policy/fused_shards.h"
#include "octavo/policy/name_list.h"
#include "octavo/policy/name_pattern.h"
#include "octavo/policy/sglang_match.h"

namespace octavo {
namespace {

constexpr std::string_view kWrapper = "language_model.";
constexpr std::string_view kMlaTails[] = {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa",
                                          "kv_b_proj"};

bool AnyComponentMatches(const NamePattern& pattern, std::string_view path) {
  while (true) {
    const size_t dot = path.find('.');
    if (pattern.MatchesFully(path.substr(0, dot))) {
      return true;
    }
    if (dot == std::string_view::npos) {
      return false;
    }
    path.remove_prefix(dot + 1);
  }
}

// The entry's last component is one of MLA's projections and occurs in the module's. The rest of
// the entry, the layer included, is not compared.
bool IsMlaTail(std::string_view entry, std::string_view module) {
  const std::string_view tail = LastComponent(entry);
  for (const std::string_view known : kMlaTails) {
    if (tail == known) {
      return LastComponent(module).find(tail) != std::string_view::npos;
    }
  }
  return false;
}

}  // namespace

Result<ExcludedNames> ExcludedNames::Compile(std::span<const IgnoreEntry> entries) {
  ASSIGN_OR_RETURN(std::vector<ListedName> names, CompileNames(entries, EntryForm::kStarsOnly));
  return ExcludedNames(std::move(names), /*whole_only=*/false);
}

Result<ExcludedNames> ExcludedNames::CompileWholeNames(std::span<const IgnoreEntry> entries) {
  ASSIGN_OR_RETURN(std::vector<ListedName> names, CompileNames(entries, EntryForm::kStarsOnly));
  return ExcludedNames(std::move(names), /*whole_only=*/true);
}

NameHit ExcludedNames::FirstHit(std::string_view module) const {
  const bool is_wrapped = !whole_only_ && module.starts_with(kWrapper);
  const std::string_view bare = is_wrapped ? module.substr(kWrapper.size()) : module;
  for (const ListedName& name : names_) {
    if (!name.broken.empty()) {
      return {.error = name.broken};
    }
    // The components of the bare path are components of the module too.
    if (name.pattern->MatchesFully(module) || (is_wrapped && name.pattern->MatchesFully(bare)) ||
        (!whole_only_ && AnyComponentMatches(*name.pattern, module))) {
      return {true, MatchRule::kWildcard, name.entry.original};
    }
    if (!whole_only_ && IsMlaTail(name.entry.text, module)) {
      return {true, MatchRule::kMlaTail, name.entry.original};
    }
  }
  return {};
}

}  // namespace octavo
