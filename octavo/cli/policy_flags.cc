// POLICY of the usage lines: flags, policy files and presets into PolicyOptions.

#include <fmt/core.h>
#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/file.h"
#include "octavo/base/status.h"
#include "octavo/cli/commands.h"
#include "octavo/formats/format.h"
#include "octavo/formats/fp8_block.h"
#include "octavo/policy/policy_file.h"
#include "octavo/policy/policy_presets.h"
#include "octavo/policy/precision_table.h"

namespace octavo {
namespace {

std::string FormatNames() {
  std::vector<std::string_view> names;
  for (const WeightFormat format : AllWeightFormats()) {
    names.push_back(WeightFormatName(format));
  }
  return fmt::format("{}", fmt::join(names, ", "));
}

std::string PresetNames() {
  std::vector<std::string_view> names;
  for (const PolicyPreset& preset : AllPolicyPresets()) {
    names.push_back(preset.name);
  }
  return fmt::format("{}", fmt::join(names, ", "));
}

// The format that --strategy, --block-size and --scale-fmt mean; empty when none was given.
Result<std::string> StrategyFormat(const PolicyFlags& flags) {
  if (flags.strategy.empty() && flags.block_size.empty() && flags.scale_fmt.empty()) {
    return std::string();
  }
  const bool is_block = flags.strategy.empty() || flags.strategy == "block";
  if (!is_block && (!flags.block_size.empty() || !flags.scale_fmt.empty())) {
    return InvalidArgument("--strategy {}: has neither --block-size nor --scale-fmt",
                           flags.strategy);
  }
  if (!is_block) {
    return "fp8-" + flags.strategy;
  }
  const std::vector<int> only(2, static_cast<int>(kFp8BlockDim));
  if (!flags.block_size.empty() && flags.block_size != only) {
    return Unsupported("--block-size: expected {0} {0}, got {1}", kFp8BlockDim,
                       fmt::join(flags.block_size, " "));
  }
  return std::string(flags.scale_fmt == "ue8m0" ? "fp8-ue8m0" : "fp8");
}

// Where the flags start from: a policy file, a preset, or nothing.
Result<std::optional<PolicyOptions>> BaseOf(const PolicyFlags& flags) {
  if (!flags.policy_file.empty() && !flags.preset.empty()) {
    return InvalidArgument("--preset: expected none beside --policy; name it in the file");
  }
  if (!flags.policy_file.empty()) {
    ASSIGN_OR_RETURN(const std::string text, ReadTextFile(flags.policy_file));
    ASSIGN_OR_RETURN(PolicyOptions options, ParsePolicyFile(text, flags.policy_file));
    return std::optional(std::move(options));
  }
  if (!flags.preset.empty()) {
    ASSIGN_OR_RETURN(PolicyOptions options, PresetPolicy(flags.preset));
    return std::optional(std::move(options));
  }
  return std::optional<PolicyOptions>();
}

void Overlay(const PolicyFlags& flags, PolicyOptions* options) {
  options->keep.insert(options->keep.begin(), flags.keep.begin(), flags.keep.end());
  options->keep_first = flags.keep_first != 0 ? flags.keep_first : options->keep_first;
  options->keep_last = flags.keep_last != 0 ? flags.keep_last : options->keep_last;
  options->keep_mtp = options->keep_mtp || flags.keep_mtp;
  if (!flags.scope.empty()) {
    options->scope = ParseQuantizeScope(flags.scope);
  }
  if (!flags.layout.empty()) {
    options->layout = flags.layout == "compressed-tensors" ? StoredLayout::kCompressedTensors
                                                           : StoredLayout::kDefault;
  }
}

}  // namespace

void AddPolicyFlags(CLI::App& command, PolicyFlags* flags) {
  const auto text = [&](const char* names, std::string* value, const std::string& help) {
    return command.add_option(names, *value, help)->group(kPolicyGroup);
  };
  text("--policy", &flags->policy_file, "A policy file in TOML (docs/policy.md)");
  text("--preset", &flags->preset, "A policy known from elsewhere: " + PresetNames());
  text("--format", &flags->format, "Format of the linear weights: " + FormatNames());
  text("--scope", &flags->scope, "Which linear weights --format means: experts, mlp or all")
      ->check(CLI::IsMember({"experts", "mlp", "all"}));
  text("--layout", &flags->layout, "How nvfp4 is stored: modelopt or compressed-tensors")
      ->check(CLI::IsMember({"modelopt", "compressed-tensors"}));
  command
      .add_option("--keep-first,--num-layers-at-start-in-bf16", flags->keep_first,
                  "Decoder layers at the start that stay BF16")
      ->group(kPolicyGroup);
  command
      .add_option("--keep-last,--num-layers-at-end-in-bf16,--keep-last-n", flags->keep_last,
                  "Decoder layers at the end that stay BF16")
      ->group(kPolicyGroup);
  command.add_flag("--keep-mtp", flags->keep_mtp, "Layers of multi-token prediction stay BF16")
      ->group(kPolicyGroup);
  command
      .add_option(
          "--keep,--extra-high-precision-layers-hf", flags->keep,
          "Modules that stay BF16: a dotted path, or a glob over the whole name if it holds "
          "a '*'; may be repeated")
      ->take_all()
      ->group(kPolicyGroup);
}

void AddStrategyFlags(CLI::App& command, PolicyFlags* flags) {
  const std::string group = "Words of other converters";
  command.add_option("--strategy", flags->strategy, "block, channel or tensor: a format of fp8")
      ->check(CLI::IsMember({"block", "channel", "tensor"}))
      ->group(group);
  command.add_option("--block-size", flags->block_size, "128 128")->expected(2)->group(group);
  command.add_option("--scale-fmt", flags->scale_fmt, "ue8m0: power-of-two scales")
      ->check(CLI::IsMember({"ue8m0"}))
      ->group(group);
}

Result<std::optional<PolicyOptions>> ParsePolicy(const PolicyFlags& flags) {
  ASSIGN_OR_RETURN(std::optional<PolicyOptions> options, BaseOf(flags));
  ASSIGN_OR_RETURN(const std::string strategy_format, StrategyFormat(flags));
  if (!flags.format.empty() && !strategy_format.empty() && flags.format != strategy_format) {
    return InvalidArgument("--format {}: --strategy, --block-size and --scale-fmt mean {}",
                           flags.format, strategy_format);
  }
  const std::string& format_name = flags.format.empty() ? strategy_format : flags.format;
  if (format_name.empty() && !options.has_value()) {
    const bool others = flags.keep_first != 0 || flags.keep_last != 0 || flags.keep_mtp ||
                        !flags.keep.empty() || !flags.scope.empty() || !flags.layout.empty();
    if (others) {
      return InvalidArgument(
          "--format: expected one beside --keep, --keep-first, --keep-last, --keep-mtp, --scope or "
          "--layout");
    }
    return options;
  }
  if (!format_name.empty()) {
    const std::optional<WeightFormat> format = ParseWeightFormat(format_name);
    if (!format.has_value()) {
      return InvalidArgument("--format: expected one of {}, got {}", FormatNames(), format_name);
    }
    options = options.value_or(PolicyOptions{});
    options->format = *format;
  }
  Overlay(flags, &*options);
  return options;
}

}  // namespace octavo
