#pragma once
// Functions, methods, filters and tests of the chat template language, as Jinja2 3.1 and HF
// transformers (utils/chat_template_utils.py) define them. Thread-safe.

#include <ctime>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/text/template_value.h"

namespace octavo {

// What a call is given. For methods and filters values[0] is what it is applied to.
struct TemplateArguments {
  std::vector<TemplateValue> values;
  std::vector<std::string> keywords;  // Names of the last keywords.size() values.
};

bool IsTemplateFunction(std::string_view name);
bool IsTemplateMethod(std::string_view name);
bool IsTemplateFilter(std::string_view name);
bool IsTemplateTest(std::string_view name);

// `name` is known. `now` is what strftime_now tells, kUnsupported without it.
// Errors: kInvalidArgument (an argument of the wrong kind or number; raise_exception, with its
// message), kUnsupported (an option that is not built).
Result<TemplateValue> CallTemplateFunction(std::string_view name, const TemplateArguments& args,
                                           const std::optional<std::tm>& now);
Result<TemplateValue> CallTemplateMethod(std::string_view name, const TemplateArguments& args);
Result<TemplateValue> ApplyTemplateFilter(std::string_view name, const TemplateArguments& args);
bool TestTemplateValue(std::string_view name, const TemplateValue& value);

// What a loop goes over: a list's items, a dict's keys, a string's characters; nothing for
// undefined. Errors: kInvalidArgument for other kinds.
Result<TemplateValue::List> ItemsOf(const TemplateValue& value);

}  // namespace octavo
