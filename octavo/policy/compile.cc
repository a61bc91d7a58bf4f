// CompilePolicy: rules, strongest first, over the weight table of a model.
//
//   role R           embedding, lm_head and norm weights are never quantized
//   --keep PATTERN   in the order given
//   --keep-first N
//   --keep-last N
//   --format F       every linear weight
//
// The first rule that matches a weight wins it; the others that match are its shadowed rules.

#include <fmt/core.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/check.h"
#include "octavo/base/status.h"
#include "octavo/formats/format.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/keep_pattern.h"
#include "octavo/policy/precision_table.h"

namespace octavo {
namespace {

struct Rule {
  std::string text;    // As the user wrote it.
  std::string reason;  // One sentence, the same for every weight that the rule wins.
  WeightFormat format = WeightFormat::kBf16;
  bool is_structural = false;  // A role rule: it may match or win nothing.
  std::vector<bool> matches;   // One for each weight of the spec.
  int num_matched = 0;
  int num_won = 0;
};

constexpr size_t kMaxSuggestions = 3;
constexpr int64_t kMaxLayer = 1'000'000;  // Where reading a layer number may stop.

std::string_view RoleReason(Role role) {
  switch (role) {
    case Role::kEmbedding:
      return "The embedding is a table that is looked up, not multiplied; it is never quantized.";
    case Role::kLmHead:
      return "The output head decides every token's probability; it is never quantized.";
    default:
      return "Norm weights are vectors that scale single channels; they are never quantized.";
  }
}

std::string FormatReason(WeightFormat format) {
  switch (format) {
    case WeightFormat::kBf16:
      return "The whole model is asked for in BF16.";
    case WeightFormat::kFp8:
      return "Linear weights are stored as E4M3 codes in 128x128 blocks, one FP32 scale each.";
    case WeightFormat::kFp8Ue8m0:
      return "Linear weights are stored as E4M3 codes in 128x128 blocks, one power-of-two scale "
             "each.";
    case WeightFormat::kFp8Channel:
      return "Linear weights are stored as E4M3 codes, one FP32 scale for each output channel.";
    case WeightFormat::kFp8Tensor:
      return "Linear weights are stored as E4M3 codes, one FP32 scale for each fused set.";
    case WeightFormat::kMxfp8:
      return "Linear weights are stored as E4M3 codes in groups of 32, one power-of-two scale "
             "each.";
    case WeightFormat::kNvfp4:
      return "Linear weights are stored as E2M1 codes in groups of 16, one E4M3 scale each.";
  }
  return {};
}

template <typename Predicate>
Rule MakeRule(const ModelSpec& spec, std::string text, std::string reason,
              const Predicate& predicate) {
  Rule rule{.text = std::move(text), .reason = std::move(reason), .matches = {}};
  for (const WeightSpec& weight : spec.weights) {
    const bool matched = predicate(weight);
    rule.matches.push_back(matched);
    rule.num_matched += matched ? 1 : 0;
  }
  return rule;
}

void AddRoleRules(const ModelSpec& spec, std::vector<Rule>* rules) {
  for (const Role role : {Role::kEmbedding, Role::kLmHead, Role::kNorm}) {
    rules->push_back(MakeRule(spec, fmt::format("role {}", RoleName(role)),
                              std::string(RoleReason(role)),
                              [&](const WeightSpec& weight) { return weight.role == role; }));
    rules->back().is_structural = true;
  }
}

void AddLayerRules(const ModelSpec& spec, const PolicyOptions& options, std::vector<Rule>* rules) {
  if (options.keep_first > 0) {
    const int end = options.keep_first;
    rules->push_back(MakeRule(
        spec, fmt::format("--keep-first {}", end),
        fmt::format("The first {} of {} decoder layers stay in BF16.", end, spec.num_layers),
        [&](const WeightSpec& weight) { return weight.layer >= 0 && weight.layer < end; }));
  }
  if (options.keep_last > 0) {
    const int64_t begin = spec.num_layers - options.keep_last;
    rules->push_back(MakeRule(
        spec, fmt::format("--keep-last {}", options.keep_last),
        fmt::format("The last {} of {} decoder layers stay in BF16.", options.keep_last,
                    spec.num_layers),
        [&](const WeightSpec& weight) { return weight.layer >= 0 && weight.layer >= begin; }));
  }
}

std::vector<Rule> MakeRules(const ModelSpec& spec, const PolicyOptions& options) {
  std::vector<Rule> rules;
  AddRoleRules(spec, &rules);
  for (const std::string& pattern : options.keep) {
    rules.push_back(
        MakeRule(spec, fmt::format("--keep {}", pattern),
                 fmt::format("The pattern {} names this weight, so it stays in BF16.", pattern),
                 [&](const WeightSpec& weight) { return KeepMatches(pattern, weight.name); }));
  }
  AddLayerRules(spec, options, &rules);
  const std::string_view format = WeightFormatName(options.format);
  rules.push_back(MakeRule(spec, fmt::format("--format {}", format), FormatReason(options.format),
                           [](const WeightSpec& weight) { return IsLinearRole(weight.role); }));
  rules.back().format = options.format;
  return rules;
}

Status CheckLayerCount(std::string_view flag, int count, const ModelSpec& spec) {
  if (count < 0 || count > spec.num_layers) {
    return InvalidArgument("{} {}: expected 0 to {} (the model's decoder layers)", flag, count,
                           spec.num_layers);
  }
  return OkStatus();
}

Status CheckOptions(const ModelSpec& spec, const PolicyOptions& options) {
  RETURN_IF_ERROR(CheckLayerCount("--keep-first", options.keep_first, spec));
  RETURN_IF_ERROR(CheckLayerCount("--keep-last", options.keep_last, spec));
  if (options.format != WeightFormat::kBf16) {
    return OkStatus();
  }
  std::string rule;
  if (!options.keep.empty()) {
    rule = fmt::format("--keep {}", options.keep.front());
  } else if (options.keep_first > 0) {
    rule = fmt::format("--keep-first {}", options.keep_first);
  } else if (options.keep_last > 0) {
    rule = fmt::format("--keep-last {}", options.keep_last);
  }
  if (!rule.empty()) {
    return InvalidArgument(
        "{}: asks for nothing, because --format bf16 keeps every weight in BF16; give a "
        "low-precision --format or drop the rule",
        rule);
  }
  return OkStatus();
}

PrecisionTable Decide(const ModelSpec& spec, const PolicyOptions& options,
                      std::vector<Rule>* rules) {
  PrecisionTable table{.format = options.format, .rows = {}};
  for (size_t i = 0; i < spec.weights.size(); ++i) {
    const WeightSpec& weight = spec.weights[i];
    PrecisionRow row{.name = weight.name,
                     .role = weight.role,
                     .layer = weight.layer,
                     .shape = weight.shape,
                     .rule = {},
                     .reason = {},
                     .shadowed = {}};
    for (Rule& rule : *rules) {
      if (!rule.matches[i]) {
        continue;
      }
      if (row.rule.empty()) {
        row.format = rule.format;
        row.rule = rule.text;
        row.reason = rule.reason;
        ++rule.num_won;
      } else {
        row.shadowed.push_back(rule.text);
      }
    }
    CHECK(!row.rule.empty());
    table.rows.push_back(std::move(row));
  }
  return table;
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

Status NoMatch(const ModelSpec& spec, const Rule& rule, std::string_view pattern) {
  if (LayerNamed(pattern) >= spec.num_layers) {
    return InvalidArgument("{}: matches no weight of the model; its decoder layers are 0 to {}",
                           rule.text, spec.num_layers - 1);
  }
  std::string hint;
  if (pattern.find_first_of("?[]()|^$\\") != std::string_view::npos || pattern.starts_with("re:")) {
    hint = " ('*' is the only wildcard; other characters stand for themselves)";
  }
  const std::vector<std::string> near = SuggestKeeps(spec, pattern, kMaxSuggestions);
  if (!near.empty()) {
    hint += fmt::format("; patterns that would match: {}", fmt::join(near, ", "));
  }
  return InvalidArgument("{}: matches no weight of the model{}", rule.text, hint);
}

// The rules that took the weights which `loser` matched, strongest first.
std::vector<std::string> WinnersOver(const Rule& loser, const PrecisionTable& table,
                                     const std::vector<Rule>& rules) {
  std::vector<std::string> winners;
  for (const Rule& rule : rules) {
    bool won = false;
    for (size_t i = 0; i < table.rows.size(); ++i) {
      won = won || (loser.matches[i] && table.rows[i].rule == rule.text);
    }
    if (won && std::ranges::find(winners, rule.text) == winners.end()) {
      winners.push_back(rule.text);
    }
  }
  return winners;
}

Status WinsNowhere(const Rule& rule, const PrecisionTable& table, const std::vector<Rule>& rules) {
  const std::string winners = fmt::format("{}", fmt::join(WinnersOver(rule, table, rules), ", "));
  if (rule.format != WeightFormat::kBf16) {
    return InvalidArgument(
        "{}: wins nowhere: every linear weight is kept in BF16 by {}; ask for --format bf16 if "
        "that is meant",
        rule.text, winners);
  }
  return InvalidArgument(
      "{}: wins nowhere: {} it matches {} already in BF16 by {}; drop the rule, or narrow the "
      "other",
      rule.text,
      rule.num_matched == 1 ? "the one weight" : fmt::format("all {} weights", rule.num_matched),
      rule.num_matched == 1 ? "is" : "are", winners);
}

Status CheckRules(const ModelSpec& spec, const PolicyOptions& options, const PrecisionTable& table,
                  const std::vector<Rule>& rules) {
  size_t keep_idx = 0;
  for (const Rule& rule : rules) {
    const bool is_keep = rule.text.starts_with("--keep ");
    const size_t pattern_idx = is_keep ? keep_idx++ : 0;
    if (rule.is_structural) {
      continue;
    }
    if (rule.num_matched == 0) {
      return is_keep ? NoMatch(spec, rule, options.keep[pattern_idx])
                     : InvalidArgument("{}: matches no weight of the model", rule.text);
    }
    if (rule.num_won == 0) {
      return WinsNowhere(rule, table, rules);
    }
  }
  return OkStatus();
}

// Empty when all members have one format; otherwise "q_proj bf16, k_proj fp8, v_proj fp8".
std::string SplitOf(const FusedSet& set, const PrecisionTable& table) {
  std::vector<std::string> parts;
  bool differ = false;
  const WeightFormat first = table.rows[static_cast<size_t>(set.members.front())].format;
  for (const int member : set.members) {
    const PrecisionRow& row = table.rows[static_cast<size_t>(member)];
    differ = differ || row.format != first;
    const std::string_view module = ModuleOfWeight(row.name);
    parts.push_back(
        fmt::format("{} {}", module.substr(module.rfind('.') + 1), WeightFormatName(row.format)));
  }
  return differ ? fmt::format("{}", fmt::join(parts, ", ")) : std::string();
}

Status CheckFusedSets(const ModelSpec& spec, const PrecisionTable& table) {
  for (const FusedSet& set : FusedSetsOf(spec)) {
    const std::string split = SplitOf(set, table);
    if (split.empty()) {
      continue;
    }
    // The rules that kept some of the members split it.
    std::vector<std::string> culprits;
    for (const int member : set.members) {
      const PrecisionRow& row = table.rows[static_cast<size_t>(member)];
      if (row.format == WeightFormat::kBf16 &&
          std::ranges::find(culprits, row.rule) == culprits.end()) {
        culprits.push_back(row.rule);
      }
    }
    return InvalidArgument(
        "{}: splits the fused set {} ({}); engines serve its members as one matrix, so name all "
        "of them or none",
        fmt::join(culprits, ", "), set.module, split);
  }
  return OkStatus();
}

}  // namespace

Result<PrecisionTable> CompilePolicy(const ModelSpec& spec, const PolicyOptions& options) {
  RETURN_IF_ERROR(CheckOptions(spec, options));
  std::vector<Rule> rules = MakeRules(spec, options);
  PrecisionTable table = Decide(spec, options, &rules);
  RETURN_IF_ERROR(CheckRules(spec, options, table, rules));
  RETURN_IF_ERROR(CheckFusedSets(spec, table));
  return table;
}

}  // namespace octavo
