// CheckStoredValues and CheckAgainstSource of audit_checks.h.

#include <fmt/core.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/tensor.h"
#include "octavo/base/thread_pool.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/convert/audit.h"
#include "octavo/convert/audit_checks.h"
#include "octavo/convert/conversion_plan.h"
#include "octavo/convert/measure.h"
#include "octavo/convert/stored_values.h"
#include "octavo/convert/transform.h"
#include "octavo/formats/format.h"
#include "octavo/formats/fp8_block.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"

namespace octavo {
namespace {

constexpr std::string_view kReconvertFromSource = "convert again from the source";
// Relative RMS error of FP8 blocks on Gaussian weights, and how far above it is suspicious
// (docs/formats.md, section 6).
constexpr double kFp8RelativeRms = 0.0265;
constexpr double kSuspiciousFactor = 2.0;
// Ordinary weights are far below 448; a block scale above 1 says that some weight is not.
constexpr float kLargestOrdinaryScale = 1.0F;

// The stored tensors of `row`, in order; nullopt when one is missing or of another dtype.
std::optional<std::vector<const StoredTensor*>> PartsOf(const Checkpoint& checkpoint,
                                                        const PrecisionRow& row) {
  std::vector<const StoredTensor*> parts;
  for (const StoredTensorSpec& spec : StoredTensorsOf(row)) {
    const StoredTensor* part = checkpoint.Find(spec.name);
    if (part == nullptr) {
      return std::nullopt;
    }
    const DType dtype = part->view.dtype;
    const bool is_float = dtype == DType::kBf16 || dtype == DType::kF16 || dtype == DType::kF32;
    const bool dtype_ok = spec.dtype == DType::kF8E4m3 ? dtype == spec.dtype
                          : spec.dtype == DType::kF32  ? is_float && dtype != DType::kF16
                                                       : is_float;
    if (!dtype_ok) {
      return std::nullopt;
    }
    parts.push_back(part);
  }
  return parts;
}

// Whether all parts have the shapes of the table.
bool CheckShapes(const PrecisionRow& row, const std::vector<const StoredTensor*>& parts,
                 AuditReport& report) {
  const std::vector<StoredTensorSpec> specs = StoredTensorsOf(row);
  bool all_ok = true;
  for (size_t i = 0; i < specs.size(); ++i) {
    if (parts[i]->view.shape != specs[i].shape) {
      all_ok = false;
      report.findings.push_back(
          MakeFinding(i == 0 ? "weight-shape" : "scale-shape", "error", specs[i].name,
                      fmt::format("{}: expected {}, got {}", specs[i].name,
                                  ShapeString(specs[i].shape), ShapeString(parts[i]->view.shape)),
                      kReconvertFromSource));
    }
  }
  return all_ok;
}

void CheckCodes(const StoredTensor& codes, AuditReport& report) {
  const std::span<const std::byte> bytes = codes.view.Bytes();
  const std::span<const uint8_t> values(reinterpret_cast<const uint8_t*>(bytes.data()),
                                        bytes.size());
  if (!HasNaNCode(values)) {
    return;
  }
  const auto is_nan = [](uint8_t code) { return (code & 0x7FU) == 0x7FU; };
  const auto first = std::ranges::find_if(values, is_nan) - values.begin();
  report.findings.push_back(
      MakeFinding("nan-code", "error", codes.name,
                  fmt::format("{}: expected codes of finite values, got {} NaN codes, the first at "
                              "{}",
                              codes.name, std::ranges::count_if(values, is_nan),
                              IndexString(codes.view.shape, first)),
                  kReconvertFromSource));
}

void CheckScales(const StoredTensor& scales, AuditReport& report) {
  const auto count = static_cast<size_t>(NumElements(scales.view.shape));
  int64_t num_bad = 0;
  size_t first_bad = 0;
  bool all_large = count > 0;
  for (size_t i = 0; i < count; ++i) {
    const float scale = ScaleAt(scales.view, i);
    all_large = all_large && scale > kLargestOrdinaryScale;
    if (!IsUsableScale(scale)) {
      first_bad = num_bad == 0 ? i : first_bad;
      ++num_bad;
    }
  }
  if (num_bad > 0) {
    report.findings.push_back(MakeFinding(
        "scale-value", "error", scales.name,
        fmt::format("{}: expected finite positive scales, got {} others, the first ({}) at {}",
                    scales.name, num_bad, ScaleAt(scales.view, first_bad),
                    IndexString(scales.view.shape, static_cast<int64_t>(first_bad))),
        kReconvertFromSource));
  } else if (all_large) {
    report.findings.push_back(MakeFinding(
        "scale-inverted", "warning", scales.name,
        fmt::format("{}: every scale is above 1: these may be divisors", scales.name),
        "compare with the source (--against); a scale multiplies, in spite of the name"));
  }
}

// --- Against the source
// ---------------------------------------------------------------------------

// "": equal. Otherwise where the two part.
std::string FirstDifference(const ConstTensorView& expected, const ConstTensorView& actual) {
  if (expected.dtype != actual.dtype || expected.shape != actual.shape) {
    return fmt::format("expected {} {}, got {} {}", ShapeString(expected.shape),
                       DTypeName(expected.dtype), ShapeString(actual.shape),
                       DTypeName(actual.dtype));
  }
  const std::span<const std::byte> want = expected.Bytes();
  const std::span<const std::byte> got = actual.Bytes();
  if (want.empty() || std::memcmp(want.data(), got.data(), want.size()) == 0) {
    return {};
  }
  const auto place = std::ranges::mismatch(want, got);
  const int64_t byte_idx = place.in1 - want.begin();
  const int64_t elem_bytes = DTypeBytes(expected.dtype);
  return fmt::format("byte {} of the element at {}: expected {:02x}, got {:02x}",
                     byte_idx % elem_bytes, IndexString(expected.shape, byte_idx / elem_bytes),
                     static_cast<unsigned>(*place.in1), static_cast<unsigned>(*place.in2));
}

void ReportDifference(std::string_view name, const std::string& difference, AuditReport& report) {
  if (!difference.empty()) {
    report.findings.push_back(MakeFinding(
        "differs", "error", name,
        fmt::format("{}: not what the source gives: {}", name, difference), kReconvertFromSource));
  }
}

void ReportSourceProblem(std::string_view name, std::string message, AuditReport& report) {
  report.findings.push_back(MakeFinding("source-missing", "error", name, std::move(message),
                                        "give the checkpoint that this one was converted from"));
}

void MeasureAgainst(const StoredTensor& source, const std::vector<const StoredTensor*>& parts,
                    ThreadPool* pool, AuditReport& report) {
  if (parts[1]->view.dtype != DType::kF32) {
    return;
  }
  const double error =
      MeasureStored(source.view, parts[0]->view, parts[1]->view, pool).RelativeRms();
  if (report.worst_tensor.empty() || error > report.worst_relative_rms) {
    report.worst_relative_rms = error;
    report.worst_tensor = source.name;
  }
  if (!(error <= kSuspiciousFactor * kFp8RelativeRms)) {
    report.findings.push_back(
        MakeFinding("rms-error", "warning", source.name,
                    fmt::format("{}: relative RMS error {:.4f} against the source; {:.4f} is usual",
                                source.name, error, kFp8RelativeRms),
                    "look for outliers in this weight, and keep it in BF16 if it matters"));
  }
}

// A weight of the table against its source.
void CompareRow(const Checkpoint& checkpoint, const PrecisionRow& row, const StoredTensor& source,
                ThreadPool* pool, AuditReport& report) {
  const auto parts = PartsOf(checkpoint, row);
  if (!parts) {
    return;  // Reported by CheckStoredDTypes.
  }
  const bool same_dtype = parts->front()->view.dtype == source.view.dtype;
  if (row.format == WeightFormat::kBf16 && same_dtype) {
    // Kept weights are stored as they came.
    ReportDifference(row.name, FirstDifference(source.view, parts->front()->view), report);
    return;
  }
  const auto expected = TransformWeight(row, source.view, {.pool = pool});
  if (!expected) {
    ReportSourceProblem(row.name, fmt::format("the source: {}", expected.error().message()),
                        report);
    return;
  }
  bool shapes_ok = true;
  for (size_t i = 0; i < expected->size(); ++i) {
    const ConstTensorView want = (*expected)[i].View();
    ReportDifference((*expected)[i].name, FirstDifference(want, (*parts)[i]->view), report);
    shapes_ok = shapes_ok && want.shape == (*parts)[i]->view.shape;
  }
  if (row.format != WeightFormat::kBf16 && shapes_ok) {
    MeasureAgainst(source, *parts, pool, report);
  }
}

// Whether the source can serve as one: not quantized, so that all rows can be transformed.
bool CheckSourceTable(const Checkpoint& source, const ModelSpec& spec, AuditReport& report) {
  const auto table = TableFromQuantizationConfig(spec, source.config().quantization_config);
  std::string problem;
  if (!table) {
    problem = table.error().message();
  } else if (std::ranges::any_of(table->rows, [](const PrecisionRow& row) {
               return row.format != WeightFormat::kBf16;
             })) {
    problem = "is quantized itself";
  }
  if (problem.empty()) {
    return true;
  }
  report.findings.push_back(
      MakeFinding("source-table", "error", source.dir(),
                  fmt::format("{}: expected a BF16, F16 or F32 source: {}", source.dir(), problem),
                  "give the checkpoint that this one was converted from"));
  return false;
}

}  // namespace

void CheckStoredValues(const Checkpoint& checkpoint, const PrecisionRow& row, ThreadPool* pool,
                       AuditReport& report) {
  const auto parts = PartsOf(checkpoint, row);
  if (!parts || !CheckShapes(row, *parts, report)) {
    return;
  }
  if (row.format == WeightFormat::kBf16) {
    const Status status = CheckWeight(row, parts->front()->view, pool);
    if (!status.ok()) {
      report.findings.push_back(MakeFinding("not-finite", "error", row.name, status.message(),
                                            "the source is damaged; fetch it again"));
    }
    return;
  }
  CheckCodes(*(*parts)[0], report);
  CheckScales(*(*parts)[1], report);
}

void CheckAgainstSource(const Checkpoint& checkpoint, const Checkpoint& source,
                        const ModelSpec& spec, const PrecisionTable& table, ThreadPool* pool,
                        AuditReport& report) {
  if (!CheckSourceTable(source, spec, report)) {
    return;
  }
  report.compared = true;
  for (const PrecisionRow& row : table.rows) {
    const StoredTensor* tensor = source.Find(row.name);
    if (tensor == nullptr) {
      ReportSourceProblem(row.name, fmt::format("{}: not in the source", row.name), report);
      continue;
    }
    CompareRow(checkpoint, row, *tensor, pool, report);
  }
  for (const StoredTensor* unknown : UnknownTensors(source, table)) {
    const StoredTensor* stored = checkpoint.Find(unknown->name);
    ReportDifference(unknown->name,
                     stored == nullptr ? "expected it, found nothing"
                                       : FirstDifference(unknown->view, stored->view),
                     report);
  }
}

}  // namespace octavo
