#include "octavo/convert/audit.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <set>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "octavo/base/file.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/base/thread_pool.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/checkpoint/shard_index.h"
#include "octavo/convert/audit_checks.h"
#include "octavo/convert/conversion_plan.h"
#include "octavo/formats/format.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"
#include "octavo/policy/verdicts.h"

namespace octavo {
namespace {

constexpr std::string_view kReconvert = "convert the checkpoint again";

// The index file against the tensors; that both name the same ones is seen on opening.
void CheckIndexFile(const Checkpoint& checkpoint, AuditReport& report) {
  const std::string path = checkpoint.dir() + "/" + std::string(kShardIndexFile);
  const auto text = ReadTextFile(path);
  if (!text) {
    report.findings.push_back(
        MakeFinding("index-missing", "warning", kShardIndexFile,
                    fmt::format("{}: expected an index, found none", checkpoint.dir()),
                    "none is needed for a single file; our converter writes one all the same"));
    return;
  }
  const auto index = ParseShardIndex(*text);
  const bool matches = index.has_value() && index->total_bytes == report.bytes;
  if (!matches) {
    const std::string actual = index.has_value() && index->total_bytes
                                   ? std::to_string(*index->total_bytes)
                                   : std::string("none");
    report.findings.push_back(
        MakeFinding("total-size", "error", kShardIndexFile,
                    fmt::format("{}: total_size: expected {} (the bytes of all tensors), got {}",
                                kShardIndexFile, report.bytes, actual),
                    "set metadata.total_size to the expected sum"));
  }
}

// What the reader passed over. Its word on total_size is ours above.
void CheckWarnings(const Checkpoint& checkpoint, AuditReport& report) {
  for (const std::string& warning : checkpoint.warnings()) {
    if (warning.find("total_size") == std::string::npos) {
      report.findings.push_back(MakeFinding("checkpoint", "warning", checkpoint.dir(), warning,
                                            "remove what does not belong to the checkpoint"));
    }
  }
}

void NoteUnknownTensors(const std::vector<const StoredTensor*>& unknown, AuditReport& report) {
  for (const StoredTensor* tensor : unknown) {
    report.findings.push_back(MakeFinding(
        "unknown-tensor", "info", tensor->name,
        fmt::format("{}: {} {}, which the model's weight table does not know", tensor->name,
                    ShapeString(tensor->view.shape), DTypeName(tensor->view.dtype)),
        "nothing needs it here; it is kept as it is"));
  }
}

// Findings of the dtypes and of the list that other engines read.
void CheckPolicy(const Checkpoint& checkpoint, const ModelSpec& spec, const PrecisionTable& table,
                 const std::vector<const StoredTensor*>& unknown, AuditReport& report) {
  std::vector<StoredDType> dtypes;
  for (const StoredTensor& tensor : checkpoint.tensors()) {
    dtypes.push_back({tensor.name, tensor.view.dtype});
  }
  std::ranges::move(CheckStoredDTypes(table, dtypes), std::back_inserter(report.findings));

  const std::string& config = checkpoint.config().quantization_config;
  auto findings = CheckQuantizationConfig(spec, table, config);
  if (!findings) {
    report.findings.push_back(MakeFinding("table", "error", "quantization_config",
                                          findings.error().message(), kReconvert));
    return;
  }
  // The list names the modules of unknown matrices on purpose.
  std::erase_if(*findings, [&](const AuditFinding& finding) {
    return finding.code == "entry-unmatched" &&
           std::ranges::any_of(unknown, [&](const StoredTensor* tensor) {
             return tensor->name == finding.tensor + ".weight";
           });
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
    report.findings.push_back(MakeFinding(
        "foreign-config", "info", "quantization_config",
        "quantization_config: not written by octavo: the table is read from its list of modules",
        "convert with octavo to have the table stored with its hash"));
    return;
  }
  const std::vector<std::string> actual_list = ListedModules(config);
  const std::vector<std::string> expected_list =
      ListedModules(QuantizationConfigFor(table, unknown));
  const std::set<std::string> actual(actual_list.begin(), actual_list.end());
  const std::set<std::string> expected(expected_list.begin(), expected_list.end());
  const auto report_difference = [&](const std::set<std::string>& of,
                                     const std::set<std::string>& without, std::string_view what) {
    for (const std::string& module : of) {
      if (!without.contains(module)) {
        report.findings.push_back(MakeFinding(
            "list-not-exact", "warning", module,
            fmt::format("quantization_config.modules_to_not_convert: {} {}", module, what),
            kReconvert));
      }
    }
  };
  report_difference(expected, actual, "owns a kept matrix and is not listed");
  report_difference(actual, expected, "is listed and owns no kept matrix");
}

int SeverityRank(const AuditFinding& finding) {
  return finding.severity == "error" ? 0 : finding.severity == "warning" ? 1 : 2;
}

// Errors first; among equals by tensor and code.
bool InOrder(const AuditFinding& a, const AuditFinding& b) {
  const int rank_a = SeverityRank(a);
  const int rank_b = SeverityRank(b);
  return std::tie(rank_a, a.tensor, a.code, a.message) <
         std::tie(rank_b, b.tensor, b.code, b.message);
}

void AuditInto(const Checkpoint& checkpoint, const Checkpoint* source, ThreadPool* pool,
               AuditReport& report) {
  const auto spec = MakeModelSpec(checkpoint.config());
  if (!spec) {
    report.findings.push_back(MakeFinding("architecture", "error", "config.json",
                                          spec.error().message(),
                                          "audit it with a build that knows this architecture"));
    return;
  }
  const auto table = TableFromQuantizationConfig(*spec, checkpoint.config().quantization_config);
  if (!table) {
    report.findings.push_back(
        MakeFinding("table", "error", "quantization_config", table.error().message(), kReconvert));
    return;
  }
  report.table_hash = table->Hash();
  report.num_weights = static_cast<int64_t>(table->rows.size());
  report.num_quantized = std::ranges::count_if(
      table->rows, [](const PrecisionRow& row) { return row.format != WeightFormat::kBf16; });
  const std::vector<const StoredTensor*> unknown = UnknownTensors(checkpoint, *table);
  CheckPolicy(checkpoint, *spec, *table, unknown, report);
  CheckExactList(checkpoint, *table, unknown, report);
  for (const PrecisionRow& row : table->rows) {
    CheckStoredValues(checkpoint, row, pool, report);
  }
  NoteUnknownTensors(unknown, report);
  if (source != nullptr) {
    CheckAgainstSource(checkpoint, *source, *spec, *table, pool, report);
  }
}

}  // namespace

AuditFinding MakeFinding(std::string_view code, std::string_view severity, std::string_view tensor,
                         std::string message, std::string_view cure) {
  return {std::string(code), std::string(severity), std::string(tensor), std::move(message),
          std::string(cure)};
}

bool AuditReport::Passed() const {
  return std::ranges::none_of(
      findings, [](const AuditFinding& finding) { return finding.severity == "error"; });
}

AuditReport Audit(const Checkpoint& checkpoint, const Checkpoint* source, ThreadPool* pool) {
  AuditReport report;
  for (const StoredTensor& tensor : checkpoint.tensors()) {
    report.bytes += tensor.view.NumBytes();
  }
  CheckIndexFile(checkpoint, report);
  CheckWarnings(checkpoint, report);
  AuditInto(checkpoint, source, pool, report);
  std::ranges::sort(report.findings, InOrder);
  return report;
}

Result<AuditReport> AuditFolder(const std::string& dir, const std::string& source_dir,
                                ThreadPool* pool) {
  const auto checkpoint = Checkpoint::Open(dir);
  if (!checkpoint) {
    if (checkpoint.error().code() == StatusCode::kNotFound) {
      return checkpoint.error();
    }
    AuditReport report;
    report.findings.push_back(MakeFinding("unreadable", "error", dir, checkpoint.error().message(),
                                          "fetch or convert the checkpoint again"));
    return report;
  }
  if (source_dir.empty()) {
    return Audit(*checkpoint, nullptr, pool);
  }
  ASSIGN_OR_RETURN(const Checkpoint source, Checkpoint::Open(source_dir));
  return Audit(*checkpoint, &source, pool);
}

}  // namespace octavo
