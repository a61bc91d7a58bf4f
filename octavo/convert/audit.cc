#include "octavo/convert/audit.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/base/thread_pool.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/convert/audit_checks.h"
#include "octavo/convert/audit_codes.h"
#include "octavo/convert/audit_modules.h"
#include "octavo/convert/conversion_plan.h"
#include "octavo/formats/format.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"
#include "octavo/policy/verdicts.h"

namespace octavo {
namespace {

// Tensors that are neither weights of the table nor parts of codes.
std::vector<const StoredTensor*> OtherTensors(const Checkpoint& checkpoint,
                                              const PrecisionTable& table,
                                              const StoredModules& modules) {
  std::set<std::string_view> known;
  for (const PrecisionRow& row : table.rows) {
    known.insert(row.name);
  }
  std::set<const StoredTensor*> parts = PartsOfModules(modules);
  parts.insert(modules.orphans.begin(), modules.orphans.end());
  parts.insert(modules.kv_scales.begin(), modules.kv_scales.end());
  std::vector<const StoredTensor*> others;
  for (const StoredTensor& tensor : checkpoint.tensors()) {
    const auto module = modules.by_weight.find(tensor.name);
    if (!known.contains(tensor.name) &&
        (!parts.contains(&tensor) || module != modules.by_weight.end())) {
      others.push_back(&tensor);
    }
  }
  return others;
}

// Findings of the list that other engines read.
void CheckList(const Checkpoint& checkpoint, const ModelSpec& spec, const PrecisionTable& table,
               AuditReport& report) {
  const std::string& config = checkpoint.config().quantization_config;
  std::vector<StoredDType> stored;
  for (const StoredTensor& tensor : checkpoint.tensors()) {
    stored.push_back({tensor.name, tensor.view.dtype, tensor.view.shape});
  }
  auto findings = CheckQuantizationConfig(spec, table, config, stored);
  if (!findings) {
    const bool is_unread = findings.error().code() == StatusCode::kUnsupported;
    report.findings.push_back(MakeFinding(is_unread ? "table-unread" : "table",
                                          "quantization_config", findings.error().message()));
    return;
  }
  // Entries that name a matrix of the model or of the files are there on purpose, whether engines
  // build it (MTP layers) or not.
  std::erase_if(*findings, [&](const AuditFinding& finding) {
    const std::string weight = finding.tensor + ".weight";
    return finding.code == "entry-unmatched" &&
           (checkpoint.Find(weight) != nullptr || table.Find(weight) != nullptr);
  });
  std::ranges::move(*findings, std::back_inserter(report.findings));
}

// The list of our own checkpoints is exactly the set of kept matrices.
void CheckExactList(const Checkpoint& checkpoint, const PrecisionTable& table,
                    const std::vector<const StoredTensor*>& unknown, AuditReport& report) {
  const std::string& config = checkpoint.config().quantization_config;
  if (config.empty()) {
    return;
  }
  if (!HasOwnTable(config)) {
    report.findings.push_back(MakeFinding("foreign-config", "quantization_config",
                                          "quantization_config: not written by octavo: the table "
                                          "is read from its list of modules"));
    return;
  }
  const std::vector<std::string> actual_list = ReadDeclared(config).kept;
  const std::vector<std::string> expected_list =
      ReadDeclared(QuantizationConfigFor(table, unknown)).kept;
  const std::set<std::string> actual(actual_list.begin(), actual_list.end());
  const std::set<std::string> expected(expected_list.begin(), expected_list.end());
  const auto report_difference = [&](const std::set<std::string>& of,
                                     const std::set<std::string>& without, std::string_view what) {
    for (const std::string& module : of) {
      if (!without.contains(module)) {
        report.findings.push_back(
            MakeFinding("list-not-exact", module,
                        fmt::format("the list of kept modules: {} {}", module, what)));
      }
    }
  };
  report_difference(expected, actual, "owns a kept matrix and is not listed");
  report_difference(actual, expected, "is listed and owns no kept matrix");
}

// Weights of the MTP layers of which the checkpoint stores nothing at all.
std::set<std::string> MissingMtpWeights(const Checkpoint& checkpoint, const ModelSpec& spec,
                                        const StoredModules& modules) {
  std::map<int, std::vector<std::string>> layers;
  std::set<int> stored;
  for (const WeightSpec& weight : spec.weights) {
    if (weight.is_mtp) {
      layers[weight.layer].push_back(weight.name);
      if (checkpoint.Find(weight.name) != nullptr || modules.by_weight.contains(weight.name)) {
        stored.insert(weight.layer);
      }
    }
  }
  std::set<std::string> missing;
  for (const auto& [layer, weights] : layers) {
    if (!stored.contains(layer)) {
      missing.insert(weights.begin(), weights.end());
    }
  }
  return missing;
}

// The same finding twice, from the tensors and from the table, is one.
void DropRepeated(AuditReport& report) {
  std::set<std::pair<std::string, std::string>> seen;
  std::erase_if(report.findings, [&](const AuditFinding& finding) {
    return !seen.emplace(finding.code, finding.tensor).second;
  });
}

int SeverityRank(const AuditFinding& finding) {
  return finding.severity == "error" ? 0 : finding.severity == "warning" ? 1 : 2;
}

// The table that the tensors themselves make, for a configuration that is not read here.
PrecisionTable TableAsStored(const ModelSpec& spec, const StoredModules& modules) {
  PrecisionTable table;
  for (const WeightSpec& weight : spec.weights) {
    PrecisionRow row = {.name = weight.name,
                        .role = weight.role,
                        .layer = weight.layer,
                        .shape = weight.shape,
                        .rule = "as stored"};
    const auto module = modules.by_weight.find(weight.name);
    if (module != modules.by_weight.end() && module->second.format) {
      row.format = *module->second.format;
      table.format = row.format;
    }
    table.rows.push_back(std::move(row));
  }
  return table;
}

// A foreign table that was read is SGLang's own view, but for compressed-tensors, of which it is
// the library's.
EngineWeight WeightOfSglang(const std::string& config, bool is_read) {
  if (HasOwnTable(config) || !is_read) {
    return EngineWeight::kFirst;
  }
  return ReadDeclared(config).method == "compressed-tensors" ? EngineWeight::kOther
                                                             : EngineWeight::kNone;
}

// What needs the model and its table.
void AuditTable(const Checkpoint& checkpoint, const Checkpoint* source,
                const StoredModules& modules, ThreadPool* pool, AuditReport& report) {
  const auto spec = MakeCheckpointSpec(checkpoint);
  if (!spec) {
    report.findings.push_back(MakeFinding("architecture", "config.json", spec.error().message()));
    return;
  }
  const std::string& config = checkpoint.config().quantization_config;
  auto table = TableFromQuantizationConfig(*spec, config);
  const bool is_read = table.has_value();
  if (!is_read) {
    const bool is_unread = table.error().code() == StatusCode::kUnsupported;
    report.findings.push_back(MakeFinding(is_unread ? "table-unread" : "table",
                                          "quantization_config", table.error().message()));
    if (!is_unread) {
      return;
    }
    table = TableAsStored(*spec, modules);
  }
  report.table_hash = table->Hash();
  report.num_weights = static_cast<int64_t>(table->rows.size());
  report.num_quantized = std::ranges::count_if(
      table->rows, [](const PrecisionRow& row) { return row.format != WeightFormat::kBf16; });
  const std::vector<const StoredTensor*> unknown = OtherTensors(checkpoint, *table, modules);
  if (is_read) {
    CheckList(checkpoint, *spec, *table, report);
  }
  CheckEngines(checkpoint, *spec, WeightOfSglang(config, is_read), report);
  CheckExactList(checkpoint, *table, unknown, report);
  CheckWeights(checkpoint, *table, modules, MissingMtpWeights(checkpoint, *spec, modules), pool,
               report);
  for (const StoredTensor* tensor : unknown) {
    report.findings.push_back(MakeFinding(
        "unknown-tensor", tensor->name,
        fmt::format("{}: {} {}, which the model's weight table does not know", tensor->name,
                    ShapeString(tensor->view.shape), DTypeName(tensor->view.dtype))));
  }
  if (source != nullptr) {
    CheckAgainstSource(checkpoint, *source, *spec, *table, modules, HasOwnTable(config), pool,
                       report);
  }
}

}  // namespace

bool AuditReport::Passed() const {
  return std::ranges::none_of(
      findings, [](const AuditFinding& finding) { return finding.severity == "error"; });
}

AuditReport Audit(const Checkpoint& checkpoint, const Checkpoint* source, ThreadPool* pool) {
  AuditReport report;
  for (const StoredTensor& tensor : checkpoint.tensors()) {
    report.bytes += tensor.view.NumBytes();
  }
  const DeclaredQuantization declared = ReadDeclared(checkpoint.config().quantization_config);
  const StoredModules modules = FindStoredModules(checkpoint, declared.ue8m0);
  CheckIndexFile(checkpoint, report);
  CheckDeclared(checkpoint, modules, declared, report);
  CheckModules(modules, declared, pool, report);
  AuditTable(checkpoint, source, modules, pool, report);
  DropRepeated(report);
  std::ranges::sort(report.findings, {}, [](const AuditFinding& finding) {
    return std::tuple(SeverityRank(finding), finding.tensor, finding.code);
  });
  return report;
}

Result<AuditReport> AuditFolder(const std::string& dir, const std::string& source_dir,
                                ThreadPool* pool) {
  const auto checkpoint = Checkpoint::Open(dir);
  if (!checkpoint) {
    // Index and shards that disagree are findings; what is beyond them is not readable.
    AuditReport report;
    CheckIndexAgainstShards(dir, report);
    if (report.findings.empty()) {
      if (checkpoint.error().code() == StatusCode::kNotFound) {
        return checkpoint.error();
      }
      report.unreadable = true;
      report.findings.push_back(MakeFinding("unreadable", dir, checkpoint.error().message()));
    }
    return report;
  }
  if (source_dir.empty()) {
    return Audit(*checkpoint, nullptr, pool);
  }
  ASSIGN_OR_RETURN(const Checkpoint source, Checkpoint::Open(source_dir));
  return Audit(*checkpoint, &source, pool);
}

}  // namespace octavo
