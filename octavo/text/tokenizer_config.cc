#include "octavo/text/tokenizer_config.h"

#include <simdjson.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "octavo/base/file.h"
#include "octavo/base/status.h"

namespace octavo {
namespace {

// On demand: a number like the model_max_length that HF writes for "no limit", 1e30 in full, must
// only be read over.
using simdjson::ondemand::json_type;
using simdjson::ondemand::value;

// Classes that take a byte-level tokenizer.json as it is. "" is a config without a class.
constexpr std::array<std::string_view, 5> kPlainClasses = {
    "", "PreTrainedTokenizerFast", "TokenizersBackend", "Qwen2Tokenizer", "Qwen2TokenizerFast"};
constexpr std::array<std::string_view, 2> kLlamaClasses = {"LlamaTokenizer", "LlamaTokenizerFast"};

template <typename Names>
bool Contains(const Names& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// The fields that are read, as they stand.
struct Fields {
  std::map<std::string, bool, std::less<>> flags;          // Without those that are null.
  std::map<std::string, std::string, std::less<>> tokens;  // "" for null.
  std::string tokenizer_class;
  std::string chat_template;
};

constexpr std::array<std::string_view, 4> kFlags = {"add_bos_token", "add_eos_token",
                                                    "add_prefix_space", "split_special_tokens"};
constexpr std::array<std::string_view, 4> kTokens = {"bos_token", "eos_token", "pad_token",
                                                     "unk_token"};

Result<std::string> GetString(value* from, std::string_view key) {
  std::string_view text;
  if (from->get_string().get(text) != simdjson::SUCCESS) {
    return Corrupt("{}: expected a string", key);
  }
  return std::string(text);
}

// A special token stands as its content or as an object that holds it.
Result<std::string> GetToken(value* from, json_type type, std::string_view key) {
  if (type == json_type::string) return GetString(from, key);
  std::string_view content;
  simdjson::ondemand::object token;
  if (type != json_type::object || from->get_object().get(token) != simdjson::SUCCESS ||
      token.find_field_unordered("content").get_string().get(content) != simdjson::SUCCESS) {
    return Corrupt("{}: expected a string or an object with its content", key);
  }
  return std::string(content);
}

// One template, or a list of {"name", "template"}, of which chats without tools get "default".
Result<std::string> GetChatTemplate(value* from, json_type type) {
  if (type == json_type::string) return GetString(from, "chat_template");
  simdjson::ondemand::array templates;
  if (type != json_type::array || from->get_array().get(templates) != simdjson::SUCCESS) {
    return Corrupt("chat_template: expected a string or an array");
  }
  int num_templates = 0;
  for (auto entry : templates) {
    simdjson::ondemand::object named;
    std::string_view name;
    std::string_view text;
    if (entry.get_object().get(named) != simdjson::SUCCESS ||
        named.find_field_unordered("name").get_string().get(name) != simdjson::SUCCESS ||
        named.find_field_unordered("template").get_string().get(text) != simdjson::SUCCESS) {
      return Corrupt("chat_template: expected entries with a name and a template");
    }
    if (name == "default") return std::string(text);
    ++num_templates;
  }
  return Unsupported("chat_template: none of {} is named default", num_templates);
}

Status ReadField(std::string_view key, value* from, Fields* fields) {
  json_type type = json_type::null;
  if (const auto error = from->type().get(type); error != simdjson::SUCCESS) {
    return Corrupt("{}: {}", key, simdjson::error_message(error));
  }
  const bool is_null = type == json_type::null;
  if (Contains(kFlags, key)) {
    if (is_null) return Status();
    bool flag = false;
    if (from->get_bool().get(flag) != simdjson::SUCCESS) {
      return Corrupt("{}: expected true or false", key);
    }
    fields->flags.emplace(key, flag);
  } else if (Contains(kTokens, key)) {
    std::string token;
    if (!is_null) {
      ASSIGN_OR_RETURN(token, GetToken(from, type, key));
    }
    fields->tokens.emplace(key, std::move(token));
  } else if (key == "tokenizer_class" && !is_null) {
    ASSIGN_OR_RETURN(fields->tokenizer_class, GetString(from, key));
  } else if (key == "chat_template" && !is_null) {
    ASSIGN_OR_RETURN(fields->chat_template, GetChatTemplate(from, type));
  }
  return Status();
}

Result<Fields> ReadFields(std::string_view json) {
  simdjson::ondemand::parser parser;
  const simdjson::padded_string padded(json);
  simdjson::ondemand::document document;
  simdjson::ondemand::object object;
  if (parser.iterate(padded).get(document) != simdjson::SUCCESS ||
      document.get_object().get(object) != simdjson::SUCCESS) {
    return Corrupt("tokenizer_config.json: expected an object");
  }
  Fields fields;
  for (auto result : object) {
    simdjson::ondemand::field field;
    std::string_view key;
    auto error = std::move(result).get(field);
    if (error == simdjson::SUCCESS) error = field.unescaped_key().get(key);
    if (error != simdjson::SUCCESS) {
      return Corrupt("tokenizer_config.json: {}", simdjson::error_message(error));
    }
    RETURN_IF_ERROR(ReadField(key, &field.value(), &fields));
  }
  return fields;
}

bool IsOn(const Fields& fields, std::string_view key, bool when_absent) {
  const auto found = fields.flags.find(key);
  return found == fields.flags.end() ? when_absent : found->second;
}

// As the class's update_post_processor makes them. A token that is not there at all is the class's
// own default.
Result<SpecialTokensAround> LlamaTokens(const Fields& fields) {
  SpecialTokensAround around;
  struct Side {
    bool add;
    std::string_view key;
    std::string_view when_absent;
    std::string* token;
  };
  const bool add_bos = IsOn(fields, "add_bos_token", true);
  const bool add_eos = IsOn(fields, "add_eos_token", false);
  for (const Side& side : {Side{add_bos, "bos_token", "<s>", &around.before},
                           Side{add_eos, "eos_token", "</s>", &around.behind}}) {
    if (!side.add) continue;
    const auto found = fields.tokens.find(side.key);
    *side.token = found == fields.tokens.end() ? side.when_absent : found->second;
    if (side.token->empty()) {
      return Corrupt("add_{}: true, but {} is null or empty", side.key, side.key);
    }
  }
  return around;
}

}  // namespace

Result<TokenizerConfig> ParseTokenizerConfig(std::string_view json) {
  ASSIGN_OR_RETURN(Fields fields, ReadFields(json));
  for (const std::string_view key : {"add_prefix_space", "split_special_tokens"}) {
    if (IsOn(fields, key, false)) return Unsupported("{}: true is not built", key);
  }
  TokenizerConfig config;
  if (Contains(kLlamaClasses, fields.tokenizer_class)) {
    ASSIGN_OR_RETURN(config.around, LlamaTokens(fields));
  } else if (!Contains(kPlainClasses, fields.tokenizer_class)) {
    return Unsupported(
        "tokenizer_class: {} is not built (PreTrainedTokenizerFast, TokenizersBackend, "
        "Qwen2Tokenizer and LlamaTokenizer are)",
        fields.tokenizer_class);
  }
  for (auto& [name, token] : fields.tokens) {
    if (!token.empty()) config.special_tokens.emplace(name, std::move(token));
  }
  config.chat_template = std::move(fields.chat_template);
  return config;
}

Result<TokenizerConfig> LoadTokenizerConfig(const std::string& folder) {
  const std::filesystem::path path = std::filesystem::path(folder) / "tokenizer_config.json";
  TokenizerConfig config;
  std::error_code error;  // A path that cannot be looked at fails when it is read.
  if (std::filesystem::exists(path, error) || error) {
    ASSIGN_OR_RETURN(const std::string json, ReadTextFile(path));
    Result<TokenizerConfig> parsed = ParseTokenizerConfig(json);
    if (!parsed.has_value()) return parsed.error().WithContext(path.string());
    config = *std::move(parsed);
  }
  const std::filesystem::path jinja = std::filesystem::path(folder) / "chat_template.jinja";
  if (std::filesystem::exists(jinja, error) || error) {
    ASSIGN_OR_RETURN(config.chat_template, ReadTextFile(jinja));
  }
  return config;
}

}  // namespace octavo
