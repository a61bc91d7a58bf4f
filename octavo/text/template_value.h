#pragma once
// Values of the chat template language: what a Python value is to Jinja2.

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "octavo/base/status.h"

namespace octavo {

// Value type; lists and dicts are shared, never changed once made. A namespace is a dict that
// `set` changes. Thread-compatible.
class TemplateValue {
 public:
  struct Undefined {
    std::string name;  // Of what is missing, for messages.
  };
  struct None {};
  using List = std::vector<TemplateValue>;
  using Dict = std::vector<std::pair<std::string, TemplateValue>>;  // In order of insertion.
  struct Namespace {
    std::shared_ptr<Dict> fields;
  };

  TemplateValue() = default;  // Undefined.
  explicit TemplateValue(bool value) : value_(value) {}
  explicit TemplateValue(int64_t value) : value_(value) {}
  explicit TemplateValue(double value) : value_(value) {}
  explicit TemplateValue(std::string value) : value_(std::move(value)) {}
  explicit TemplateValue(const char* value) = delete;  // Would be a bool.
  explicit TemplateValue(List value) : value_(std::make_shared<const List>(std::move(value))) {}
  explicit TemplateValue(Dict value) : value_(std::make_shared<const Dict>(std::move(value))) {}

  static TemplateValue MakeUndefined(std::string name);
  static TemplateValue MakeNone();
  static TemplateValue MakeNamespace(Dict fields);

  // Null unless the value is of that kind.
  const Undefined* undefined() const { return std::get_if<Undefined>(&value_); }
  const bool* boolean() const { return std::get_if<bool>(&value_); }
  const int64_t* integer() const { return std::get_if<int64_t>(&value_); }
  const double* real() const { return std::get_if<double>(&value_); }
  const std::string* string() const { return std::get_if<std::string>(&value_); }
  const List* list() const;
  const Dict* dict() const;  // Of a namespace too.
  Dict* namespace_fields() const;
  bool is_none() const { return std::holds_alternative<None>(value_); }

  // "an int", "a string", ...: for messages.
  std::string_view KindName() const;
  bool IsTrue() const;
  // Python's ==. A bool equals the integer it stands for.
  bool Equals(const TemplateValue& other) const;

 private:
  std::variant<Undefined, None, bool, int64_t, double, std::string, std::shared_ptr<const List>,
               std::shared_ptr<const Dict>, Namespace>
      value_;
};

// The entry of `key`; null when there is none.
const TemplateValue* FindEntry(const TemplateValue::Dict& dict, std::string_view key);

// Replaces the value of `key` in its place, or adds it at the end.
void SetEntry(std::string_view key, TemplateValue value, TemplateValue::Dict* dict);

// str(value), with "" for undefined. Errors: kUnsupported for lists and dicts, whose Python form is
// not built.
Result<std::string> TextOf(const TemplateValue& value);

// json.loads(json). Errors: kInvalidArgument (not JSON), kUnsupported (an integer beyond 64 bits).
Result<TemplateValue> ParseTemplateJson(std::string_view json);

// json.dumps(value, ensure_ascii=False, indent=indent); `indent` < 0 is None.
// Errors: kInvalidArgument for what is undefined or a namespace.
Result<std::string> DumpTemplateJson(const TemplateValue& value, int64_t indent);

}  // namespace octavo
