// The table out of config.json: from our own key "octavo", or in the dialect of a foreign
// quantization_config.

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
#include "octavo/policy/precision_table.h"
#include "octavo/policy/quantization_config_own.h"
#include "octavo/policy/sglang_fp8.h"

namespace octavo {
namespace {

using Json = nlohmann::json;

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
  RETURN_IF_ERROR(CheckFp8Settings(config));
  ASSIGN_OR_RETURN(const SglangFp8List list, ReadSglangFp8List(quantization_config, {}));
  return TableFromSglangFp8List(spec, list);
}

}  // namespace octavo
