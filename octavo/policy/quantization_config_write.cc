// QuantizationConfigJson and HfQuantConfigJson: docs/formats.md, section on quantization_config.

#include <cstdint>
#include <nlohmann/json.hpp>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/formats/format.h"
#include "octavo/formats/fp8_block.h"
#include "octavo/policy/precision_table.h"
#include "octavo/policy/quantization_config_lists.h"
#include "octavo/policy/quantization_config_own.h"

namespace octavo {
namespace {

using Json = nlohmann::ordered_json;
using Names = std::span<const std::string>;

// Readers of ModelOpt checkpoints tell them by the producer's name.
constexpr std::string_view kModelOpt = "modelopt";

// The formats of the table but BF16, in the order of WeightFormat.
std::vector<WeightFormat> FormatsOf(const PrecisionTable& table) {
  std::set<WeightFormat> formats;
  for (const PrecisionRow& row : table.rows) {
    formats.insert(row.format);
  }
  formats.erase(WeightFormat::kBf16);
  return {formats.begin(), formats.end()};
}

bool IsModelOpt(const PrecisionTable& table, const std::vector<WeightFormat>& formats) {
  return formats == std::vector{WeightFormat::kNvfp4} && table.layout == StoredLayout::kDefault;
}

Json Fp8Config(const PrecisionTable& table, WeightFormat format, Names other_kept) {
  const bool is_mxfp8 = format == WeightFormat::kMxfp8;
  const bool is_ue8m0 = is_mxfp8 || format == WeightFormat::kFp8Ue8m0;
  Json config = {{"quant_method", is_mxfp8 ? "mxfp8" : "fp8"},
                 {"activation_scheme", "dynamic"},
                 {"fmt", "e4m3"}};
  if (is_mxfp8) {
    config["weight_block_size"] = {1, ColsMultipleOf(format)};
  } else if (format != WeightFormat::kFp8Tensor) {
    config["weight_block_size"] = {kFp8BlockDim, kFp8BlockDim};
  }
  if (is_ue8m0) {
    config["scale_fmt"] = "ue8m0";
  }
  if (std::vector<std::string> kept = Fp8KeptList(table, other_kept); !kept.empty()) {
    config["modules_to_not_convert"] = std::move(kept);
  }
  return config;
}

// Sources: tools/convert_hf_to_fp8.py of miles and slime, strategy channel.
Json ChannelGroup() {
  const auto args = [](std::string_view strategy, bool dynamic, const Json& observer) {
    return Json{{"num_bits", 8},
                {"type", "float"},
                {"strategy", strategy},
                {"symmetric", true},
                {"dynamic", dynamic},
                {"group_size", nullptr},
                {"block_structure", nullptr},
                {"actorder", nullptr},
                {"observer", observer},
                {"observer_kwargs", Json::object()}};
  };
  return {{"weights", args("channel", false, "minmax")},
          {"input_activations", args("token", true, nullptr)},
          {"output_activations", nullptr}};
}

// The preset NVFP4 of the library, and no key more: its schema refuses unknown ones.
Json PackedGroup() {
  Json weights = {{"num_bits", 4},
                  {"type", "float"},
                  {"strategy", "tensor_group"},
                  {"group_size", ColsMultipleOf(WeightFormat::kNvfp4)},
                  {"symmetric", true},
                  {"dynamic", false},
                  {"scale_dtype", "torch.float8_e4m3fn"}};
  Json activations = weights;
  activations["dynamic"] = "local";
  activations["observer"] = "static_minmax";
  return {{"weights", std::move(weights)},
          {"input_activations", std::move(activations)},
          {"output_activations", nullptr}};
}

std::string_view PackFormat(WeightFormat format) {
  return format == WeightFormat::kNvfp4 ? "nvfp4-pack-quantized" : "float-quantized";
}

Json CompressedTensorsConfig(const PrecisionTable& table, const std::vector<WeightFormat>& formats,
                             Names other_kept) {
  const bool is_mixed = formats.size() > 1;
  Json groups = Json::object();
  for (const WeightFormat format : formats) {
    Json group = {{"targets", is_mixed ? CompressedTensorsTargets(table, format)
                                       : std::vector<std::string>{"Linear"}}};
    group.update(format == WeightFormat::kNvfp4 ? PackedGroup() : ChannelGroup());
    if (is_mixed) {
      group["format"] = PackFormat(format);
    }
    groups["group_" + std::to_string(groups.size())] = std::move(group);
  }
  return {{"quant_method", "compressed-tensors"},
          {"format", is_mixed ? "mixed-precision" : PackFormat(formats.front())},
          {"quantization_status", "compressed"},
          {"ignore", CompressedTensorsKeptList(table, other_kept)},
          {"config_groups", std::move(groups)}};
}

Json ModelOptConfig(const PrecisionTable& table, Names other_kept) {
  const int64_t group_size = ColsMultipleOf(WeightFormat::kNvfp4);
  const Json args = {
      {"dynamic", false}, {"num_bits", 4}, {"type", "float"}, {"group_size", group_size}};
  return {
      {"quant_method", kModelOpt},
      {"quant_algo", "NVFP4"},
      {"group_size", group_size},
      {"producer", {{"name", kModelOpt}}},
      {"ignore", ModelOptKeptList(table, other_kept)},
      {"config_groups",
       {{"group_0", {{"targets", {"Linear"}}, {"weights", args}, {"input_activations", args}}}}}};
}

// Replacing, because no text that a user gave may make this throw.
std::string Dump(const Json& json) {
  return json.dump(2, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
}

}  // namespace

std::string QuantizationConfigJson(const PrecisionTable& table, Names other_kept) {
  const std::vector<WeightFormat> formats = FormatsOf(table);
  if (formats.empty()) {
    return {};
  }
  Json config;
  if (IsModelOpt(table, formats)) {
    config = ModelOptConfig(table, other_kept);
  } else if (formats.size() > 1 || formats.front() == WeightFormat::kNvfp4 ||
             formats.front() == WeightFormat::kFp8Channel) {
    config = CompressedTensorsConfig(table, formats, other_kept);
  } else {
    config = Fp8Config(table, formats.front(), other_kept);
  }
  config[kOwnKey] = Json::parse(OwnTableJson(table), nullptr, /*allow_exceptions=*/false);
  return Dump(config);
}

std::string HfQuantConfigJson(const PrecisionTable& table, Names other_kept) {
  if (!IsModelOpt(table, FormatsOf(table))) {
    return {};
  }
  return Dump({{"producer", {{"name", kModelOpt}}},
               {"quantization",
                {{"quant_algo", "NVFP4"},
                 {"kv_cache_quant_algo", nullptr},
                 {"group_size", ColsMultipleOf(WeightFormat::kNvfp4)},
                 {"exclude_modules", ModelOptKeptList(table, other_kept)}}}});
}

}  // namespace octavo
