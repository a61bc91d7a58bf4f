#include "octavo/policy/verdicts.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <iterator>
#include <map>
#include <set>
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
#include "octavo/policy/plan_as.h"
#include "octavo/policy/policy_finding.h"
#include "octavo/policy/precision_table.h"
#include "octavo/policy/quantization_fields.h"

namespace octavo {
namespace {

// Of weights; those of a KV cache belong to an attention.
constexpr auto kScaleSuffixes = std::to_array<std::string_view>(
    {".weight_scale_inv", ".weight_scale", ".weight_scale_2", ".weight_global_scale",
     ".input_scale", ".input_global_scale"});
constexpr std::string_view kReconvert = "convert the source again";

using DTypes = std::map<std::string_view, DType>;

bool IsFloat(DType dtype) {
  return dtype == DType::kBf16 || dtype == DType::kF16 || dtype == DType::kF32;
}

bool IsCodes(DType dtype) {
  return dtype == DType::kF8E4m3 || dtype == DType::kF8E5m2 || dtype == DType::kU8;
}

// Whether a part of `spec` may have this dtype: its own, or one from which the way is exact.
bool IsPartDType(const PrecisionRow& row, const StoredTensorSpec& spec, DType dtype) {
  if (dtype == spec.dtype) {
    return true;
  }
  const bool is_byte = dtype == DType::kU8 || dtype == DType::kF8E8m0;
  if (spec.part == StoredPart::kScales && is_byte) {
    return row.format == WeightFormat::kMxfp8 || row.format == WeightFormat::kFp8Ue8m0;
  }
  // Official Qwen3 checkpoints store BF16 scales.
  return spec.part != StoredPart::kCodes && spec.dtype == DType::kF32 && dtype == DType::kBf16;
}

class DTypeChecker {
 public:
  DTypeChecker(const ModelSpec& spec, const PrecisionTable& table,
               std::span<const StoredDType> stored)
      : spec_(spec), table_(table) {
    for (const StoredDType& tensor : stored) {
      dtypes_.emplace(tensor.name, tensor.dtype);
    }
  }

  std::vector<PolicyFinding> Run() {
    const std::set<int> absent = AbsentMtpLayers();
    for (size_t i = 0; i < table_.rows.size(); ++i) {
      const bool may_miss = spec_.weights[i].is_mtp && absent.contains(spec_.weights[i].layer);
      CheckRow(table_.rows[i], may_miss);
    }
    CheckOrphans();
    return std::move(findings_);
  }

 private:
  const DType* Find(std::string_view name) const {
    const auto found = dtypes_.find(name);
    return found == dtypes_.end() ? nullptr : &found->second;
  }

  // MTP layers of which nothing is stored.
  std::set<int> AbsentMtpLayers() const {
    std::set<int> absent;
    std::set<int> present;
    for (size_t i = 0; i < table_.rows.size(); ++i) {
      if (spec_.weights[i].is_mtp) {
        const std::string codes = StoredTensorsOf(table_.rows[i], table_.layout).front().name;
        absent.insert(spec_.weights[i].layer);
        if (Find(codes) != nullptr || Find(table_.rows[i].name) != nullptr) {
          present.insert(spec_.weights[i].layer);
        }
      }
    }
    std::erase_if(absent, [&](int layer) { return present.contains(layer); });
    return absent;
  }

  // The dtype of the stack that holds an expert's weight; null when there is none.
  const DType* FindStack(const PrecisionRow& row) const {
    const size_t found = row.name.find(".experts.");
    if (!IsExpertRole(row.role) || found == std::string::npos) {
      return nullptr;
    }
    const std::string stem = row.name.substr(0, found) + ".experts.";
    return Find(stem + (row.role == Role::kExpertDown ? "down_proj" : "gate_up_proj"));
  }

  void CheckRow(const PrecisionRow& row, bool may_miss) {
    const std::string module(ModuleOfWeight(row.name));
    const DType* values = Find(row.name);
    const DType* packed = Find(module + ".weight_packed");
    if (values == nullptr && packed == nullptr) {
      values = FindStack(row);
    }
    if (values == nullptr && packed == nullptr) {
      // An MTP layer may leave its copies of the embedding and the head to the model's own.
      const bool is_shared =
          may_miss ||
          ((row.role == Role::kEmbedding || row.role == Role::kLmHead) && row.layer >= 0);
      if (!is_shared) {
        findings_.push_back(
            PolicyError("weight-missing", row.name,
                        fmt::format("{}: expected {} {}, got no such tensor", row.name,
                                    WeightFormatName(row.format), ShapeString(row.shape)),
                        std::string(kReconvert)));
      }
    } else if (row.format == WeightFormat::kBf16) {
      CheckKept(row, values == nullptr ? *packed : *values);
    } else {
      CheckQuantized(row, values == nullptr ? *packed : *values);
    }
  }

  void CheckKept(const PrecisionRow& row, DType dtype) {
    if (IsCodes(dtype)) {
      findings_.push_back(PolicyError(
          "expected-bf16", row.name,
          fmt::format("{}: expected BF16 by rule {}, got {}", row.name, row.rule, DTypeName(dtype)),
          "remove the entry that keeps this module, or store the weight in BF16"));
    } else if (!IsFloat(dtype)) {
      findings_.push_back(PolicyError(
          "weight-dtype", row.name,
          fmt::format("{}: expected BF16, F16 or F32, got {}", row.name, DTypeName(dtype)),
          "store the weight in BF16"));
    }
  }

