#include "octavo/convert/source_tensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/convert/inverse_scales.h"
#include "octavo/convert/source.h"
#include "octavo/formats/format.h"
#include "octavo/formats/fp8_block.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/model/spec/stacked_experts.h"
#include "octavo/policy/precision_table.h"

namespace octavo {
namespace {

// The suffixes under which formats store what belongs to a weight.
constexpr std::array<std::string_view, 5> kScaleSuffixes = {"_scale_inv", "_scale", "_scale_2",
                                                            "_global_scale", ".input_scale"};
// Of a KV cache in FP8: they belong to an attention, not to a weight.
constexpr std::array<std::string_view, 3> kKvScaleSuffixes = {".k_scale", ".v_scale", ".kv_scale"};

bool EndsWithAny(std::string_view name, std::span<const std::string_view> suffixes) {
  return std::ranges::any_of(suffixes,
                             [&](std::string_view suffix) { return name.ends_with(suffix); });
}

bool IsPlainDType(DType dtype) {
  return dtype == DType::kBf16 || dtype == DType::kF16 || dtype == DType::kF32;
}

bool IsE8m0DType(DType dtype) { return dtype == DType::kU8 || dtype == DType::kF8E8m0; }

bool IsOneElement(const StoredTensor& tensor) { return NumElements(tensor.view.shape) == 1; }

// "[2, 3] F32" of a tensor.
std::string TypeText(const ConstTensorView& view) {
  return fmt::format("{} {}", ShapeString(view.shape), DTypeName(view.dtype));
}

bool AllPowersOfTwo(const ConstTensorView& scales) {
  std::vector<float> values(static_cast<size_t>(NumElements(scales.shape)));
  WidenScales(scales, 0, values);
  return std::ranges::all_of(values, [](float value) {
    const auto bits = std::bit_cast<uint32_t>(value);
    return (bits & 0x807FFFFFU) == 0 && bits != 0 && bits != 0x7F800000U;
  });
}

// One weight's tensors, looked for by name.
class WeightFinder {
 public:
  WeightFinder(const Checkpoint& checkpoint, const WeightSpec& weight)
      : checkpoint_(checkpoint), weight_(weight), module_(ModuleOfWeight(weight.name)) {}

  // nullopt: nothing by these names.
  Result<std::optional<FoundWeight>> Find() {
    const StoredTensor* tensor = checkpoint_.Find(weight_.name);
    if (tensor == nullptr) {
      return FindPacked();
    }
    if (IsPlainDType(tensor->view.dtype)) {
      if (tensor->view.shape != weight_.shape) {
        return Mismatch(*tensor, "BF16, F16 or F32");
      }
      found_.source = PlainSource(tensor->view);
      Add(tensor, StoredPart::kCodes);
      return std::optional(std::move(found_));
    }
    if (weight_.shape.size() == 2 && tensor->view.dtype == DType::kF8E4m3) {
      return FindFp8(*tensor);
    }
    if (weight_.shape.size() == 2 && tensor->view.dtype == DType::kU8 &&
        Sibling("weight_scale_2") != nullptr) {
      return FindNvfp4(*tensor, "weight_scale_2", "input_scale", /*divides=*/false);
    }
    return Mismatch(*tensor, "BF16, F16, F32, or codes with their scales");
  }

 private:
  const StoredTensor* Sibling(std::string_view suffix) const {
    return checkpoint_.Find(fmt::format("{}.{}", module_, suffix));
  }
  void Add(const StoredTensor* tensor, StoredPart part) {
    if (tensor != nullptr) {
      found_.parts.push_back({.tensor = tensor, .part = part});
    }
  }
  Status Mismatch(const StoredTensor& tensor, std::string_view expected) const {
    return InvalidArgument("{}: expected {} {}, got {}", tensor.name, ShapeString(weight_.shape),
                           expected, TypeText(tensor.view));
  }
  void Begin(const StoredTensor& codes, WeightFormat format) {
    found_.source.format = format;
    found_.source.rows = weight_.shape[0];
    found_.source.cols = weight_.shape[1];
    found_.source.codes = codes.view;
    Add(&codes, StoredPart::kCodes);
  }

  Result<std::optional<FoundWeight>> FindPacked() {
    const StoredTensor* packed = Sibling("weight_packed");
    if (packed != nullptr && packed->view.dtype == DType::kU8 && weight_.shape.size() == 2) {
      return FindNvfp4(*packed, "weight_global_scale", "input_global_scale", /*divides=*/true);
    }
    for (const std::string_view suffix : {"weight_packed", "qweight"}) {
      if (const StoredTensor* integers = Sibling(suffix); integers != nullptr) {
        return Unsupported("{}: packed integer weights (INT4) are not read, got {}", integers->name,
                           TypeText(integers->view));
      }
    }
    return std::optional<FoundWeight>();
  }

