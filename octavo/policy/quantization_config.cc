// The table out of config.json: from our own key "octavo", or in the dialect of a foreign
// quantization_config.

#include <fmt/core.h>

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "octavo/base/status.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/foreign_table.h"
#include "octavo/policy/json_depth.h"
#include "octavo/policy/precision_table.h"
#include "octavo/policy/quantization_config_own.h"

namespace octavo {
namespace {

using Json = nlohmann::json;

// For messages.
std::string Dump(const Json& json) {
  return json.dump(-1, ' ', /*ensure_ascii=*/true, Json::error_handler_t::replace);
}

Status BadOwnKey(std::string_view what) { return Corrupt("quantization_config.octavo: {}", what); }

// The settings that other engines read say what the table says; lists are the auditor's.
Status CheckSettingsAgree(const PrecisionTable& table, const Json& config) {
  const Json expected =
      Json::parse(QuantizationConfigJson(table), nullptr, /*allow_exceptions=*/false);
  if (!expected.is_object()) {
    return BadOwnKey("the table quantizes nothing");
  }
  for (const auto& [key, value] : expected.items()) {
    const bool is_setting =
        key != kOwnKey && key != "modules_to_not_convert" && key != "ignore" && key != "producer";
    if (is_setting && config.value(key, Json()) != value) {
      return Corrupt("quantization_config.{}: expected {} for the stored table, got {}", key,
                     Dump(value), Dump(config.value(key, Json())));
    }
  }
  return OkStatus();
}

}  // namespace

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
    ASSIGN_OR_RETURN(PrecisionTable table, ReadOwnTable(spec, Dump(*own)));
    RETURN_IF_ERROR(CheckSettingsAgree(table, config));
    return table;
  }
  return TableFromForeignConfig(spec, quantization_config);
}

}  // namespace octavo
