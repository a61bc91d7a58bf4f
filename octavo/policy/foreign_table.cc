#include "octavo/policy/foreign_table.h"

#include <fmt/core.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/formats/format.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/dialect.h"
#include "octavo/policy/engine_modules.h"
#include "octavo/policy/engine_readers.h"
#include "octavo/policy/foreign_format.h"
#include "octavo/policy/module_kind.h"
#include "octavo/policy/precision_table.h"
#include "octavo/policy/quantization_fields.h"
#include "octavo/policy/sglang_match.h"

namespace octavo {
namespace {

constexpr std::string_view kExpertsPart = ".experts.";

class TableReader {
 public:
  TableReader(const ModelSpec& spec, ForeignFormats formats)
      : spec_(spec), formats_(std::move(formats)) {
    table_.layout = formats_.layout;
    table_.format = formats_.formats.front().format;
    table_.declares_input_scales = formats_.declares_input_scales;
    table_.rows.resize(spec.weights.size());
  }

  Result<PrecisionTable> Read(const QuantizationFields& fields) {
    ASSIGN_OR_RETURN(const EngineReaders readers,
                     MakeEngineReaders(spec_, formats_.engine, formats_.dialect, fields));
    for (const EngineModule& module : EngineModulesOf(spec_, formats_.engine)) {
      if (module.is_mtp && formats_.drops_mtp) {
        KeepMtp(module);
        continue;
      }
      RETURN_IF_ERROR(Judge(module, readers.Of(module)));
    }
    RETURN_IF_ERROR(CheckSets());
    RETURN_IF_ERROR(CheckContainers());
    return std::move(table_);
  }

 private:
  PrecisionRow& RowOf(int weight_idx) { return table_.rows[static_cast<size_t>(weight_idx)]; }

  // The row of a weight without a verdict.
  void BeginRow(int weight_idx) {
    const WeightSpec& weight = spec_.weights[static_cast<size_t>(weight_idx)];
    RowOf(weight_idx) = {weight.name,         weight.role, weight.layer, weight.shape,
                         WeightFormat::kBf16, {},          {},           {}};
  }

  void KeepMtp(const EngineModule& module) {
    for (const int weight_idx : module.weights) {
      BeginRow(weight_idx);
      RowOf(weight_idx).rule = "layers of multi-token prediction";
      RowOf(weight_idx).reason =
          "SGLang builds them without the configuration of ModelOpt's NVFP4.";
    }
  }

  Status Judge(const EngineModule& module, const DialectReader& reader) {
    MatchResult match = reader.Judge({.name = module.name, .kind = module.kind});
    if (module.kind == ModuleKind::kNorm) {
      // The library's expressions may reach norms and biases, in which there is nothing to
      // quantize.
      match = {.verdict = Verdict::kSkipped, .rule = MatchRule::kClass, .entry = {}, .shards = {}};
    }
    if (match.verdict == Verdict::kError) {
      return InvalidArgument("quantization_config.{}: {}", reader.list().key, match.error);
    }
    for (size_t i = 0; i < module.weights.size(); ++i) {
      BeginRow(module.weights[i]);
      PrecisionRow& row = RowOf(module.weights[i]);
      if (match.verdict == Verdict::kSkipped) {
        // A fused module has one weight for each shard.
        const bool by_shard = match.rule == MatchRule::kFused && i < match.shards.size();
        Keep(match, by_shard ? match.shards[i].entry : match.entry, reader.list().key, &row);
      } else {
        RETURN_IF_ERROR(Quantize(formats_.FormatOf(match), &row));
      }
    }
    return OkStatus();
  }

  void Keep(const MatchResult& match, const std::optional<std::string>& entry, std::string_view key,
            PrecisionRow* row) const {
    if (match.rule == MatchRule::kClass) {
      row->rule = fmt::format("role {}", RoleName(row->role));
      row->reason = fmt::format("Engines build role {} as a class that is never quantized.",
                                RoleName(row->role));
    } else if (match.rule == MatchRule::kTarget) {
      row->rule = IsLinearRole(row->role) ? std::string("config_groups")
                                          : fmt::format("role {}", RoleName(row->role));
      row->reason = "No target of config_groups fits this module.";
    } else if (match.rule == MatchRule::kLayerMap) {
      row->rule = "quantized_layers";
      row->reason = "The map gives this module no algorithm that is served in a low precision.";
    } else {
      row->rule = fmt::format("{} \"{}\"", key, entry.value_or(""));
      row->reason = fmt::format("The checkpoint's list keeps this module in BF16 (rule {}).",
                                MatchRuleName(match.rule));
      row->shadowed = {match.group >= 0 ? formats_.FormatOf(match).rule
                                        : formats_.formats.front().rule};
    }
  }

  static Status Quantize(const DeclaredFormat& declared, PrecisionRow* row) {
    if (!IsLinearRole(row->role)) {
      return Unsupported("{}: quantized by {}: a weight of role {} is read in BF16 only", row->name,
                         declared.rule, RoleName(row->role));
    }
    const int64_t multiple = ColsMultipleOf(declared.format);
    if (row->shape[1] % multiple != 0) {
      return InvalidArgument(
          "{}: {} by {}: expected rows of a multiple of {} values, got {} values", row->name,
          WeightFormatName(declared.format), declared.rule, multiple, row->shape[1]);
    }
    row->format = declared.format;
    row->rule = declared.rule;
    row->reason = "No entry of the checkpoint's list names this module.";
    return OkStatus();
  }

  // Two rows that engines serve as one, and that the list tells apart.
  static Status Splits(std::string_view module, const PrecisionRow& a, const PrecisionRow& b) {
    return InvalidArgument(
        "quantization_config splits {}: {} is {} by {}, {} is {} by {}; engines serve them as one",
        module, a.name, WeightFormatName(a.format), a.rule, b.name, WeightFormatName(b.format),
        b.rule);
  }

  // Dialects that judge a fused module as one never split it; the library's judges its parts.
  Status CheckSets() {
    for (const FusedSet& set : FusedSetsOf(spec_)) {
      const PrecisionRow& first = RowOf(set.members.front());
      for (const int member : set.members) {
        if (RowOf(member).format != first.format) {
          return Splits(set.module, first, RowOf(member));
        }
      }
    }
    return OkStatus();
  }

  Status CheckContainers() {
    std::map<std::string_view, const PrecisionRow*> first_of;
    for (const PrecisionRow& row : table_.rows) {
      const std::string_view name = row.name;
      const size_t found = name.find(kExpertsPart);
      if (!IsExpertRole(row.role) || found == std::string_view::npos) {
        continue;
      }
      const std::string_view container = name.substr(0, found + kExpertsPart.size() - 1);
      const PrecisionRow* first = first_of.emplace(container, &row).first->second;
      if (first->format != row.format) {
        return Splits(container, *first, row);
      }
    }
    return OkStatus();
  }

  const ModelSpec& spec_;
  ForeignFormats formats_;
  PrecisionTable table_;
};

}  // namespace

Result<PrecisionTable> TableFromForeignConfig(const ModelSpec& spec,
                                              std::string_view quantization_config) {
  ASSIGN_OR_RETURN(const QuantizationFields fields, ReadQuantizationFields(quantization_config));
  ASSIGN_OR_RETURN(ForeignFormats formats, ReadForeignFormats(quantization_config, fields));
  return TableReader(spec, std::move(formats)).Read(fields);
}

}  // namespace octavo
