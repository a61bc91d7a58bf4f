#pragma once
// The table for scripts: the `--json` form of `octavo plan`.

#include <string>

#include "octavo/policy/precision_table.h"
#include "octavo/policy/table_sizes.h"

namespace octavo {

// One object:
//   format, hash
//   tensors        [{name role layer shape format rule reason shadowed stored_bytes bf16_bytes}],
//                  in forward order; layer is null outside the decoder layers
//   formats        {FORMAT: {tensors stored_bytes bf16_bytes}}
//   stored_bytes, bf16_bytes   of the whole model: scales included; as BF16
std::string TableToJson(const PrecisionTable& table);

// One element of `tensors`.
std::string RowToJson(const PrecisionRow& row);

}  // namespace octavo
