// ReadDeclared and CheckDeclared of audit_checks.h: what configurations say, and whether tensors
// agree.

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/file.h"
#include "octavo/base/tensor.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/convert/audit.h"
#include "octavo/convert/audit_checks.h"
#include "octavo/convert/audit_codes.h"
#include "octavo/convert/audit_modules.h"
#include "octavo/convert/source.h"
#include "octavo/formats/format.h"

namespace octavo {
namespace {

using Json = nlohmann::json;
using Formats = std::set<WeightFormat>;

constexpr std::string_view kHfQuantFile = "hf_quant_config.json";

std::string TextAt(const Json& json, const char* key) {
  const auto found = json.is_object() ? json.find(key) : json.end();
  return found != json.end() && found->is_string() ? found->get<std::string>() : std::string();
}

// Null when there is none.
const Json* ObjectAt(const Json& json, const char* key) {
  if (!json.is_object()) {
    return nullptr;
  }
  const auto found = json.find(key);
  return found != json.end() && found->is_object() ? &*found : nullptr;
}

std::vector<std::string> ListAt(const Json& json, const char* key) {
  std::vector<std::string> list;
  if (json.is_object() && json.contains(key) && json[key].is_array()) {
    for (const Json& entry : json[key]) {
      if (entry.is_string()) {
        list.push_back(entry.get<std::string>());
      }
    }
  }
  return list;
}

Formats FormatsOfAlgo(std::string_view algo) {
  if (algo.find("NVFP4") != std::string_view::npos || algo == "FP4") {
    return {WeightFormat::kNvfp4};
  }
  if (algo == "MXFP8") {
    return {WeightFormat::kMxfp8};
  }
  if (algo == "FP8") {
    return {WeightFormat::kFp8Tensor};
  }
  if (algo.starts_with("FP8_PER_CHANNEL")) {
    return {WeightFormat::kFp8Channel};
  }
  if (algo.starts_with("FP8_PB") || algo == "FP8_BLOCK") {
    return {WeightFormat::kFp8, WeightFormat::kFp8Ue8m0};
  }
  return {};
}

// One `weights` object of a compressed-tensors group.
Formats FormatsOfGroup(const Json& weights) {
  const std::string strategy = TextAt(weights, "strategy");
  const auto bits = weights.find("num_bits");
  const bool is_four = bits != weights.end() && *bits == 4;
  if (TextAt(weights, "type") != "float") {
    return {};
  }
  if (is_four) {
    const auto group = weights.find("group_size");
    return group != weights.end() && *group == 16 ? Formats{WeightFormat::kNvfp4} : Formats{};
  }
  if (strategy == "channel") {
    return {WeightFormat::kFp8Channel};
  }
  if (strategy == "tensor") {
    return {WeightFormat::kFp8Tensor};
  }
  if (strategy == "block") {
    return {WeightFormat::kFp8, WeightFormat::kFp8Ue8m0};
  }
  return strategy == "group" ? Formats{WeightFormat::kMxfp8} : Formats{};
}

void ReadCompressedTensors(const Json& config, DeclaredQuantization& declared) {
  const Json* groups = ObjectAt(config, "config_groups");
  if (groups == nullptr) {
    return;
  }
  for (const auto& [name, group] : groups->items()) {
    if (const Json* weights = ObjectAt(group, "weights")) {
      declared.formats.merge(FormatsOfGroup(*weights));
    }
    if (const Json* inputs = ObjectAt(group, "input_activations")) {
      const auto dynamic = inputs->find("dynamic");
      declared.static_activations =
          declared.static_activations || (dynamic != inputs->end() && *dynamic == false);
    }
  }
}

bool IsFp8KvScheme(const Json& config) {
  const Json* scheme = ObjectAt(config, "kv_cache_scheme");
  if (scheme != nullptr) {
    return scheme->contains("num_bits") && (*scheme)["num_bits"] == 8;
  }
  return TextAt(config, "kv_cache_quant_algo") == "FP8";
}

std::string NamesOf(const Formats& formats) {
  std::string text;
  for (const WeightFormat format : formats) {
    text += (text.empty() ? "" : " or ") + std::string(WeightFormatName(format));
  }
  return text;
}

void ReadFormats(const Json& config, DeclaredQuantization& declared) {
  const std::string method = TextAt(config, "quant_method");
  const std::string algo = TextAt(config, "quant_algo");
  declared.method = algo.empty() ? method : method + "/" + algo;
  declared.ue8m0 = TextAt(config, "scale_fmt") == "ue8m0";
  if (method == "fp8") {
    const auto blocks = config.find("weight_block_size");
    const bool has_blocks = blocks != config.end() && blocks->is_array();
    if (has_blocks && *blocks == Json::array({1, 32})) {
      declared.formats = {WeightFormat::kMxfp8};
    } else if (has_blocks) {
      declared.formats = {WeightFormat::kFp8, WeightFormat::kFp8Ue8m0};
    } else {
      declared.formats = {WeightFormat::kFp8Tensor, WeightFormat::kFp8Channel};
    }
    declared.static_activations = TextAt(config, "activation_scheme") == "static";
  } else if (method == "mxfp8") {
    declared.formats = {WeightFormat::kMxfp8};
  } else if (method == "compressed-tensors") {
    ReadCompressedTensors(config, declared);
  } else if (method.starts_with("modelopt") || method == "nvfp4" || !algo.empty()) {
    declared.formats = method == "nvfp4" || method == "modelopt_fp4" ? Formats{WeightFormat::kNvfp4}
                       : algo.empty() && method == "modelopt_fp8"
                           ? Formats{WeightFormat::kFp8Tensor}
                           : FormatsOfAlgo(algo);
    declared.static_activations = declared.formats == Formats{WeightFormat::kFp8Tensor};
  }
}

// --- Checks -------------------------------------------------------------------------------------

void CheckFormats(const StoredModules& modules, const DeclaredQuantization& declared,
                  AuditReport& report) {
  const bool any_codes = !modules.by_weight.empty();
  if (any_codes && !declared.present) {
    report.findings.push_back(MakeFinding(
        "config-missing", "config.json",
        fmt::format("config.json: expected a quantization_config, for {} weights such as {} are "
                    "stored as codes; found none",
                    modules.by_weight.size(), modules.by_weight.begin()->first)));
  }
  if (!any_codes && declared.present) {
    report.findings.push_back(MakeFinding(
        "config-unquantized", "quantization_config",
        fmt::format("quantization_config: expected codes of {}, got floats alone",
                    declared.formats.empty() ? declared.method : NamesOf(declared.formats))));
  }
  if (declared.formats.empty()) {
    return;
  }
  for (const auto& [weight, module] : modules.by_weight) {
    if (module.format && !declared.formats.contains(*module.format)) {
      report.findings.push_back(
          MakeFinding("config-format", module.codes->name,
                      fmt::format("{}: expected {}, as quantization_config declares ({}), got {}",
                                  module.codes->name, NamesOf(declared.formats), declared.method,
                                  WeightFormatName(*module.format))));
    }
  }
}

bool AllPowersOfTwo(const ConstTensorView& scales) {
  std::vector<float> values(static_cast<size_t>(NumElements(scales.shape)));
  WidenScales(scales, 0, values);
  return std::ranges::all_of(
      values, [](float value) { return (std::bit_cast<uint32_t>(value) & 0x007FFFFFU) == 0; });
}

// fp8 whose scales happen to be, or were meant to be, powers of two.
void NotePowersOfTwo(const StoredModules& modules, const DeclaredQuantization& declared,
                     AuditReport& report) {
  bool any = false;
  for (const auto& [weight, module] : modules.by_weight) {
    if (module.format == WeightFormat::kFp8 && module.IsSound()) {
      if (!AllPowersOfTwo(module.scales->view)) {
        return;
      }
      any = true;
    }
  }
  if (any && declared.present && !declared.ue8m0) {
    report.findings.push_back(MakeFinding(
        "scale-fmt-absent", "quantization_config.scale_fmt",
        "quantization_config.scale_fmt: all scales are powers of two; expected ue8m0, got none"));
  }
}

void CheckKvCache(const StoredModules& modules, bool is_declared, AuditReport& report) {
  if (is_declared && modules.kv_scales.empty()) {
    report.findings.push_back(
        MakeFinding("kv-cache", "quantization_config",
                    "an FP8 KV cache is declared: expected k_scale and v_scale, found none"));
  }
}

// hf_quant_config.json beside config.json. Returns whether it declares an FP8 KV cache.
bool CheckHfQuantFile(const Checkpoint& checkpoint, const DeclaredQuantization& declared,
                      const StoredModules& modules, AuditReport& report) {
  const auto text = ReadTextFile(checkpoint.dir() + "/" + std::string(kHfQuantFile));
  if (!text) {
    return false;
  }
  const Json json = Json::parse(*text, nullptr, /*allow_exceptions=*/false);
  const Json* quantization = json.is_object() ? ObjectAt(json, "quantization") : nullptr;
  if (quantization == nullptr) {
    report.findings.push_back(
        MakeFinding("hf-quant-config", kHfQuantFile,
                    fmt::format("{}: expected an object \"quantization\"", kHfQuantFile)));
    return false;
  }
  const std::string algo = TextAt(*quantization, "quant_algo");
  const Formats formats = FormatsOfAlgo(algo);
  const bool is_mixed = algo == "MIXED_PRECISION";
  const bool fits_config =
      !declared.present || declared.formats.empty() || formats == declared.formats;
  const bool fits_tensors =
      std::ranges::all_of(modules.by_weight,
                          [&](const auto& entry) {
                            return !entry.second.format || formats.contains(*entry.second.format);
                          }) &&
      !(modules.by_weight.empty() && !algo.empty());
  if (!is_mixed && (!fits_config || !fits_tensors)) {
    report.findings.push_back(MakeFinding(
        "hf-quant-config", kHfQuantFile,
        fmt::format("{}: expected {}, got quant_algo {}", kHfQuantFile,
                    modules.by_weight.empty() ? std::string("no file, for no weight is quantized")
                                              : "the format of config.json and of the tensors",
                    algo.empty() ? "none" : algo)));
  } else if (declared.present) {
    std::vector<std::string> theirs = ListAt(*quantization, "exclude_modules");
    std::vector<std::string> ours = declared.kept;
    std::ranges::sort(theirs);
    std::ranges::sort(ours);
    if (theirs != ours) {
      report.findings.push_back(
          MakeFinding("hf-quant-list", kHfQuantFile,
                      fmt::format("{}: exclude_modules: expected the {} entries of config.json, "
                                  "got {} that differ from them",
                                  kHfQuantFile, ours.size(), theirs.size())));
    }
  }
  return TextAt(*quantization, "kv_cache_quant_algo") == "FP8";
}

// compression_config and text_config.quantization_config beside quantization_config.
void CheckOtherConfigs(const Checkpoint& checkpoint, AuditReport& report) {
  const Json json =
      Json::parse(checkpoint.config().config_json, nullptr, /*allow_exceptions=*/false);
  const Json* main = ObjectAt(json, "quantization_config");
  const Json* text_config = ObjectAt(json, "text_config");
  const Json* nested =
      text_config == nullptr ? nullptr : ObjectAt(*text_config, "quantization_config");
  for (const Json* other : {nested, ObjectAt(json, "compression_config")}) {
    if (main != nullptr && other != nullptr && *main != *other) {
      report.findings.push_back(MakeFinding(
          "config-twice", "config.json",
          fmt::format("config.json: expected one quantization configuration, got another in {}",
                      other == nested ? "text_config" : "compression_config")));
    }
  }
}

// Members of a fused set that are stored in several formats, floats included.
void CheckSplitSets(const Checkpoint& checkpoint, const StoredModules& modules,
                    AuditReport& report) {
  struct Member {
    std::string name;
    std::string format;
  };
  std::map<std::string, Member> first_of;  // By set.
  std::set<std::string> weights;
  for (const auto& [weight, module] : modules.by_weight) {
    weights.insert(weight);
  }
  for (const StoredTensor& tensor : checkpoint.tensors()) {
    if (tensor.name.ends_with(".weight")) {
      weights.insert(tensor.name);
    }
  }
  for (const std::string& weight : weights) {
    const std::string set = FusedSetName(std::string_view(weight).substr(0, weight.rfind('.')));
    if (set.empty()) {
      continue;
    }
    const auto module = modules.by_weight.find(weight);
    const std::string format = module == modules.by_weight.end() ? "bf16"
                               : !module->second.format
                                   ? "unknown"
                                   : std::string(WeightFormatName(*module->second.format));
    if (format == "unknown") {
      continue;  // Its own findings say why.
    }
    const auto [first, is_new] = first_of.try_emplace(set, Member{weight, format});
    if (!is_new && first->second.format != format) {
      report.findings.push_back(
          MakeFinding("set-split", weight,
                      fmt::format("{}: expected {}, as {} has in the set {}, got {}", weight,
                                  first->second.format, first->second.name, set, format)));
    }
  }
}

void CheckEntries(const DeclaredQuantization& declared, AuditReport& report) {
  for (const std::string& entry : declared.kept) {
    if (entry.ends_with('.') && !entry.starts_with("re:")) {
      report.findings.push_back(MakeFinding(
          "entry-trailing-dot", entry,
          fmt::format("the list of kept modules: expected a module, got \"{}\"", entry)));
    }
  }
}

}  // namespace

DeclaredQuantization ReadDeclared(std::string_view quantization_config) {
  DeclaredQuantization declared;
  const Json config = Json::parse(quantization_config, nullptr, /*allow_exceptions=*/false);
  if (!config.is_object()) {
    return declared;
  }
  declared.present = true;
  // ModelOpt's own file has everything under "quantization".
  const Json* nested = ObjectAt(config, "quantization");
  const Json& keys = nested != nullptr && TextAt(config, "quant_algo").empty() ? *nested : config;
  ReadFormats(keys, declared);
  declared.fp8_kv_cache = IsFp8KvScheme(keys);
  constexpr std::array<const char*, 4> kLists = {"modules_to_not_convert", "ignored_layers",
                                                 "ignore", "exclude_modules"};
  for (const char* key : kLists) {
    std::ranges::move(ListAt(keys, key), std::back_inserter(declared.kept));
  }
  return declared;
}

void CheckDeclared(const Checkpoint& checkpoint, const StoredModules& modules,
                   const DeclaredQuantization& declared, AuditReport& report) {
  CheckFormats(modules, declared, report);
  NotePowersOfTwo(modules, declared, report);
  const bool in_hf_file = CheckHfQuantFile(checkpoint, declared, modules, report);
  CheckKvCache(modules, declared.fp8_kv_cache || in_hf_file, report);
  CheckOtherConfigs(checkpoint, report);
  CheckSplitSets(checkpoint, modules, report);
  CheckEntries(declared, report);
}

}  // namespace octavo
