#include "octavo/policy/weights_mapper.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "octavo/policy/sglang_match.h"

namespace octavo {
namespace {

// The rule with the longest key that fits; among equals the first.
template <typename Fits>
const RenameRule* LongestRule(const std::vector<RenameRule>& rules, const Fits& fits) {
  const RenameRule* best = nullptr;
  for (const RenameRule& rule : rules) {
    if (fits(rule.key) && (best == nullptr || rule.key.size() > best->key.size())) {
      best = &rule;
    }
  }
  return best;
}

}  // namespace

bool Rename(const WeightsMapper& mapper, std::string* text) {
  const auto contains = [&](const std::string& key) {
    return text->find(key) != std::string::npos;
  };
  if (const RenameRule* rule = LongestRule(mapper.substr, contains)) {
    if (!rule->target) {
      return false;
    }
    text->replace(text->find(rule->key), rule->key.size(), *rule->target);
  }
  const auto starts = [&](const std::string& key) { return text->starts_with(key); };
  if (const RenameRule* rule = LongestRule(mapper.prefix, starts)) {
    if (!rule->target) {
      return false;
    }
    text->replace(0, rule->key.size(), *rule->target);
  }
  const auto ends = [&](const std::string& key) { return text->ends_with(key); };
  if (const RenameRule* rule = LongestRule(mapper.suffix, ends)) {
    if (!rule->target) {
      return false;
    }
    text->replace(text->size() - rule->key.size(), rule->key.size(), *rule->target);
  }
  return true;
}

std::vector<IgnoreEntry> RenameAll(const WeightsMapper& mapper, std::vector<IgnoreEntry> entries) {
  std::vector<IgnoreEntry> renamed;
  for (IgnoreEntry& entry : entries) {
    if (!Rename(mapper, &entry.text)) {
      continue;
    }
    if (std::ranges::find(renamed, entry.text, &IgnoreEntry::text) == renamed.end()) {
      renamed.push_back(std::move(entry));
    }
  }
  return renamed;
}

}  // namespace octavo
