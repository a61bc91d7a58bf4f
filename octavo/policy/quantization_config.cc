// The table in and out of config.json: quantization_config of docs/formats.md, with our own key
// "octavo", and the reading of foreign ones.

#include <fmt/core.h>

#include <algorithm>
#include <cstddef>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/formats/format.h"
#include "octavo/formats/fp8_block.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/foreign_table.h"
#include "octavo/policy/json_depth.h"
#include "octavo/policy/natural_order.h"
#include "octavo/policy/precision_table.h"
#include "octavo/policy/sglang_fp8.h"

namespace octavo {
namespace {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;

// Version of the object under "octavo". A change of its meaning raises it.
constexpr int kSchema = 1;
constexpr std::string_view kOwnKey = "octavo";

// The modules whose weight stays in BF16 although an engine could quantize it: linear layers and,
// when the model stores one, the output head. Natural order.
std::vector<std::string> KeptModules(const PrecisionTable& table) {
  std::vector<std::string> modules;
  for (const PrecisionRow& row : table.rows) {
    if (row.format == WeightFormat::kBf16 &&
        (IsLinearRole(row.role) || row.role == Role::kLmHead)) {
      modules.emplace_back(ModuleOfWeight(row.name));
    }
  }
  std::ranges::sort(modules, NaturalLess);
  return modules;
}

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
  return {{"schema", kSchema},
          {"format", WeightFormatName(table.format)},
          {"hash", table.Hash()},
          {"reasons", std::move(reasons)},
          {"table", std::move(rows)}};
}

// For messages.
std::string Dump(const Json& json) {
  return json.dump(-1, ' ', /*ensure_ascii=*/true, Json::error_handler_t::replace);
}

// The string at `key`, or null when it is absent or of another type.
const std::string* StringAt(const Json& object, std::string_view key) {
  const auto found = object.find(key);
  return found == object.end() ? nullptr : found->get_ptr<const std::string*>();
}

Status BadOwnKey(std::string_view what) { return Corrupt("quantization_config.octavo: {}", what); }

Result<PrecisionRow> ReadOwnRow(const WeightSpec& weight, const Json& json, const Json& reasons) {
  if (!json.is_object()) {
    return BadOwnKey(fmt::format("{}: expected an object, got {}", weight.name, json.type_name()));
  }
  const std::string* name = StringAt(json, "name");
  if (name == nullptr || *name != weight.name) {
    return BadOwnKey(fmt::format("table: expected the row of {}, got {}", weight.name,
                                 name == nullptr ? "none" : *name));
  }
  const std::string* role = StringAt(json, "role");
  if (role == nullptr || *role != RoleName(weight.role)) {
    return BadOwnKey(fmt::format("{}: expected role {}, got {}", weight.name, RoleName(weight.role),
                                 role == nullptr ? "none" : *role));
  }
  const std::string* format_name = StringAt(json, "format");
  const std::optional<WeightFormat> format =
      format_name == nullptr ? std::nullopt : ParseWeightFormat(*format_name);
  if (!format) {
    return Unsupported("quantization_config.octavo: {}: format {} is not known here", weight.name,
                       format_name == nullptr ? "none" : *format_name);
  }
  if (*format != WeightFormat::kBf16 && !IsLinearRole(weight.role)) {
    return BadOwnKey(fmt::format("{}: a weight of role {} is never stored as {}", weight.name,
                                 RoleName(weight.role), *format_name));
  }
  const std::string* rule = StringAt(json, "rule");
  if (rule == nullptr) {
    return BadOwnKey(fmt::format("{}: has no rule", weight.name));
  }
  const std::string* reason = StringAt(json, "reason");
  if (reason == nullptr) {
    reason = StringAt(reasons, *rule);
  }
  if (reason == nullptr) {
    return BadOwnKey(fmt::format("{}: rule {} has no reason", weight.name, *rule));
  }
  PrecisionRow row{weight.name, weight.role, weight.layer, weight.shape,
                   *format,     *rule,       *reason,      {}};
  if (const auto shadowed = json.find("shadowed"); shadowed != json.end()) {
    if (!shadowed->is_array()) {
      return BadOwnKey(fmt::format("{}: shadowed: expected a list", weight.name));
    }
    for (const Json& loser : *shadowed) {
      if (!loser.is_string()) {
        return BadOwnKey(fmt::format("{}: shadowed: expected strings", weight.name));
      }
      row.shadowed.push_back(loser.get<std::string>());
    }
  }
  return row;
}

// Our own table: complete, for this model, and with the hash it was written with.
Result<PrecisionTable> ReadOwnTable(const ModelSpec& spec, const Json& own) {
  if (!own.is_object()) {
    return BadOwnKey("expected an object");
  }
  const auto schema = own.find("schema");
  if (schema == own.end() || !schema->is_number_integer() || *schema != kSchema) {
    return Unsupported("quantization_config.octavo: schema: expected {}, got {}", kSchema,
                       schema == own.end() ? "none" : Dump(*schema));
  }
  const std::string* format_name = StringAt(own, "format");
  const std::optional<WeightFormat> format =
      format_name == nullptr ? std::nullopt : ParseWeightFormat(*format_name);
  if (!format) {
    return Unsupported("quantization_config.octavo: format {} is not known here",
                       format_name == nullptr ? "none" : *format_name);
  }
  const auto rows = own.find("table");
  const auto reasons = own.find("reasons");
  if (rows == own.end() || !rows->is_array() || reasons == own.end() || !reasons->is_object()) {
    return BadOwnKey("expected a table and its reasons");
  }
  if (rows->size() != spec.weights.size()) {
    return BadOwnKey(fmt::format("table: expected {} rows (the model's weights), got {}",
                                 spec.weights.size(), rows->size()));
  }
  PrecisionTable table{.format = *format, .rows = {}};
  for (size_t i = 0; i < spec.weights.size(); ++i) {
    ASSIGN_OR_RETURN(PrecisionRow row, ReadOwnRow(spec.weights[i], (*rows)[i], *reasons));
    table.rows.push_back(std::move(row));
  }
  const std::string* hash = StringAt(own, "hash");
  if (hash == nullptr || *hash != table.Hash()) {
    return BadOwnKey(fmt::format("hash: the table gives {}, the file says {}", table.Hash(),
                                 hash == nullptr ? "none" : *hash));
  }
  return table;
}

// Refuses, by name, what this dialect can say and is not built here.
Status CheckFp8Settings(const Json& config) {
  const std::string* method = StringAt(config, "quant_method");
  if (method == nullptr || *method != "fp8") {
    return Unsupported("quantization_config.quant_method: expected fp8, got {}",
                       method == nullptr ? "none" : *method);
  }
  const Json blocks = config.value("weight_block_size", Json());
  if (blocks != Json::array({kFp8BlockDim, kFp8BlockDim})) {
    return Unsupported("quantization_config.weight_block_size: expected [{}, {}], got {}",
                       kFp8BlockDim, kFp8BlockDim,
                       blocks.is_null() ? "none (one scale per tensor or channel)" : Dump(blocks));
  }
  struct Setting {
    const char* key;
    const char* only;
  };
  // A file without these keys means these values.
  for (const Setting& setting : {Setting{"activation_scheme", "dynamic"}, Setting{"fmt", "e4m3"}}) {
    const auto found = config.find(setting.key);
    if (found != config.end() && *found != setting.only) {
      return Unsupported("quantization_config.{}: expected {}, got {}", setting.key, setting.only,
                         Dump(*found));
    }
  }
  // "ue8m0" (power-of-two scales) is another quantizer.
  const auto scale_fmt = config.find("scale_fmt");
  if (scale_fmt != config.end() && !scale_fmt->is_null() && *scale_fmt != "float") {
    return Unsupported("quantization_config.scale_fmt: expected none (FP32 scales), got {}",
                       Dump(*scale_fmt));
  }
  return OkStatus();
}

}  // namespace

