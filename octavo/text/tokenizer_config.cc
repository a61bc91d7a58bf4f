#include "octavo/text/tokenizer_config.h"

#include <simdjson.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "octavo/base/file.h"
#include "octavo/base/status.h"

namespace octavo {
namespace {

using simdjson::dom::array;
using simdjson::dom::element;
using simdjson::dom::object;

// Classes that take a byte-level tokenizer.json as it is. "" is a config without a class.
constexpr std::array<std::string_view, 5> kPlainClasses = {
    "", "PreTrainedTokenizerFast", "TokenizersBackend", "Qwen2Tokenizer", "Qwen2TokenizerFast"};
constexpr std::array<std::string_view, 2> kLlamaClasses = {"LlamaTokenizer", "LlamaTokenizerFast"};

template <typename Names>
bool Contains(const Names& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

std::optional<element> Find(const object& from, std::string_view key) {
  element value;
  if (from.at_key(key).get(value) != simdjson::SUCCESS || value.is_null()) return std::nullopt;
  return value;
}

Result<bool> GetBool(const object& config, std::string_view key, bool when_absent) {
  const std::optional<element> value = Find(config, key);
  if (!value.has_value()) return when_absent;
  bool flag = false;
  if (value->get(flag) != simdjson::SUCCESS) return Corrupt("{}: expected true or false", key);
  return flag;
}

Result<std::string> GetString(const object& config, std::string_view key) {
  const std::optional<element> value = Find(config, key);
  if (!value.has_value()) return std::string();
  std::string_view text;
  if (value->get(text) != simdjson::SUCCESS) return Corrupt("{}: expected a string", key);
  return std::string(text);
}

// A special token stands as its content or as an object that holds it.
Result<std::string> GetToken(const object& config, std::string_view key) {
  const std::optional<element> value = Find(config, key);
  if (!value.has_value()) return std::string();
  std::string_view content;
  object token;
  if (value->get(content) == simdjson::SUCCESS) return std::string(content);
  if (value->get(token) == simdjson::SUCCESS &&
      token.at_key("content").get(content) == simdjson::SUCCESS) {
    return std::string(content);
  }
  return Corrupt("{}: expected a string or an object with its content", key);
}

// One template, or a list of {"name", "template"}, of which chats without tools get "default".
Result<std::string> GetChatTemplate(const object& config) {
  const std::optional<element> value = Find(config, "chat_template");
  if (!value.has_value()) return std::string();
  std::string_view text;
  if (value->get(text) == simdjson::SUCCESS) return std::string(text);
  array templates;
  if (value->get(templates) != simdjson::SUCCESS) {
    return Corrupt("chat_template: expected a string or an array");
  }
  for (const element entry : templates) {
    object named;
    std::string_view name;
    if (entry.get(named) != simdjson::SUCCESS ||
        named.at_key("name").get(name) != simdjson::SUCCESS ||
        named.at_key("template").get(text) != simdjson::SUCCESS) {
      return Corrupt("chat_template: expected entries with a name and a template");
    }
    if (name == "default") return std::string(text);
  }
  return Unsupported("chat_template: none of {} is named default", templates.size());
}

// As the class's update_post_processor makes them.
Result<SpecialTokensAround> LlamaTokens(const object& config) {
  SpecialTokensAround around;
  ASSIGN_OR_RETURN(const bool add_bos, GetBool(config, "add_bos_token", true));
  ASSIGN_OR_RETURN(const bool add_eos, GetBool(config, "add_eos_token", false));
  struct Side {
    bool add;
    std::string_view key;
    std::string_view when_absent;  // The class's own default, for a key that is not there at all.
    std::string* token;
  };
  for (const Side& side : {Side{add_bos, "bos_token", "<s>", &around.before},
                           Side{add_eos, "eos_token", "</s>", &around.behind}}) {
    if (!side.add) continue;
    ASSIGN_OR_RETURN(*side.token, GetToken(config, side.key));
    element value;
    if (config.at_key(side.key).get(value) != simdjson::SUCCESS) *side.token = side.when_absent;
    if (side.token->empty()) {
      return Corrupt("add_{}: true, but {} is null or empty", side.key, side.key);
    }
  }
  return around;
}

}  // namespace

Result<TokenizerConfig> ParseTokenizerConfig(std::string_view json) {
  simdjson::dom::parser parser;
  element root;
  const simdjson::padded_string padded(json);
  if (const auto error = parser.parse(padded).get(root); error != simdjson::SUCCESS) {
    return Corrupt("tokenizer_config.json: {}", simdjson::error_message(error));
  }
  object file;
  if (root.get(file) != simdjson::SUCCESS) {
    return Corrupt("tokenizer_config.json: expected an object");
  }
  for (const std::string_view key : {"add_prefix_space", "split_special_tokens"}) {
    ASSIGN_OR_RETURN(const bool is_on, GetBool(file, key, false));
    if (is_on) return Unsupported("{}: true is not built", key);
  }
  TokenizerConfig config;
  for (const std::string_view key : {"bos_token", "eos_token", "pad_token", "unk_token"}) {
    ASSIGN_OR_RETURN(std::string token, GetToken(file, key));
    if (!token.empty()) config.special_tokens.emplace(key, std::move(token));
  }
  ASSIGN_OR_RETURN(config.chat_template, GetChatTemplate(file));
  ASSIGN_OR_RETURN(const std::string name, GetString(file, "tokenizer_class"));
  if (Contains(kLlamaClasses, name)) {
    ASSIGN_OR_RETURN(config.around, LlamaTokens(file));
  } else if (!Contains(kPlainClasses, name)) {
    return Unsupported(
        "tokenizer_class: {} is not built (PreTrainedTokenizerFast, TokenizersBackend, "
        "Qwen2Tokenizer and LlamaTokenizer are)",
        name);
  }
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
