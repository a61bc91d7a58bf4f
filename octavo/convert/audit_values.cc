// CheckModules of audit_checks.h: what can be said of codes and scales without the source.

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <map>
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
#include "octavo/convert/audit_codes.h"
#include "octavo/convert/audit_modules.h"
#include "octavo/convert/source.h"
#include "octavo/convert/stored_values.h"
#include "octavo/formats/e2m1.h"
#include "octavo/formats/e4m3.h"
#include "octavo/formats/format.h"
#include "octavo/policy/precision_table.h"

namespace octavo {
namespace {

// Scales that are all above this are suspect: ordinary weights are far below 448.
constexpr float kLargestOrdinaryScale = 1.0F;
// The median magnitude of ordinary weights is far below this, whatever outliers lie among them;
// under scales that were stored as divisors it is far above.
constexpr float kLargestOrdinaryWeight = 8.0F;
// Share of groups with subnormal scales (E4M3 bytes up to 07) that is worth a note.
constexpr double kManySubnormalGroups = 0.1;
constexpr uint8_t kLargestSubnormalE4m3 = 0x07;

using Findings = std::vector<AuditFinding>;
using Histogram = std::array<int64_t, 256>;

Histogram CountBytes(std::span<const std::byte> bytes) {
  Histogram counts = {};
  for (const std::byte byte : bytes) {
    ++counts[std::to_integer<uint8_t>(byte)];
  }
  return counts;
}

std::string IndexOfByte(const ConstTensorView& view, std::span<const uint8_t> wanted) {
  const auto bytes = view.Bytes();
  const auto place = std::ranges::find_if(bytes, [&](std::byte byte) {
    return std::ranges::find(wanted, std::to_integer<uint8_t>(byte)) != wanted.end();
  });
  return IndexString(view.shape, place - bytes.begin());
}

// --- Scales -------------------------------------------------------------------------------------

struct ScaleSummary {
  int64_t count = 0;
  int64_t num_bad = 0;   // Not finite and positive.
  int64_t num_zero = 0;  // Of those.
  int64_t first_bad = 0;
  float first_value = 0.0F;
  int64_t num_subnormal = 0;
  bool all_large = true;
  bool all_powers = true;
  float median = 0.0F;
};

ScaleSummary Summarize(const ConstTensorView& scales) {
  std::vector<float> values(static_cast<size_t>(NumElements(scales.shape)));
  WidenScales(scales, 0, values);
  ScaleSummary summary = {.count = std::ssize(values), .all_large = !values.empty()};
  for (size_t i = 0; i < values.size(); ++i) {
    const auto bits = std::bit_cast<uint32_t>(values[i]);
    if (!IsUsableScale(values[i])) {
      if (summary.num_bad++ == 0) {
        summary.first_bad = static_cast<int64_t>(i);
        summary.first_value = values[i];
      }
      summary.num_zero += (bits & 0x7FFFFFFFU) == 0 ? 1 : 0;
    } else {
      summary.num_subnormal += bits < 0x00800000U ? 1 : 0;
    }
    summary.all_large = summary.all_large && values[i] > kLargestOrdinaryScale;
    summary.all_powers = summary.all_powers && (bits & 0x007FFFFFU) == 0;
  }
  if (summary.num_bad == 0 && !values.empty()) {
    const auto middle = values.begin() + std::ssize(values) / 2;
    std::ranges::nth_element(values, middle);
    summary.median = *middle;
  }
  return summary;
}

void ReportBadScales(const StoredTensor& scales, const ScaleSummary& summary, Findings& findings) {
  findings.push_back(MakeFinding(
      "scale-value", scales.name,
      fmt::format("{}: expected finite positive scales, got {} others, the first ({}) at {}",
                  scales.name, summary.num_bad, summary.first_value,
                  IndexString(scales.view.shape, summary.first_bad))));
}

// `typical` is the median magnitude of what the scales multiply.
void CheckFloatScales(const StoredTensor& scales, const ScaleSummary& summary, float typical,
                      Findings& findings) {
  if (summary.num_bad > 0) {
    ReportBadScales(scales, summary, findings);
    return;
  }
  if (summary.num_subnormal > 0) {
    findings.push_back(
        MakeFinding("scale-subnormal", scales.name,
                    fmt::format("{}: expected normal FP32 scales, got {} subnormal ones",
                                scales.name, summary.num_subnormal)));
  }
  const float weight = typical * summary.median;
  if (summary.all_large && weight > kLargestOrdinaryWeight) {
    findings.push_back(
        MakeFinding("scale-inverted", scales.name,
                    fmt::format("{}: expected multipliers of ordinary weights, got scales that are "
                                "all above 1 and a median weight of {:g}",
                                scales.name, weight)));
  }
}

// Bytes of E8M0 or E4M3 scales.
void CheckByteScales(const StoredTensor& scales, bool is_e4m3, Findings& findings) {
  const Histogram counts = CountBytes(scales.view.Bytes());
  std::vector<uint8_t> bad;
  int64_t num_bad = 0;
  for (int byte = 0; byte < 256; ++byte) {
    const bool is_bad = is_e4m3 ? (byte > 0x80 || byte == 0x7F) : byte == 0xFF;
    if (is_bad && counts[static_cast<size_t>(byte)] > 0) {
      bad.push_back(static_cast<uint8_t>(byte));
      num_bad += counts[static_cast<size_t>(byte)];
    }
  }
  if (num_bad > 0) {
    findings.push_back(MakeFinding(
        "scale-value", scales.name,
        fmt::format("{}: expected {} that are neither NaN nor negative, got {} others, the first "
                    "({:02x}) at {}",
                    scales.name, is_e4m3 ? "E4M3 scales" : "E8M0 bytes", num_bad, bad.front(),
                    IndexOfByte(scales.view, bad))));
  }
  int64_t num_subnormal = 0;
  for (int byte = 0; byte <= kLargestSubnormalE4m3; ++byte) {
    num_subnormal += counts[static_cast<size_t>(byte)];
  }
  const int64_t count = NumElements(scales.view.shape);
  const double share =
      count == 0 ? 0.0 : static_cast<double>(num_subnormal) / static_cast<double>(count);
  if (is_e4m3 && share > kManySubnormalGroups && num_subnormal < count) {
    findings.push_back(
        MakeFinding("groups-underflow", scales.name,
                    fmt::format("{}: {:.1f} % of {} groups have a scale byte of at most 07",
                                scales.name, 100.0 * share, count)));
  }
}

// --- Codes --------------------------------------------------------------------------------------

struct CodeSummary {
  int64_t num_nan = 0;         // 7F and FF.
  int64_t num_minus_zero = 0;  // 80.
  int64_t num_largest = 0;     // That a group's largest value may have.
  bool all_zero = false;
  float median = 0.0F;  // Magnitude of the codes that are not zero.
};

// The median of `values` (ascending) that occur counts[i] times each; 0 for none.
float MedianOf(std::span<const float> values, std::span<const int64_t> counts) {
  int64_t above = 0;
  for (const int64_t count : counts) {
    above += count;
  }
  int64_t below = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    below += counts[i];
    if (counts[i] > 0 && 2 * below >= above) {
      return values[i];
    }
  }
  return 0.0F;
}

// Of the E4M3 codes that are neither NaN nor, `with_zeros` apart, zero.
float MedianE4m3(const Histogram& counts, bool with_zeros) {
  std::array<float, 127> values = {};
  std::array<int64_t, 127> both = {};
  for (size_t code = with_zeros ? 0 : 1; code < values.size(); ++code) {
    values[code] = E4m3ToFloat(static_cast<uint8_t>(code));
    both[code] = counts[code] + counts[code | 0x80U];
  }
  return MedianOf(values, both);
}

CodeSummary SummarizeE4m3(const Histogram& counts, bool power_of_two_scales) {
  // 448, or under a power of two anything above 224.
  const size_t least = power_of_two_scales ? 0x77 : 0x7E;
  CodeSummary summary = {.num_nan = counts[0x7F] + counts[0xFF], .num_minus_zero = counts[0x80]};
  int64_t total = 0;
  for (size_t code = 0; code < 128; ++code) {
    const int64_t both = counts[code] + counts[code | 0x80U];
    total += both;
    summary.num_largest += code >= least && code != 0x7F ? both : 0;
  }
  summary.all_zero = counts[0] + counts[0x80] == total;
  summary.median = MedianE4m3(counts, false);
  return summary;
}

CodeSummary SummarizeE2m1(const Histogram& counts) {
  CodeSummary summary;
  int64_t num_zero = 0;
  int64_t total = 0;
  std::array<float, 8> magnitudes = {};
  std::array<int64_t, 8> nonzero = {};
  for (size_t code = 1; code < magnitudes.size(); ++code) {
    magnitudes[code] = E2m1ToFloat(static_cast<uint8_t>(code));
  }
  for (size_t byte = 0; byte < 256; ++byte) {
    for (const size_t code : {byte & 7U, (byte >> 4) & 7U}) {
      nonzero[code] += code == 0 ? 0 : counts[byte];
      summary.num_largest += code == 7 ? counts[byte] : 0;
      num_zero += code == 0 ? counts[byte] : 0;
      total += counts[byte];
    }
  }
  summary.all_zero = num_zero == total;
  summary.median = MedianOf(magnitudes, nonzero);
  return summary;
}

void CheckNanCodes(const StoredModule& module, const CodeSummary& codes, int64_t num_zero_scales,
                   int64_t num_scales, Findings& findings) {
  if (codes.num_nan == 0) {
    return;
  }
  constexpr std::array<uint8_t, 2> kNan = {0x7F, 0xFF};
  const std::string place = IndexOfByte(module.codes->view, kNan);
  if (num_zero_scales > 0) {
    findings.push_back(MakeFinding(
        "zero-block", module.codes->name,
        fmt::format("{}: expected zeros under a positive scale, got {} NaN codes, the first at {}, "
                    "and {} scales of 0",
                    module.codes->name, codes.num_nan, place, num_zero_scales)));
  } else if (codes.num_minus_zero == 0 && 2 * codes.num_nan >= num_scales &&
             codes.num_largest == 0) {
    findings.push_back(MakeFinding(
        "fnuz-codes", module.codes->name,
        fmt::format("{}: expected E4M3 codes up to 7E, got {} of 7F or FF (240 in FNUZ), the first "
                    "at {}, and none of 80 (NaN in FNUZ)",
                    module.codes->name, codes.num_nan, place)));
  } else {
    findings.push_back(MakeFinding(
        "nan-code", module.codes->name,
        fmt::format("{}: expected E4M3 codes of finite values, got {} NaN codes, the first at {}",
                    module.codes->name, codes.num_nan, place)));
  }
}

// The values of a module whose parts have the right dtypes and shapes.
void CheckValues(const StoredModule& module, const DeclaredQuantization& declared,
                 Findings& findings) {
  const WeightFormat format = *module.format;
  const bool is_nvfp4 = format == WeightFormat::kNvfp4;
  const DType scale_dtype = module.scales->view.dtype;
  const bool byte_scales = DTypeBytes(scale_dtype) == 1;
  const int64_t num_scales = NumElements(module.scales->view.shape);
  ScaleSummary scales;
  bool powers = byte_scales && !is_nvfp4;
  if (byte_scales) {
    CheckByteScales(*module.scales, is_nvfp4, findings);
  } else {
    scales = Summarize(module.scales->view);
    powers = scales.all_powers;
  }
  const Histogram counts = CountBytes(module.codes->view.Bytes());
  const CodeSummary codes = is_nvfp4 ? SummarizeE2m1(counts) : SummarizeE4m3(counts, powers);
  if (is_nvfp4) {
    // What multiplies the global scale; nothing does where it is a divisor.
    const bool divides = module.layout == StoredLayout::kCompressedTensors;
    const float groups = MedianE4m3(CountBytes(module.scales->view.Bytes()), true);
    CheckFloatScales(*module.global, Summarize(module.global->view),
                     divides ? 0.0F : codes.median * groups, findings);
  }
  // Zero scales with NaN codes are one finding: an all-zero block that was divided by its amax.
  const bool divided_by_zero =
      codes.num_nan > 0 && scales.num_bad == scales.num_zero && scales.num_zero > 0;
  if (!byte_scales && !divided_by_zero) {
    CheckFloatScales(*module.scales, scales, codes.median, findings);
  }
  CheckNanCodes(module, codes, divided_by_zero ? scales.num_zero : 0, num_scales, findings);
  if (declared.ue8m0 && !byte_scales && !scales.all_powers && scales.num_bad == 0) {
    findings.push_back(
        MakeFinding("scale-fmt", module.scales->name,
                    fmt::format("{}: expected powers of two, as scale_fmt ue8m0 says, got scales "
                                "with mantissas",
                                module.scales->name)));
  }
  const bool is_damaged = codes.num_nan > 0 || scales.num_bad > 0;
  if (!is_damaged && !codes.all_zero && 2 * codes.num_largest < num_scales && num_scales > 1) {
    findings.push_back(MakeFinding(
        "scale-loose", module.codes->name,
        fmt::format("{}: expected the largest code in nearly each of {} blocks, got it {} times",
                    module.codes->name, num_scales, codes.num_largest)));
  }
}

// --- Parts --------------------------------------------------------------------------------------

std::string ShapesText(const StoredModule& module) {
  const std::vector<Shape> shapes = ScaleShapes(module);
  return shapes.empty() ? fmt::format("{} elements", module.stack) : ShapeString(shapes.front());
}

bool CheckScaleTypes(const StoredModule& module, Findings& findings) {
  const StoredTensor& scales = *module.scales;
  const DType dtype = scales.view.dtype;
  if (dtype == DType::kI32) {
    findings.push_back(
        MakeFinding("scale-packed", scales.name,
                    fmt::format("{}: expected F32 {}, got I32 {}", scales.name, ShapesText(module),
                                ShapeString(scales.view.shape))));
    return false;
  }
  const bool is_float = dtype == DType::kF32 || dtype == DType::kBf16 || dtype == DType::kF16;
  const bool is_byte = dtype == DType::kU8 || dtype == DType::kF8E8m0;
  const WeightFormat format = *module.format;
  const bool dtype_ok = format == WeightFormat::kNvfp4      ? dtype == DType::kF8E4m3
                        : format == WeightFormat::kMxfp8    ? is_byte
                        : format == WeightFormat::kFp8Ue8m0 ? is_float || is_byte
                                                            : is_float;
  if (!dtype_ok) {
    findings.push_back(MakeFinding("scale-dtype", scales.name,
                                   fmt::format("{}: expected {}, got {}", scales.name,
                                               format == WeightFormat::kNvfp4   ? "F8_E4M3"
                                               : format == WeightFormat::kMxfp8 ? "U8"
                                                                                : "F32 (or BF16)",
                                               DTypeName(dtype))));
    return false;
  }
  if (!module.is_sound) {
    const std::vector<Shape> shapes = ScaleShapes(module);
    const bool is_global =
        module.global != nullptr && std::ranges::find(shapes, scales.view.shape) != shapes.end();
    const StoredTensor& wrong = is_global ? *module.global : scales;
    findings.push_back(MakeFinding(
        "scale-shape", wrong.name,
        fmt::format("{}: expected {}, got {} {}", wrong.name,
                    is_global ? fmt::format("F32, {} elements", module.stack) : ShapesText(module),
                    ShapeString(wrong.view.shape), DTypeName(wrong.view.dtype))));
    return false;
  }
  return true;
}

bool IsFp8Method(WeightFormat format) {
  return format == WeightFormat::kFp8Tensor || format == WeightFormat::kFp8Channel;
}

void CheckInputScale(const StoredModule& module, const DeclaredQuantization& declared,
                     Findings& findings) {
  const bool is_modelopt_nvfp4 =
      module.format == WeightFormat::kNvfp4 && module.layout == StoredLayout::kDefault;
  if (module.input == nullptr) {
    const bool is_static = declared.static_activations && IsFp8Method(*module.format);
    if (is_modelopt_nvfp4 || is_static) {
      findings.push_back(MakeFinding(
          "input-scale-missing", module.name,
          fmt::format("{}: expected {}.input_scale, F32, got none: engines would use memory that "
                      "nobody wrote",
                      module.name, module.name)));
    }
    return;
  }
  const DType dtype = module.input->view.dtype;
  if (dtype != DType::kF32 && dtype != DType::kBf16 && dtype != DType::kF16) {
    findings.push_back(
        MakeFinding("scale-dtype", module.input->name,
                    fmt::format("{}: expected F32, got {}", module.input->name, DTypeName(dtype))));
    return;
  }
  const ScaleSummary input = Summarize(module.input->view);
  if (input.num_bad > 0) {
    ReportBadScales(*module.input, input, findings);
  }
}

// "kv_b_proj" for "model.layers.0.self_attn.kv_b_proj".
std::string_view LastPart(std::string_view name) { return name.substr(name.rfind('.') + 1); }

// Modules that every engine keeps in BF16, by name: routers of all families, embeddings, heads.
bool IsNeverQuantized(std::string_view module) {
  const std::string_view last = LastPart(module);
  const bool is_router = last == "gate" || last == "router" || last == "shared_expert_gate";
  return is_router || last == "embed_tokens" || last == "lm_head" || last.ends_with("norm");
}

void CheckModule(const StoredModule& module, const DeclaredQuantization& declared,
                 Findings& findings) {
  const ConstTensorView& codes = module.codes->view;
  if (IsNeverQuantized(module.name)) {
    findings.push_back(MakeFinding(
        "role-quantized", module.codes->name,
        fmt::format("{}: expected BF16, got {}", module.codes->name, DTypeName(codes.dtype))));
  }
  if (codes.shape.size() != 2 && codes.shape.size() != 3) {
    findings.push_back(
        MakeFinding("not-a-matrix", module.codes->name,
                    fmt::format("{}: expected codes of a matrix, got {} {}", module.codes->name,
                                ShapeString(codes.shape), DTypeName(codes.dtype))));
    return;
  }
  if (codes.dtype == DType::kF8E5m2) {
    findings.push_back(
        MakeFinding("codes-dtype", module.codes->name,
                    fmt::format("{}: expected F8_E4M3, got F8_E5M2", module.codes->name)));
    return;
  }
  const bool lacks_global = module.format == WeightFormat::kNvfp4 && module.global == nullptr;
  if ((codes.dtype == DType::kF8E4m3 || module.format) &&
      (module.scales == nullptr || lacks_global)) {
    findings.push_back(
        MakeFinding("scale-missing", module.codes->name,
                    fmt::format("{}: expected its {}, got none", module.codes->name,
                                module.scales == nullptr ? "scales" : "global scale")));
    return;
  }
  if (!module.format) {
    findings.push_back(MakeFinding(
        "format-unknown", module.codes->name,
        fmt::format("{}: {} {}, which is no codes of FP8, MXFP8 or NVFP4 (INT4 or MXFP4 perhaps)",
                    module.codes->name, ShapeString(codes.shape), DTypeName(codes.dtype))));
    return;
  }
  if (CheckScaleTypes(module, findings)) {
    CheckValues(module, declared, findings);
  }
  CheckInputScale(module, declared, findings);
  const bool is_small_block =
      module.format == WeightFormat::kMxfp8 || module.format == WeightFormat::kNvfp4;
  if (is_small_block && LastPart(module.name) == "kv_b_proj") {
    findings.push_back(MakeFinding("kv-b-quantized", module.codes->name,
                                   fmt::format("{}: expected BF16, got {}", module.codes->name,
                                               WeightFormatName(*module.format))));
  }
}

// --- Fused sets ---------------------------------------------------------------------------------

uint32_t BitsOf(const StoredTensor& scalar) {
  return std::bit_cast<uint32_t>(ScaleAt(scalar.view, 0));
}

// Members of one set against the first.
void CheckSet(std::string_view set, std::span<const StoredModule* const> members,
              Findings& findings) {
  const StoredModule& first = *members.front();
  for (const StoredModule* member : members.subspan(1)) {
    if (member->format != first.format) {
      continue;  // set-split says so.
    }
    const bool is_nvfp4 = first.format == WeightFormat::kNvfp4;
    const StoredTensor* a = is_nvfp4 ? first.global : first.scales;
    const StoredTensor* b = is_nvfp4 ? member->global : member->scales;
    const bool shares = SharesScale(*first.format);
    if (shares && BitsOf(*a) != BitsOf(*b)) {
      findings.push_back(
          MakeFinding(is_nvfp4 ? "scale-unshared" : "scale-unshared-fp8", b->name,
                      fmt::format("{}: expected {}, as {} has, for {}; got {}", b->name,
                                  ScaleAt(a->view, 0), a->name, set, ScaleAt(b->view, 0))));
    }
    if (first.input != nullptr && member->input != nullptr &&
        BitsOf(*first.input) != BitsOf(*member->input)) {
      findings.push_back(
          MakeFinding("input-scale-unshared", member->input->name,
                      fmt::format("{}: expected {}, as {} has, got {}", member->input->name,
                                  ScaleAt(first.input->view, 0), first.input->name,
                                  ScaleAt(member->input->view, 0))));
    }
  }
}

void CheckSets(const StoredModules& modules, Findings& findings) {
  std::map<std::string, std::vector<const StoredModule*>> sets;
  for (const auto& [weight, module] : modules.by_weight) {
    const std::string set = FusedSetName(module.name);
    if (!set.empty() && module.IsSound() && module.stack == 1) {
      sets[set].push_back(&module);
    }
  }
  for (const auto& [set, members] : sets) {
    CheckSet(set, members, findings);
  }
}

}  // namespace

void CheckModules(const StoredModules& modules, const DeclaredQuantization& declared,
                  ThreadPool* pool, AuditReport& report) {
  std::vector<const StoredModule*> list;
  for (const auto& [weight, module] : modules.by_weight) {
    list.push_back(&module);
  }
  std::vector<Findings> found(list.size());
  const auto check = [&](int64_t begin, int64_t end, int /*worker_idx*/) {
    for (int64_t i = begin; i < end; ++i) {
      const auto idx = static_cast<size_t>(i);
      CheckModule(*list[idx], declared, found[idx]);
    }
  };
  if (pool == nullptr) {
    check(0, std::ssize(list), 0);
  } else {
    pool->ParallelFor(std::ssize(list), check);
  }
  for (Findings& findings : found) {
    std::ranges::move(findings, std::back_inserter(report.findings));
  }
  CheckSets(modules, report.findings);
  for (const StoredTensor* orphan : modules.orphans) {
    report.findings.push_back(
        MakeFinding("orphan-scale", orphan->name,
                    fmt::format("{}: scales without a quantized weight", orphan->name)));
  }
}

}  // namespace octavo
