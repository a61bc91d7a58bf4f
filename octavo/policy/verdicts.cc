#include "octavo/policy/verdicts.h"

#include <fmt/core.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/formats/format.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/engine_modules.h"
#include "octavo/policy/foreign_table.h"
#include "octavo/policy/precision_table.h"
#include "octavo/policy/sglang_fp8.h"
#include "octavo/policy/sglang_match.h"

namespace octavo {
namespace {

constexpr std::string_view kError = "error";
constexpr std::string_view kWarning = "warning";
constexpr std::string_view kScaleSuffix = "_scale_inv";

using DTypes = std::map<std::string_view, DType>;

PolicyFinding Error(std::string_view code, std::string_view tensor, std::string message,
                    std::string_view cure) {
  return {std::string(code), std::string(kError), std::string(tensor), std::move(message),
          std::string(cure)};
}

bool IsFloat(DType dtype) {
  return dtype == DType::kBf16 || dtype == DType::kF16 || dtype == DType::kF32;
}

bool IsFp8Codes(DType dtype) { return dtype == DType::kF8E4m3; }

void CheckKeptRow(const PrecisionRow& row, DType dtype, std::vector<PolicyFinding>* findings) {
  if (IsFp8Codes(dtype)) {
    findings->push_back(Error(
        "kept-but-fp8", row.name,
        fmt::format("{}: expected BF16 by rule {}, got {}", row.name, row.rule, DTypeName(dtype)),
        "remove the entry that keeps this module, or store the weight in BF16"));
  } else if (!IsFloat(dtype)) {
    findings->push_back(
        Error("weight-dtype", row.name,
              fmt::format("{}: expected BF16, F16 or F32, got {}", row.name, DTypeName(dtype)),
              "store the weight in BF16"));
  }
}

void CheckFp8Row(const PrecisionRow& row, DType dtype, const DTypes& dtypes,
                 std::vector<PolicyFinding>* findings) {
  if (!IsFp8Codes(dtype)) {
    findings->push_back(
        Error("fp8-but-kept", row.name,
              fmt::format("{}: expected F8_E4M3 by rule {}, got {}", row.name, row.rule,
                          DTypeName(dtype)),
              fmt::format("list {} in modules_to_not_convert, or quantize the weight",
                          ModuleOfWeight(row.name))));
    return;  // Its scales would be a second report of the same thing.
  }
  const std::string scale_name = StoredTensorsOf(row)[1].name;
  const auto scale = dtypes.find(scale_name);
  if (scale == dtypes.end()) {
    findings->push_back(
        Error("scale-missing", row.name,
              fmt::format("{}: expected its scales in {}, got none", row.name, scale_name),
              "convert the source again: codes without scales mean nothing"));
  } else if (scale->second != DType::kF32 && scale->second != DType::kBf16) {
    findings->push_back(Error(
        "scale-dtype", row.name,
        fmt::format("{}: expected F32 (or BF16), got {}", scale_name, DTypeName(scale->second)),
        "convert the source again"));
  }
}

// Scales whose weight is kept, stored as something else, or not there at all.
void CheckOrphanScales(const PrecisionTable& table, const DTypes& dtypes,
                       std::vector<PolicyFinding>* findings) {
  std::map<std::string_view, const PrecisionRow*> rows;
  for (const PrecisionRow& row : table.rows) {
    rows.emplace(row.name, &row);
  }
  for (const auto& [name, dtype] : dtypes) {
    if (!name.ends_with(kScaleSuffix)) {
      continue;
    }
    const std::string_view weight = name.substr(0, name.size() - kScaleSuffix.size());
    const auto row = rows.find(weight);
    const auto stored = dtypes.find(weight);
    const bool is_used = row != rows.end() && row->second->format == WeightFormat::kFp8 &&
                         stored != dtypes.end() && IsFp8Codes(stored->second);
    if (!is_used) {
      findings->push_back(Error("orphan-scale", name,
                                fmt::format("{}: scales without a quantized weight", name),
                                "remove the scales, or quantize their weight"));
    }
  }
}

// The entries of `list` that `original` became.
std::vector<IgnoreEntry> EntriesOf(const SglangFp8List& list, std::string_view original) {
  std::vector<IgnoreEntry> entries;
  std::ranges::copy_if(list.entries, std::back_inserter(entries),
                       [&](const IgnoreEntry& entry) { return entry.original == original; });
  return entries;
}

// True when `entries`, alone, reach the module or one of its shards. Classes that are never
// quantized count: converters list norms and heads as a habit, and it does no harm.
bool Reaches(std::span<const IgnoreEntry> entries, const EngineModule& module,
             std::span<const FusedMapping> mapping) {
  const MatchResult match = SglangMatch(entries, module.name, mapping);
  return match.verdict == Verdict::kSkipped ||
         std::ranges::any_of(match.shards,
                             [](const ShardMatch& shard) { return shard.entry.has_value(); });
}

PolicyFinding Unmatched(const std::string& entry, std::string_view key) {
  std::string cure = "remove it, or write the full name of a module without \".weight\"";
  if (entry.ends_with(".weight") || entry.ends_with(".bias")) {
    cure = fmt::format("name the module, not the parameter: {}", entry.substr(0, entry.rfind('.')));
  } else if (entry.find('*') != std::string::npos || entry.starts_with("re:")) {
    cure = "write names: this dialect knows no wildcards and no expressions";
  }
  return {"entry-unmatched", std::string(kWarning), entry,
          fmt::format("{}: entry \"{}\" matches no module", key, entry), std::move(cure)};
}

// Null when `entries` is not the name of a fused module.
const EngineModule* FusedNamed(std::span<const IgnoreEntry> entries,
                               std::span<const EngineModule> modules) {
  for (const EngineModule& module : modules) {
    for (const IgnoreEntry& entry : entries) {
      if (module.weights.size() > 1 && IsDottedRun(entry.text, module.name)) {
        return &module;
      }
    }
  }
  return nullptr;
}

void CheckEntries(std::span<const EngineModule> modules, std::span<const FusedMapping> mapping,
                  const SglangFp8List& list, std::vector<PolicyFinding>* findings) {
  for (const std::string& original : list.written) {
    const std::vector<IgnoreEntry> entries = EntriesOf(list, original);
    const bool reached = std::ranges::any_of(
        modules, [&](const EngineModule& module) { return Reaches(entries, module, mapping); });
    if (reached) {
      continue;
    }
    if (const EngineModule* fused = FusedNamed(entries, modules)) {
      findings->push_back(
          {"entry-fused-name", std::string(kWarning), original,
           fmt::format("{}: entry \"{}\" names the fused module {}, which is quantized: only its "
                       "shards are compared",
                       list.key, original, fused->name),
           "list every shard by its own name instead"});
    } else {
      findings->push_back(Unmatched(original, list.key));
    }
  }
}

constexpr std::string_view kRestoreCure =
    "convert again, or restore the list: other engines would serve another model";

void CompareWithList(const ModelSpec& spec, const PrecisionTable& table,
                     std::string_view quantization_config, std::vector<PolicyFinding>* findings) {
  const Result<PrecisionTable> meant = TableFromForeignConfig(spec, quantization_config);
  if (!meant) {
    findings->push_back(
        Error("list-differs", "quantization_config", meant.error().message(), kRestoreCure));
    return;
  }
  for (size_t i = 0; i < table.rows.size(); ++i) {
    const PrecisionRow& row = table.rows[i];
    if (row.format != meant->rows[i].format) {
      findings->push_back(
          Error("list-differs", row.name,
                fmt::format("{}: expected {} by the stored table, got {} by the list ({})",
                            row.name, WeightFormatName(row.format),
                            WeightFormatName(meant->rows[i].format), meant->rows[i].rule),
                kRestoreCure));
    }
  }
}

}  // namespace

std::vector<PolicyFinding> CheckStoredDTypes(const PrecisionTable& table,
                                             std::span<const StoredDType> stored) {
  DTypes dtypes;
  for (const StoredDType& tensor : stored) {
    dtypes.emplace(tensor.name, tensor.dtype);
  }
  std::vector<PolicyFinding> findings;
  for (const PrecisionRow& row : table.rows) {
    const auto found = dtypes.find(row.name);
    if (found == dtypes.end()) {
      findings.push_back(Error("weight-missing", row.name,
                               fmt::format("{}: expected {} {}, got no such tensor", row.name,
                                           WeightFormatName(row.format), ShapeString(row.shape)),
                               "convert the source again"));
    } else if (row.format == WeightFormat::kBf16) {
      CheckKeptRow(row, found->second, &findings);
    } else {
      CheckFp8Row(row, found->second, dtypes, &findings);
    }
  }
  CheckOrphanScales(table, dtypes, &findings);
  return findings;
}

std::vector<PolicyFinding> CheckForeignList(std::span<const EngineModule> modules,
                                            std::span<const FusedMapping> mapping,
                                            const SglangFp8List& list) {
  std::vector<PolicyFinding> findings;
  if (list.hides_other_key) {
    findings.push_back({"list-hidden", std::string(kWarning), "modules_to_not_convert",
                        "modules_to_not_convert is not read, because ignored_layers exists",
                        "write one of the two keys"});
  }
  CheckEntries(modules, mapping, list, &findings);
  for (const EngineModule& module : modules) {
    const MatchResult match = SglangFp8Match(list.entries, module.name, module.kind, mapping);
    if (module.kind == ModuleKind::kMoe && match.rule == MatchRule::kExpertReverse) {
      findings.push_back(
          {"kept-by-one-expert", std::string(kWarning), module.name,
           fmt::format("{}: all experts stay in BF16, only because entry \"{}\" names one of them",
                       module.name, match.entry.value_or("")),
           fmt::format("list {} if all are meant, otherwise remove the entry", module.name)});
    }
  }
  return findings;
}

Result<std::vector<PolicyFinding>> CheckQuantizationConfig(const ModelSpec& spec,
                                                           const PrecisionTable& table,
                                                           std::string_view quantization_config) {
  if (quantization_config.empty()) {
    return std::vector<PolicyFinding>();
  }
  if (table.rows.size() != spec.weights.size()) {
    return InvalidArgument("policy table: expected {} rows (the model's weights), got {}",
                           spec.weights.size(), table.rows.size());
  }
  ASSIGN_OR_RETURN(const SglangFp8List list, ReadSglangFp8List(quantization_config, {}));
  std::vector<PolicyFinding> findings =
      CheckForeignList(EngineModulesOf(spec), DeclaredMappingOf(spec), list);
  CompareWithList(spec, table, quantization_config, &findings);
  return findings;
}

}  // namespace octavo