  Result<std::optional<FoundWeight>> FindFp8(const StoredTensor& codes) {
    const StoredTensor* inv = Sibling("weight_scale_inv");
    const StoredTensor* plain = Sibling("weight_scale");
    if (codes.view.shape != weight_.shape) {
      return Mismatch(codes, "F8_E4M3");
    }
    if ((inv == nullptr) == (plain == nullptr)) {
      return InvalidArgument(
          "{}: F8_E4M3 codes: expected one of {}.weight_scale_inv and "
          "{}.weight_scale, found {}",
          codes.name, module_, module_, inv == nullptr ? "neither" : "both");
    }
    const StoredTensor& scale = inv == nullptr ? *plain : *inv;
    RETURN_IF_ERROR(ClassifyFp8(codes, scale));
    RETURN_IF_ERROR(AddInputScale("input_scale", StoredPart::kInputScale));
    return std::optional(std::move(found_));
  }

  // The scale of activations, which may be missing.
  Status AddInputScale(std::string_view suffix, StoredPart part) {
    const StoredTensor* scale = Sibling(suffix);
    if (scale != nullptr && (!IsPlainDType(scale->view.dtype) || !IsOneElement(*scale))) {
      return InvalidArgument("{}: expected [] F32, got {}", scale->name, TypeText(scale->view));
    }
    Add(scale, part);
    return OkStatus();
  }

  Status ClassifyFp8(const StoredTensor& codes, const StoredTensor& scale) {
    const int64_t rows = weight_.shape[0];
    const int64_t cols = weight_.shape[1];
    const Shape& shape = scale.view.shape;
    const bool is_float = IsPlainDType(scale.view.dtype);
    const bool is_byte = IsE8m0DType(scale.view.dtype);
    const Shape blocks = {NumFp8Blocks(rows), NumFp8Blocks(cols)};
    const bool by_row = rows == 1 && is_float && shape == Shape{1, 1} &&
                        scale.name.ends_with("weight_scale");  // One row: either would do.
    if ((is_float || is_byte) && shape == blocks && !by_row) {
      const bool powers = AllPowersOfTwo(scale.view);
      Begin(codes, powers ? WeightFormat::kFp8Ue8m0 : WeightFormat::kFp8);
    } else if (is_byte && cols % 32 == 0 && shape == Shape{rows, cols / 32}) {
      Begin(codes, WeightFormat::kMxfp8);
    } else if (is_float && (shape == Shape{rows, 1} || (rows != 1 && shape == Shape{rows}))) {
      Begin(codes, WeightFormat::kFp8Channel);
    } else if (is_float && IsOneElement(scale)) {
      Begin(codes, WeightFormat::kFp8Tensor);
      WidenScales(scale.view, 0, {&found_.source.tensor_scale, 1});
      Add(&scale, StoredPart::kTensorScale);
      return OkStatus();
    } else {
      return Unsupported(
          "{}: expected a scale for the tensor, for each row, for each block of 128x128 ({}) or "
          "for each 32 values of a row, got {}",
          scale.name, ShapeString(blocks), TypeText(scale.view));
    }
    found_.source.scales = scale.view;
    Add(&scale, StoredPart::kScales);
    return OkStatus();
  }

  Result<std::optional<FoundWeight>> FindNvfp4(const StoredTensor& codes,
                                               std::string_view global_suffix,
                                               std::string_view input_suffix, bool divides) {
    const int64_t rows = weight_.shape[0];
    const int64_t cols = weight_.shape[1];
    const StoredTensor* scales = Sibling("weight_scale");
    const StoredTensor* global = Sibling(global_suffix);
    if (scales == nullptr || global == nullptr) {
      return InvalidArgument("{}: U8 codes: expected {}.weight_scale and {}.{} beside them",
                             codes.name, module_, module_, global_suffix);
    }
    if (cols % 16 != 0 || codes.view.shape != Shape{rows, cols / 2}) {
      return InvalidArgument("{}: expected {} U8, two codes a byte, got {}", codes.name,
                             ShapeString({rows, cols / 2}), TypeText(codes.view));
    }
    if (scales->view.dtype != DType::kF8E4m3 || scales->view.shape != Shape{rows, cols / 16}) {
      return Unsupported("{}: expected {} F8_E4M3, one for each 16 values, got {}", scales->name,
                         ShapeString({rows, cols / 16}), TypeText(scales->view));
    }
    if (global->view.dtype != DType::kF32 || !IsOneElement(*global)) {
      return InvalidArgument("{}: expected [] F32, got {}", global->name, TypeText(global->view));
    }
    Begin(codes, WeightFormat::kNvfp4);
    found_.source.scales = scales->view;
    WidenScales(global->view, 0, {&found_.source.tensor_scale, 1});
    found_.source.tensor_scale_divides = divides;
    Add(scales, StoredPart::kScales);
    Add(global, divides ? StoredPart::kTensorDivisor : StoredPart::kTensorScale);
    RETURN_IF_ERROR(
        AddInputScale(input_suffix, divides ? StoredPart::kInputDivisor : StoredPart::kInputScale));
    return std::optional(std::move(found_));
  }

