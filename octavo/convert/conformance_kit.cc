// Reading a kit and an output, and comparing them.

#include "octavo/convert/conformance_kit.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "octavo/base/file.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/checkpoint/safetensors.h"
#include "octavo/convert/conformance_kit_recognize.h"
#include "octavo/convert/stored_values.h"
#include "octavo/formats/bf16.h"

namespace octavo {
namespace {

struct KitCase {
  std::string name;
  int64_t rows = 0;
  int64_t cols = 0;
  std::vector<std::string> formats;
  std::string shares_scale;   // Name of its set; empty for one of its own.
  std::vector<float> values;  // [rows, cols]
};

struct Kit {
  std::vector<std::string> formats;
  std::vector<KitCase> cases;
  std::map<std::string, float> set_amax;  // Largest magnitude of each set, by its name.
};

// Tensors of a safetensors file by name; the views live as long as the file.
using TensorMap = std::map<std::string, ConstTensorView, std::less<>>;

TensorMap TensorsOf(const SafetensorsFile& file) {
  TensorMap tensors;
  for (const SafetensorsEntry& entry : file.header().entries) {
    tensors.emplace(entry.name, file.View(entry));
  }
  return tensors;
}

float AmaxOf(std::span<const float> values) {
  float amax = 0.0F;
  for (const float value : values) {
    amax = std::max(amax, std::fabs(value));
  }
  return amax;
}

// --- The kit ------------------------------------------------------------------------------------

// Strings of the array `json[key]`; nullopt when it is something else.
std::optional<std::vector<std::string>> StringsOf(const nlohmann::json& json, const char* key) {
  const auto entry = json.find(key);
  if (entry == json.end() || !entry->is_array()) {
    return std::nullopt;
  }
  std::vector<std::string> strings;
  for (const nlohmann::json& item : *entry) {
    if (!item.is_string()) {
      return std::nullopt;
    }
    strings.push_back(item.get<std::string>());
  }
  return strings;
}

std::optional<KitCase> CaseOf(const nlohmann::json& json) {
  if (!json.is_object() || !json.contains("name") || !json["name"].is_string()) {
    return std::nullopt;
  }
  auto formats = StringsOf(json, "formats");
  const auto shape = json.find("shape");
  if (!formats || shape == json.end() || !shape->is_array() || shape->size() != 2 ||
      !(*shape)[0].is_number_unsigned() || !(*shape)[1].is_number_unsigned()) {
    return std::nullopt;
  }
  KitCase one = {.name = json["name"].get<std::string>(),
                 .rows = (*shape)[0].get<int64_t>(),
                 .cols = (*shape)[1].get<int64_t>(),
                 .formats = *std::move(formats),
                 .shares_scale = {},
                 .values = {}};
  if (json.contains("shares_scale") && json["shares_scale"].is_string()) {
    one.shares_scale = json["shares_scale"].get<std::string>();
  }
  return one;
}

Status ReadValues(const TensorMap& inputs, KitCase& one) {
  const auto found = inputs.find(one.name + ".weight");
  if (found == inputs.end()) {
    return Corrupt("inputs.safetensors: {}.weight: expected a tensor, found none", one.name);
  }
  const ConstTensorView& view = found->second;
  if (view.dtype != DType::kBf16 || view.shape != Shape{one.rows, one.cols}) {
    return Corrupt("inputs.safetensors: {}.weight: expected [{}, {}] BF16, got {} {}", one.name,
                   one.rows, one.cols, ShapeString(view.shape), DTypeName(view.dtype));
  }
  one.values.resize(static_cast<size_t>(NumElements(view.shape)));
  for (size_t i = 0; i < one.values.size(); ++i) {
    one.values[i] = ScaleAt(view, i);
  }
  return OkStatus();
}

const std::string& SetNameOf(const KitCase& one) {
  return one.shares_scale.empty() ? one.name : one.shares_scale;
}

Result<Kit> ReadKit(const std::string& dir) {
  ASSIGN_OR_RETURN(const std::string text, ReadTextFile(dir + "/cases.json"));
  const auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  const Status malformed = Corrupt(
      "{}/cases.json: expected an object with \"outputs\" and \"cases\", as conformance/README.md "
      "says",
      dir);
  if (!json.is_object() || !json.contains("cases") || !json["cases"].is_array()) {
    return malformed;
  }
  Kit kit;
  auto formats = StringsOf(json, "outputs");
  if (!formats) {
    return malformed;
  }
  kit.formats = *std::move(formats);
  ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::Open(dir + "/inputs.safetensors"));
  const TensorMap inputs = TensorsOf(file);
  for (const nlohmann::json& entry : json["cases"]) {
    std::optional<KitCase> one = CaseOf(entry);
    if (!one) {
      return malformed;
    }
    RETURN_IF_ERROR(ReadValues(inputs, *one));
    float& set_amax = kit.set_amax[SetNameOf(*one)];
    set_amax = std::max(set_amax, AmaxOf(one->values));
    kit.cases.push_back(*std::move(one));
  }
  return kit;
}

// --- Comparing ----------------------------------------------------------------------------------

std::string HexOf(const ConstTensorView& view, int64_t elem_idx) {
  const int64_t elem_bytes = DTypeBytes(view.dtype);
  std::string hex;
  for (int64_t i = elem_bytes; i-- > 0;) {  // Little-endian bytes, most significant digit first.
    hex += fmt::format("{:02x}", static_cast<unsigned>(view.data[elem_idx * elem_bytes + i]));
  }
  return hex;
}

std::optional<KitDifference> Compare(std::string_view tensor, const ConstTensorView& expected,
                                     const ConstTensorView& got) {
  KitDifference difference = {.tensor = std::string(tensor)};
  if (expected.dtype != got.dtype) {
    difference.what = "dtype";
    difference.expected = DTypeName(expected.dtype);
    difference.got = DTypeName(got.dtype);
    return difference;
  }
  if (expected.shape != got.shape) {
    difference.what = "shape";
    difference.expected = ShapeString(expected.shape);
    difference.got = ShapeString(got.shape);
    return difference;
  }
  const int64_t elem_bytes = DTypeBytes(expected.dtype);
  std::optional<int64_t> first;
  for (int64_t i = 0; i < NumElements(expected.shape); ++i) {
    const int64_t place = i * elem_bytes;
    if (std::memcmp(expected.data + place, got.data + place, static_cast<size_t>(elem_bytes)) !=
        0) {
      first = first.value_or(i);
      ++difference.num_differs;
    }
  }
  if (!first) {
    return std::nullopt;
  }
  difference.what = "bytes";
  difference.index = IndexString(expected.shape, *first);
  difference.expected = HexOf(expected, *first);
  difference.got = HexOf(got, *first);
  return difference;
}

// Tensors "NAME.PART" of a case, in the order of names.
void CompareCase(const KitCase& one, const TensorMap& expected, const TensorMap& got,
                 KitFormatReport& report) {
  const size_t before = report.differences.size();
  const std::string prefix = one.name + ".";
  for (auto tensor = expected.lower_bound(prefix);
       tensor != expected.end() && tensor->first.starts_with(prefix); ++tensor) {
    const auto found = got.find(tensor->first);
    std::optional<KitDifference> difference =
        found == got.end()
            ? KitDifference{.tensor = tensor->first,
                            .what = "missing",
                            .expected = fmt::format("{} {}", ShapeString(tensor->second.shape),
                                                    DTypeName(tensor->second.dtype)),
                            .got = "none"}
            : Compare(tensor->first, tensor->second, found->second);
    if (difference) {
      difference->case_name = one.name;
      report.differences.push_back(*std::move(difference));
    }
  }
  ++report.num_cases;
  report.num_passed += report.differences.size() == before ? 1 : 0;
}

// --- What the rules are recognised from ---------------------------------------------------------

// Null when it is missing or has another number of elements.
const ConstTensorView* Part(const TensorMap& got, const KitCase& one, std::string_view suffix,
                            int64_t num_elems) {
  const auto found = got.find(one.name + "." + std::string(suffix));
  const bool usable = found != got.end() && NumElements(found->second.shape) == num_elems;
  return usable ? &found->second : nullptr;
}

bool IsFloatScale(const ConstTensorView* view) {
  return view != nullptr && (view->dtype == DType::kF32 || view->dtype == DType::kBf16);
}

bool IsByte(const ConstTensorView* view) { return view != nullptr && DTypeBytes(view->dtype) == 1; }

// Names of the parts of a format.
struct PartNames {
  std::string_view codes = "weight";
  std::string_view scales = "weight_scale_inv";
  std::string_view global = {};
};

PartNames NamesOf(std::string_view format) {
  if (format == "fp8-channel") {
    return {.scales = "weight_scale"};
  }
  if (format == "fp8-tensor") {
    return {.scales = "weight_scale", .global = "weight_scale"};
  }
  if (format == "nvfp4") {
    return {.scales = "weight_scale", .global = "weight_scale_2"};
  }
  if (format == "nvfp4-compressed-tensors") {
    return {.codes = "weight_packed", .scales = "weight_scale", .global = "weight_global_scale"};
  }
  return {};
}

// Appends the units of `one`. Parts that are missing or of another size are left out.
void AppendCase(const KitCase& one, const Kit& kit, const TensorMap& got, KitOutput& output) {
  const PartNames names = NamesOf(output.format);
  const KitUnitSize unit = UnitSizeOf(output.format, one.rows, one.cols);
  const int64_t num_units =
      ((one.rows + unit.rows - 1) / unit.rows) * ((one.cols + unit.cols - 1) / unit.cols);
  const bool packed = output.format.starts_with("nvfp4");
  const bool byte_scales = packed || output.format == "mxfp8";
  const int64_t num_values = one.rows * one.cols;
  const ConstTensorView* codes = Part(got, one, names.codes, packed ? num_values / 2 : num_values);
  const ConstTensorView* scales = Part(got, one, names.scales, num_units);
  const ConstTensorView* global = names.global.empty() ? nullptr : Part(got, one, names.global, 1);
  if (!IsByte(codes) || !(byte_scales ? IsByte(scales) : IsFloatScale(scales)) ||
      (!names.global.empty() && !IsFloatScale(global))) {
    return;
  }
  AppendUnits({.rows = one.rows,
               .cols = one.cols,
               .values = one.values,
               .last_value = one.values.back(),
               .codes = *codes,
               .scales = *scales,
               .tensor = {.set_amax = kit.set_amax.at(SetNameOf(one)),
                          .own_amax = AmaxOf(one.values),
                          .global = global == nullptr ? 1.0F : ScaleAt(*global, 0)}},
              num_units, output);
}

Result<KitFormatReport> JudgeFormat(const Kit& kit, const std::string& kit_dir,
                                    const std::string& format, const std::string& path) {
  ASSIGN_OR_RETURN(
      const SafetensorsFile expected_file,
      SafetensorsFile::Open(fmt::format("{}/expected/{}.safetensors", kit_dir, format)));
  ASSIGN_OR_RETURN(const SafetensorsFile got_file, SafetensorsFile::Open(path));
  const TensorMap expected = TensorsOf(expected_file);
  const TensorMap got = TensorsOf(got_file);
  KitFormatReport report = {.format = format};
  KitOutput output = {.format = format, .tensors = {}, .units = {}};
  for (const KitCase& one : kit.cases) {
    if (std::ranges::find(one.formats, format) != one.formats.end()) {
      CompareCase(one, expected, got, report);
      AppendCase(one, kit, got, output);
    }
  }
  if (!output.units.empty()) {
    report.rules = RecognizeRules(output);
    report.follows = QuantizersWithRules(format, report.rules);
  }
  return report;
}

}  // namespace

bool KitReport::Passed() const {
  return std::ranges::all_of(formats, [](const KitFormatReport& one) { return one.Passed(); });
}

Result<KitReport> JudgeQuantizer(const std::string& kit_dir, const std::string& output_dir) {
  ASSIGN_OR_RETURN(const Kit kit, ReadKit(kit_dir));
  KitReport report;
  for (const std::string& format : kit.formats) {
    const std::string path = fmt::format("{}/{}.safetensors", output_dir, format);
    std::error_code error;
    if (!std::filesystem::exists(path, error)) {
      report.absent.push_back(format);
      continue;
    }
    ASSIGN_OR_RETURN(KitFormatReport one, JudgeFormat(kit, kit_dir, format, path));
    report.formats.push_back(std::move(one));
  }
  if (report.formats.empty()) {
    return NotFound("{}: expected a file FORMAT.safetensors (such as fp8.safetensors), found none",
                    output_dir);
  }
  return report;
}

}  // namespace octavo
