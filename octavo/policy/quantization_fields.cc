#include "octavo/policy/quantization_fields.h"

#include <fmt/core.h>

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/policy/json_depth.h"

namespace octavo {
namespace {

// Ordered: the first group and the first key that fits decide.
using Json = nlohmann::ordered_json;

const Json& At(const Json& object, std::string_view key) {
  static const Json null;
  if (!object.is_object()) {
    return null;
  }
  const auto found = object.find(key);
  return found == object.end() ? null : *found;
}

std::string Lower(std::string text) {
  std::ranges::transform(text, text.begin(),
                         [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

std::string Upper(std::string text) {
  std::ranges::transform(text, text.begin(),
                         [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
  return text;
}

// The string at `key`; empty when absent or null.
Result<std::string> TextAt(const Json& object, std::string_view key) {
  const Json& value = At(object, key);
  if (value.is_null()) {
    return std::string();
  }
  if (!value.is_string()) {
    return InvalidArgument("quantization_config.{}: expected a string, got {}", key,
                           value.type_name());
  }
  return value.get<std::string>();
}

NameList ListAt(const Json& object, std::string_view key, std::string_view path) {
  NameList list{.key = std::string(path)};
  if (!object.is_object() || !object.contains(key)) {
    return list;
  }
  const Json& value = At(object, key);
  if (value.is_null()) {
    list.state = NameList::State::kNull;
    return list;
  }
  list.state = value.is_array() ? NameList::State::kList : NameList::State::kOther;
  list.found = value.type_name();
  for (const Json& name : value.is_array() ? value : Json::array()) {
    if (!name.is_string()) {
      list.state = NameList::State::kOther;
      list.found = fmt::format("a list with {}", name.type_name());
      return list;
    }
    list.names.push_back(name.get<std::string>());
  }
  return list;
}

std::optional<int64_t> IntegerAt(const Json& object, std::string_view key) {
  const Json& value = At(object, key);
  return value.is_number_integer() ? std::optional(value.get<int64_t>()) : std::nullopt;
}

// What the weights of a compressed-tensors group are: "fp8" for 8-bit floats, and so on.
std::string MethodOfGroup(const Json& group) {
  const Json& weights = At(group, "weights");
  const std::optional<int64_t> num_bits = IntegerAt(weights, "num_bits");
  if (!num_bits) {
    return {};
  }
  const Json& type = At(weights, "type");
  if (type.is_string() && type.get<std::string>() == "int") {
    return fmt::format("int{}", *num_bits);
  }
  if (*num_bits == 8) {
    return IntegerAt(weights, "group_size") == 32 ? "mxfp8" : "fp8";
  }
  return *num_bits == 4 ? "nvfp4" : fmt::format("float{}", *num_bits);
}

Status ReadGroups(const Json& config, QuantizationFields* fields) {
  const Json& groups = At(config, "config_groups");
  if (groups.is_null()) {
    return OkStatus();
  }
  if (!groups.is_object()) {
    return InvalidArgument("quantization_config.config_groups: expected an object, got {}",
                           groups.type_name());
  }
  for (const auto& [name, group] : groups.items()) {
    const std::string path = fmt::format("config_groups.{}.targets", name);
    ASSIGN_OR_RETURN(std::vector<std::string> targets, NamesOf(ListAt(group, "targets", path)));
    if (!fields->group_size && fields->groups.empty()) {
      fields->group_size = IntegerAt(At(group, "weights"), "group_size");
    }
    fields->groups.push_back({std::move(targets), MethodOfGroup(group)});
  }
  return OkStatus();
}

Status ReadLayerMap(const Json& config, QuantizationFields* fields) {
  const Json& layers = At(config, "quantized_layers");
  if (layers.is_null()) {
    return OkStatus();
  }
  if (!layers.is_object()) {
    return InvalidArgument("quantization_config.quantized_layers: expected an object, got {}",
                           layers.type_name());
  }
  for (const auto& [module, layer] : layers.items()) {
    ASSIGN_OR_RETURN(std::string algorithm, TextAt(layer, "quant_algo"));
    fields->quantized_layers.emplace_back(module, Upper(std::move(algorithm)));
  }
  return OkStatus();
}

// ModelOpt's keys stand at the top (config.json) or under "quantization" (hf_quant_config.json).
Status ReadModelOptKeys(const Json& config, QuantizationFields* fields) {
  fields->has_flat_algo = !At(config, "quant_algo").is_null();
  const Json& nested = At(config, "quantization");
  if (!nested.is_null() && !nested.is_object()) {
    return InvalidArgument("quantization_config.quantization: expected an object, got {}",
                           nested.type_name());
  }
  const bool is_nested = !fields->has_flat_algo && nested.is_object();
  const Json& keys = is_nested ? nested : config;
  ASSIGN_OR_RETURN(std::string algorithm, TextAt(keys, "quant_algo"));
  fields->quant_algo = Upper(std::move(algorithm));
  fields->group_size = IntegerAt(keys, "group_size");
  fields->exclude_modules = ListAt(keys, "exclude_modules",
                                   is_nested ? "quantization.exclude_modules" : "exclude_modules");
  return ReadLayerMap(keys, fields);
}

}  // namespace

Result<QuantizationFields> ReadQuantizationFields(std::string_view text) {
  QuantizationFields fields;
  const Json config = text.empty()           ? Json::object()
                      : !IsShallowJson(text) ? Json(Json::value_t::discarded)
                                             : Json::parse(text, nullptr, false);
  if (!config.is_object()) {
    return Corrupt("quantization_config: expected a JSON object");
  }
  fields.has_config = !text.empty();
  ASSIGN_OR_RETURN(std::string method, TextAt(config, "quant_method"));
  fields.quant_method = Lower(std::move(method));
  RETURN_IF_ERROR(ReadModelOptKeys(config, &fields));
  fields.has_linear_fp8_config = !At(config, "linear_fp8_config").is_null();
  ASSIGN_OR_RETURN(const std::string scheme, TextAt(config, "activation_scheme"));
  fields.has_static_activations = scheme == "static";
  if (const Json& block = At(config, "weight_block_size"); block.is_array()) {
    for (const Json& extent : block) {
      fields.weight_block_size.push_back(extent.is_number_integer() ? extent.get<int64_t>() : 0);
    }
  }
  fields.ignored_layers = ListAt(config, "ignored_layers", "ignored_layers");
  fields.modules_to_not_convert =
      ListAt(config, "modules_to_not_convert", "modules_to_not_convert");
  fields.ignore = ListAt(config, "ignore", "ignore");
  fields.exclude = ListAt(config, "exclude", "exclude");
  RETURN_IF_ERROR(ReadGroups(config, &fields));
  return fields;
}

Result<std::vector<std::string>> NamesOf(const NameList& list) {
  if (list.state == NameList::State::kOther) {
    return InvalidArgument("quantization_config.{}: expected a list of strings, got {}", list.key,
                           list.found);
  }
  return list.names;
}

}  // namespace octavo
