// ConfigJsonWithQuantization of writer.h. It edits text, not values: whatever it does not replace
// keeps every byte, so that no number is respelled (1e-6, 1e-06, 0.000001) and no key moves.

#include <simdjson.h>

#include <algorithm>
#include <cstddef>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/checkpoint/unique_keys.h"
#include "octavo/checkpoint/writer.h"

namespace octavo {
namespace {

namespace dom = simdjson::dom;

constexpr std::string_view kQuantizationKey = "quantization_config";

// One member of a JSON object: its key, unescaped, and where `"key": value` stands in the text.
struct Member {
  std::string key;
  size_t begin = 0;
  size_t value_begin = 0;
  size_t end = 0;
};

// Position behind the string literal that begins at `pos`. Requires valid JSON.
size_t SkipString(std::string_view text, size_t pos) {
  for (++pos; text[pos] != '"'; ++pos) {
    if (text[pos] == '\\') {
      ++pos;
    }
  }
  return pos + 1;
}

size_t SkipSpace(std::string_view text, size_t pos) {
  return std::min(text.find_first_not_of(" \t\r\n", pos), text.size());
}

// Position behind the value that begins at `pos`. Requires valid JSON.
size_t SkipValue(std::string_view text, size_t pos) {
  int depth = 0;
  while (true) {
    const char c = text[pos];
    if (c == '"') {
      pos = SkipString(text, pos);
    } else if (c == '{' || c == '[') {
      ++depth;
      ++pos;
    } else if (c == '}' || c == ']') {
      --depth;
      ++pos;
    } else if (depth > 0) {
      ++pos;
      continue;
    } else {
      return text.find_first_of(",]} \t\r\n", pos);  // A number, true, false or null.
    }
    if (depth == 0) {
      return pos;
    }
  }
}

// The members of the object that `text` is. Errors: kCorrupt.
Result<std::vector<Member>> FindMembers(std::string_view text, std::string_view what) {
  dom::parser parser;
  dom::element root;
  dom::object object;
  if (text.empty()) {
    return Corrupt("{}: expected a JSON object, got an empty text", what);
  }
  if (const auto error = parser.parse(text.data(), text.size()).get(root)) {
    return Corrupt("{}: expected a JSON object: {}", what, simdjson::error_message(error));
  }
  if (root.get(object) != simdjson::SUCCESS) {
    return Corrupt("{}: expected a JSON object", what);
  }
  std::vector<Member> members;
  std::vector<std::string_view> keys;
  size_t pos = text.find('{') + 1;
  // simdjson lists members in the order of the text, so that the walk needs no unescaping.
  for (const dom::key_value_pair field : object) {
    Member member{.key = std::string(field.key), .begin = SkipSpace(text, pos)};
    const size_t colon = SkipSpace(text, SkipString(text, member.begin));
    member.value_begin = SkipSpace(text, colon + 1);
    member.end = SkipValue(text, member.value_begin);
    pos = SkipSpace(text, member.end) + 1;  // Behind the comma or the closing brace.
    keys.push_back(field.key);
    members.push_back(std::move(member));
  }
  if (const auto twin = FirstDuplicate(std::move(keys))) {
    return Corrupt("{}: key \"{}\" occurs more than once", what, twin->substr(0, 256));
  }
  return members;
}

// `text`, an object, with the members of its list replaced by `pieces` of text. Everything around
// the members stays.
std::string Reassemble(std::string_view text, const std::vector<Member>& members,
                       const std::vector<std::string>& pieces) {
  if (members.empty()) {
    if (pieces.empty()) {
      return std::string(text);
    }
    std::string result(text.substr(0, text.find('{') + 1));
    for (const std::string& piece : pieces) {
      result += (&piece == pieces.data() ? "\n  " : ",\n  ") + piece;
    }
    result += '\n';
    result += text.substr(text.rfind('}'));
    return result;
  }
  const std::string_view head = text.substr(0, members.front().begin);
  const std::string_view lead = head.substr(head.find('{') + 1);
  std::string result(head);
  for (size_t i = 0; i < pieces.size(); ++i) {
    if (i > 0) {
      result += ',';
      result += lead;
    }
    result += pieces[i];
  }
  result += text.substr(members.back().end);
  return result;
}

// `value`, an object, without `key`.
Result<std::string> WithoutMember(std::string_view value, std::string_view key,
                                  std::string_view what) {
  ASSIGN_OR_RETURN(const std::vector<Member> members, FindMembers(value, what));
  std::vector<std::string> pieces;
  for (const Member& member : members) {
    if (member.key != key) {
      pieces.emplace_back(value.substr(member.begin, member.end - member.begin));
    }
  }
  return pieces.size() == members.size() ? std::string(value) : Reassemble(value, members, pieces);
}

// `"quantization_config": {...}`, two spaces a level as HF writes it, to stand one level deep.
Result<std::string> QuantizationPiece(std::string_view quantization_config_json) {
  // For its errors; nlohmann then reads what is known to be an object.
  RETURN_IF_ERROR(FindMembers(quantization_config_json, kQuantizationKey).error());
  const auto json = nlohmann::ordered_json::parse(quantization_config_json, nullptr,
                                                  /*allow_exceptions=*/false);
  std::string text = fmt::format("\"{}\": ", kQuantizationKey);
  for (const char c : json.dump(2)) {
    text += c;
    if (c == '\n') {
      text += "  ";
    }
  }
  return text;
}

}  // namespace

Result<std::string> ConfigJsonWithQuantization(std::string_view config_json,
                                               std::string_view quantization_config_json) {
  ASSIGN_OR_RETURN(const std::vector<Member> members, FindMembers(config_json, "config.json"));
  std::optional<std::string> replacement;
  if (!quantization_config_json.empty()) {
    ASSIGN_OR_RETURN(replacement, QuantizationPiece(quantization_config_json));
  }
  std::vector<std::string> pieces;
  for (const Member& member : members) {
    const std::string_view value =
        config_json.substr(member.value_begin, member.end - member.value_begin);
    if (member.key == kQuantizationKey) {
      if (replacement) {
        pieces.push_back(*std::exchange(replacement, std::nullopt));
      }
    } else if (member.key == "text_config" && value.starts_with('{')) {
      ASSIGN_OR_RETURN(const std::string text_config,
                       WithoutMember(value, kQuantizationKey, "config.json: text_config"));
      const size_t key_bytes = member.value_begin - member.begin;
      pieces.push_back(std::string(config_json.substr(member.begin, key_bytes)) + text_config);
    } else if (member.key != "compression_config") {
      pieces.emplace_back(config_json.substr(member.begin, member.end - member.begin));
    }
  }
  if (replacement) {
    pieces.push_back(*std::move(replacement));
  }
  return Reassemble(config_json, members, pieces);
}

}  // namespace octavo
