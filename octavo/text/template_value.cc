#include "octavo/text/template_value.h"

#include <fmt/format.h>
#include <simdjson.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "octavo/base/status.h"

namespace octavo {
namespace {

// repr(value): the shortest digits that read back, with a point or an exponent.
std::string FloatText(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
  std::string text = fmt::format("{}", value);
  if (text.find_first_of(".e") == std::string::npos) text += ".0";
  return text;
}

// The string in quotes, as json.dumps writes it with ensure_ascii=False.
std::string QuotedText(std::string_view text) {
  std::string quoted = "\"";
  for (const char c : text) {
    switch (c) {
      case '"':
        quoted += "\\\"";
        break;
      case '\\':
        quoted += "\\\\";
        break;
      case '\n':
        quoted += "\\n";
        break;
      case '\r':
        quoted += "\\r";
        break;
      case '\t':
        quoted += "\\t";
        break;
      case '\b':
        quoted += "\\b";
        break;
      case '\f':
        quoted += "\\f";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          quoted += fmt::format("\\u{:04x}", static_cast<int>(c));
        } else {
          quoted += c;
        }
    }
  }
  return quoted + '"';
}

class JsonWriter {
 public:
  explicit JsonWriter(int64_t indent) : indent_(indent) {}

  Status Write(const TemplateValue& value) {
    if (const auto* list = value.list()) {
      return WriteItems('[', ']', list->size(), [&](size_t idx) { return Write((*list)[idx]); });
    }
    if (const auto* dict = value.dict(); dict && value.namespace_fields() == nullptr) {
      return WriteItems('{', '}', dict->size(), [&](size_t idx) {
        out_ += QuotedText((*dict)[idx].first) + ": ";
        return Write((*dict)[idx].second);
      });
    }
    if (value.is_none()) {
      out_ += "null";
    } else if (const bool* flag = value.boolean()) {
      out_ += *flag ? "true" : "false";
    } else if (const int64_t* number = value.integer()) {
      out_ += fmt::format("{}", *number);
    } else if (const double* real = value.real()) {
      out_ += FloatText(*real);
    } else if (const std::string* text = value.string()) {
      out_ += QuotedText(*text);
    } else if (value.undefined() != nullptr) {
      return InvalidArgument("tojson: {} is undefined", value.undefined()->name);
    } else {
      return InvalidArgument("tojson: {} has no form in JSON", value.KindName());
    }
    return Status();
  }

  std::string Take() { return std::move(out_); }

 private:
  template <typename WriteItem>
  Status WriteItems(char open, char close, size_t num_items, WriteItem write_item) {
    out_ += open;
    ++depth_;
    for (size_t idx = 0; idx < num_items; ++idx) {
      if (idx > 0) out_ += indent_ < 0 ? ", " : ",";
      NewLine();
      RETURN_IF_ERROR(write_item(idx));
    }
    --depth_;
    if (num_items > 0) NewLine();
    out_ += close;
    return Status();
  }

  void NewLine() {
    if (indent_ < 0) return;
    out_ += '\n';
    out_.append(static_cast<size_t>(depth_ * indent_), ' ');
  }

  int64_t indent_;
  int64_t depth_ = 0;
  std::string out_;
};

// The depth is bounded by simdjson's own limit. value_unsafe: the type was asked.
Result<TemplateValue> FromJson(const simdjson::dom::element& value) {
  using simdjson::dom::element_type;
  switch (value.type()) {
    case element_type::ARRAY: {
      TemplateValue::List list;
      const simdjson::dom::array items = value.get_array().value_unsafe();
      for (const simdjson::dom::element item : items) {
        ASSIGN_OR_RETURN(TemplateValue entry, FromJson(item));
        list.push_back(std::move(entry));
      }
      return TemplateValue(std::move(list));
    }
    case element_type::OBJECT: {
      TemplateValue::Dict dict;
      const simdjson::dom::object fields = value.get_object().value_unsafe();
      for (const auto field : fields) {
        ASSIGN_OR_RETURN(TemplateValue entry, FromJson(field.value));
        SetEntry(field.key, std::move(entry), &dict);
      }
      return TemplateValue(std::move(dict));
    }
    case element_type::INT64:
      return TemplateValue(value.get_int64().value_unsafe());
    case element_type::DOUBLE:
      return TemplateValue(value.get_double().value_unsafe());
    case element_type::STRING:
      return TemplateValue(std::string(value.get_string().value_unsafe()));
    case element_type::BOOL:
      return TemplateValue(value.get_bool().value_unsafe());
    case element_type::NULL_VALUE:
      return TemplateValue::MakeNone();
    default:
      return Unsupported("JSON: an integer beyond 64 bits");
  }
}

}  // namespace

TemplateValue TemplateValue::MakeUndefined(std::string name) {
  TemplateValue value;
  value.value_ = Undefined{std::move(name)};
  return value;
}

