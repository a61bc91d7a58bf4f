#pragma once
// Fused modules: judged by the names of their shards, which must agree.

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/function_ref.h"
#include "octavo/policy/sglang_match.h"

namespace octavo {

// The text after the last dot.
std::string_view LastComponent(std::string_view module);

// Python's str.replace: every occurrence of `from` (also inside longer components), left to right.
std::string ReplaceAll(std::string_view text, std::string_view from, std::string_view to);

// What the mapping declares for the component `last`; null when it is not in it.
const std::vector<std::string>* DeclaredShards(std::span<const FusedMapping> mapping,
                                               std::string_view last);

// How one name fared against a list.
struct NameHit {
  bool hit = false;
  MatchRule rule = MatchRule::kNone;
  std::optional<std::string> entry = {};  // The original of the first entry that fits.
  std::string error = {};                 // Not empty: reading that entry raises.
};

// Asks about every shard of `module` (its last component, wherever it occurs, replaced). All agree:
// that is the verdict. They differ, there are none, or asking raises: kError.
MatchResult JudgeShards(std::string_view module, const std::vector<std::string>& shards,
                        FunctionRef<NameHit(std::string_view path)> ask);

// The verdict of one name.
MatchResult JudgeName(std::string_view module, NameHit hit);

}  // namespace octavo
