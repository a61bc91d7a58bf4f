#pragma once
// The table for people: a map of the layers, and one weight explained.

#include <string>
#include <string_view>

#include "octavo/base/status.h"
#include "octavo/policy/precision_table.h"

namespace octavo {

// One line for each run of decoder layers that are decided alike, one column for each linear role;
// then the weights outside the layers, the bytes of each format and the hash. No newline at the
// end.
std::string TableToText(const PrecisionTable& table);

// The row that `name` means: a parameter ("….weight") or a module, with or without a leading
// "model.". The row lives as long as the table.
// Errors: kNotFound, with the nearest names.
Result<const PrecisionRow*> FindRow(const PrecisionTable& table, std::string_view name);

// Everything about one weight: format, role, shape, the rule that won and why, the rules it beat,
// and the tensors that store it. `name` as for FindRow. No newline at the end.
Result<std::string> ExplainRow(const PrecisionTable& table, std::string_view name);

// "5.3 MiB"; below 1 KiB in bytes.
std::string BytesText(int64_t num_bytes);

}  // namespace octavo
