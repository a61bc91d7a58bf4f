#pragma once
// Our own key of quantization_config, "octavo": the table itself, as JSON text.
//
//   schema   2
//   format   what was asked for
//   layout   "compressed-tensors"; absent otherwise
//   hash     PrecisionTable::Hash
//   reasons  {rule: reason}
//   table    [{name role format rule}], and where there are any `reason`, `shadowed`; in forward
//            order. Experts of one layer and matrix that are decided alike share a row: `name` is
//            that of expert `experts[0]`, and the row holds up to expert `experts[1]`.
//
// Schema 1 had one row a weight, and no layout.

#include <string>
#include <string_view>

#include "octavo/base/status.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"

namespace octavo {

inline constexpr std::string_view kOwnKey = "octavo";

std::string OwnTableJson(const PrecisionTable& table);

// Complete, for this model, and with the hash it was written with.
// Errors: kCorrupt for anything else; kUnsupported for another schema or an unknown format.
Result<PrecisionTable> ReadOwnTable(const ModelSpec& spec, std::string_view own_json);

}  // namespace octavo
