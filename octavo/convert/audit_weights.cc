// CheckWeights of audit_checks.h: the table of the model against what is stored.

#include <fmt/core.h>

#include <set>
#include <string>
#include <string_view>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/base/thread_pool.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/convert/audit.h"
#include "octavo/convert/audit_checks.h"
#include "octavo/convert/audit_codes.h"
#include "octavo/convert/audit_modules.h"
#include "octavo/convert/transform.h"
#include "octavo/formats/format.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"

namespace octavo {
namespace {

bool IsFloat(DType dtype) {
  return dtype == DType::kBf16 || dtype == DType::kF16 || dtype == DType::kF32;
}

// A row that is stored as codes.
void CheckCodes(const PrecisionRow& row, const StoredModule& module, AuditReport& report) {
  if (row.format == WeightFormat::kBf16) {
    report.findings.push_back(
        MakeFinding("expected-bf16", row.name,
                    fmt::format("{}: expected BF16 by rule {}, got {}", row.name, row.rule,
                                DTypeName(module.codes->view.dtype))));
  }
  if (row.format != WeightFormat::kBf16 && module.format && row.format != *module.format) {
    report.findings.push_back(MakeFinding(
        "config-format", module.codes->name,
        fmt::format("{}: expected {} by rule {}, got {}", module.codes->name,
                    WeightFormatName(row.format), row.rule, WeightFormatName(*module.format))));
  }
  const Shape shape = {module.rows, module.cols};
  if (module.stack == 1 && module.format && row.shape != shape) {
    report.findings.push_back(MakeFinding("weight-shape", row.name,
                                          fmt::format("{}: expected {}, got {}", row.name,
                                                      ShapeString(row.shape), ShapeString(shape))));
  }
  const bool is_linear = IsLinearRole(row.role);
  if (!is_linear && row.role != Role::kRouter && row.role != Role::kEmbedding &&
      row.role != Role::kLmHead && row.role != Role::kNorm) {
    report.findings.push_back(
        MakeFinding("role-quantized", row.name,
                    fmt::format("{}: expected BF16, for a weight of role {}; got {}", row.name,
                                RoleName(row.role), DTypeName(module.codes->view.dtype))));
  }
}

// A row that is stored as plain values.
void CheckValues(const PrecisionRow& row, const StoredTensor& tensor, ThreadPool* pool,
                 AuditReport& report) {
  if (row.format != WeightFormat::kBf16) {
    report.findings.push_back(MakeFinding(
        "expected-quantized", row.name,
        fmt::format("{}: expected {} by rule {}, got {}", row.name, WeightFormatName(row.format),
                    row.rule, DTypeName(tensor.view.dtype))));
  }
  if (!IsFloat(tensor.view.dtype)) {
    report.findings.push_back(MakeFinding("weight-dtype", row.name,
                                          fmt::format("{}: expected BF16, F16 or F32, got {}",
                                                      row.name, DTypeName(tensor.view.dtype))));
    return;
  }
  if (tensor.view.shape != row.shape) {
    report.findings.push_back(
        MakeFinding("weight-shape", row.name,
                    fmt::format("{}: expected {}, got {}", row.name, ShapeString(row.shape),
                                ShapeString(tensor.view.shape))));
    return;
  }
  PrecisionRow kept = row;
  kept.format = WeightFormat::kBf16;
  if (const Status status = CheckWeight(kept, tensor.view, pool); !status.ok()) {
    report.findings.push_back(MakeFinding("not-finite", row.name, status.message()));
  }
}

// Whether an expert's weight may lie in a stacked tensor instead.
bool IsStacked(const StoredModules& modules, const Checkpoint& checkpoint,
               const PrecisionRow& row) {
  if (!IsExpertRole(row.role)) {
    return false;
  }
  const size_t experts = row.name.find(".experts.");
  if (experts == std::string::npos) {
    return false;
  }
  const std::string stem = row.name.substr(0, experts) + ".experts.";
  for (const std::string_view part : {"gate_up_proj", "down_proj"}) {
    const std::string name = stem + std::string(part);
    if (checkpoint.Find(name) != nullptr || modules.by_weight.contains(name)) {
      return true;
    }
  }
  return false;
}

}  // namespace

void CheckWeights(const Checkpoint& checkpoint, const PrecisionTable& table,
                  const StoredModules& modules, const std::set<std::string>& may_miss,
                  ThreadPool* pool, AuditReport& report) {
  for (const PrecisionRow& row : table.rows) {
    const auto module = modules.by_weight.find(row.name);
    if (module != modules.by_weight.end()) {
      CheckCodes(row, module->second, report);
      continue;
    }
    const StoredTensor* tensor = checkpoint.Find(row.name);
    if (tensor != nullptr) {
      CheckValues(row, *tensor, pool, report);
    } else if (!may_miss.contains(row.name) && !IsStacked(modules, checkpoint, row)) {
      report.findings.push_back(
          MakeFinding("weight-missing", row.name,
                      fmt::format("{}: expected {} {}, got no such tensor", row.name,
                                  WeightFormatName(row.format), ShapeString(row.shape))));
    }
  }
}

}  // namespace octavo
