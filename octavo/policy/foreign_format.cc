#include "octavo/policy/foreign_format.h"

#include <fmt/core.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>

#include "octavo/base/check.h"
#include "octavo/base/status.h"
#include "octavo/formats/format.h"
#include "octavo/formats/fp8_block.h"
#include "octavo/policy/dialect.h"
#include "octavo/policy/engine_modules.h"
#include "octavo/policy/precision_table.h"
#include "octavo/policy/quantization_fields.h"
#include "octavo/policy/sglang_match.h"

namespace octavo {
namespace {

// Ordered: groups are told by their position.
using Json = nlohmann::ordered_json;

constexpr int64_t kNvfp4Group = 16;

// A value of a configuration that knows where it stands, for messages. A view of the JSON.
class ConfigValue {
 public:
  explicit ConfigValue(const Json& json, std::string path = {})
      : json_(&json), path_(std::move(path)) {}

  const Json& json() const { return *json_; }
  // Absent, or null: configurations do not tell these apart.
  bool IsNull() const { return json_->is_null(); }

  // The value at `key`; null when this is no object or has no such key.
  ConfigValue At(std::string_view key) const {
    static const Json null;
    const auto found = json_->is_object() ? json_->find(key) : json_->end();
    const bool is_there = json_->is_object() && found != json_->end();
    return ConfigValue(is_there ? *found : null, Path(key));
  }

  // The members of an object, in the order written; none of anything else.
  nlohmann::detail::iteration_proxy<Json::const_iterator> Items() const {
    static const Json empty = Json::object();
    return json_->is_object() ? json_->items() : empty.items();
  }

  // "config_groups.group_0.weights" for `key` "weights".
  std::string Path(std::string_view key) const {
    return path_.empty() ? std::string(key) : fmt::format("{}.{}", path_, key);
  }

  // kUnsupported: "quantization_config.PATH: expected ..., got ...".
  Status Expected(std::string_view what) const {
    constexpr size_t kShownMax = 100;
    std::string got = json_->dump(-1, ' ', /*ensure_ascii=*/true, Json::error_handler_t::replace);
    if (got.size() > kShownMax) {
      got = got.substr(0, kShownMax) + "...";
    }
    return Unsupported("quantization_config.{}: expected {}, got {}", path_, what,
                       IsNull() ? "none" : got);
  }

  // A string that is one of `known`; `absent` for no value.
  // Errors: Expected.
  Result<std::string> OneOf(std::initializer_list<std::string_view> known,
                            std::string_view absent) const {
    if (IsNull()) {
      return std::string(absent);
    }
    const auto* text = json_->get_ptr<const std::string*>();
    std::string names;
    for (const std::string_view name : known) {
      if (text != nullptr && *text == name) {
        return *text;
      }
      names += (names.empty() ? "" : " or ") + std::string(name);
    }
    return Expected(names);
  }