TemplateValue TemplateValue::MakeNone() {
  TemplateValue value;
  value.value_ = None{};
  return value;
}

TemplateValue TemplateValue::MakeNamespace(Dict fields) {
  TemplateValue value;
  value.value_ = Namespace{std::make_shared<Dict>(std::move(fields))};
  return value;
}

const TemplateValue::List* TemplateValue::list() const {
  const auto* shared = std::get_if<std::shared_ptr<const List>>(&value_);
  return shared == nullptr ? nullptr : shared->get();
}

const TemplateValue::Dict* TemplateValue::dict() const {
  const auto* shared = std::get_if<std::shared_ptr<const Dict>>(&value_);
  return shared == nullptr ? namespace_fields() : shared->get();
}

TemplateValue::Dict* TemplateValue::namespace_fields() const {
  const auto* found = std::get_if<Namespace>(&value_);
  return found == nullptr ? nullptr : found->fields.get();
}

std::string_view TemplateValue::KindName() const {
  constexpr std::array<std::string_view, 9> kNames = {"undefined", "none",    "a bool",
                                                      "an int",    "a float", "a string",
                                                      "a list",    "a dict",  "a namespace"};
  return kNames[value_.index()];
}

bool TemplateValue::IsTrue() const {
  if (const bool* flag = boolean()) return *flag;
  if (const int64_t* number = integer()) return *number != 0;
  if (const double* number = real()) return *number != 0;
  if (const std::string* text = string()) return !text->empty();
  if (const List* items = list()) return !items->empty();
  if (namespace_fields() != nullptr) return true;
  if (const Dict* entries = dict()) return !entries->empty();
  return false;
}

bool TemplateValue::Equals(const TemplateValue& other) const {
  const auto number = [](const TemplateValue& value) -> std::optional<double> {
    if (const bool* flag = value.boolean()) return *flag ? 1.0 : 0.0;
    if (const int64_t* integer = value.integer()) return static_cast<double>(*integer);
    if (const double* real = value.real()) return *real;
    return std::nullopt;
  };
  if (integer() != nullptr && other.integer() != nullptr) return *integer() == *other.integer();
  const std::optional<double> left = number(*this);
  if (left.has_value()) return left == number(other);
  if (value_.index() != other.value_.index()) return false;
  if (const std::string* text = string()) return *text == *other.string();
  if (const List* items = list()) {
    return std::equal(items->begin(), items->end(), other.list()->begin(), other.list()->end(),
                      [](const TemplateValue& a, const TemplateValue& b) { return a.Equals(b); });
  }
  if (namespace_fields() != nullptr) return namespace_fields() == other.namespace_fields();
  if (const Dict* entries = dict()) {
    return entries->size() == other.dict()->size() &&
           std::all_of(entries->begin(), entries->end(), [&other](const auto& entry) {
             const TemplateValue* match = FindEntry(*other.dict(), entry.first);
             return match != nullptr && entry.second.Equals(*match);
           });
  }
  return true;  // Both none, or both undefined.
}

const TemplateValue* FindEntry(const TemplateValue::Dict& dict, std::string_view key) {
  const auto found = std::find_if(dict.begin(), dict.end(),
                                  [key](const auto& entry) { return entry.first == key; });
  return found == dict.end() ? nullptr : &found->second;
}

void SetEntry(std::string_view key, TemplateValue value, TemplateValue::Dict* dict) {
  const auto found = std::find_if(dict->begin(), dict->end(),
                                  [key](const auto& entry) { return entry.first == key; });
  if (found == dict->end()) {
    dict->emplace_back(key, std::move(value));
  } else {
    found->second = std::move(value);
  }
}

Result<std::string> TextOf(const TemplateValue& value) {
  if (const std::string* text = value.string()) return *text;
  if (const bool* flag = value.boolean()) return std::string(*flag ? "True" : "False");
  if (const int64_t* number = value.integer()) return fmt::format("{}", *number);
  if (const double* real = value.real()) return FloatText(*real);
  if (value.is_none()) return std::string("None");
  if (value.undefined() != nullptr) return std::string();
  return Unsupported("the text of {} is not built", value.KindName());
}

Result<TemplateValue> ParseTemplateJson(std::string_view json) {
  simdjson::dom::parser parser;
  simdjson::dom::element root;
  const simdjson::padded_string padded(json);
  if (const auto error = parser.parse(padded).get(root); error != simdjson::SUCCESS) {
    return InvalidArgument("JSON: {}", simdjson::error_message(error));
  }
  return FromJson(root);
}

Result<std::string> DumpTemplateJson(const TemplateValue& value, int64_t indent) {
  JsonWriter writer(indent);
  RETURN_IF_ERROR(writer.Write(value));
  return writer.Take();
}

}  // namespace octavo
