#include "octavo/text/template_functions.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <ctime>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/check.h"
#include "octavo/base/status.h"
#include "octavo/text/python_text.h"
#include "octavo/text/template_value.h"

namespace octavo {
namespace {

using Value = TemplateValue;

// The arguments of one call, by place or by name.
class Reader {
 public:
  // `names`: of the arguments behind the one that the call is applied to.
  Reader(std::string_view function, const TemplateArguments& args,
         std::vector<std::string_view> names)
      : function_(function), args_(args), names_(std::move(names)) {}

  // Every argument has its place.
  Status Check() const {
    const size_t num_positional = args_.values.size() - args_.keywords.size();
    if (num_positional > names_.size() + 1) {
      return InvalidArgument("{}: expected at most {} arguments, got {}", function_, names_.size(),
                             num_positional - 1);
    }
    for (const std::string& keyword : args_.keywords) {
      if (std::find(names_.begin(), names_.end(), keyword) == names_.end()) {
        return Unsupported("{}: the argument {} is not built", function_, keyword);
      }
    }
    return Status();
  }

  const Value& input() const { return args_.values[0]; }

  // Null when it is not given. `idx` counts from 0 behind the input.
  const Value* Get(size_t idx) const {
    const size_t num_positional = args_.values.size() - args_.keywords.size();
    if (idx + 1 < num_positional) return &args_.values[idx + 1];
    for (size_t i = 0; i < args_.keywords.size(); ++i) {
      if (args_.keywords[i] == names_[idx]) return &args_.values[num_positional + i];
    }
    return nullptr;
  }

  Result<std::string_view> InputText() const {
    if (input().string() == nullptr) return WrongKind(input(), "a string");
    return std::string_view(*input().string());
  }
  Result<std::string_view> Text(size_t idx) const {
    const Value* value = Get(idx);
    if (value == nullptr) return InvalidArgument("{}: expected {}", function_, names_[idx]);
    if (value->string() == nullptr) return WrongKind(*value, "a string");
    return std::string_view(*value->string());
  }
  // Absent and none alike are nothing.
  Result<std::optional<std::string_view>> OptionalText(size_t idx) const {
    const Value* value = Get(idx);
    if (value == nullptr || value->is_none()) return std::optional<std::string_view>();
    ASSIGN_OR_RETURN(const std::string_view text, Text(idx));
    return std::optional<std::string_view>(text);
  }
  Result<int64_t> Integer(size_t idx, int64_t when_absent) const {
    const Value* value = Get(idx);
    if (value == nullptr || value->is_none()) return when_absent;
    if (value->integer() == nullptr) return WrongKind(*value, "an int");
    return *value->integer();
  }

  Status WrongKind(const Value& value, std::string_view expected) const {
    if (value.undefined() != nullptr && !value.undefined()->name.empty()) {
      return InvalidArgument("{}: expected {}, but {} is undefined", function_, expected,
                             value.undefined()->name);
    }
    return InvalidArgument("{}: expected {}, got {}", function_, expected, value.KindName());
  }

