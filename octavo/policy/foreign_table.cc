#include "octavo/policy/foreign_table.h"

#include <fmt/core.h>

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/formats/format.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/engine_modules.h"
#include "octavo/policy/precision_table.h"
#include "octavo/policy/sglang_fp8.h"
#include "octavo/policy/sglang_match.h"

namespace octavo {
namespace {

constexpr std::string_view kForeignRule = "quant_method fp8";

// The row of one weight under the verdict for the module that holds it.
PrecisionRow ForeignRow(const WeightSpec& weight, const MatchResult& match,
                        const std::optional<std::string>& entry, std::string_view key) {
  PrecisionRow row{weight.name,         weight.role, weight.layer, weight.shape,
                   WeightFormat::kBf16, {},          {},           {}};
  if (match.rule == MatchRule::kClass) {
    row.rule = fmt::format("role {}", RoleName(weight.role));
    row.reason = fmt::format("Engines build role {} as a class that is never quantized.",
                             RoleName(weight.role));
  } else if (match.verdict == Verdict::kSkipped) {
    row.rule = fmt::format("{} \"{}\"", key, entry.value_or(""));
    row.reason = fmt::format("The checkpoint's list keeps this module in BF16 (rule {}).",
                             MatchRuleName(match.rule));
    row.shadowed = {std::string(kForeignRule)};
  } else {
    row.format = WeightFormat::kFp8;
    row.rule = kForeignRule;
    row.reason = "No entry of the checkpoint's list names this module.";
  }
  return row;
}

}  // namespace

Result<PrecisionTable> TableFromSglangFp8List(const ModelSpec& spec, const SglangFp8List& list) {
  const std::vector<FusedMapping> mapping = DeclaredMappingOf(spec);
  PrecisionTable table{.format = WeightFormat::kFp8, .rows = {}};
  table.rows.resize(spec.weights.size());
  // The class that serves the MTP layers builds them under another name and renames entries too.
  const std::vector<IgnoreEntry> mtp_entries =
      SglangFp8Entries(list.written, {.env_ignored = {}, .mapper = MtpMapperOf(spec)});
  for (const EngineModule& module : EngineModulesOf(spec)) {
    const MatchResult match = SglangFp8Match(module.is_mtp ? mtp_entries : list.entries,
                                             module.name, module.kind, mapping);
    if (match.verdict == Verdict::kError) {
      return InvalidArgument("quantization_config.{}: {}", list.key, match.error);
    }
    for (size_t i = 0; i < module.weights.size(); ++i) {
      const auto weight_idx = static_cast<size_t>(module.weights[i]);
      const std::optional<std::string>& entry =
          match.rule == MatchRule::kFused ? match.shards[i].entry : match.entry;
      table.rows[weight_idx] = ForeignRow(spec.weights[weight_idx], match, entry, list.key);
    }
  }
  return table;
}

}  // namespace octavo
