#pragma once
// Renders a parsed chat template as Jinja2 3.1 does, with its undefined values: they print nothing,
// are false, have no items, and fail in anything else.

#include <ctime>
#include <optional>
#include <string>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/text/template_parser.h"
#include "octavo/text/template_value.h"

namespace octavo {

// `variables` is what the template's outermost names are. `now`: template_functions.h.
// Errors: kInvalidArgument (values that the template cannot take, or that it raises an exception
// for), kUnsupported (what is not built, more than 256 MiB of text or 4 million steps); both name
// the line. Thread-safe.
Result<std::string> RenderTemplate(const std::vector<TemplateNode>& nodes,
                                   TemplateValue::Dict variables,
                                   const std::optional<std::tm>& now);

}  // namespace octavo
