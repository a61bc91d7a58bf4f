#include "octavo/checkpoint/hf_config.h"

#include <simdjson.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/checkpoint/unique_keys.h"

namespace octavo {
namespace {

namespace dom = simdjson::dom;

// Bounds far above any published model and low enough that no product of two or three dimensions
// below leaves int64_t: vocab * hidden <= 2^44, heads * head_dim * hidden <= 2^48.
constexpr int64_t kHiddenMax = int64_t{1} << 20;
constexpr int64_t kLayersMax = 4096;
constexpr int64_t kHeadsMax = int64_t{1} << 16;
constexpr int64_t kHeadDimMax = 4096;
constexpr int64_t kVocabMax = int64_t{1} << 24;
constexpr int64_t kPositionsMax = int64_t{1} << 30;
constexpr int64_t kTokenIdMax = std::numeric_limits<int32_t>::max();

// Widest piece of a file's own text that a message quotes.
constexpr size_t kQuoteBytesMax = 80;

std::string Quote(dom::element value) {
  std::string text = simdjson::minify(value);
  if (text.size() > kQuoteBytesMax) {
    text.resize(kQuoteBytesMax);
    text += "...";
  }
  return text;
}

// A JSON object whose messages begin with where it stands: "config.json: KEY: expected ...".
class Section {
 public:
  Section(std::string name, dom::object object) : name_(std::move(name)), object_(object) {}

  // The value of `key`; nullopt when it is absent or null, which HF treats alike.
  std::optional<dom::element> Find(std::string_view key) const {
    dom::element value;
    if (object_.at_key(key).get(value) != simdjson::SUCCESS || value.is_null()) {
      return std::nullopt;
    }
    return value;
  }

  Status Missing(std::string_view key, std::string_view expected) const {
    return InvalidArgument("{}: {}: expected {}, got nothing", name_, key, expected);
  }
  Status Wrong(std::string_view key, std::string_view expected, dom::element actual) const {
    return InvalidArgument("{}: {}: expected {}, got {}", name_, key, expected, Quote(actual));
  }
  Status NotBuilt(std::string_view key, std::string_view expected, dom::element actual) const {
    return Unsupported("{}: {}: expected {}, got {}", name_, key, expected, Quote(actual));
  }

  // 1 <= value <= max. Leaves `out` alone when the key is absent.
  Status OptionalCount(std::string_view key, int64_t max, int64_t& out) const {
    const auto value = Find(key);
    if (!value) {
      return OkStatus();
    }
    int64_t count = 0;
    if (!value->is<int64_t>() || value->get(count) != simdjson::SUCCESS || count < 1 ||
        count > max) {
      return Wrong(key, fmt::format("an integer from 1 to {}", max), *value);
    }
    out = count;
    return OkStatus();
  }

  Status Count(std::string_view key, int64_t max, int64_t& out) const {
    if (!Find(key)) {
      return Missing(key, fmt::format("an integer from 1 to {}", max));
    }
    return OptionalCount(key, max, out);
  }

  // 0 < value <= max, finite. Leaves `out` alone when the key is absent.
  Status OptionalPositive(std::string_view key, double max, double& out) const {
    const auto value = Find(key);
    if (!value) {
      return OkStatus();
    }
    double number = 0.0;
    if (value->get(number) != simdjson::SUCCESS || !(number > 0.0) || !(number <= max)) {
      return Wrong(key, fmt::format("a number above 0 and at most {:g}", max), *value);
    }
    out = number;
    return OkStatus();
  }

  Status OptionalBool(std::string_view key, bool& out) const {
    const auto value = Find(key);
    if (value && value->get(out) != simdjson::SUCCESS) {
      return Wrong(key, "true or false", *value);
    }
    return OkStatus();
  }

  Status OptionalString(std::string_view key, std::string& out) const {
    const auto value = Find(key);
    std::string_view text;
    if (value && value->get(text) != simdjson::SUCCESS) {
      return Wrong(key, "a string", *value);
    }
    out = text;
    return OkStatus();
  }

  const std::string& name() const { return name_; }

