#pragma once
// Policy files: what --policy FILE reads (TOML 1.0; the schema is in docs/policy.md).
//
//   preset = "slime-fp8"            a built-in policy to start from (policy_presets.h)
//   format = "fp8"                  as --format; required without a preset
//   scope = "all"                   as --scope
//   layout = "compressed-tensors"   as --layout
//   keep_first = 1                  as --keep-first, --keep-last, --keep-mtp
//   keep_last = 1
//   keep_mtp = true
//   keep = ["o_proj"]               as --keep
//   [[rule]]                        the first rule that matches a weight decides it
//   pattern = "*.down_proj"         one or a list; any of them
//   role = "attention.o"            one or a list; a role, or a group of roles ("attention")
//   layers = "0-3"                  a number, "FIRST-LAST", or a list of those
//   format = "bf16"
//   optional = true                 it may match or win nothing; default: that is an error

#include <string_view>

#include "octavo/base/status.h"
#include "octavo/policy/precision_table.h"

namespace octavo {

// `file_name` stands in messages. A file's own keeps and rules stand before its preset's.
// Errors: kInvalidArgument, "FILE:LINE:COLUMN: ...", for text that is no TOML, an unknown key or
// name (with the nearest ones), a value of another type or range, and for a file without a format.
Result<PolicyOptions> ParsePolicyFile(std::string_view text, std::string_view file_name);

}  // namespace octavo