std::string QuantizationConfigJson(const PrecisionTable& table) {
  const bool all_bf16 = std::ranges::all_of(
      table.rows, [](const PrecisionRow& row) { return row.format == WeightFormat::kBf16; });
  if (all_bf16) {
    return {};
  }
  OrderedJson config = {{"quant_method", "fp8"},
                        {"activation_scheme", "dynamic"},
                        {"fmt", "e4m3"},
                        {"weight_block_size", {kFp8BlockDim, kFp8BlockDim}}};
  if (const std::vector<std::string> kept = KeptModules(table); !kept.empty()) {
    config["modules_to_not_convert"] = kept;
  }
  config[kOwnKey] = OwnJson(table);
  // Replacing, because no text that a user gave may make this throw.
  return config.dump(2, ' ', /*ensure_ascii=*/false, OrderedJson::error_handler_t::replace);
}

Result<PrecisionTable> TableFromQuantizationConfig(const ModelSpec& spec,
                                                   std::string_view quantization_config) {
  if (quantization_config.empty()) {
    return CompilePolicy(spec, {});
  }
  if (!IsShallowJson(quantization_config)) {
    return Corrupt("quantization_config: expected at most {} levels of nesting", kJsonDepthMax);
  }
  const Json config = Json::parse(quantization_config, nullptr, /*allow_exceptions=*/false);
  if (!config.is_object()) {
    return Corrupt("quantization_config: expected a JSON object");
  }
  if (const auto own = config.find(kOwnKey); own != config.end()) {
    RETURN_IF_ERROR(CheckFp8Settings(config));
    return ReadOwnTable(spec, *own);
  }
  RETURN_IF_ERROR(CheckFp8Settings(config));
  ASSIGN_OR_RETURN(const SglangFp8List list, ReadSglangFp8List(quantization_config, {}));
  return TableFromSglangFp8List(spec, list);
}

}  // namespace octavo