 private:
  std::string name_;
  dom::object object_;
};

// Parses `text` into `parser`, which owns what the section refers to.
Result<Section> ParseObject(std::string_view name, std::string_view text, dom::parser& parser) {
  dom::element root;
  if (const auto error = parser.parse(text.data(), text.size()).get(root)) {
    return Corrupt("{}: expected a JSON object: {}", name, simdjson::error_message(error));
  }
  dom::object object;
  if (root.get(object) != simdjson::SUCCESS) {
    return Corrupt("{}: expected a JSON object, got {}", name, Quote(root));
  }
  std::vector<std::string_view> keys;
  for (const dom::key_value_pair field : object) {
    keys.push_back(field.key);
  }
  if (const auto twin = FirstDuplicate(std::move(keys))) {
    return Corrupt("{}: key \"{}\" occurs more than once", name, twin->substr(0, kQuoteBytesMax));
  }
  return Section(std::string(name), object);
}

Status ParseArchitecture(const Section& config, HfConfig& out) {
  constexpr std::string_view kKey = "architectures";
  constexpr std::string_view kExpected = "a list that begins with a class name";
  const auto value = config.Find(kKey);
  if (!value) {
    return config.Missing(kKey, kExpected);
  }
  dom::array names;
  std::string_view name;
  if (value->get(names) != simdjson::SUCCESS || names.at(0).get(name) != simdjson::SUCCESS ||
      name.empty()) {
    return config.Wrong(kKey, kExpected, *value);
  }
  out.architecture = name;
  return config.OptionalString("model_type", out.model_type);
}

Status ParseHeads(const Section& config, HfConfig& out) {
  RETURN_IF_ERROR(config.Count("num_attention_heads", kHeadsMax, out.num_heads));
  out.num_kv_heads = out.num_heads;
  RETURN_IF_ERROR(config.OptionalCount("num_key_value_heads", kHeadsMax, out.num_kv_heads));
  if (out.num_heads % out.num_kv_heads != 0) {
    return InvalidArgument(
        "{}: num_key_value_heads: expected a divisor of num_attention_heads {}, "
        "got {}",
        config.name(), out.num_heads, out.num_kv_heads);
  }
  RETURN_IF_ERROR(config.OptionalCount("head_dim", kHeadDimMax, out.head_dim));
  if (out.head_dim == 0) {
    if (out.hidden_size % out.num_heads != 0) {
      return InvalidArgument(
          "{}: head_dim: absent, and hidden_size {} is no multiple of "
          "num_attention_heads {}",
          config.name(), out.hidden_size, out.num_heads);
    }
    out.head_dim = out.hidden_size / out.num_heads;
  }
  if (out.head_dim % 2 != 0 || out.head_dim > kHeadDimMax) {
    return InvalidArgument("{}: head_dim: expected an even number up to {}, got {}", config.name(),
                           kHeadDimMax, out.head_dim);
  }
  return OkStatus();
}

Status ParseDimensions(const Section& config, HfConfig& out) {
  if (!config.Find("hidden_size")) {
    if (const auto nested = config.Find("text_config")) {
      return config.NotBuilt("text_config", "a text-only model with hidden_size at the top level",
                             *nested);
    }
  }
  RETURN_IF_ERROR(config.Count("hidden_size", kHiddenMax, out.hidden_size));
  RETURN_IF_ERROR(config.Count("num_hidden_layers", kLayersMax, out.num_layers));
  RETURN_IF_ERROR(ParseHeads(config, out));
  RETURN_IF_ERROR(config.Count("intermediate_size", kVocabMax, out.intermediate_size));
  RETURN_IF_ERROR(config.Count("vocab_size", kVocabMax, out.vocab_size));
  RETURN_IF_ERROR(
      config.Count("max_position_embeddings", kPositionsMax, out.max_position_embeddings));
  RETURN_IF_ERROR(config.OptionalPositive("rms_norm_eps", 1.0, out.rms_norm_eps));
  if (out.rms_norm_eps == 0.0) {
    return config.Missing("rms_norm_eps", "a number above 0 and at most 1");
  }
  RETURN_IF_ERROR(config.OptionalBool("tie_word_embeddings", out.tie_word_embeddings));
  return config.OptionalBool("attention_bias", out.attention_bias);
}

// `section` is the whole config or one of its rope objects.
Status RefusePartialRotary(const Section& section) {
  const auto factor = section.Find("partial_rotary_factor");
  double number = 0.0;
  if (factor && (factor->get(number) != simdjson::SUCCESS || number != 1.0)) {
    return section.NotBuilt("partial_rotary_factor", "1", *factor);
  }
  return OkStatus();
}

// What scales or splits the rotary embedding. `section` is rope_parameters or rope_scaling.
Status RefuseRopeVariants(const Section& section) {
  for (const std::string_view key : {"rope_type", "type"}) {
    const auto value = section.Find(key);
    std::string_view text;
    if (value && (value->get(text) != simdjson::SUCCESS || text != "default")) {
      return section.NotBuilt(key, "\"default\"", *value);
    }
  }
  RETURN_IF_ERROR(RefusePartialRotary(section));
  for (const std::string_view key : {"mrope_section", "full_attention", "sliding_attention"}) {
    if (const auto value = section.Find(key)) {
      return section.NotBuilt(key, "one plain rotary embedding for all layers", *value);
    }
  }
  return OkStatus();
}

// transformers 4: rope_theta and rope_scaling at the top. transformers 5: both in rope_parameters.
Status ParseRope(const Section& config, HfConfig& out) {
  constexpr double kThetaMax = 1e15;
  RETURN_IF_ERROR(config.OptionalPositive("rope_theta", kThetaMax, out.rope_theta));
  RETURN_IF_ERROR(RefusePartialRotary(config));
  for (const std::string_view key : {"rope_scaling", "rope_parameters"}) {
    const auto value = config.Find(key);
    if (!value) {
      continue;
    }
    dom::object object;
    if (value->get(object) != simdjson::SUCCESS) {
      return config.Wrong(key, "an object or null", *value);
    }
    const Section rope(fmt::format("{}: {}", config.name(), key), object);
    RETURN_IF_ERROR(RefuseRopeVariants(rope));
    double theta = out.rope_theta;
    RETURN_IF_ERROR(rope.OptionalPositive("rope_theta", kThetaMax, theta));
    if (out.rope_theta != 0.0 && theta != out.rope_theta) {
      return InvalidArgument("{}: rope_theta: expected {} as elsewhere in the file, got {}",
                             rope.name(), out.rope_theta, theta);
    }
    out.rope_theta = theta;
  }
  return out.rope_theta != 0.0 ? OkStatus()
                               : config.Missing("rope_theta",
                                                "a number above 0 here or in "
                                                "rope_parameters");
}

Status RefuseSlidingWindow(const Section& config) {
  bool use_sliding_window = false;
  RETURN_IF_ERROR(config.OptionalBool("use_sliding_window", use_sliding_window));
  const auto flag = config.Find("use_sliding_window");
  if (use_sliding_window) {
    return config.NotBuilt("use_sliding_window", "false", *flag);
  }
  // Families without the flag slide whenever a width is given; Qwen writes a width that the flag
  // turns off.
  const auto width = config.Find("sliding_window");
  if (width && !flag) {
    return config.NotBuilt("sliding_window", "null, or use_sliding_window false beside it", *width);
  }
  return OkStatus();
}

Status RefuseLayerTypes(const Section& config, int64_t num_layers) {
  const auto value = config.Find("layer_types");
  if (!value) {
    return OkStatus();
  }
  dom::array types;
  if (value->get(types) != simdjson::SUCCESS) {
    return config.Wrong("layer_types", "a list of strings", *value);
  }
  int64_t num_types = 0;
  for (const dom::element type : types) {
    std::string_view text;
    if (type.get(text) != simdjson::SUCCESS) {
      return config.Wrong("layer_types", "a list of strings", *value);
    }
    if (text != "full_attention") {
      return config.NotBuilt(fmt::format("layer_types[{}]", num_types), "\"full_attention\"", type);
    }
    ++num_types;
  }
  if (num_types != num_layers) {
    return InvalidArgument("{}: layer_types: expected num_hidden_layers {} of them, got {}",
                           config.name(), num_layers, num_types);
  }
  return OkStatus();
}

// Settings that change the forward pass of an architecture that we know, without changing a shape.
Status RefuseVariants(const Section& config, int64_t num_layers) {
  RETURN_IF_ERROR(RefuseSlidingWindow(config));
  RETURN_IF_ERROR(RefuseLayerTypes(config, num_layers));
  const auto act = config.Find("hidden_act");
  std::string_view act_name;
  if (act && (act->get(act_name) != simdjson::SUCCESS || act_name != "silu")) {
    return config.NotBuilt("hidden_act", "\"silu\"", *act);
  }
  bool mlp_bias = false;
  RETURN_IF_ERROR(config.OptionalBool("mlp_bias", mlp_bias));
  if (mlp_bias) {
    return config.NotBuilt("mlp_bias", "false", *config.Find("mlp_bias"));
  }
  if (const auto dual = config.Find("dual_chunk_attention_config")) {
    return config.NotBuilt("dual_chunk_attention_config", "null", *dual);
  }
  return OkStatus();
}

Status ParseDType(const Section& config, HfConfig& out) {
  constexpr std::string_view kPrefix = "torch.";
  std::string old_name;  // Of transformers 4.
  RETURN_IF_ERROR(config.OptionalString("torch_dtype", old_name));
  RETURN_IF_ERROR(config.OptionalString("dtype", out.dtype));
  for (std::string* name : {&old_name, &out.dtype}) {
    if (name->starts_with(kPrefix)) {
      name->erase(0, kPrefix.size());
    }
  }
  if (out.dtype.empty()) {
    out.dtype = old_name;
  } else if (!old_name.empty() && old_name != out.dtype) {
    return InvalidArgument("{}: torch_dtype: expected \"{}\" as in dtype, got \"{}\"",
                           config.name(), out.dtype, old_name);
  }
  return OkStatus();
}

// Adds the ids of `config`'s eos_token_id: an integer or a list of them.
Status AddEosIds(const Section& config, std::set<int32_t>& ids) {
  constexpr std::string_view kKey = "eos_token_id";
  const auto value = config.Find(kKey);
  if (!value) {
    return OkStatus();
  }
  std::vector<dom::element> items;
  dom::array list;
  if (value->get(list) == simdjson::SUCCESS) {
    for (const dom::element item : list) {
      items.push_back(item);
    }
  } else {
    items.push_back(*value);
  }
  for (const dom::element item : items) {
    int64_t id = 0;
    if (!item.is<int64_t>() || item.get(id) != simdjson::SUCCESS || id < 0 || id > kTokenIdMax) {
      return config.Wrong(
          kKey, fmt::format("an integer from 0 to {} or a list of them", kTokenIdMax), *value);
    }
    ids.insert(static_cast<int32_t>(id));
  }
  return OkStatus();
}

// The first that is there, in the order in which SGLang looks (docs/formats.md).
Status ParseQuantization(const Section& config, HfConfig& out) {
  for (const std::string_view key : {"quantization_config", "compression_config"}) {
    const auto value = config.Find(key);
    if (!value) {
      continue;
    }
    if (!value->is_object()) {
      return config.Wrong(key, "an object or null", *value);
    }
    out.quantization_config = simdjson::minify(*value);
    return OkStatus();
  }
  return OkStatus();
}

}  // namespace

Result<HfConfig> ParseHfConfig(std::string_view config_json,
                               std::string_view generation_config_json) {
  HfConfig out;
  std::set<int32_t> eos_ids;
  dom::parser parser;
  ASSIGN_OR_RETURN(const Section config, ParseObject("config.json", config_json, parser));
  RETURN_IF_ERROR(ParseArchitecture(config, out));
  RETURN_IF_ERROR(ParseDimensions(config, out));
  RETURN_IF_ERROR(ParseRope(config, out));
  RETURN_IF_ERROR(RefuseVariants(config, out.num_layers));
  RETURN_IF_ERROR(ParseDType(config, out));
  RETURN_IF_ERROR(ParseQuantization(config, out));
  RETURN_IF_ERROR(AddEosIds(config, eos_ids));

  if (!generation_config_json.empty()) {
    dom::parser generation_parser;
    ASSIGN_OR_RETURN(
        const Section generation,
        ParseObject("generation_config.json", generation_config_json, generation_parser));
    RETURN_IF_ERROR(AddEosIds(generation, eos_ids));
  }
  out.eos_token_ids.assign(eos_ids.begin(), eos_ids.end());
  out.config_json = config_json;
  return out;
}

}  // namespace octavo