 private:
  std::string_view function_;
  const TemplateArguments& args_;
  std::vector<std::string_view> names_;
};

Value MakeText(std::string_view text) { return Value(std::string(text)); }

Value MakePair(const std::pair<std::string, Value>& entry) {
  return Value(Value::List{MakeText(entry.first), entry.second});
}

// --- Methods.

Result<Value> Strip(const TemplateArguments& args, std::string_view name, StripSides sides) {
  const Reader reader(name, args, {"chars"});
  RETURN_IF_ERROR(reader.Check());
  ASSIGN_OR_RETURN(const std::string_view text, reader.InputText());
  ASSIGN_OR_RETURN(const std::optional<std::string_view> chars, reader.OptionalText(0));
  return MakeText(PythonStrip(text, chars, sides));
}

Result<Value> StripBoth(const TemplateArguments& args) { return Strip(args, "strip", {}); }
Result<Value> StripLeft(const TemplateArguments& args) {
  return Strip(args, "lstrip", {.left = true, .right = false});
}
Result<Value> StripRight(const TemplateArguments& args) {
  return Strip(args, "rstrip", {.left = false, .right = true});
}

Result<Value> Split(const TemplateArguments& args) {
  const Reader reader("split", args, {"sep", "maxsplit"});
  RETURN_IF_ERROR(reader.Check());
  ASSIGN_OR_RETURN(const std::string_view text, reader.InputText());
  ASSIGN_OR_RETURN(const std::optional<std::string_view> separator, reader.OptionalText(0));
  ASSIGN_OR_RETURN(const int64_t max_splits, reader.Integer(1, -1));
  if (separator == "") return InvalidArgument("split: an empty separator");
  Value::List parts;
  for (const std::string_view part : PythonSplit(text, separator, max_splits)) {
    parts.push_back(MakeText(part));
  }
  return Value(std::move(parts));
}

Result<Value> StartsWith(const TemplateArguments& args) {
  const Reader reader("startswith", args, {"prefix"});
  RETURN_IF_ERROR(reader.Check());
  ASSIGN_OR_RETURN(const std::string_view text, reader.InputText());
  ASSIGN_OR_RETURN(const std::string_view prefix, reader.Text(0));
  return Value(text.starts_with(prefix));
}

Result<Value> EndsWith(const TemplateArguments& args) {
  const Reader reader("endswith", args, {"suffix"});
  RETURN_IF_ERROR(reader.Check());
  ASSIGN_OR_RETURN(const std::string_view text, reader.InputText());
  ASSIGN_OR_RETURN(const std::string_view suffix, reader.Text(0));
  return Value(text.ends_with(suffix));
}

Result<Value> Replace(const TemplateArguments& args) {
  const Reader reader("replace", args, {"old", "new"});
  RETURN_IF_ERROR(reader.Check());
  ASSIGN_OR_RETURN(const std::string_view text, reader.InputText());
  ASSIGN_OR_RETURN(const std::string_view from, reader.Text(0));
  ASSIGN_OR_RETURN(const std::string_view to, reader.Text(1));
  if (from.empty()) return Unsupported("replace: of nothing is not built");
  return Value(PythonReplace(text, from, to));
}

Result<Value> Get(const TemplateArguments& args) {
  const Reader reader("get", args, {"key", "default"});
  RETURN_IF_ERROR(reader.Check());
  if (reader.input().dict() == nullptr) return reader.WrongKind(reader.input(), "a dict");
  ASSIGN_OR_RETURN(const std::string_view key, reader.Text(0));
  if (const Value* found = FindEntry(*reader.input().dict(), key)) return *found;
  return reader.Get(1) == nullptr ? Value::MakeNone() : *reader.Get(1);
}

Result<Value> Items(const TemplateArguments& args) {
  const Reader reader("items", args, {});
  RETURN_IF_ERROR(reader.Check());
  Value::List items;
  if (reader.input().undefined() != nullptr) return Value(std::move(items));
  if (reader.input().dict() == nullptr) return reader.WrongKind(reader.input(), "a dict");
  for (const auto& entry : *reader.input().dict()) items.push_back(MakePair(entry));
  return Value(std::move(items));
}

// --- Filters.

Result<Value> Trim(const TemplateArguments& args) {
  const Reader reader("trim", args, {"chars"});
  RETURN_IF_ERROR(reader.Check());
  ASSIGN_OR_RETURN(const std::string text, TextOf(reader.input()));
  ASSIGN_OR_RETURN(const std::optional<std::string_view> chars, reader.OptionalText(0));
  return MakeText(PythonStrip(text, chars, {}));
}

Result<Value> Length(const TemplateArguments& args) {
  const Reader reader("length", args, {});
  RETURN_IF_ERROR(reader.Check());
  const Value& input = reader.input();
  if (input.string() != nullptr) return Value(NumCodePoints(*input.string()));
  ASSIGN_OR_RETURN(const Value::List items, ItemsOf(input));
  return Value(static_cast<int64_t>(items.size()));
}

Result<Value> FirstOrLast(const TemplateArguments& args, bool is_first) {
  const Reader reader(is_first ? "first" : "last", args, {});
  RETURN_IF_ERROR(reader.Check());
  ASSIGN_OR_RETURN(const Value::List items, ItemsOf(reader.input()));
  if (items.empty()) return Value::MakeUndefined("an item of nothing");
  return is_first ? items.front() : items.back();
}

Result<Value> First(const TemplateArguments& args) { return FirstOrLast(args, true); }
Result<Value> Last(const TemplateArguments& args) { return FirstOrLast(args, false); }

Result<Value> ToList(const TemplateArguments& args) {
  const Reader reader("list", args, {});
  RETURN_IF_ERROR(reader.Check());
  ASSIGN_OR_RETURN(Value::List items, ItemsOf(reader.input()));
  return Value(std::move(items));
}

Result<Value> Join(const TemplateArguments& args) {
  const Reader reader("join", args, {"d"});
  RETURN_IF_ERROR(reader.Check());
  ASSIGN_OR_RETURN(const Value::List items, ItemsOf(reader.input()));
  ASSIGN_OR_RETURN(const std::optional<std::string_view> between, reader.OptionalText(0));
  std::string joined;
  for (size_t i = 0; i < items.size(); ++i) {
    if (i > 0) joined += between.value_or("");
    ASSIGN_OR_RETURN(const std::string text, TextOf(items[i]));
    joined += text;
  }
  return Value(std::move(joined));
}

Result<Value> Default(const TemplateArguments& args) {
  const Reader reader("default", args, {"default_value", "boolean"});
  RETURN_IF_ERROR(reader.Check());
  const bool by_truth = reader.Get(1) != nullptr && reader.Get(1)->IsTrue();
  const Value& input = reader.input();
  const bool is_missing = input.undefined() != nullptr || (by_truth && !input.IsTrue());
  if (!is_missing) return input;
  return reader.Get(0) == nullptr ? MakeText("") : *reader.Get(0);
}

Result<Value> ToString(const TemplateArguments& args) {
  const Reader reader("string", args, {});
  RETURN_IF_ERROR(reader.Check());
  ASSIGN_OR_RETURN(std::string text, TextOf(reader.input()));
  return Value(std::move(text));
}

Result<Value> ToJson(const TemplateArguments& args) {
  const Reader reader("tojson", args, {"ensure_ascii", "indent"});
  RETURN_IF_ERROR(reader.Check());
  if (reader.Get(0) != nullptr && reader.Get(0)->IsTrue()) {
    return Unsupported("tojson: ensure_ascii is not built");
  }
  ASSIGN_OR_RETURN(const int64_t indent, reader.Integer(1, -1));
  if (indent > 64) return Unsupported("tojson: an indent of {} is not built", indent);
  ASSIGN_OR_RETURN(std::string json, DumpTemplateJson(reader.input(), indent));
  return Value(std::move(json));
}

// select and reject, by the one test that is built: equalto.
Result<Value> Select(const TemplateArguments& args, std::string_view name, bool keeps_equal) {
  const Reader reader(name, args, {"test", "value"});
  RETURN_IF_ERROR(reader.Check());
  ASSIGN_OR_RETURN(const std::string_view test, reader.Text(0));
  if ((test != "equalto" && test != "eq" && test != "==") || reader.Get(1) == nullptr) {
    return Unsupported("{}: the test {} is not built", name, test);
  }
  ASSIGN_OR_RETURN(Value::List items, ItemsOf(reader.input()));
  std::erase_if(items,
                [&](const Value& item) { return item.Equals(*reader.Get(1)) != keeps_equal; });
  return Value(std::move(items));
}

Result<Value> SelectEqual(const TemplateArguments& args) { return Select(args, "select", true); }
Result<Value> RejectEqual(const TemplateArguments& args) { return Select(args, "reject", false); }

// --- Tests.

bool IsNumber(const Value& value) {
  return value.boolean() != nullptr || value.integer() != nullptr || value.real() != nullptr;
}
bool IsSequence(const Value& value) {
  return value.list() != nullptr || value.dict() != nullptr || value.string() != nullptr ||
         value.undefined() != nullptr;
}

// --- Tables.

struct NamedFunction {
  std::string_view name;
  Result<Value> (*call)(const TemplateArguments& args);
};
struct NamedTest {
  std::string_view name;
  bool (*holds)(const Value& value);
};

constexpr std::array<std::string_view, 3> kFunctions = {"namespace", "raise_exception",
                                                        "strftime_now"};
constexpr std::array<NamedFunction, 9> kMethods = {{{"strip", StripBoth},
                                                    {"lstrip", StripLeft},
                                                    {"rstrip", StripRight},
                                                    {"split", Split},
                                                    {"startswith", StartsWith},
                                                    {"endswith", EndsWith},
                                                    {"replace", Replace},
                                                    {"get", Get},
                                                    {"items", Items}}};
constexpr std::array<NamedFunction, 15> kFilters = {{{"trim", Trim},
                                                     {"length", Length},
                                                     {"count", Length},
                                                     {"first", First},
                                                     {"last", Last},
                                                     {"list", ToList},
                                                     {"join", Join},
                                                     {"default", Default},
                                                     {"d", Default},
                                                     {"string", ToString},
                                                     {"tojson", ToJson},
                                                     {"items", Items},
                                                     {"replace", Replace},
                                                     {"select", SelectEqual},
                                                     {"reject", RejectEqual}}};
constexpr std::array<NamedTest, 12> kTests = {
    {{"defined", [](const Value& value) { return value.undefined() == nullptr; }},
     {"undefined", [](const Value& value) { return value.undefined() != nullptr; }},
     {"none", [](const Value& value) { return value.is_none(); }},
     {"string", [](const Value& value) { return value.string() != nullptr; }},
     {"mapping",
      [](const Value& value) { return value.dict() && value.namespace_fields() == nullptr; }},
     {"iterable", IsSequence},
     {"sequence", IsSequence},
     {"number", IsNumber},
     {"integer", [](const Value& value) { return value.integer() != nullptr; }},
     {"boolean", [](const Value& value) { return value.boolean() != nullptr; }},
     {"true", [](const Value& value) { return value.boolean() && *value.boolean(); }},
     {"false", [](const Value& value) { return value.boolean() && !*value.boolean(); }}}};

template <typename Table>
const auto* FindNamed(const Table& table, std::string_view name) {
  const auto* found = std::find_if(table.begin(), table.end(),
                                   [name](const auto& entry) { return entry.name == name; });
  return found == table.end() ? nullptr : found;
}

Result<Value> MakeNamespace(const TemplateArguments& args) {
  if (args.keywords.size() != args.values.size()) {
    return Unsupported("namespace: an argument without a name is not built");
  }
  Value::Dict fields;
  for (size_t i = 0; i < args.values.size(); ++i) {
    SetEntry(args.keywords[i], args.values[i], &fields);
  }
  return Value::MakeNamespace(std::move(fields));
}

Result<Value> StrftimeNow(const std::string& format, const std::tm& now) {
  std::array<char, 256> text;
  const size_t num_bytes = std::strftime(text.data(), text.size(), format.c_str(), &now);
  if (num_bytes == 0 && !format.empty()) {
    return Unsupported("strftime_now: the format \"{}\" is not built", format);
  }
  return Value(std::string(text.data(), num_bytes));
}

}  // namespace

bool IsTemplateFunction(std::string_view name) {
  return std::find(kFunctions.begin(), kFunctions.end(), name) != kFunctions.end();
}
bool IsTemplateMethod(std::string_view name) { return FindNamed(kMethods, name) != nullptr; }
bool IsTemplateFilter(std::string_view name) { return FindNamed(kFilters, name) != nullptr; }
bool IsTemplateTest(std::string_view name) { return FindNamed(kTests, name) != nullptr; }

Result<Value> CallTemplateFunction(std::string_view name, const TemplateArguments& args,
                                   const std::optional<std::tm>& now) {
  if (name == "namespace") return MakeNamespace(args);
  if (args.values.size() != 1 || args.values[0].string() == nullptr) {
    return InvalidArgument("{}: expected one string", name);
  }
  if (name == "raise_exception") return InvalidArgument("{}", *args.values[0].string());
  CHECK(name == "strftime_now");
  if (!now.has_value()) return Unsupported("strftime_now: the time is not given");
  return StrftimeNow(*args.values[0].string(), *now);
}

Result<Value> CallTemplateMethod(std::string_view name, const TemplateArguments& args) {
  return FindNamed(kMethods, name)->call(args);
}

Result<Value> ApplyTemplateFilter(std::string_view name, const TemplateArguments& args) {
  return FindNamed(kFilters, name)->call(args);
}

bool TestTemplateValue(std::string_view name, const Value& value) {
  return FindNamed(kTests, name)->holds(value);
}

Result<Value::List> ItemsOf(const Value& value) {
  if (value.list() != nullptr) return *value.list();
  if (value.undefined() != nullptr) return Value::List();
  Value::List items;
  if (value.string() != nullptr) {
    for (const std::string_view point : CodePoints(*value.string())) {
      items.push_back(MakeText(point));
    }
    return items;
  }
  if (value.dict() == nullptr || value.namespace_fields() != nullptr) {
    return InvalidArgument("expected something to go over, got {}", value.KindName());
  }
  for (const auto& entry : *value.dict()) items.push_back(MakeText(entry.first));
  return items;
}

}  // namespace octavo
