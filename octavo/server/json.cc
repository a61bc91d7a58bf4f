#include "octavo/server/json.h"

#include <simdjson.h>

#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <variant>
#include <vector>

#include "octavo/base/status.h"

namespace octavo {
namespace {

constexpr int kMaxDepth = 256;

// Where the string that begins before `pos` ends: behind its closing quote, or at the end of the
// text.
size_t StringEnd(std::string_view text, size_t pos) {
  while ((pos = text.find('"', pos)) != std::string_view::npos) {
    size_t num_escapes = 0;
    while (text[pos - 1 - num_escapes] == '\\') {
      ++num_escapes;
    }
    ++pos;
    if (num_escapes % 2 == 0) {
      return pos;
    }
  }
  return text.size();
}

// The values of a JSON text; of one that is not JSON, some number.
int64_t CountValues(std::string_view text) {
  int64_t num_values = 1;
  bool is_first = false;  // Nothing but space since the last opening bracket.
  for (size_t pos = 0; pos < text.size();) {
    const char c = text[pos++];
    switch (c) {
      case ' ':
      case '\t':
      case '\n':
      case '\r':
        continue;
      case '[':
      case '{':
        ++num_values;  // Its first value, unless it has none.
        is_first = true;
        continue;
      case ']':
      case '}':
        num_values -= is_first ? 1 : 0;
        break;
      case ',':
        ++num_values;
        break;
      case '"':
        pos = StringEnd(text, pos);
        break;
      default:
        break;
    }
    is_first = false;
  }
  return num_values;
}

Result<JsonValue> FromElement(const simdjson::dom::element& element, int depth);

Result<JsonValue> FromArray(const simdjson::dom::array& source, int depth) {
  JsonArray array;
  array.reserve(source.size());
  for (const simdjson::dom::element child : source) {
    ASSIGN_OR_RETURN(JsonValue value, FromElement(child, depth + 1));
    array.push_back(std::move(value));
  }
  return JsonValue(std::move(array));
}

Result<JsonValue> FromObject(const simdjson::dom::object& source, int depth) {
  JsonObject object;
  object.reserve(source.size());
  for (const auto& field : source) {
    ASSIGN_OR_RETURN(JsonValue value, FromElement(field.value, depth + 1));
    object.push_back({std::string(field.key), std::move(value)});
  }
  return JsonValue(std::move(object));
}

Result<JsonValue> FromElement(const simdjson::dom::element& element, int depth) {
  if (depth > kMaxDepth) {
    return Corrupt("body: expected at most {} nested levels of JSON", kMaxDepth);
  }
  // The casts below cannot fail: each follows the element's own type.
  switch (element.type()) {
    case simdjson::dom::element_type::ARRAY:
      return FromArray(element.get_array().value_unsafe(), depth);
    case simdjson::dom::element_type::OBJECT:
      return FromObject(element.get_object().value_unsafe(), depth);
    case simdjson::dom::element_type::INT64:
      return JsonValue(int64_t{element.get_int64().value_unsafe()});
    case simdjson::dom::element_type::UINT64:  // Beyond int64: kept as a real number.
      return JsonValue(static_cast<double>(element.get_uint64().value_unsafe()));
    case simdjson::dom::element_type::DOUBLE:
      return JsonValue(element.get_double().value_unsafe());
    case simdjson::dom::element_type::STRING:
      return JsonValue(element.get_string().value_unsafe());
    case simdjson::dom::element_type::BOOL:
      return JsonValue(bool{element.get_bool().value_unsafe()});
    case simdjson::dom::element_type::NULL_VALUE:
      return JsonValue();
  }
  return JsonValue();
}

bool EqualsIgnoringCase(std::string_view text, std::string_view lower) {
  if (text.size() != lower.size()) {
    return false;
  }
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if ((c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c) != lower[i]) {
      return false;
    }
  }
  return true;
}

Status TypeError(std::string_view name, std::string_view expected, const JsonValue& value) {
  if (const std::string* text = value.string(); text != nullptr && text->size() <= 64) {
    return Corrupt("{}: expected {}, got \"{}\"", name, expected, *text);
  }
  return Corrupt("{}: expected {}, got {}", name, expected, value.KindName());
}

// An integral double that int64 holds exactly.
bool IsExactInteger(double value) {
  return std::abs(value) <= 9007199254740992.0 && value == std::floor(value);
}

}  // namespace

struct JsonValue::Box {
  std::variant<std::string, JsonArray, JsonObject> value;
};

JsonValue::JsonValue() = default;
JsonValue::JsonValue(bool value) : kind_(Kind::kBool), boolean_(value) {}
JsonValue::JsonValue(int64_t value) : kind_(Kind::kInt), integer_(value) {}
JsonValue::JsonValue(double value) : kind_(Kind::kReal), real_(value) {}
JsonValue::JsonValue(std::string_view value) : kind_(Kind::kString), box_(std::make_unique<Box>()) {
  box_->value.emplace<std::string>(value);
}
JsonValue::JsonValue(JsonArray value) : kind_(Kind::kArray), box_(std::make_unique<Box>()) {
  box_->value = std::move(value);
}
JsonValue::JsonValue(JsonObject value) : kind_(Kind::kObject), box_(std::make_unique<Box>()) {
  box_->value = std::move(value);
}
JsonValue::JsonValue(JsonValue&&) noexcept = default;
JsonValue& JsonValue::operator=(JsonValue&&) noexcept = default;
JsonValue::~JsonValue() = default;

const std::string* JsonValue::string() const {
  return kind_ == Kind::kString ? std::get_if<std::string>(&box_->value) : nullptr;
}