  const Checkpoint& checkpoint_;
  const WeightSpec& weight_;
  std::string_view module_;
  FoundWeight found_;
};

// The floating-point scales of E4M3 codes; null where there are none.
SourcePart* FloatScalesOf(FoundWeight& found) {
  const WeightFormat format = found.source.format;
  const bool is_fp8 = format == WeightFormat::kFp8 || format == WeightFormat::kFp8Ue8m0 ||
                      format == WeightFormat::kFp8Channel || format == WeightFormat::kFp8Tensor;
  const auto scales = std::ranges::find_if(found.parts, [](const SourcePart& part) {
    return (part.part == StoredPart::kScales || part.part == StoredPart::kTensorScale) &&
           IsPlainDType(part.tensor->view.dtype);
  });
  return is_fp8 && scales != found.parts.end() ? &*scales : nullptr;
}

// Only blocks are many enough to tell.
Status CheckNotInverse(FoundWeight& found) {
  const SourcePart* scales = FloatScalesOf(found);
  if (scales != nullptr && scales->part == StoredPart::kScales &&
      SeemInverse(scales->tensor->view)) {
    return Unsupported(
        "{}: the usual scale is far above 1: these seem to divide, and a scale must multiply "
        "(--source-scales inverse reads them as divisors)",
        scales->tensor->name);
  }
  return OkStatus();
}

// Puts the reciprocals in the place of the scales.
Status InvertFound(FoundWeight& found, SourceTensors& sources) {
  SourcePart* scales = FloatScalesOf(found);
  if (scales == nullptr) {
    return OkStatus();
  }
  sources.inverted.push_back(std::make_unique<InvertedScales>());
  InvertedScales& inverted = *sources.inverted.back();
  InvertScales(*scales->tensor, &inverted);
  if (scales->part == StoredPart::kScales && SeemInverse(inverted.tensor.view)) {
    return InvalidArgument(
        "{}: the usual scale is far below 1: these seem to multiply, as they should "
        "(--source-scales inverse reads them as divisors)",
        scales->tensor->name);
  }
  scales->tensor = &inverted.tensor;
  if (scales->part == StoredPart::kScales) {
    found.source.scales = inverted.tensor.view;
  } else {
    found.source.tensor_scale = inverted.values.front();
  }
  return OkStatus();
}

// Weights that nothing stores by name may be slices of stacked ones.
Status FindStacked(const Checkpoint& checkpoint, const ModelSpec& spec, SourceTensors& sources) {
  for (const StackedSource& stack : StackedSourcesOf(spec)) {
    const StoredTensor* tensor = checkpoint.Find(stack.name);
    if (tensor == nullptr) {
      continue;
    }
    if (!IsPlainDType(tensor->view.dtype)) {
      return Unsupported("{}: stacked experts are read in BF16, F16 and F32, got {}", tensor->name,
                         TypeText(tensor->view));
    }
    RETURN_IF_ERROR(CheckStackedShape(stack, tensor->view.shape));
    const int64_t cols = stack.shape[2];
    for (const StackedSlice& slice : stack.slices) {
      std::optional<FoundWeight>& found = sources.weights[static_cast<size_t>(slice.weight)];
      if (found.has_value()) {
        return InvalidArgument("{}: stored twice, by itself and in {}",
                               spec.weights[static_cast<size_t>(slice.weight)].name, tensor->name);
      }
      const int64_t first_row = slice.expert * stack.shape[1] + slice.row_begin;
      const ConstTensorView view = {
          tensor->view.dtype,
          {slice.num_rows, cols},
          tensor->view.data + first_row * cols * DTypeBytes(tensor->view.dtype)};
      found = FoundWeight{.source = PlainSource(view),
                          .parts = {{.tensor = tensor, .part = StoredPart::kCodes}},
                          .is_stacked = true};
    }
  }
  return OkStatus();
}

// A tensor of no weight is copied, unless it must belong to one.
Status CheckOther(const StoredTensor& tensor) {
  if (EndsWithAny(tensor.name, kScaleSuffixes) && !EndsWithAny(tensor.name, kKvScaleSuffixes)) {
    return InvalidArgument("{}: a scale, but no quantized weight that it belongs to", tensor.name);
  }
  const DType dtype = tensor.view.dtype;
  if (dtype == DType::kF8E4m3 || dtype == DType::kF8E5m2 || dtype == DType::kF8E8m0) {
    return InvalidArgument("{}: {} codes without a known weight and scale", tensor.name,
                           DTypeName(dtype));
  }
  return OkStatus();
}

Status CheckMethod(const nlohmann::json& config) {
  static constexpr std::array<std::string_view, 8> kRead = {
      "", "bf16", "fp8", "mxfp8", "nvfp4", "modelopt", "modelopt_fp4", "compressed-tensors"};
  const std::string method = config.value("quant_method", std::string());
  if (std::ranges::find(kRead, method) == kRead.end()) {
    return Unsupported(
        "quantization_config: quant_method \"{}\" is not read; fp8, mxfp8, modelopt (FP8, NVFP4) "
        "and compressed-tensors (FP8, MXFP8, NVFP4) are",
        method);
  }
  const std::string fmt_name = config.value("fmt", std::string("e4m3"));
  if (fmt_name != "e4m3" && fmt_name != "float8_e4m3fn") {
    return Unsupported(
        "quantization_config: fmt: expected e4m3, got \"{}\": FNUZ and E5M2 codes are another "
        "table",
        fmt_name);
  }
  return OkStatus();
}

// The text of a member that is a string; empty for anything else.
nlohmann::json ParseConfig(std::string_view text) {
  nlohmann::json config = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  for (const char* key : {"quant_method", "fmt"}) {
    if (config.is_object() && config.contains(key) && !config[key].is_string()) {
      config.erase(key);
    }
  }
  return config;
}

}  // namespace

const StoredTensor* FoundWeight::Find(StoredPart part) const {
  const auto found = std::ranges::find(parts, part, &SourcePart::part);
  return found == parts.end() ? nullptr : found->tensor;
}

Status CheckAcceptedSource(const Checkpoint& checkpoint) {
  const std::string& text = checkpoint.config().quantization_config;
  const nlohmann::json config = ParseConfig(text);
  if (config.is_object()) {
    const Status status = CheckMethod(config);
    if (!status.ok()) {
      return status.WithContext(checkpoint.dir());
    }
  }
  const bool has_v4_names =
      checkpoint.Find("embed.weight") != nullptr &&
      std::ranges::any_of(checkpoint.tensors(), [](const StoredTensor& tensor) {
        return tensor.name.starts_with("layers.") && tensor.name.ends_with(".attn.wq_a.weight");
      });
  if (has_v4_names) {
    return Unsupported(
        "{}: DeepSeek-V4's own names (embed.weight, layers.N.attn.wq_a.weight) and MXFP4 experts "
        "are not read: rename to the HF form first",
        checkpoint.dir());
  }
  return OkStatus();
}

Result<SourceTensors> FindSources(const Checkpoint& checkpoint, const ModelSpec& spec,
                                  const SourceOptions& options) {
  RETURN_IF_ERROR(CheckAcceptedSource(checkpoint));
  SourceTensors sources;
  for (const WeightSpec& weight : spec.weights) {
    ASSIGN_OR_RETURN(std::optional<FoundWeight> found, WeightFinder(checkpoint, weight).Find());
    if (found.has_value() && !options.scales_divide) {
      RETURN_IF_ERROR(CheckNotInverse(*found));
    }
    sources.weights.push_back(std::move(found));
  }
  RETURN_IF_ERROR(FindStacked(checkpoint, spec, sources));
  std::set<const StoredTensor*> consumed;
  for (const std::optional<FoundWeight>& found : sources.weights) {
    if (found.has_value()) {
      for (const SourcePart& part : found->parts) {
        consumed.insert(part.tensor);
      }
    }
  }
  for (const StoredTensor& tensor : checkpoint.tensors()) {
    if (!consumed.contains(&tensor)) {
      RETURN_IF_ERROR(CheckOther(tensor));
      sources.others.push_back(&tensor);
    }
  }
  for (std::optional<FoundWeight>& found : sources.weights) {
    if (options.scales_divide && found.has_value()) {
      RETURN_IF_ERROR(InvertFound(*found, sources));
    }
  }
  if (options.scales_divide && sources.inverted.empty()) {
    return InvalidArgument(
        "--source-scales inverse: the source has no FP8 weights with such scales");
  }
  return sources;
}

}  // namespace octavo
