#include "octavo/policy/compile_checks.h"

#include <fmt/core.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/formats/format.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/compile_rules.h"
#include "octavo/policy/keep_pattern.h"
#include "octavo/policy/precision_table.h"

namespace octavo {
namespace {

constexpr size_t kMaxSuggestions = 3;
constexpr size_t kMaxMembersShown = 4;
constexpr int64_t kMaxLayer = 1'000'000;  // Where reading a layer number may stop.
constexpr std::string_view kExpertsPart = ".experts.";

void AddUnique(std::string_view text, std::vector<std::string>* out) {
  if (std::ranges::find(*out, text) == out->end()) {
    out->emplace_back(text);
  }
}

// The number after a segment "layers", or -1.
int64_t LayerNamed(std::string_view pattern) {
  const size_t found = pattern.find("layers.");
  int64_t layer = -1;
  for (size_t i = found == std::string_view::npos ? pattern.size() : found + 7; i < pattern.size();
       ++i) {
    if (pattern[i] < '0' || pattern[i] > '9' || layer > kMaxLayer) {
      break;
    }
    layer = std::max<int64_t>(layer, 0) * 10 + (pattern[i] - '0');
  }
  return layer;
}

Status NoMatch(const ModelSpec& spec, const CompiledRule& rule) {
  std::string hint;
  for (const std::string& pattern : rule.patterns) {
    if (LayerNamed(pattern) >= spec.num_layers + spec.num_mtp_layers) {
      return InvalidArgument("{}: matches no weight of the model; its decoder layers are 0 to {}",
                             rule.text, spec.num_layers - 1);
    }
    if (pattern.find_first_of("?[]()|\\") != std::string::npos || pattern.starts_with("re:")) {
      hint = " ('*' is the only wildcard; other characters stand for themselves)";
    }
    const std::vector<std::string> near = SuggestKeeps(spec, pattern, kMaxSuggestions);
    if (!near.empty()) {
      hint += fmt::format("; patterns that would match: {}", fmt::join(near, ", "));
    }
  }
  return InvalidArgument("{}: matches no weight of the model{}", rule.text, hint);
}

// The rules that took the weights which `loser` matched, strongest first, and then those that are
// no rules of the user ("width 300").
std::vector<std::string> WinnersOver(const CompiledRule& loser, const PrecisionTable& table,
                                     const std::vector<CompiledRule>& rules) {
  std::set<std::string_view> won;
  for (size_t i = 0; i < table.rows.size(); ++i) {
    if (loser.matches[i]) {
      won.insert(table.rows[i].rule);
    }
  }
  std::vector<std::string> winners;
  for (const CompiledRule& rule : rules) {
    if (won.erase(rule.text) > 0) {
      winners.push_back(rule.text);
    }
  }
  winners.insert(winners.end(), won.begin(), won.end());
  return winners;
}

Status WinsNowhere(const CompiledRule& rule, const PrecisionTable& table,
                   const std::vector<CompiledRule>& rules) {
  const std::string winners = fmt::format("{}", fmt::join(WinnersOver(rule, table, rules), ", "));
  if (rule.text.starts_with("--format ")) {
    return InvalidArgument(
        "{}: wins nowhere: every linear weight is kept in BF16 by {}; ask for --format bf16 if "
        "that is meant",
        rule.text, winners);
  }
  const bool is_one = rule.num_matched == 1;
  const std::string weights =
      is_one ? "the one weight" : fmt::format("all {} weights", rule.num_matched);
  if (rule.format != WeightFormat::kBf16 || rule.may_agree) {
    return InvalidArgument(
        "{}: wins nowhere: {} it matches {} decided by {}; narrow those rules, "
        "or drop this one",
        rule.text, weights, is_one ? "is" : "are", winners);
  }
  return InvalidArgument(
      "{}: wins nowhere: {} it matches {} already in BF16 by {}; drop the rule, or narrow the "
      "other",
      rule.text, weights, is_one ? "is" : "are", winners);
}

// Every weight that the rule matches has the rule's format, whoever decided it.
bool Agrees(const CompiledRule& rule, const PrecisionTable& table) {
  for (size_t i = 0; i < table.rows.size(); ++i) {
    if (rule.matches[i] && table.rows[i].format != rule.format) {
      return false;
    }
  }
  return true;
}

// The rules that decided the weights of `rows`, without those that decide what is left over unless
// there are no others.
std::vector<std::string> Culprits(const std::vector<size_t>& rows, const PrecisionTable& table,
                                  const std::vector<CompiledRule>& rules) {
  std::vector<std::string> asked;
  std::vector<std::string> all;
  for (const size_t row_idx : rows) {
    const std::string& text = table.rows[row_idx].rule;
    const auto rule = std::ranges::find(rules, text, &CompiledRule::text);
    AddUnique(text, &all);
    if (rule != rules.end() && !rule->is_structural && rule != rules.end() - 1) {
      AddUnique(text, &asked);
    }
  }
  return asked.empty() ? all : asked;
}

// "q_proj bf16, k_proj fp8, v_proj fp8".
std::string MembersText(const std::vector<size_t>& rows, const PrecisionTable& table,
                        std::string_view stem) {
  std::vector<std::string> parts;
  for (const size_t row_idx : rows) {
    const PrecisionRow& row = table.rows[row_idx];
    std::string_view module = ModuleOfWeight(row.name);
    module.remove_prefix(std::min(module.size(), stem.size()));
    parts.push_back(fmt::format("{} {}", module, WeightFormatName(row.format)));
  }
  return fmt::format("{}", fmt::join(parts, ", "));
}

bool AreAlike(const std::vector<size_t>& rows, const PrecisionTable& table) {
  return std::ranges::all_of(rows, [&](size_t row_idx) {
    return table.rows[row_idx].format == table.rows[rows.front()].format;
  });
}

Status CheckFusedSets(const ModelSpec& spec, const PrecisionTable& table,
                      const std::vector<CompiledRule>& rules) {
  for (const FusedSet& set : FusedSetsOf(spec)) {
    const std::vector<size_t> rows(set.members.begin(), set.members.end());
    if (AreAlike(rows, table)) {
      continue;
    }
    const std::string_view stem = std::string_view(set.module).substr(0, set.module.rfind('.') + 1);
    return InvalidArgument(
        "{}: splits the fused set {} ({}); engines serve its members as one matrix, so name all "
        "of them or none",
        fmt::join(Culprits(rows, table, rules), ", "), set.module, MembersText(rows, table, stem));
  }
  return OkStatus();
}

// The first few weights of each format: a container has hundreds.
std::vector<size_t> Specimens(const std::vector<size_t>& rows, const PrecisionTable& table) {
  std::map<WeightFormat, size_t> shown;
  std::vector<size_t> out;
  for (const size_t row_idx : rows) {
    if (++shown[table.rows[row_idx].format] <= kMaxMembersShown / 2) {
      out.push_back(row_idx);
    }
  }
  return out;
}

Status CheckContainers(const ModelSpec& spec, const PrecisionTable& table,
                       const std::vector<CompiledRule>& rules) {
  std::map<std::string_view, std::vector<size_t>> containers;  // ".....mlp.experts." -> rows.
  for (size_t i = 0; i < spec.weights.size(); ++i) {
    const std::string_view name = spec.weights[i].name;
    const size_t found = name.find(kExpertsPart);
    if (IsExpertRole(spec.weights[i].role) && found != std::string_view::npos) {
      containers[name.substr(0, found + kExpertsPart.size())].push_back(i);
    }
  }
  for (const auto& [stem, rows] : containers) {
    if (!AreAlike(rows, table)) {
      return InvalidArgument(
          "{}: splits the experts {} ({}, ...); engines serve the routed experts of a layer as "
          "one module, so name all of them or none",
          fmt::join(Culprits(rows, table, rules), ", "), stem.substr(0, stem.size() - 1),
          MembersText(Specimens(rows, table), table, stem));
    }
  }
  return OkStatus();
}

}  // namespace

Status CheckRulesTookPart(const ModelSpec& spec, const PrecisionTable& table,
                          const std::vector<CompiledRule>& rules) {
  for (const CompiledRule& rule : rules) {
    // --format may leave everything to the rules of a file when it only names what is left over.
    const bool is_rest = &rule == &rules.back() && rule.format == WeightFormat::kBf16;
    if (rule.is_structural || is_rest) {
      continue;
    }
    if (rule.num_matched == 0) {
      return NoMatch(spec, rule);
    }
    if (rule.num_won == 0 && !(rule.may_agree && Agrees(rule, table))) {
      return WinsNowhere(rule, table, rules);
    }
  }
  return OkStatus();
}

Status CheckNothingIsSplit(const ModelSpec& spec, const PrecisionTable& table,
                           const std::vector<CompiledRule>& rules) {
  RETURN_IF_ERROR(CheckFusedSets(spec, table, rules));
  return CheckContainers(spec, table, rules);
}

Status CheckFormatsGoTogether(const PrecisionTable& table) {
  std::set<WeightFormat> formats;
  for (const PrecisionRow& row : table.rows) {
    formats.insert(row.format);
  }
  formats.erase(WeightFormat::kBf16);
  const bool is_packed = table.layout == StoredLayout::kCompressedTensors;
  std::vector<std::string_view> names;
  bool in_groups = true;  // Every one is a group of compressed-tensors.
  for (const WeightFormat format : formats) {
    names.push_back(WeightFormatName(format));
    in_groups =
        in_groups && (format == WeightFormat::kNvfp4 || format == WeightFormat::kFp8Channel);
  }
  if (is_packed && !in_groups) {
    return Unsupported(
        "--layout compressed-tensors: expected formats nvfp4 and fp8-channel, got {}",
        fmt::join(names, ", "));
  }
  if (formats.size() > 1 && !is_packed) {
    return Unsupported(
        "formats {} side by side: no configuration that engines read states them; nvfp4 and "
        "fp8-channel go together with --layout compressed-tensors",
        fmt::join(names, " and "));
  }
  return OkStatus();
}

}  // namespace octavo