const JsonArray* JsonValue::array() const {
  return kind_ == Kind::kArray ? std::get_if<JsonArray>(&box_->value) : nullptr;
}

const JsonObject* JsonValue::object() const {
  return kind_ == Kind::kObject ? std::get_if<JsonObject>(&box_->value) : nullptr;
}

std::string_view JsonValue::KindName() const {
  static constexpr std::string_view kNames[] = {"null",     "a boolean", "a number", "a number",
                                                "a string", "an array",  "an object"};
  return kNames[static_cast<size_t>(kind_)];
}

const JsonValue* JsonValue::Find(std::string_view key) const {
  const JsonObject* members = object();
  if (members == nullptr) {
    return nullptr;
  }
  for (auto member = members->rbegin(); member != members->rend(); ++member) {
    if (member->key == key) {
      return member->value.is_null() ? nullptr : &member->value;
    }
  }
  return nullptr;
}

Result<JsonValue> ParseJson(std::string_view text) {
  // A value is a byte at least, so only long texts need the look.
  if (static_cast<int64_t>(text.size()) > kJsonValuesMax) {
    if (const int64_t num_values = CountValues(text); num_values > kJsonValuesMax) {
      return Corrupt("body: expected at most {} values of JSON, got {}", kJsonValuesMax,
                     num_values);
    }
  }
  simdjson::dom::parser parser;
  simdjson::dom::element root;
  const simdjson::error_code error = parser.parse(text.data(), text.size(), true).get(root);
  if (error != simdjson::SUCCESS) {
    return Corrupt("body: expected JSON: {}", simdjson::error_message(error));
  }
  return FromElement(root, 0);
}

Result<JsonValue> ParseJsonBody(std::string_view text) {
  if (text.find_first_not_of(" \t\r\n") == std::string_view::npos) {
    return JsonValue(JsonObject{});
  }
  ASSIGN_OR_RETURN(JsonValue value, ParseJson(text));
  if (value.object() == nullptr) {
    return Corrupt("body: expected a JSON object, got {}", value.KindName());
  }
  return value;
}

Result<bool> AsBool(const JsonValue& value, std::string_view name) {
  if (const bool* boolean = value.boolean()) {
    return *boolean;
  }
  if (const int64_t* integer = value.integer(); integer != nullptr && (*integer | 1) == 1) {
    return *integer == 1;
  }
  if (const std::string* text = value.string()) {
    if (EqualsIgnoringCase(*text, "true") || *text == "1") {
      return true;
    }
    if (EqualsIgnoringCase(*text, "false") || *text == "0") {
      return false;
    }
  }
  return TypeError(name, "a boolean", value);
}

Result<int64_t> AsInt(const JsonValue& value, std::string_view name) {
  if (const int64_t* integer = value.integer()) {
    return *integer;
  }
  if (const double* real = value.real(); real != nullptr && IsExactInteger(*real)) {
    return static_cast<int64_t>(*real);
  }
  if (const std::string* text = value.string(); text != nullptr && !text->empty()) {
    int64_t parsed = 0;
    const char* end = text->data() + text->size();
    const auto [stop, error] = std::from_chars(text->data(), end, parsed);
    if (error == std::errc() && stop == end) {
      return parsed;
    }
  }
  return TypeError(name, "an integer", value);
}

Result<double> AsDouble(const JsonValue& value, std::string_view name) {
  if (const int64_t* integer = value.integer()) {
    return static_cast<double>(*integer);
  }
  if (const double* real = value.real()) {
    return *real;
  }
  if (const std::string* text = value.string(); text != nullptr && !text->empty()) {
    double parsed = 0.0;
    const char* end = text->data() + text->size();
    const auto [stop, error] = std::from_chars(text->data(), end, parsed);
    if (error == std::errc() && stop == end && std::isfinite(parsed)) {
      return parsed;
    }
  }
  return TypeError(name, "a number", value);
}

Result<std::string> AsString(const JsonValue& value, std::string_view name) {
  if (const std::string* text = value.string()) {
    return *text;
  }
  return TypeError(name, "a string", value);
}

Result<std::vector<int32_t>> AsTokenIds(const JsonValue& value, std::string_view name,
                                        bool skip_null) {
  const JsonArray* array = value.array();
  if (array == nullptr) {
    return TypeError(name, "a list of integers", value);
  }
  std::vector<int32_t> ids;
  ids.reserve(array->size());
  for (size_t i = 0; i < array->size(); ++i) {
    const JsonValue& entry = (*array)[i];
    if (skip_null && entry.is_null()) {
      continue;
    }
    const int64_t* id = entry.integer();
    if (id == nullptr) {
      return Corrupt("{}[{}]: expected an integer token id, got {}", name, i, entry.KindName());
    }
    if (*id < std::numeric_limits<int32_t>::min() || *id > std::numeric_limits<int32_t>::max()) {
      return Corrupt("{}[{}]: expected a 32-bit token id, got {}", name, i, *id);
    }
    ids.push_back(static_cast<int32_t>(*id));
  }
  return ids;
}

Result<bool> BoolField(const JsonValue& object, std::string_view key, bool absent) {
  const JsonValue* value = object.Find(key);
  return value == nullptr ? Result<bool>(absent) : AsBool(*value, key);
}

Result<int64_t> IntField(const JsonValue& object, std::string_view key, int64_t absent) {
  const JsonValue* value = object.Find(key);
  return value == nullptr ? Result<int64_t>(absent) : AsInt(*value, key);
}

Result<std::string> StringField(const JsonValue& object, std::string_view key,
                                std::string_view absent) {
  const JsonValue* value = object.Find(key);
  return value == nullptr ? Result<std::string>(std::string(absent)) : AsString(*value, key);
}

}  // namespace octavo
