#include "octavo/policy/policy_file.h"

#define TOML_EXCEPTIONS 0
#define TOML_HEADER_ONLY 1
#include <fmt/core.h>
#include <fmt/format.h>
#include <toml++/toml.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/formats/format.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/keep_pattern.h"
#include "octavo/policy/policy_presets.h"
#include "octavo/policy/precision_table.h"
#include "octavo/policy/toml_text.h"

namespace octavo {
namespace {

constexpr size_t kMaxSuggestions = 3;
// A policy is written by hand; these bounds keep its cost over large models small.
constexpr size_t kFileBytesMax = size_t{1} << 20;
constexpr size_t kRulesMax = 256;
constexpr size_t kListMax = 1024;
constexpr int kLayerMax = 1'000'000;
constexpr std::string_view kPacked = "compressed-tensors";
constexpr std::string_view kModelOpt = "modelopt";

constexpr auto kFileKeys = std::to_array<std::string_view>(
    {"preset", "format", "scope", "layout", "keep_first", "keep_last", "keep_mtp", "keep", "rule"});
constexpr auto kRuleKeys =
    std::to_array<std::string_view>({"pattern", "role", "layers", "format", "optional"});

// Where a message points: "FILE:LINE:COLUMN".
struct Place {
  std::string_view file;

  template <typename... Args>
  Status Error(const toml::source_region& source, fmt::format_string<Args...> format,
               Args&&... args) const {
    return InvalidArgument("{}:{}:{}: {}", file, source.begin.line, source.begin.column,
                           fmt::format(format, std::forward<Args>(args)...));
  }
};

// "; nearest: a, b" or "; known: all of them".
std::string Near(std::string_view name, const std::vector<std::string>& known) {
  const std::vector<std::string> near = NearestNames(name, known, kMaxSuggestions);
  return fmt::format("{}: {}", near.empty() ? "known" : "nearest",
                     fmt::join(near.empty() ? known : near, ", "));
}

Status CheckKeys(const Place& place, const toml::table& table,
                 std::span<const std::string_view> keys) {
  for (const auto& [key, value] : table) {
    if (std::ranges::find(keys, key.str()) == keys.end()) {
      return place.Error(key.source(), "unknown key \"{}\"; {}", key.str(),
                         Near(key.str(), {keys.begin(), keys.end()}));
    }
  }
  return OkStatus();
}

// Null when the key is absent.
Result<const toml::node*> NodeAt(const Place& place, const toml::table& table, std::string_view key,
                                 toml::node_type type, std::string_view expected) {
  const toml::node* node = table.get(key);
  if (node != nullptr && node->type() != type) {
    return place.Error(node->source(), "{}: expected {}", key, expected);
  }
  return node;
}

// The string at `key` as one of the names that `parse` knows; nullopt when absent.
template <typename Parse>
auto NameAt(const Place& place, const toml::table& table, std::string_view key, const Parse& parse,
            const std::vector<std::string>& known) -> Result<decltype(parse(std::string_view()))> {
  ASSIGN_OR_RETURN(const toml::node* node,
                   NodeAt(place, table, key, toml::node_type::string, "a string"));
  if (node == nullptr) {
    return decltype(parse(std::string_view()))();
  }
  const std::string& name = node->as_string()->get();
  auto parsed = parse(name);
  if (!parsed.has_value()) {
    return place.Error(node->source(), "{}: \"{}\" is not known; {}", key, name, Near(name, known));
  }
  return parsed;
}

std::vector<std::string> FormatNames() {
  std::vector<std::string> names;
  for (const WeightFormat format : AllWeightFormats()) {
    names.emplace_back(WeightFormatName(format));
  }
  return names;
}

std::optional<StoredLayout> ParseLayout(std::string_view name) {
  if (name == kPacked) {
    return StoredLayout::kCompressedTensors;
  }
  return name == kModelOpt ? std::optional(StoredLayout::kDefault) : std::nullopt;
}

Result<int> LayerCountAt(const Place& place, const toml::table& table, std::string_view key,
                         int otherwise) {
  ASSIGN_OR_RETURN(const toml::node* node,
                   NodeAt(place, table, key, toml::node_type::integer, "a number of layers"));
  if (node == nullptr) {
    return otherwise;
  }
  const int64_t count = node->as_integer()->get();
  if (count < 0 || count > kLayerMax) {
    return place.Error(node->source(), "{}: expected 0 or more, got {}", key, count);
  }
  return static_cast<int>(count);
}

Result<bool> FlagAt(const Place& place, const toml::table& table, std::string_view key,
                    bool otherwise) {
  ASSIGN_OR_RETURN(const toml::node* node,
                   NodeAt(place, table, key, toml::node_type::boolean, "true or false"));
  return node == nullptr ? otherwise : node->as_boolean()->get();
}

// The values at `key`: of a list its elements, otherwise the value itself.
Result<std::vector<const toml::node*>> OneOrMore(const Place& place, const toml::table& table,
                                                 std::string_view key) {
  std::vector<const toml::node*> nodes;
  const toml::node* node = table.get(key);
  if (node == nullptr) {
    return nodes;
  }
  if (const toml::array* list = node->as_array(); list != nullptr) {
    if (list->empty() || list->size() > kListMax) {
      return place.Error(node->source(), "{}: expected 1 to {} values, got {}", key, kListMax,
                         list->size());
    }
    for (const toml::node& element : *list) {
      nodes.push_back(&element);
    }
  } else {
    nodes.push_back(node);
  }
  return nodes;
}

Result<std::vector<std::string>> TextsAt(const Place& place, const toml::table& table,
                                         std::string_view key) {
  ASSIGN_OR_RETURN(const std::vector<const toml::node*> nodes, OneOrMore(place, table, key));
  std::vector<std::string> texts;
  for (const toml::node* node : nodes) {
    if (!node->is_string()) {
      return place.Error(node->source(), "{}: expected a string or a list of strings", key);
    }
    texts.push_back(node->as_string()->get());
  }
  return texts;
}

// The roles that a name means: one, or all of a group, such as "expert" for "expert.gate" and on.
std::vector<Role> RolesNamed(std::string_view name) {
  std::vector<Role> roles;
  for (int i = 0; i <= static_cast<int>(Role::kMtpProjection); ++i) {
    const Role role = static_cast<Role>(i);
    const std::string_view full = RoleName(role);
    if (full == name || (full.starts_with(name) && full.substr(name.size()).starts_with('.'))) {
      roles.push_back(role);
    }
  }
  return roles;
}

std::vector<std::string> RoleNames() {
  std::vector<std::string> names;
  for (int i = 0; i <= static_cast<int>(Role::kMtpProjection); ++i) {
    const std::string_view name = RoleName(static_cast<Role>(i));
    names.emplace_back(name);
    if (const size_t dot = name.find('.'); dot != std::string_view::npos) {
      names.emplace_back(name.substr(0, dot));
    }
  }
  std::ranges::sort(names);
  const auto repeated = std::ranges::unique(names);
  names.erase(repeated.begin(), repeated.end());
  return names;
}

Status ReadRoles(const Place& place, const toml::table& table, PolicyRule* rule) {
  ASSIGN_OR_RETURN(const std::vector<std::string> names, TextsAt(place, table, "role"));
  for (const std::string& name : names) {
    const std::vector<Role> roles = RolesNamed(name);
    if (roles.empty()) {
      return place.Error(table.get("role")->source(), "role: \"{}\" is not known; {}", name,
                         Near(name, RoleNames()));
    }
    rule->roles.insert(rule->roles.end(), roles.begin(), roles.end());
  }
  return OkStatus();
}

std::optional<int> ParseLayer(std::string_view text) {
  int layer = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), layer);
  const bool is_number = error == std::errc() && end == text.data() + text.size();
  return is_number && layer >= 0 && layer <= kLayerMax ? std::optional(layer) : std::nullopt;
}