 private:
  const Json* json_;
  std::string path_;
};

// --- quant_method fp8 and mxfp8 ------------------------------------------------------------------

Result<WeightFormat> Fp8FormatOf(const Json& config) {
  const ConfigValue root(config);
  const ConfigValue blocks = root.At("weight_block_size");
  ASSIGN_OR_RETURN(const std::string scale_fmt,
                   root.At("scale_fmt").OneOf({"ue8m0", "float"}, /*absent=*/"float"));
  const bool is_ue8m0 = scale_fmt == "ue8m0";
  if (blocks.IsNull()) {
    return is_ue8m0 ? Result<WeightFormat>(root.At("weight_block_size").Expected("[128, 128]"))
                    : WeightFormat::kFp8Tensor;
  }
  if (blocks.json() != Json::array({kFp8BlockDim, kFp8BlockDim})) {
    return blocks.Expected("[128, 128], or none for one scale a tensor");
  }
  return is_ue8m0 ? WeightFormat::kFp8Ue8m0 : WeightFormat::kFp8;
}

Result<ForeignFormats> ReadFp8(const Json& config, bool is_mxfp8) {
  const ConfigValue root(config);
  // A file without these keys means the first of these values.
  if (const auto codes = root.At("fmt").OneOf({"e4m3", "float8_e4m3fn"}, /*absent=*/"e4m3");
      !codes) {
    return codes.error();
  }
  ASSIGN_OR_RETURN(const std::string scheme, root.At("activation_scheme")
                                                 .OneOf({"dynamic", "static"},
                                                        /*absent=*/"dynamic"));
  ForeignFormats read;
  read.declares_input_scales = scheme == "static";
  DeclaredFormat declared = {.format = WeightFormat::kMxfp8, .rule = "quant_method mxfp8"};
  if (!is_mxfp8) {  // Of mxfp8 SGLang fixes the group to 32, whatever weight_block_size says.
    ASSIGN_OR_RETURN(declared.format, Fp8FormatOf(config));
    declared.rule = "quant_method fp8";
  }
  if (read.declares_input_scales && declared.format != WeightFormat::kFp8Tensor) {
    return root.At("activation_scheme")
        .Expected(fmt::format("dynamic for {}", WeightFormatName(declared.format)));
  }
  read.formats.push_back(std::move(declared));
  return read;
}

// --- ModelOpt ------------------------------------------------------------------------------------

// Activations are quantized too; without this part of a group the scheme is weight-only.
Status CheckModelOptGroups(const ConfigValue& config) {
  const ConfigValue groups = config.At("config_groups");
  for (const auto& [name, group] : groups.Items()) {
    const ConfigValue inputs = ConfigValue(group, groups.Path(name)).At("input_activations");
    if (inputs.IsNull()) {
      return inputs.Expected("quantized activations (weight-only schemes are not read)");
    }
  }
  return OkStatus();
}

// The dialect's reader asks for a group size, at the top or in the first group.
Status CheckGroupSize(const QuantizationFields& fields) {
  if (fields.group_size && *fields.group_size != kNvfp4Group) {
    return Unsupported("quantization_config.group_size: expected {}, got {}", kNvfp4Group,
                       *fields.group_size);
  }
  return OkStatus();
}

// Each layer of MIXED_PRECISION has an algorithm of its own; those that are not read here SGLang
// leaves unquantized.
Status CheckLayerGroups(const ConfigValue& layers) {
  for (const auto& [name, layer] : layers.Items()) {
    const ConfigValue value(layer, layers.Path(name));
    const ConfigValue size = value.At("group_size");
    const bool is_fp4 = value.At("quant_algo").json() == "NVFP4";
    if (is_fp4 && !size.IsNull() && size.json() != kNvfp4Group) {
      return size.Expected(fmt::format("{}", kNvfp4Group));
    }
  }
  return OkStatus();
}

Result<ForeignFormats> ReadModelOpt(const Json& json, const QuantizationFields& fields) {
  const ConfigValue root(json);
  const bool is_nested = !fields.has_flat_algo && json.contains("quantization");
  const ConfigValue config = is_nested ? root.At("quantization") : root;
  std::string algo = fields.quant_algo;
  if (algo.empty() && fields.quant_method != "modelopt") {
    algo = fields.quant_method == "modelopt_fp4" ? "NVFP4" : "FP8";
  }
  RETURN_IF_ERROR(CheckModelOptGroups(config));
  ForeignFormats read;
  read.dialect = Dialect::kSglangModelOpt;
  read.declares_input_scales = true;
  const DeclaredFormat fp8 = {.format = WeightFormat::kFp8Tensor, .rule = "quant_algo FP8"};
  const DeclaredFormat nvfp4 = {.format = WeightFormat::kNvfp4, .rule = "quant_algo NVFP4"};
  if (algo == "FP8") {
    read.formats = {fp8};
  } else if (algo == "NVFP4") {
    RETURN_IF_ERROR(CheckGroupSize(fields));
    read.drops_mtp = true;
    read.formats = {nvfp4};
  } else if (algo == "MIXED_PRECISION") {
    RETURN_IF_ERROR(CheckLayerGroups(config.At("quantized_layers")));
    read.dialect = Dialect::kSglangModelOptMixed;
    read.formats = {fp8, nvfp4};
  } else {
    return config.At("quant_algo").Expected("FP8, NVFP4 or MIXED_PRECISION");
  }
  return read;
}

// --- compressed-tensors --------------------------------------------------------------------------
//
// Source: compressed-tensors of August 2026, quantization/quant_scheme.py and quant_args.py.

struct CompressedTensorsGroup {
  WeightFormat format = WeightFormat::kBf16;
  bool has_input_scales = false;  // Calibrated, one for a matrix.
};

constexpr int64_t kMxGroup = 32;

// A scheme that is read: weights of a strategy, and the activations beside them.
struct Scheme {
  int num_bits = 8;
  std::string_view weights;  // strategy
  int64_t group_size = 0;    // Of the weights; 0: none.
  std::string_view activations;
  int64_t activation_group = 0;
  std::string_view dynamic;  // Of the activations: "true", "false", "local"; JSON but for quotes.
  std::string_view compressor;
  WeightFormat format;
};
constexpr Scheme kSchemes[] = {
    {8, "tensor", 0, "tensor", 0, "false", "float-quantized", WeightFormat::kFp8Tensor},
    {8, "tensor", 0, "token", 0, "true", "float-quantized", WeightFormat::kFp8Tensor},
    {8, "channel", 0, "token", 0, "true", "float-quantized", WeightFormat::kFp8Channel},
    {8, "block", 0, "group", kFp8BlockDim, "true", "float-quantized", WeightFormat::kFp8},
    {8, "group", kMxGroup, "group", kMxGroup, "true", "mxfp8-quantized", WeightFormat::kMxfp8},
    {4, "tensor_group", kNvfp4Group, "tensor_group", kNvfp4Group, "local", "nvfp4-pack-quantized",
     WeightFormat::kNvfp4},
};

bool IsText(const ConfigValue& value, std::string_view text) {
  const auto* string = value.json().get_ptr<const std::string*>();
  return string != nullptr && *string == text;
}

// "true", "false", "local": without the quotes of a string. Absent: false.
std::string DynamicOf(const ConfigValue& args) {
  const ConfigValue dynamic = args.At("dynamic");
  if (const auto* text = dynamic.json().get_ptr<const std::string*>()) {
    return *text;
  }
  return dynamic.json() == true ? "true" : "false";
}

// What no scheme that is read here has: integers, zero points, a reordering of columns.
Status CheckFloat(const ConfigValue& args) {
  if (!IsText(args.At("type"), "float")) {
    return args.At("type").Expected("\"float\"");
  }
  if (args.At("symmetric").json() == false) {
    return args.At("symmetric").Expected("true");
  }
  const ConfigValue order = args.At("actorder");
  return order.IsNull() || order.json() == false ? OkStatus() : order.Expected("none");
}

// The key of the weights that none of the schemes has, or the scheme of these weights; activations
// may still differ.
Result<const Scheme*> SchemeOfWeights(const ConfigValue& weights) {
  if (!weights.json().is_object()) {
    return weights.Expected("quantized weights (activations alone are not read)");
  }
  RETURN_IF_ERROR(CheckFloat(weights));
  const ConfigValue bits = weights.At("num_bits");
  const bool is_four = bits.json() == 4;
  if (!is_four && bits.json() != 8) {
    return bits.Expected("8, or 4 for nvfp4");
  }
  if (DynamicOf(weights) != "false") {
    return weights.At("dynamic").Expected("false");
  }
  for (const Scheme& scheme : kSchemes) {
    if (scheme.num_bits != (is_four ? 4 : 8) || !IsText(weights.At("strategy"), scheme.weights)) {
      continue;
    }
    const ConfigValue size = weights.At("group_size");
    if (scheme.group_size != 0 && size.json() != scheme.group_size) {
      return size.Expected(fmt::format("{}", scheme.group_size));
    }
    const ConfigValue blocks = weights.At("block_structure");
    if (scheme.format == WeightFormat::kFp8 &&
        blocks.json() != Json::array({kFp8BlockDim, kFp8BlockDim})) {
      return blocks.Expected(fmt::format("[{}, {}]", kFp8BlockDim, kFp8BlockDim));
    }
    return &scheme;
  }
  return weights.At("strategy")
      .Expected(is_four ? "\"tensor_group\" (groups of 16) for 4 bits"
                        : "tensor, channel, block or group for 8 bits");
}

bool FitsActivations(const Scheme& scheme, const ConfigValue& inputs) {
  const ConfigValue size = inputs.At("group_size");
  return IsText(inputs.At("strategy"), scheme.activations) && DynamicOf(inputs) == scheme.dynamic &&
         inputs.At("num_bits").json() == scheme.num_bits &&
         (scheme.activation_group == 0 || size.json() == scheme.activation_group);
}

// `format` is the key beside config_groups; a group's own comes first.
Result<CompressedTensorsGroup> ReadCompressedTensorsGroup(const ConfigValue& group,
                                                          const ConfigValue& format) {
  ASSIGN_OR_RETURN(const Scheme* const weights, SchemeOfWeights(group.At("weights")));
  const ConfigValue inputs = group.At("input_activations");
  if (!inputs.json().is_object()) {
    return inputs.Expected("quantized activations (weight-only schemes are not read)");
  }
  if (const ConfigValue outputs = group.At("output_activations"); !outputs.IsNull()) {
    return outputs.Expected("none");
  }
  RETURN_IF_ERROR(CheckFloat(inputs));
  std::string fitting;
  for (const Scheme& scheme : kSchemes) {
    if (scheme.format != weights->format) {
      continue;
    }
    if (FitsActivations(scheme, inputs)) {
      // Absent in a group: that of the whole; "naive-quantized" is its older name for FP8.
      const ConfigValue own = group.At("format");
      const ConfigValue& compressor = own.IsNull() ? format : own;
      const bool is_mixed = own.IsNull() && IsText(format, "mixed-precision");
      if (!is_mixed && !compressor.IsNull() && !IsText(compressor, scheme.compressor) &&
          !(scheme.num_bits == 8 && IsText(compressor, "naive-quantized"))) {
        return compressor.Expected(scheme.compressor);
      }
      return CompressedTensorsGroup{.format = scheme.format,
                                    .has_input_scales = scheme.dynamic != "true"};
    }
    fitting += fmt::format("{}strategy {}, dynamic {}{}", fitting.empty() ? "" : ", or ",
                           scheme.activations, scheme.dynamic,
                           scheme.activation_group == 0
                               ? std::string()
                               : fmt::format(", group_size {}", scheme.activation_group));
  }
  return inputs.Expected(fmt::format("{} for {}", fitting, WeightFormatName(weights->format)));
}

Result<ForeignFormats> ReadCompressedTensors(const Json& json) {
  const ConfigValue root(json);
  if (const ConfigValue linear = root.At("linear_fp8_config"); !linear.IsNull()) {
    return linear.Expected("none");
  }
  for (const char* key : {"transform_config", "sparsity_config"}) {
    // The library writes both, empty.
    const ConfigValue part = root.At(key);
    if (!part.IsNull() && part.json() != Json::object() && part.At("format").json() != "dense") {
      return part.Expected("none");
    }
  }
  const ConfigValue groups = root.At("config_groups");
  if (!groups.json().is_object() || groups.json().empty()) {
    return groups.Expected("at least one group");
  }
  ForeignFormats read;
  read.dialect = Dialect::kCompressedTensors;
  read.engine = ForeignEngine::kCompressedTensors;
  for (const auto& [name, group] : groups.Items()) {
    const ConfigValue value(group, groups.Path(name));
    ASSIGN_OR_RETURN(const CompressedTensorsGroup scheme,
                     ReadCompressedTensorsGroup(value, root.At("format")));
    read.formats.push_back({.format = scheme.format, .rule = groups.Path(name)});
    read.declares_input_scales = read.declares_input_scales || scheme.has_input_scales;
    // The names of the others are the same in both layouts.
    if (scheme.format != WeightFormat::kFp8Channel && scheme.format != WeightFormat::kFp8Tensor) {
      read.layout = StoredLayout::kCompressedTensors;
    }
  }
  return read;
}

}  // namespace

const DeclaredFormat& ForeignFormats::FormatOf(const MatchResult& match) const {
  if (dialect == Dialect::kCompressedTensors) {
    CHECK(match.group >= 0);
    return formats[static_cast<size_t>(match.group)];
  }
  return match.method == "nvfp4" ? formats.back() : formats.front();
}

Result<ForeignFormats> ReadForeignFormats(std::string_view quantization_config,
                                          const QuantizationFields& fields) {
  const Json config = Json::parse(quantization_config, nullptr, /*allow_exceptions=*/false);
  CHECK(config.is_object());  // `fields` were read from it.
  const std::string& method = fields.quant_method;
  if (method == "fp8" || method == "mxfp8") {
    return ReadFp8(config, method == "mxfp8");
  }
  if (method == "compressed-tensors") {
    return ReadCompressedTensors(config);
  }
  const bool is_hf_quant_config = method.empty() && !fields.quant_algo.empty();
  if (method == "modelopt" || method == "modelopt_fp4" || method == "modelopt_fp8" ||
      is_hf_quant_config) {
    return ReadModelOpt(config, fields);
  }
  return Unsupported(
      "quantization_config.quant_method: expected fp8, mxfp8, modelopt or compressed-tensors, "
      "got {}",
      method.empty() ? "none" : method);
}

}  // namespace octavo
