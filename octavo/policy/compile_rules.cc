#include "octavo/policy/compile_rules.h"

#include <fmt/core.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/formats/format.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/keep_pattern.h"
#include "octavo/policy/precision_table.h"

namespace octavo {
namespace {

constexpr auto kNeverQuantized =
    std::to_array<Role>({Role::kEmbedding, Role::kLmHead, Role::kNorm, Role::kBias, Role::kRouter,
                         Role::kRouterBias, Role::kMtpProjection});

std::string_view RoleReason(Role role) {
  switch (role) {
    case Role::kEmbedding:
      return "The embedding is a table that is looked up, not multiplied; it is never quantized.";
    case Role::kLmHead:
      return "The output head decides every token's probability; it is never quantized.";
    case Role::kBias:
      return "Biases are vectors that are added; they are never quantized.";
    case Role::kRouter:
    case Role::kRouterBias:
      return "The router decides which experts see a token; it is never quantized.";
    case Role::kMtpProjection:
      return "Engines build the projection into a multi-token-prediction layer without "
             "quantization.";
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
CompiledRule MakeRule(const ModelSpec& spec, std::string text, std::string reason,
                      const Predicate& predicate) {
  CompiledRule rule{
      .text = std::move(text), .reason = std::move(reason), .patterns = {}, .matches = {}};
  rule.matches.reserve(spec.weights.size());
  for (const WeightSpec& weight : spec.weights) {
    const bool matched = predicate(weight);
    rule.matches.push_back(matched);
    rule.num_matched += matched ? 1 : 0;
  }
  return rule;
}

void AddStructural(CompiledRule rule, std::vector<CompiledRule>* rules) {
  if (rule.num_matched > 0) {
    rule.is_structural = true;
    rules->push_back(std::move(rule));
  }
}

void AddRoleRules(const ModelSpec& spec, std::vector<CompiledRule>* rules) {
  for (const Role role : kNeverQuantized) {
    AddStructural(
        MakeRule(spec, fmt::format("role {}", RoleName(role)), std::string(RoleReason(role)),
                 [&](const WeightSpec& weight) { return weight.role == role; }),
        rules);
  }
}

std::string LayersText(const std::vector<LayerRange>& layers) {
  std::vector<std::string> parts;
  parts.reserve(layers.size());
  for (const LayerRange& range : layers) {
    parts.push_back(range.first == range.last ? fmt::format("{}", range.first)
                                              : fmt::format("{}-{}", range.first, range.last));
  }
  return fmt::format("layers {}", fmt::join(parts, ","));
}

// "rule 2: *.o_proj in layers 0-3 -> fp8".
std::string RuleText(const PolicyRule& rule, size_t number) {
  std::vector<std::string> parts;
  if (!rule.roles.empty()) {
    std::vector<std::string_view> names;
    std::ranges::transform(rule.roles, std::back_inserter(names), RoleName);
    parts.push_back(fmt::format("role {}", fmt::join(names, "|")));
  }
  if (!rule.patterns.empty()) {
    parts.push_back(fmt::format("{}", fmt::join(rule.patterns, "|")));
  }
  if (!rule.layers.empty()) {
    parts.push_back(LayersText(rule.layers));
  }
  return fmt::format("rule {}: {} -> {}", number, fmt::join(parts, " in "),
                     WeightFormatName(rule.format));
}

bool Selects(const PolicyRule& rule, const WeightSpec& weight) {
  const auto names = [&](const std::string& pattern) { return KeepMatches(pattern, weight.name); };
  const auto holds = [&](const LayerRange& range) {
    return weight.layer >= range.first && weight.layer <= range.last;
  };
  return (rule.roles.empty() || std::ranges::find(rule.roles, weight.role) != rule.roles.end()) &&
         (rule.layers.empty() || std::ranges::any_of(rule.layers, holds)) &&
         (rule.patterns.empty() || std::ranges::any_of(rule.patterns, names));
}

void AddUserRules(const ModelSpec& spec, const PolicyOptions& options,
                  std::vector<CompiledRule>* rules) {
  for (const std::string& pattern : options.keep) {
    rules->push_back(
        MakeRule(spec, fmt::format("--keep {}", pattern),
                 fmt::format("The pattern {} names this weight, so it stays in BF16.", pattern),
                 [&](const WeightSpec& weight) { return KeepMatches(pattern, weight.name); }));
    rules->back().patterns = {pattern};
  }
  for (size_t i = 0; i < options.rules.size(); ++i) {
    const PolicyRule& rule = options.rules[i];
    rules->push_back(MakeRule(spec, RuleText(rule, i + 1),
                              fmt::format("Rule {} of the policy asks for {} here.", i + 1,
                                          WeightFormatName(rule.format)),
                              [&](const WeightSpec& weight) { return Selects(rule, weight); }));
    rules->back().patterns = rule.patterns;
    rules->back().format = rule.format;
    rules->back().may_agree = true;
    rules->back().is_structural = rule.is_optional;
  }
}

void AddLayerRules(const ModelSpec& spec, const PolicyOptions& options,
                   std::vector<CompiledRule>* rules) {
  if (options.keep_mtp) {
    rules->push_back(MakeRule(spec, "--keep-mtp",
                              "The layers of multi-token prediction stay in BF16.",
                              [](const WeightSpec& weight) { return weight.is_mtp; }));
  }
  const auto add = [&](std::string_view flag, int count, std::string_view end, int64_t begin) {
    rules->push_back(MakeRule(
        spec, fmt::format("{} {}", flag, count),
        fmt::format("The {} {} of {} decoder layers stay in BF16.", end, count, spec.num_layers),
        [&](const WeightSpec& weight) {
          return !weight.is_mtp && weight.layer >= begin && weight.layer < begin + count;
        }));
  };
  if (options.keep_first > 0) {
    add("--keep-first", options.keep_first, "first", 0);
  }
  if (options.keep_last > 0) {
    add("--keep-last", options.keep_last, "last", spec.num_layers - options.keep_last);
  }
}

QuantizeScope ScopeOf(const ModelSpec& spec, const PolicyOptions& options) {
  if (options.scope.has_value()) {
    return *options.scope;
  }
  if (options.format != WeightFormat::kNvfp4) {
    return QuantizeScope::kAll;
  }
  return spec.moe.num_experts > 0 ? QuantizeScope::kExperts : QuantizeScope::kMlp;
}

bool IsMlpRole(Role role) {
  switch (role) {
    case Role::kMlpGate:
    case Role::kMlpUp:
    case Role::kMlpDown:
    case Role::kSharedExpertGate:
    case Role::kSharedExpertUp:
    case Role::kSharedExpertDown:
      return true;
    default:
      return IsExpertRole(role);
  }
}

bool IsInScope(QuantizeScope scope, Role role) {
  switch (scope) {
    case QuantizeScope::kExperts:
      return IsExpertRole(role);
    case QuantizeScope::kMlp:
      return IsMlpRole(role);
    case QuantizeScope::kAll:
      return IsLinearRole(role);
  }
  return false;
}

void AddDefaultKeeps(const ModelSpec& spec, const PolicyOptions& options, QuantizeScope scope,
                     std::vector<CompiledRule>* rules) {
  const bool is_nvfp4 = options.format == WeightFormat::kNvfp4;
  if (is_nvfp4 && options.layout == StoredLayout::kDefault) {
    AddStructural(MakeRule(spec, "default mtp",
                           "SGLang builds the multi-token-prediction layers of a ModelOpt NVFP4 "
                           "checkpoint without quantization.",
                           [](const WeightSpec& weight) {
                             return weight.is_mtp && IsLinearRole(weight.role);
                           }),
                  rules);
  }
  if (is_nvfp4 || options.format == WeightFormat::kMxfp8) {
    AddStructural(
        MakeRule(spec, "default mla.kv_b",
                 "Engines split kv_b_proj into two matrices at load; in mxfp8 and nvfp4 it stays "
                 "in BF16.",
                 [](const WeightSpec& weight) { return weight.role == Role::kMlaKvB; }),
        rules);
  }
  const std::string_view name = QuantizeScopeName(scope);
  AddStructural(
      MakeRule(spec,
               fmt::format("{} {}", options.scope.has_value() ? "--scope" : "default scope", name),
               fmt::format("The scope {} of --format {} does not hold this weight.", name,
                           WeightFormatName(options.format)),
               [&](const WeightSpec& weight) {
                 return IsLinearRole(weight.role) && !IsInScope(scope, weight.role);
               }),
      rules);
}

}  // namespace

std::vector<CompiledRule> MakePolicyRules(const ModelSpec& spec, const PolicyOptions& options) {
  std::vector<CompiledRule> rules;
  AddRoleRules(spec, &rules);
  AddUserRules(spec, options, &rules);
  AddLayerRules(spec, options, &rules);
  const QuantizeScope scope = ScopeOf(spec, options);
  AddDefaultKeeps(spec, options, scope, &rules);
  rules.push_back(MakeRule(spec, fmt::format("--format {}", WeightFormatName(options.format)),
                           FormatReason(options.format), [&](const WeightSpec& weight) {
                             return IsInScope(scope, weight.role);
                           }));
  rules.back().format = options.format;
  return rules;
}

}  // namespace octavo
