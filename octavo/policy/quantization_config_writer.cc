// The table into config.json and hf_quant_config.json, in the words of the engines that read the
// format (docs/formats.md).

#include <algorithm>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/version.h"
#include "octavo/formats/format.h"
#include "octavo/formats/fp8_block.h"
#include "octavo/policy/kept_modules.h"
#include "octavo/policy/own_key.h"
#include "octavo/policy/precision_table.h"

namespace octavo {
namespace {

using OrderedJson = nlohmann::ordered_json;
using Modules = std::span<const std::string>;

OrderedJson OwnJson(const PrecisionTable& table) {
  OrderedJson reasons = OrderedJson::object();
  OrderedJson rows = OrderedJson::array();
  for (const PrecisionRow& row : table.rows) {
    OrderedJson out = {{"name", row.name},
                       {"role", RoleName(row.role)},
                       {"format", WeightFormatName(row.format)},
                       {"rule", row.rule}};
    // A rule gives one reason; only a row that differs carries its own.
    if (!reasons.contains(row.rule)) {
      reasons[row.rule] = row.reason;
    } else if (reasons[row.rule] != row.reason) {
      out["reason"] = row.reason;
    }
    if (!row.shadowed.empty()) {
      out["shadowed"] = row.shadowed;
    }
    rows.push_back(std::move(out));
  }
  return {{"schema", kOwnSchema},
          {"format", WeightFormatName(table.format)},
          {"layout", LayoutName(table.layout)},
          {"hash", table.Hash()},
          {"reasons", std::move(reasons)},
          {"table", std::move(rows)}};
}

bool IsAllBf16(const PrecisionTable& table) {
  return std::ranges::all_of(
      table.rows, [](const PrecisionRow& row) { return row.format == WeightFormat::kBf16; });
}

// Replacing, because no text that a user gave may make this throw.
std::string Text(const OrderedJson& json) {
  return json.dump(2, ' ', /*ensure_ascii=*/false, OrderedJson::error_handler_t::replace);
}

// quant_method fp8 and mxfp8.
OrderedJson Fp8Config(const PrecisionTable& table, Modules unknown) {
  const bool is_mxfp8 = table.format == WeightFormat::kMxfp8;
  OrderedJson config = {{"quant_method", is_mxfp8 ? "mxfp8" : "fp8"},
                        {"activation_scheme", "dynamic"},
                        {"fmt", "e4m3"}};
  if (is_mxfp8) {
    config["weight_block_size"] = {1, ColsMultipleOf(table.format)};
  } else if (table.format != WeightFormat::kFp8Tensor) {
    config["weight_block_size"] = {kFp8BlockDim, kFp8BlockDim};
  }
  if (is_mxfp8 || table.format == WeightFormat::kFp8Ue8m0) {
    config["scale_fmt"] = "ue8m0";
  }
  auto kept = KeptModules(table, ListDialect::kModulesToNotConvert, unknown);
  if (!kept.empty()) {
    config["modules_to_not_convert"] = std::move(kept);
  }
  return config;
}

// One argument object of compressed-tensors' schema, which knows no other keys.
OrderedJson QuantizationArgs(int num_bits, std::string_view strategy, OrderedJson group_size,
                             OrderedJson dynamic, OrderedJson observer) {
  return {{"num_bits", num_bits},
          {"type", "float"},
          {"strategy", strategy},
          {"symmetric", true},
          {"dynamic", std::move(dynamic)},
          {"group_size", std::move(group_size)},
          {"block_structure", nullptr},
          {"actorder", nullptr},
          {"observer", std::move(observer)},
          {"observer_kwargs", OrderedJson::object()}};
}

OrderedJson CompressedTensorsConfig(const PrecisionTable& table, Modules unknown) {
  const bool is_nvfp4 = table.format == WeightFormat::kNvfp4;
  const auto group = is_nvfp4 ? OrderedJson(ColsMultipleOf(table.format)) : OrderedJson();
  OrderedJson weights = is_nvfp4 ? QuantizationArgs(4, "tensor_group", group, false, "minmax")
                                 : QuantizationArgs(8, "channel", group, false, "minmax");
  OrderedJson activations =
      is_nvfp4 ? QuantizationArgs(4, "tensor_group", group, "local", "static_minmax")
               : QuantizationArgs(8, "token", group, true, nullptr);
  return {{"quant_method", "compressed-tensors"},
          {"format", is_nvfp4 ? "nvfp4-pack-quantized" : "float-quantized"},
          {"quantization_status", "compressed"},
          {"ignore", KeptModules(table, ListDialect::kCompressedTensors, unknown)},
          {"config_groups",
           {{"group_0",
             {{"targets", {"Linear"}},
              {"output_activations", nullptr},
              {"weights", std::move(weights)},
              {"input_activations", std::move(activations)}}}}}};
}

OrderedJson ModelOptConfig(const PrecisionTable& table, Modules unknown) {
  const int64_t group = ColsMultipleOf(table.format);
  const OrderedJson args = {
      {"dynamic", false}, {"num_bits", 4}, {"type", "float"}, {"group_size", group}};
  return {
      {"quant_method", "modelopt"},
      {"quant_algo", "NVFP4"},
      {"group_size", group},
      {"ignore", KeptModules(table, ListDialect::kModelOpt, unknown)},
      {"producer", {{"name", "octavo"}, {"version", Version()}}},
      {"config_groups",
       {{"group_0", {{"weights", args}, {"input_activations", args}, {"targets", {"Linear"}}}}}}};
}

OrderedJson SettingsOf(const PrecisionTable& table, Modules unknown) {
  if (table.format == WeightFormat::kFp8Channel ||
      table.layout == StoredLayout::kCompressedTensors) {
    return CompressedTensorsConfig(table, unknown);
  }
  return table.format == WeightFormat::kNvfp4 ? ModelOptConfig(table, unknown)
                                              : Fp8Config(table, unknown);
}

}  // namespace

std::string QuantizationConfigJson(const PrecisionTable& table, Modules unknown_modules) {
  if (IsAllBf16(table)) {
    return {};
  }
  OrderedJson config = SettingsOf(table, unknown_modules);
  config[kOwnKey] = OwnJson(table);
  return Text(config);
}

std::string HfQuantConfigJson(const PrecisionTable& table, Modules unknown_modules) {
  if (IsAllBf16(table) || table.format != WeightFormat::kNvfp4 ||
      table.layout != StoredLayout::kDefault) {
    return {};
  }
  return Text(
      {{"producer", {{"name", "octavo"}, {"version", Version()}}},
       {"quantization",
        {{"quant_algo", "NVFP4"},
         {"kv_cache_quant_algo", nullptr},
         {"group_size", ColsMultipleOf(table.format)},
         {"exclude_modules", KeptModules(table, ListDialect::kModelOpt, unknown_modules)}}}});
}

}  // namespace octavo