// 3, "3" or "0-3".
std::optional<LayerRange> ParseLayers(const toml::node& node) {
  if (const auto* number = node.as_integer(); number != nullptr) {
    const int64_t layer = number->get();
    return layer >= 0 && layer <= kLayerMax
               ? std::optional(LayerRange{static_cast<int>(layer), static_cast<int>(layer)})
               : std::nullopt;
  }
  if (!node.is_string()) {
    return std::nullopt;
  }
  const std::string_view text = node.as_string()->get();
  const size_t dash = text.find('-');
  const std::optional<int> first = ParseLayer(text.substr(0, dash));
  const std::optional<int> last =
      dash == std::string_view::npos ? first : ParseLayer(text.substr(dash + 1));
  return first && last && *first <= *last ? std::optional(LayerRange{*first, *last}) : std::nullopt;
}

Result<PolicyRule> ReadRule(const Place& place, const toml::table& table) {
  RETURN_IF_ERROR(CheckKeys(place, table, kRuleKeys));
  PolicyRule rule;
  ASSIGN_OR_RETURN(rule.patterns, TextsAt(place, table, "pattern"));
  RETURN_IF_ERROR(ReadRoles(place, table, &rule));
  ASSIGN_OR_RETURN(const std::vector<const toml::node*> layers, OneOrMore(place, table, "layers"));
  for (const toml::node* node : layers) {
    const std::optional<LayerRange> range = ParseLayers(*node);
    if (!range.has_value()) {
      return place.Error(node->source(),
                         "layers: expected a layer, \"FIRST-LAST\", or a list of those");
    }
    rule.layers.push_back(*range);
  }
  if (rule.patterns.empty() && rule.roles.empty() && rule.layers.empty()) {
    return place.Error(table.source(), "rule: expected a pattern, a role or layers");
  }
  ASSIGN_OR_RETURN(const std::optional<WeightFormat> format,
                   NameAt(place, table, "format", ParseWeightFormat, FormatNames()));
  if (!format.has_value()) {
    return place.Error(table.source(), "rule: expected a format");
  }
  rule.format = *format;
  ASSIGN_OR_RETURN(rule.is_optional, FlagAt(place, table, "optional", false));
  return rule;
}

