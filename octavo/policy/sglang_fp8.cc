#include "octavo/policy/sglang_fp8.h"

#include <algorithm>
#include <cstddef>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/policy/json_depth.h"
#include "octavo/policy/sglang_match.h"

namespace octavo {
namespace {

using Json = nlohmann::json;

constexpr std::string_view kModelPrefix = "model.";
constexpr std::string_view kIgnoredLayers = "ignored_layers";
constexpr std::string_view kModulesToNotConvert = "modules_to_not_convert";

struct KindName {
  ModuleKind kind;
  std::string_view name;
};
constexpr KindName kKindNames[] = {
    {ModuleKind::kLinear, "linear"},  {ModuleKind::kMoe, "moe"},
    {ModuleKind::kLmHead, "lm_head"}, {ModuleKind::kEmbedding, "embedding"},
    {ModuleKind::kRouter, "router"},  {ModuleKind::kNorm, "norm"},
};

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

// False: the entry is dropped.
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

constexpr std::string_view kBlanks = " \t\n\r\f\v";

// Python's str.strip for ASCII.
std::string_view TrimBlanks(std::string_view text) {
  const size_t first = text.find_first_not_of(kBlanks);
  if (first == std::string_view::npos) {
    return {};
  }
  return text.substr(first, text.find_last_not_of(kBlanks) - first + 1);
}

void AppendEnvironment(std::string_view list, std::vector<IgnoreEntry>* entries) {
  while (true) {
    const size_t comma = list.find(',');
    const std::string item(TrimBlanks(list.substr(0, comma)));
    if (!item.empty()) {
      entries->push_back({item, item});
    }
    if (comma == std::string_view::npos) {
      return;
    }
    list.remove_prefix(comma + 1);
  }
}

Result<std::vector<std::string>> ReadEntries(const Json& value, std::string_view key) {
  std::vector<std::string> entries;
  if (value.is_null()) {
    return entries;
  }
  if (!value.is_array()) {
    return InvalidArgument("quantization_config.{}: expected a list of strings, got {}", key,
                           value.type_name());
  }
  for (const Json& entry : value) {
    if (!entry.is_string()) {
      return InvalidArgument("quantization_config.{}: expected strings, got {}", key,
                             entry.type_name());
    }
    entries.push_back(entry.get<std::string>());
  }
  return entries;
}

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

std::vector<IgnoreEntry> SglangFp8Entries(std::span<const std::string> written,
                                          const SglangFp8Options& options) {
  std::vector<IgnoreEntry> entries;
  for (const std::string& original : written) {
    // Each entry is tried with and without one leading "model.".
    std::string_view bare = original;
    if (bare.starts_with(kModelPrefix)) {
      bare.remove_prefix(kModelPrefix.size());
    }
    entries.push_back({std::string(bare), original});
    entries.push_back({std::string(kModelPrefix).append(bare), original});
  }
  AppendEnvironment(options.env_ignored, &entries);
  return options.mapper.IsEmpty() ? entries : RenameAll(options.mapper, std::move(entries));
}

Result<SglangFp8List> ReadSglangFp8List(std::string_view quantization_config,
                                        const SglangFp8Options& options) {
  SglangFp8List list;
  if (!quantization_config.empty()) {
    const Json config = IsShallowJson(quantization_config)
                            ? Json::parse(quantization_config, nullptr, /*allow_exceptions=*/false)
                            : Json(Json::value_t::discarded);
    if (!config.is_object()) {
      return Corrupt("quantization_config: expected a JSON object");
    }
    // Existence decides: a null or empty ignored_layers hides the other key.
    const auto first = config.find(kIgnoredLayers);
    const auto second = config.find(kModulesToNotConvert);
    list.hides_other_key =
        first != config.end() && second != config.end() && second->is_array() && !second->empty();
    if (first != config.end()) {
      list.key = kIgnoredLayers;
      ASSIGN_OR_RETURN(list.written, ReadEntries(*first, list.key));
    } else if (second != config.end()) {
      list.key = kModulesToNotConvert;
      ASSIGN_OR_RETURN(list.written, ReadEntries(*second, list.key));
    }
  }
  list.entries = SglangFp8Entries(list.written, options);
  return list;
}

MatchResult SglangFp8Match(std::span<const IgnoreEntry> entries, std::string_view module,
                           ModuleKind kind, std::span<const FusedMapping> mapping) {
  if (kind != ModuleKind::kLinear && kind != ModuleKind::kMoe) {
    return {Verdict::kSkipped, MatchRule::kClass, std::nullopt, {}, {}};
  }
  return SglangMatch(entries, module, mapping);
}

}  // namespace octavo
