#include "octavo/sync/arithmetic.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/check.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/formats/format.h"
#include "octavo/kernels/matrix.h"
#include "octavo/policy/precision_table.h"

namespace octavo {
namespace {

constexpr std::array kInputScales = {Nvfp4InputScale::kToken, Nvfp4InputScale::kPow2,
                                     Nvfp4InputScale::kStatic, Nvfp4InputScale::kBatch};

InputForm Nvfp4Form(Nvfp4InputScale scale) {
  switch (scale) {
    case Nvfp4InputScale::kToken:
      return InputForm::kNvfp4Token;
    case Nvfp4InputScale::kPow2:
      return InputForm::kNvfp4Pow2;
    case Nvfp4InputScale::kStatic:
      return InputForm::kNvfp4Static;
    case Nvfp4InputScale::kBatch:
      return InputForm::kNvfp4Batch;
  }
  return InputForm::kNvfp4Token;
}

bool IsWeightOnly(WeightFormat format, WeightOnly weight_only) {
  if (format == WeightFormat::kBf16 || weight_only == WeightOnly::kNone) {
    return false;
  }
  return (format == WeightFormat::kNvfp4) == (weight_only == WeightOnly::kW4A16);
}

InputForm FormOf(WeightFormat format, bool has_static_scale, const ArithmeticOptions& options) {
  if (IsWeightOnly(format, options.weight_only)) {
    return InputForm::kBf16;
  }
  switch (format) {
    case WeightFormat::kBf16:
      return InputForm::kBf16;
    case WeightFormat::kFp8:
    case WeightFormat::kFp8Ue8m0:
      return InputForm::kFp8Group;
    case WeightFormat::kFp8Channel:
      return InputForm::kFp8Token;
    case WeightFormat::kFp8Tensor:
      return has_static_scale ? InputForm::kFp8Static : InputForm::kFp8Token;
    case WeightFormat::kMxfp8:
      return InputForm::kMxfp8;
    case WeightFormat::kNvfp4:
      return Nvfp4Form(options.nvfp4_input_scale.value_or(Nvfp4InputScale::kToken));
  }
  return InputForm::kBf16;
}

// What stands behind the format's name in a recipe id.
std::string_view SuffixOf(WeightFormat format, InputForm input) {
  switch (input) {
    case InputForm::kBf16:
      return format == WeightFormat::kNvfp4 ? "-w4a16" : "-w8a16";
    case InputForm::kFp8Static:
    case InputForm::kNvfp4Static:
      return "-static";
    case InputForm::kNvfp4Token:
      return "-token";
    case InputForm::kNvfp4Pow2:
      return "-pow2";
    case InputForm::kNvfp4Batch:
      return "-batch";
    case InputForm::kFp8Group:
    case InputForm::kFp8Token:
    case InputForm::kMxfp8:
      return "";
  }
  return "";
}

}  // namespace

std::string_view Nvfp4InputScaleName(Nvfp4InputScale scale) {
  switch (scale) {
    case Nvfp4InputScale::kToken:
      return "token";
    case Nvfp4InputScale::kPow2:
      return "pow2";
    case Nvfp4InputScale::kStatic:
      return "static";
    case Nvfp4InputScale::kBatch:
      return "batch";
  }
  return "unknown";
}

std::optional<Nvfp4InputScale> ParseNvfp4InputScale(std::string_view name) {
  const auto* const found = std::ranges::find(kInputScales, name, Nvfp4InputScaleName);
  return found == kInputScales.end() ? std::nullopt : std::optional(*found);
}

std::optional<WeightOnly> ParseWeightOnly(std::string_view name) {
  if (name == "w8a16") {
    return WeightOnly::kW8A16;
  }
  return name == "w4a16" ? std::optional(WeightOnly::kW4A16) : std::nullopt;
}

Result<std::vector<InputForm>> InputFormsOf(const PrecisionTable& table,
                                            const ArithmeticOptions& options) {
  bool has_nvfp4_input = false;
  bool has_weight_only = false;
  std::vector<InputForm> inputs;
  inputs.reserve(table.rows.size());
  for (const PrecisionRow& row : table.rows) {
    const bool weight_only = IsWeightOnly(row.format, options.weight_only);
    has_weight_only = has_weight_only || weight_only;
    has_nvfp4_input = has_nvfp4_input || (row.format == WeightFormat::kNvfp4 && !weight_only);
    inputs.push_back(FormOf(row.format, table.declares_input_scales, options));
  }
  if (options.weight_only != WeightOnly::kNone && !has_weight_only) {
    const bool is_w8 = options.weight_only == WeightOnly::kW8A16;
    return InvalidArgument("--format {}: expected a model with {} weights, got none",
                           is_w8 ? "w8a16" : "w4a16", is_w8 ? "8-bit" : "nvfp4");
  }
  if (options.nvfp4_input_scale.has_value() && !has_nvfp4_input) {
    return InvalidArgument(
        "--nvfp4-input-scale {}: expected a model with nvfp4 weights whose inputs are quantized, "
        "got none",
        Nvfp4InputScaleName(*options.nvfp4_input_scale));
  }
  return inputs;
}

std::string RecipeId(std::string_view backend_recipe, const PrecisionTable& table,
                     std::span<const InputForm> inputs, DType kv_dtype) {
  CHECK(inputs.size() == table.rows.size());
  std::string formats;
  for (const WeightFormat format : AllWeightFormats()) {
    for (size_t i = 0; i < inputs.size() && format != WeightFormat::kBf16; ++i) {
      if (table.rows[i].format == format) {  // All rows of a format have one form.
        formats += formats.empty() ? "" : "+";
        formats += fmt::format("{}{}", WeightFormatName(format), SuffixOf(format, inputs[i]));
        break;
      }
    }
  }
  return fmt::format("{}/{}{}", backend_recipe, formats.empty() ? "bf16" : formats,
                     kv_dtype == DType::kF8E4m3 ? "+kv-fp8_e4m3" : "");
}

bool IsEmulated(std::span<const InputForm> inputs) {
  return std::ranges::any_of(inputs, [](InputForm input) {
    return input == InputForm::kMxfp8 || input == InputForm::kNvfp4Token ||
           input == InputForm::kNvfp4Pow2 || input == InputForm::kNvfp4Static ||
           input == InputForm::kNvfp4Batch;
  });
}

bool DependsOnBatch(std::span<const InputForm> inputs) {
  return std::ranges::any_of(inputs,
                             [](InputForm input) { return input == InputForm::kNvfp4Batch; });
}

}  // namespace octavo