Result<std::vector<PolicyRule>> ReadRules(const Place& place, const toml::table& table) {
  std::vector<PolicyRule> rules;
  ASSIGN_OR_RETURN(const toml::node* node, NodeAt(place, table, "rule", toml::node_type::array,
                                                  "tables, each under a line [[rule]]"));
  if (node == nullptr) {
    return rules;
  }
  if (node->as_array()->size() > kRulesMax) {
    return place.Error(node->source(), "rule: expected at most {}, got {}", kRulesMax,
                       node->as_array()->size());
  }
  for (const toml::node& element : *node->as_array()) {
    if (!element.is_table()) {
      return place.Error(element.source(), "rule: expected tables, each under a line [[rule]]");
    }
    ASSIGN_OR_RETURN(PolicyRule rule, ReadRule(place, *element.as_table()));
    rules.push_back(std::move(rule));
  }
  return rules;
}

// The policy that `preset` names, or none.
Result<std::optional<PolicyOptions>> ReadPreset(const Place& place, const toml::table& table) {
  ASSIGN_OR_RETURN(const toml::node* node,
                   NodeAt(place, table, "preset", toml::node_type::string, "a string"));
  if (node == nullptr) {
    return std::optional<PolicyOptions>();
  }
  Result<PolicyOptions> preset = PresetPolicy(node->as_string()->get());
  if (!preset) {
    return place.Error(node->source(), "{}", preset.error().message());
  }
  return std::optional(std::move(preset).value());
}

Result<PolicyOptions> ReadFile(const Place& place, const toml::table& table) {
  RETURN_IF_ERROR(CheckKeys(place, table, kFileKeys));
  ASSIGN_OR_RETURN(const std::optional<PolicyOptions> preset, ReadPreset(place, table));
  PolicyOptions options = preset.value_or(PolicyOptions{});
  ASSIGN_OR_RETURN(const std::optional<WeightFormat> format,
                   NameAt(place, table, "format", ParseWeightFormat, FormatNames()));
  if (!format.has_value() && !preset.has_value()) {
    return place.Error(table.source(), "expected a format or a preset");
  }
  options.format = format.value_or(options.format);
  ASSIGN_OR_RETURN(const std::optional<QuantizeScope> scope,
                   NameAt(place, table, "scope", ParseQuantizeScope, {"experts", "mlp", "all"}));
  options.scope = scope.has_value() ? scope : options.scope;
  ASSIGN_OR_RETURN(
      const std::optional<StoredLayout> layout,
      NameAt(place, table, "layout", ParseLayout, {std::string(kModelOpt), std::string(kPacked)}));
  options.layout = layout.value_or(options.layout);
  ASSIGN_OR_RETURN(options.keep_first,
                   LayerCountAt(place, table, "keep_first", options.keep_first));
  ASSIGN_OR_RETURN(options.keep_last, LayerCountAt(place, table, "keep_last", options.keep_last));
  ASSIGN_OR_RETURN(options.keep_mtp, FlagAt(place, table, "keep_mtp", options.keep_mtp));
  ASSIGN_OR_RETURN(std::vector<std::string> keep, TextsAt(place, table, "keep"));
  options.keep.insert(options.keep.begin(), keep.begin(), keep.end());
  ASSIGN_OR_RETURN(std::vector<PolicyRule> rules, ReadRules(place, table));
  options.rules.insert(options.rules.begin(), rules.begin(), rules.end());
  return options;
}

}  // namespace

Result<PolicyOptions> ParsePolicyFile(std::string_view text, std::string_view file_name) {
  if (text.size() > kFileBytesMax) {
    return InvalidArgument("{}: expected at most {} bytes, got {}", file_name, kFileBytesMax,
                           text.size());
  }
  RETURN_IF_ERROR(CheckTomlText(text, file_name));
  const Place place{file_name};
  const toml::parse_result parsed = toml::parse(text);
  if (!parsed) {
    return place.Error(parsed.error().source(), "{}", parsed.error().description());
  }
  return ReadFile(place, parsed.table());
}

}  // namespace octavo
