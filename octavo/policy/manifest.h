#pragma once
// The manifest: what an engine takes in an update, so that a trainer asks instead of keeping a list
// of its own. Served under /octavo/v1/manifest; docs/api.md has its JSON.

#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"

namespace octavo {

// Experts of a layer in one tensor, which may be sent instead of its weights.
struct ManifestStacked {
  std::string name;
  Shape shape;
};

// Value type; const is thread-safe. Vectors have one element a row of the table.
struct Manifest {
  std::string weight_version = {};  // What is live; empty: no engine made it.
  PrecisionTable table = {};
  // Weights of one number share a scale: each is encoded with the largest magnitude of all of them
  // (SharedScaleSets). -1: on its own.
  std::vector<int> group_of = {};
  std::vector<bool> is_optional = {};  // An update may leave it out.
  std::vector<ManifestStacked> stacked = {};
  std::string tied_head =
      {};  // May be sent and must equal the embedding; empty: the head has a row.
};

// Every row is needed but those of multi-token prediction that are not live: `is_held` says which
// rows are; empty: none of those layers. `table` is of `spec`.
Manifest MakeManifest(const ModelSpec& spec, const PrecisionTable& table,
                      const std::vector<bool>& is_held);

// One object:
//   weight_version, format, layout, table_hash
//   tensors   [{name role layer shape format rule dtypes parts group optional}], in forward order;
//             dtypes are those of the plain weight; parts [{name kind dtype shape optional}] may be
//             sent instead of it, and are empty for bf16; layer and group may be null
//   stacked   [{name shape}]
//   tied_head a name, or null
std::string ManifestToJson(const Manifest& manifest);

// The inverse; parts follow from the rows. Errors: kCorrupt naming the key and what came, also for
// a table_hash that is not that of the rows; kUnsupported for a format or role of a newer engine.
Result<Manifest> ParseManifest(std::string_view json);

// "codes", "scales", "tensor_scale", "tensor_divisor", "input_scale", "input_divisor".
std::string_view StoredPartName(StoredPart part);

}  // namespace octavo
