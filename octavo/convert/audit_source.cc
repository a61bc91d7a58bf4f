// CheckAgainstSource of audit_checks.h: every weight made again and compared.

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <map>
#include <optional>
#include <set>
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
#include "octavo/convert/audit_codes.h"
#include "octavo/convert/audit_modules.h"
#include "octavo/convert/conformance_kit.h"
#include "octavo/convert/conformance_kit_recognize.h"
#include "octavo/convert/source.h"
#include "octavo/convert/stored_values.h"
#include "octavo/convert/transform.h"
#include "octavo/formats/bf16.h"
#include "octavo/formats/format.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"

namespace octavo {
namespace {

constexpr double kSuspiciousFactor = 2.0;
// Values of a weight on which rules are tried when its bytes differ.
constexpr int64_t kNumSampledValues = 32 * 1024;

// Relative RMS error on Gaussian weights (docs/formats.md, "Error").
double UsualError(WeightFormat format) {
  switch (format) {
    case WeightFormat::kBf16:
      return 0.0;
    case WeightFormat::kNvfp4:
      return 0.0951;
    case WeightFormat::kMxfp8:
    case WeightFormat::kFp8Ue8m0:
      return 0.0266;
    default:
      return 0.0265;
  }
}

// --- Comparing bytes ----------------------------------------------------------------------------

Shape Trimmed(Shape shape) {
  while (!shape.empty() && shape.back() == 1) {
    shape.pop_back();
  }
  return shape;
}

// "": equal. Otherwise where the two part.
std::string FirstDifference(const ConstTensorView& expected, const ConstTensorView& actual) {
  const bool both_bytes =
      DTypeBytes(expected.dtype) == 1 && DTypeBytes(actual.dtype) == 1;  // U8 for F8_E8M0.
  if ((expected.dtype != actual.dtype && !both_bytes) ||
      Trimmed(expected.shape) != Trimmed(actual.shape)) {
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

const StoredTensor* PartOf(const StoredModule& module, StoredPart part) {
  switch (part) {
    case StoredPart::kCodes:
      return module.codes;
    case StoredPart::kScales:
      return module.scales;
    case StoredPart::kTensorScale:
    case StoredPart::kTensorDivisor:
      return module.format == WeightFormat::kFp8Tensor ? module.scales : module.global;
    case StoredPart::kInputScale:
    case StoredPart::kInputDivisor:
      return module.input;
  }
  return nullptr;
}

// --- One weight ---------------------------------------------------------------------------------

// A quantized weight beside its source.
struct Pair {
  PrecisionRow row;  // With the format that is stored.
  const StoredModule* stored = nullptr;
  WeightSource source;
  std::optional<float> shared_amax;
};

struct Difference {
  std::string tensor;
  std::string what;
};

class SourceComparison {
 public:
  SourceComparison(const Checkpoint& checkpoint, const Checkpoint& source,
                   const StoredModules& modules, bool is_own, ThreadPool* pool, AuditReport& report)
      : checkpoint_(checkpoint),
        source_(source),
        modules_(modules),
        source_modules_(
            FindStoredModules(source, ReadDeclared(source.config().quantization_config).ue8m0)),
        is_own_(is_own),
        pool_(pool),
        report_(report) {}

  void Run(const ModelSpec& spec, const PrecisionTable& table) {
    FindSharedAmax(spec, table);
    for (size_t i = 0; i < table.rows.size(); ++i) {
      CompareRow(table.rows[i], static_cast<int>(i));
    }
  }

 private:
  // The row's weight in the source; nullopt when it is not there, or not as a matrix of its own.
  std::optional<WeightSource> Find(const std::string& name) const {
    const auto module = source_modules_.by_weight.find(name);
    if (module != source_modules_.by_weight.end()) {
      const bool usable = module->second.IsSound() && module->second.stack == 1;
      return usable ? std::optional(SourceOf(module->second)) : std::nullopt;
    }
    const StoredTensor* tensor = source_.Find(name);
    return tensor == nullptr ? std::nullopt : std::optional(PlainSource(tensor->view));
  }

  const StoredModule* StoredOf(const std::string& name) const {
    const auto module = modules_.by_weight.find(name);
    return module == modules_.by_weight.end() ? nullptr : &module->second;
  }

  void FindSharedAmax(const ModelSpec& spec, const PrecisionTable& table) {
    for (const FusedSet& set : FusedSetsOf(spec)) {
      float amax = 0.0F;
      bool complete = true;
      for (const int member : set.members) {
        PrecisionRow row = table.rows[static_cast<size_t>(member)];
        const StoredModule* stored = StoredOf(row.name);
        const auto source = Find(row.name);
        complete = complete && stored != nullptr && stored->format && source.has_value() &&
                   SharesScale(*stored->format);
        if (!complete) {
          break;
        }
        row.format = *stored->format;
        const auto member_amax = SourceAmax(row, *source, {.pool = pool_});
        complete = member_amax.has_value();
        amax = complete ? std::max(amax, *member_amax) : amax;
      }
      for (const int member : set.members) {
        if (complete) {
          shared_amax_[member] = amax;
        }
      }
    }
  }

  void CompareRow(const PrecisionRow& row, int row_idx) {
    const StoredModule* stored = StoredOf(row.name);
    const StoredTensor* plain = checkpoint_.Find(row.name);
    if (stored == nullptr && plain == nullptr) {
      return;  // weight-missing says so, or it is left out on purpose.
    }
    const auto source = Find(row.name);
    if (!source) {
      report_.findings.push_back(
          MakeFinding("source-missing", row.name, fmt::format("{}: not in the source", row.name)));
      return;
    }
    if (stored == nullptr) {
      CompareKept(row, *plain, *source);
    } else if (stored->IsSound() && stored->stack == 1 &&
               row.shape == Shape{stored->rows, stored->cols}) {
      Pair pair = {.row = row, .stored = stored, .source = *source, .shared_amax = {}};
      pair.row.format = *stored->format;
      if (const auto shared = shared_amax_.find(row_idx); shared != shared_amax_.end()) {
        pair.shared_amax = shared->second;
      }
      CompareQuantized(pair);
    }
  }

  void ReportDifference(std::string_view code, std::string_view name, const std::string& what) {
    report_.findings.push_back(
        MakeFinding(code, name, fmt::format("{}: not what the source gives: {}", name, what)));
  }

  void CompareKept(const PrecisionRow& row, const StoredTensor& stored,
                   const WeightSource& source) {
    std::string difference;
    if (source.format == WeightFormat::kBf16 && source.codes.dtype == stored.view.dtype) {
      difference = FirstDifference(source.codes, stored.view);
    } else {
      PrecisionRow kept = row;
      kept.format = WeightFormat::kBf16;
      const auto expected = TransformSource(kept, source, {.pool = pool_});
      difference = expected ? FirstDifference(expected->front().View(), stored.view)
                            : expected.error().message();
    }
    if (!difference.empty()) {
      ReportDifference("differs", row.name, difference);
    }
  }

  // Every part that is not what the source gives; nullopt when the source cannot be converted.
  std::optional<std::vector<Difference>> Differences(const Pair& pair, bool direct) {
    const StoredLayout layout = pair.stored->layout;
    const auto expected = TransformSource(
        pair.row, pair.source,
        {.shared_amax = pair.shared_amax, .layout = layout, .direct = direct, .pool = pool_});
    if (!expected) {
      report_.findings.push_back(
          MakeFinding("source-missing", pair.row.name,
                      fmt::format("the source: {}", expected.error().message())));
      return std::nullopt;
    }
    const std::vector<StoredTensorSpec> specs = StoredTensorsOf(pair.row, layout);
    std::vector<Difference> differences;
    for (size_t i = 0; i < specs.size(); ++i) {
      const StoredTensor* part = PartOf(*pair.stored, specs[i].part);
      const bool is_input =
          specs[i].part == StoredPart::kInputScale || specs[i].part == StoredPart::kInputDivisor;
      if (part == nullptr || (is_input && !is_own_)) {
        continue;  // Calibrated input scales are another matter than weights.
      }
      std::string what = FirstDifference((*expected)[i].View(), part->view);
      if (!what.empty()) {
        differences.push_back({part->name, std::move(what)});
      }
    }
    return differences;
  }

  void CompareQuantized(const Pair& pair) {
    const bool same_form = pair.source.format == pair.row.format;
    const double error = Measure(pair);
    const bool values_equal = error == 0.0;
    auto differences = Differences(pair, /*direct=*/false);
    const bool may_be_direct =
        pair.source.codes.dtype == DType::kF32 || pair.source.codes.dtype == DType::kF16;
    if (differences && !differences->empty() && may_be_direct) {
      auto direct = Differences(pair, /*direct=*/true);
      differences = direct && direct->empty() ? std::move(direct) : std::move(differences);
    }
    // Shortcuts from codes to codes (docs/formats.md, "Exact shortcuts") keep values, not bytes.
    const bool is_shortcut =
        pair.source.format != WeightFormat::kBf16 && (values_equal || same_form);
    if (!differences || (is_shortcut && values_equal)) {
      return;
    }
    const bool is_usual = error <= kSuspiciousFactor * UsualError(pair.row.format);
    if (differences->empty()) {
      AcquitScales(*pair.stored);
    } else {
      const std::string rules = is_usual ? RulesOf(pair) : std::string();
      for (const Difference& difference : *differences) {
        const bool is_excused = !is_own_ && !rules.empty();
        const std::string by = rules.empty() ? "" : "; it follows other rules: " + rules;
        ReportDifference(is_excused ? "differs-by-rule" : "differs", difference.tensor,
                         difference.what + by);
      }
    }
    if (!is_usual) {
      report_.findings.push_back(MakeFinding(
          "rms-error", pair.row.name,
          fmt::format("{}: relative RMS error {:.4f} against the source; {:.4f} is usual for {}",
                      pair.row.name, error, UsualError(pair.row.format),
                      WeightFormatName(pair.row.format))));
    }
  }

  // Scales that looked like divisors are those that the source's unusual weights ask for.
  void AcquitScales(const StoredModule& stored) {
    std::erase_if(report_.findings, [&](const AuditFinding& finding) {
      return finding.code == "scale-inverted" &&
             (finding.tensor == stored.scales->name ||
              (stored.global != nullptr && finding.tensor == stored.global->name));
    });
  }

  // Relative RMS error of what is stored against the source, and the worst so far.
  double Measure(const Pair& pair) {
    const WeightSource stored = SourceOf(*pair.stored);
    const std::vector<RowRange> pieces = PiecesOf(stored.rows, stored.cols);
    struct Sums {
      double error = 0.0;
      double value = 0.0;
    };
    std::vector<Sums> sums(pieces.size());
    const auto measure = [&](int64_t begin, int64_t end, int /*worker_idx*/) {
      SourceRows stored_rows;
      SourceRows source_rows;
      for (int64_t i = begin; i < end; ++i) {
        const RowRange& piece = pieces[static_cast<size_t>(i)];
        const ConstTensorView got = stored_rows.Read(stored, piece, /*direct=*/false);
        const ConstTensorView want = source_rows.Read(pair.source, piece, /*direct=*/false);
        Sums& sum = sums[static_cast<size_t>(i)];
        for (size_t k = 0; k < static_cast<size_t>(piece.count * stored.cols); ++k) {
          const double value = ScaleAt(want, k);
          const double difference = ScaleAt(got, k) - value;
          sum.error += difference * difference;
          sum.value += value * value;
        }
      }
    };
    if (pool_ == nullptr) {
      measure(0, std::ssize(pieces), 0);
    } else {
      pool_->ParallelFor(std::ssize(pieces), measure);
    }
    Sums total;
    for (const Sums& sum : sums) {  // In the order of rows, whatever the pool.
      total.error += sum.error;
      total.value += sum.value;
    }
    const double error = total.error == 0.0 ? 0.0 : std::sqrt(total.error / total.value);
    if (report_.worst_tensor.empty() || error > report_.worst_relative_rms) {
      report_.worst_relative_rms = error;
      report_.worst_tensor = pair.row.name;
    }
    return error;
  }

  // "element reciprocal (E4M3(x * fl(1 / scale)))", when the first values are explained by rules of
  // which one is not ours; empty otherwise.
  std::string RulesOf(const Pair& pair) const {
    const StoredModule& stored = *pair.stored;
    std::string format(WeightFormatName(pair.row.format));
    if (stored.layout == StoredLayout::kCompressedTensors) {
      format += "-compressed-tensors";
    }
    const int64_t cols = stored.cols;
    const KitUnitSize unit = UnitSizeOf(format, stored.rows, cols);
    const int64_t band = std::min(stored.rows, std::max<int64_t>(unit.rows, kBandRows));
    SourceRows reader;
    const ConstTensorView view = reader.Read(pair.source, {.begin = 0, .count = band}, false);
    std::vector<float> values(static_cast<size_t>(band * cols));
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = ScaleAt(view, i);
    }
    const auto own_amax = SourceAmax(pair.row, pair.source, {.pool = pool_});
    if (!own_amax || values.empty()) {
      return {};
    }
    const StoredTensor* global = PartOf(stored, StoredPart::kTensorScale);
    KitOutput output = {.format = format, .tensors = {}, .units = {}};
    AppendUnits({.rows = stored.rows,
                 .cols = cols,
                 .values = values,
                 .last_value = band == stored.rows ? values.back() : 0.0F,
                 .codes = stored.codes->view,
                 .scales = stored.scales->view,
                 .tensor = {.set_amax = pair.shared_amax.value_or(*own_amax),
                            .own_amax = *own_amax,
                            .global = global == nullptr ? 1.0F : ScaleAt(global->view, 0)}},
                std::max<int64_t>(kNumSampledValues / (unit.rows * unit.cols), 1), output);
    if (output.units.empty()) {
      return {};
    }
    const std::vector<KitRule> rules = RecognizeRules(output);
    std::string text;
    for (const KitRule& rule : rules) {
      if (!rule.exact) {
        return {};
      }
      if (!rule.ours) {
        text += fmt::format("{}{} {} ({})", text.empty() ? "" : ", ", rule.aspect, rule.rule,
                            rule.means);
      }
    }
    const std::vector<std::string> names = QuantizersWithRules(format, rules);
    if (!text.empty() && !names.empty()) {
      text += fmt::format(", as {}", fmt::join(names, " or "));
    }
    return text;
  }

  const Checkpoint& checkpoint_;
  const Checkpoint& source_;
  const StoredModules& modules_;
  StoredModules source_modules_;
  bool is_own_;
  ThreadPool* pool_;
  AuditReport& report_;
  std::map<int, float> shared_amax_;  // Position in table.rows -> of its fused set.
};

}  // namespace

void CheckAgainstSource(const Checkpoint& checkpoint, const Checkpoint& source,
                        const ModelSpec& spec, const PrecisionTable& table,
                        const StoredModules& modules, bool is_own, ThreadPool* pool,
                        AuditReport& report) {
  if (source.config().architecture != checkpoint.config().architecture) {
    report.findings.push_back(
        MakeFinding("source-table", source.dir(),
                    fmt::format("{}: expected a {}, got a {}", source.dir(),
                                checkpoint.config().architecture, source.config().architecture)));
    return;
  }
  report.compared = true;
  SourceComparison(checkpoint, source, modules, is_own, pool, report).Run(spec, table);
  std::set<std::string_view> rows;
  for (const PrecisionRow& row : table.rows) {
    rows.insert(row.name);
  }
  const std::set<const StoredTensor*> parts = PartsOfModules(
      FindStoredModules(source, ReadDeclared(source.config().quantization_config).ue8m0));
  for (const StoredTensor& tensor : source.tensors()) {
    if (rows.contains(tensor.name) || parts.contains(&tensor)) {
      continue;
    }
    const StoredTensor* stored = checkpoint.Find(tensor.name);
    const std::string what = stored == nullptr ? "expected it, found nothing"
                                               : FirstDifference(tensor.view, stored->view);
    if (!what.empty()) {
      report.findings.push_back(
          MakeFinding("differs", tensor.name,
                      fmt::format("{}: not what the source gives: {}", tensor.name, what)));
    }
  }
}

}  // namespace octavo
