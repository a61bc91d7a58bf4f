#pragma once
// What is wrong between a table, a foreign list and the tensors that are stored: for `octavo audit`
// and for loading. Data out; nothing here decides what happens next.

#include <span>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/policy_finding.h"
#include "octavo/policy/precision_table.h"

namespace octavo {

// Holds every row of `table` against the dtypes that a checkpoint stores, in any format and layout.
// Layers of multi-token prediction may be left out whole; experts in BF16 may be stacked. Codes,
// all errors, one a row and tensor:
//   weight-missing     nothing is stored under the name
//   expected-bf16      a row kept in BF16 has codes: an engine would cast them without scale
//   expected-quantized a quantized row has plain values, or the codes of another format
//   scale-missing      a quantized row lacks a part that is not optional
//   scale-dtype        a part of another dtype than the format has
//   orphan-scale       scales without a quantized weight
//   weight-dtype       a kept row is no float tensor
std::vector<PolicyFinding> CheckStoredDTypes(const ModelSpec& spec, const PrecisionTable& table,
                                             std::span<const StoredDType> stored);

// Everything that `quantization_config` (empty, ours or foreign) gives reason to say about `table`,
// which was read from it: for ours, that what other engines read means the same table (code
// list-differs, error, one a row); and the findings of the list as the engine reads it that the
// configuration names (list_findings.h).
// Errors: those of ReadQuantizationFields and MakeReader; kUnsupported for a quant_method that is
// not known.
Result<std::vector<PolicyFinding>> CheckQuantizationConfig(const ModelSpec& spec,
                                                           const PrecisionTable& table,
                                                           std::string_view quantization_config,
                                                           std::span<const StoredDType> stored);

}  // namespace octavo
