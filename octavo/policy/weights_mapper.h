#pragma once
// The renaming that a model class applies to checkpoint names, and to every entry of a list as
// plain text (wildcards and expressions included).
//
// Source: SGLang, python/sglang/srt/models/utils.py, WeightsMapper; vLLM has the same class.

#include <optional>
#include <string>
#include <vector>

#include "octavo/policy/sglang_match.h"

namespace octavo {

// One renaming of the model class. No target: an entry that the rule hits is dropped.
struct RenameRule {
  std::string key;
  std::optional<std::string> target;
};

// At most one rule of each kind is applied to an entry, the longest key first, in this order.
struct WeightsMapper {
  std::vector<RenameRule> substr;  // Replaces the first occurrence.
  std::vector<RenameRule> prefix;
  std::vector<RenameRule> suffix;

  bool IsEmpty() const { return substr.empty() && prefix.empty() && suffix.empty(); }
};

// False: the entry is dropped, and *text is unspecified.
bool Rename(const WeightsMapper& mapper, std::string* text);

// Renames each entry; dropped ones and repetitions go.
std::vector<IgnoreEntry> RenameAll(const WeightsMapper& mapper, std::vector<IgnoreEntry> entries);

}  // namespace octavo
