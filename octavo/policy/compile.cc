// CompilePolicy: rules, strongest first, over the weight table of a model.
//
//   role R           embedding, lm_head, norm, router, bias, eh_proj: never quantized
//   --keep PATTERN   in the order given
//   rule N: ...      of a policy file, in order
//   --keep-mtp
//   --keep-first N
//   --keep-last N
//   default ...      what --format leaves in BF16 unless a rule says otherwise
//   --format F       every linear weight in the scope
//
// The first rule that matches a weight wins it; the others that match are its shadowed rules. A
// weight whose rows do not fit the format that won is kept in BF16 by the rule "width K".

#include <fmt/core.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/check.h"
#include "octavo/base/status.h"
#include "octavo/formats/format.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/compile_checks.h"
#include "octavo/policy/compile_rules.h"
#include "octavo/policy/precision_table.h"
#include "octavo/policy/sglang_match.h"

namespace octavo {
namespace {

constexpr size_t kNoRule = SIZE_MAX;

Status CheckLayerCount(std::string_view flag, int count, const ModelSpec& spec) {
  if (count < 0 || count > spec.num_layers) {
    return InvalidArgument("{} {}: expected 0 to {} (the model's decoder layers)", flag, count,
                           spec.num_layers);
  }
  return OkStatus();
}

// The first option that only has a meaning beside a low-precision format; empty when none is given.
std::string FirstKeep(const PolicyOptions& options) {
  if (!options.keep.empty()) {
    return fmt::format("--keep {}", options.keep.front());
  }
  if (options.keep_first > 0) {
    return fmt::format("--keep-first {}", options.keep_first);
  }
  if (options.keep_last > 0) {
    return fmt::format("--keep-last {}", options.keep_last);
  }
  if (options.keep_mtp) {
    return "--keep-mtp";
  }
  if (options.scope.has_value()) {
    return fmt::format("--scope {}", QuantizeScopeName(*options.scope));
  }
  return {};
}

Status CheckOptions(const ModelSpec& spec, const PolicyOptions& options) {
  RETURN_IF_ERROR(CheckLayerCount("--keep-first", options.keep_first, spec));
  RETURN_IF_ERROR(CheckLayerCount("--keep-last", options.keep_last, spec));
  const std::string keep = FirstKeep(options);
  if (options.format == WeightFormat::kBf16 && options.rules.empty() && !keep.empty()) {
    return InvalidArgument(
        "{}: asks for nothing, because --format bf16 keeps every weight in BF16; give a "
        "low-precision --format or drop the rule",
        keep);
  }
  return OkStatus();
}

// A table under way: the rule that won each row.
struct Decision {
  PrecisionTable table;
  std::vector<size_t> winners;  // Position in the rules; kNoRule for "width K".
};

Decision Decide(const ModelSpec& spec, const PolicyOptions& options,
                const std::vector<CompiledRule>& rules) {
  Decision decision{.table = {.layout = options.layout, .format = options.format, .rows = {}},
                    .winners = {}};
  decision.table.rows.reserve(spec.weights.size());
  for (size_t i = 0; i < spec.weights.size(); ++i) {
    const WeightSpec& weight = spec.weights[i];
    PrecisionRow row{.name = weight.name,
                     .role = weight.role,
                     .layer = weight.layer,
                     .shape = weight.shape,
                     .rule = {},
                     .reason = {},
                     .shadowed = {}};
    size_t winner = kNoRule;
    for (size_t r = 0; r < rules.size(); ++r) {
      if (!rules[r].matches[i]) {
        continue;
      }
      if (winner == kNoRule) {
        winner = r;
      } else {
        row.shadowed.push_back(rules[r].text);
      }
    }
    CHECK(winner != kNoRule);
    row.format = rules[winner].format;
    row.rule = rules[winner].text;
    row.reason = rules[winner].reason;
    decision.winners.push_back(winner);
    decision.table.rows.push_back(std::move(row));
  }
  return decision;
}

bool Fits(const PrecisionRow& row) {
  return row.format == WeightFormat::kBf16 ||
         (row.shape.size() == 2 && row.shape[1] % ColsMultipleOf(row.format) == 0);
}

// True when a pattern of the rule is the full name of the weight or its module.
bool NamesExactly(const CompiledRule& rule, std::string_view name) {
  return std::ranges::any_of(rule.patterns, [&](std::string_view pattern) {
    const std::string_view path = StripTrailingDots(pattern);
    return path == name || path == ModuleOfWeight(name);
  });
}

void KeepForWidth(std::string_view rule, std::string reason, size_t row_idx, Decision* decision) {
  PrecisionRow& row = decision->table.rows[row_idx];
  if (row.format == WeightFormat::kBf16) {
    return;
  }
  row.shadowed.insert(row.shadowed.begin(), std::move(row.rule));
  row.rule = rule;
  row.reason = std::move(reason);
  row.format = WeightFormat::kBf16;
  decision->winners[row_idx] = kNoRule;
}

// Keeps what does not fit, and with it the routed experts of its layer: engines serve those as one.
Status ApplyWidths(const ModelSpec& spec, const std::vector<CompiledRule>& rules,
                   Decision* decision) {
  std::map<int, int64_t> expert_widths;  // Layer -> the width that does not fit.
  for (size_t i = 0; i < spec.weights.size(); ++i) {
    const PrecisionRow& row = decision->table.rows[i];
    if (Fits(row)) {
      continue;
    }
    const CompiledRule& rule = rules[decision->winners[i]];
    const int64_t width = row.shape.empty() ? 0 : row.shape.back();
    const std::string_view format = WeightFormatName(row.format);
    const int64_t multiple = ColsMultipleOf(row.format);
    if (NamesExactly(rule, row.name)) {
      return InvalidArgument("{}: {} has rows of {} values; {} needs a multiple of {}", rule.text,
                             row.name, width, format, multiple);
    }
    if (IsExpertRole(row.role)) {
      expert_widths.emplace(row.layer, width);
    }
    KeepForWidth(fmt::format("width {}", width),
                 fmt::format("Rows of {} values do not divide into the groups of {} ({}).", width,
                             format, multiple),
                 i, decision);
  }
  for (size_t i = 0; i < spec.weights.size() && !expert_widths.empty(); ++i) {
    const WeightSpec& weight = spec.weights[i];
    const auto width = expert_widths.find(weight.layer);
    if (IsExpertRole(weight.role) && width != expert_widths.end()) {
      KeepForWidth(fmt::format("width {}", width->second),
                   fmt::format("Another matrix of this layer's experts has rows of {} values, "
                               "which do not fit; engines serve all experts of a layer as one.",
                               width->second),
                   i, decision);
    }
  }
  return OkStatus();
}

// What the table is called by when --format is bf16 and rules ask for more.
WeightFormat NameFormat(const PrecisionTable& table) {
  if (table.format != WeightFormat::kBf16) {
    return table.format;
  }
  const auto quantized = std::ranges::find_if(
      table.rows, [](const PrecisionRow& row) { return row.format != WeightFormat::kBf16; });
  return quantized == table.rows.end() ? table.format : quantized->format;
}

}  // namespace

Result<PrecisionTable> CompilePolicy(const ModelSpec& spec, const PolicyOptions& options) {
  RETURN_IF_ERROR(CheckOptions(spec, options));
  std::vector<CompiledRule> rules = MakePolicyRules(spec, options);
  Decision decision = Decide(spec, options, rules);
  RETURN_IF_ERROR(ApplyWidths(spec, rules, &decision));
  for (const size_t winner : decision.winners) {
    if (winner != kNoRule) {
      ++rules[winner].num_won;
    }
  }
  RETURN_IF_ERROR(CheckRulesTookPart(spec, decision.table, rules));
  RETURN_IF_ERROR(CheckNothingIsSplit(spec, decision.table, rules));
  RETURN_IF_ERROR(CheckFormatsGoTogether(decision.table));
  decision.table.format = NameFormat(decision.table);
  return std::move(decision.table);
}

}  // namespace octavo