  // `dtype`: of what is stored for the weight, under whichever name.
  void CheckQuantized(const PrecisionRow& row, DType dtype) {
    const std::vector<StoredTensorSpec> parts = AcceptedTensorsOf(row, table_.layout);
    const DType* codes = Find(parts.front().name);
    if (codes == nullptr || *codes != parts.front().dtype) {
      findings_.push_back(PolicyError(
          "expected-quantized", row.name,
          fmt::format("{}: expected {} by rule {}, stored in {} as {}; got {}", row.name,
                      WeightFormatName(row.format), row.rule, parts.front().name,
                      DTypeName(parts.front().dtype), DTypeName(dtype)),
          fmt::format("list {} among the modules that are kept, or quantize the weight",
                      ModuleOfWeight(row.name))));
      return;  // Its scales would be a second report of the same thing.
    }
    for (const StoredTensorSpec& part : std::span(parts).subspan(1)) {
      const DType* found = Find(part.name);
      if (found == nullptr && !part.is_optional) {
        findings_.push_back(
            PolicyError("scale-missing", row.name,
                        fmt::format("{}: expected its scales in {}, got none", row.name, part.name),
                        "convert the source again: codes without scales mean nothing"));
      } else if (found != nullptr && !IsPartDType(row, part, *found)) {
        findings_.push_back(PolicyError("scale-dtype", row.name,
                                        fmt::format("{}: expected {}, got {}", part.name,
                                                    DTypeName(part.dtype), DTypeName(*found)),
                                        std::string(kReconvert)));
      }
    }
  }

  // Scales whose weight is kept, stored as something else, or not there at all.
  void CheckOrphans() {
    std::set<std::string> used;
    for (const PrecisionRow& row : table_.rows) {
      const std::vector<StoredTensorSpec> parts = AcceptedTensorsOf(row, table_.layout);
      const DType* codes = Find(parts.front().name);
      if (row.format != WeightFormat::kBf16 && codes != nullptr && *codes == parts.front().dtype) {
        std::ranges::transform(parts, std::inserter(used, used.end()), &StoredTensorSpec::name);
      }
    }
    for (const auto& [name, dtype] : dtypes_) {
      const std::string_view text = name;
      const bool is_scale = std::ranges::any_of(
          kScaleSuffixes, [&](std::string_view suffix) { return text.ends_with(suffix); });
      if (is_scale && !used.contains(std::string(name))) {
        findings_.push_back(PolicyError("orphan-scale", name,
                                        fmt::format("{}: scales without a quantized weight", name),
                                        "remove the scales, or quantize their weight"));
      }
    }
  }

  const ModelSpec& spec_;
  const PrecisionTable& table_;
  DTypes dtypes_;
  std::vector<PolicyFinding> findings_;
};

constexpr std::string_view kRestoreCure =
    "convert again, or restore the list: other engines would serve another model";

// What other engines read against the table of our own key.
void CompareWithList(const ModelSpec& spec, const PrecisionTable& table,
                     std::string_view quantization_config, std::vector<PolicyFinding>* findings) {
  const Result<PrecisionTable> meant = TableFromForeignConfig(spec, quantization_config);
  if (!meant) {
    findings->push_back(PolicyError("list-differs", "quantization_config", meant.error().message(),
                                    std::string(kRestoreCure)));
    return;
  }
  for (size_t i = 0; i < table.rows.size(); ++i) {
    const PrecisionRow& row = table.rows[i];
    if (row.format != meant->rows[i].format) {
      findings->push_back(
          PolicyError("list-differs", row.name,
                      fmt::format("{}: expected {} by the stored table, got {} by the list ({})",
                                  row.name, WeightFormatName(row.format),
                                  WeightFormatName(meant->rows[i].format), meant->rows[i].rule),
                      std::string(kRestoreCure)));
    }
  }
}

// Whose reading of the configuration comes first: the library's for its own, else SGLang's.
ForeignEngine EngineOf(const QuantizationFields& fields) {
  return fields.quant_method == "compressed-tensors" ? ForeignEngine::kCompressedTensors
                                                     : ForeignEngine::kSglang;
}

}  // namespace

std::vector<PolicyFinding> CheckStoredDTypes(const ModelSpec& spec, const PrecisionTable& table,
                                             std::span<const StoredDType> stored) {
  return DTypeChecker(spec, table, stored).Run();
}

Result<std::vector<PolicyFinding>> CheckQuantizationConfig(const ModelSpec& spec,
                                                           const PrecisionTable& table,
                                                           std::string_view quantization_config,
                                                           std::span<const StoredDType> stored) {
  if (quantization_config.empty()) {
    return std::vector<PolicyFinding>();
  }
  if (table.rows.size() != spec.weights.size()) {
    return InvalidArgument("policy table: expected {} rows (the model's weights), got {}",
                           spec.weights.size(), table.rows.size());
  }
  ASSIGN_OR_RETURN(const QuantizationFields fields, ReadQuantizationFields(quantization_config));
  ASSIGN_OR_RETURN(PlanAsReport plan, PlanAs({.spec = &spec,
                                              .quantization_config = quantization_config,
                                              .stored = stored,
                                              .engine = EngineOf(fields)}));
  std::vector<PolicyFinding> findings;
  std::ranges::copy_if(plan.differences, std::back_inserter(findings),
                       [](const PolicyFinding& finding) { return finding.severity == "warning"; });
  CompareWithList(spec, table, quantization_config, &findings);
  return findings;
}

}  // namespace octavo
