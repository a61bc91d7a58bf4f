#pragma once
// What is wrong between a table, a foreign list and the tensors that are stored: for `octavo audit`
// and for loading. Data out; nothing here decides what happens next.

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/policy/engine_modules.h"
#include "octavo/policy/precision_table.h"
#include "octavo/policy/sglang_fp8.h"

namespace octavo {

// severity: "error" (the checkpoint cannot be served as it says) or "warning" (it can, but not as
// its maker may think).
struct PolicyFinding {
  std::string code;  // Stable, for scripts: "scale-missing", ...
  std::string severity;
  std::string tensor;   // The weight, module or list entry it is about.
  std::string message;  // Names the thing, then expected and actual.
  std::string cure;     // What to do about it.
};

struct StoredDType {
  std::string name;
  DType dtype = DType::kBf16;
};

// Holds every row of `table` against the dtypes that a checkpoint stores. Codes, all errors:
//   weight-missing     nothing is stored under the name
//   kept-but-fp8       a row kept in BF16 has E4M3 codes: an engine would cast them without scale
//   fp8-but-kept       a quantized row has no E4M3 codes
//   scale-missing      a quantized row has no scales
//   scale-dtype        its scales are neither F32 nor BF16
//   orphan-scale       scales without a quantized weight
//   weight-dtype       a kept row is no float tensor
std::vector<PolicyFinding> CheckStoredDTypes(const PrecisionTable& table,
                                             std::span<const StoredDType> stored);

// Findings of a list in the dialect sglang_fp8 against the modules that an engine builds. Codes,
// all warnings:
//   list-hidden        ignored_layers hides a filled modules_to_not_convert
//   entry-fused-name   an entry names a fused module: only its shards are compared
//   entry-unmatched    an entry matches no module
//   kept-by-one-expert a container of experts is kept only because single experts are listed
std::vector<PolicyFinding> CheckForeignList(std::span<const EngineModule> modules,
                                            std::span<const FusedMapping> mapping,
                                            const SglangFp8List& list);

// Everything that `quantization_config` (empty, ours or foreign) gives reason to say about `table`,
// which was read from it: for ours, that the list other engines read means the same table (code
// list-differs, error, one a row); the findings of CheckForeignList.
// Errors: as ReadSglangFp8List.
Result<std::vector<PolicyFinding>> CheckQuantizationConfig(const ModelSpec& spec,
                                                           const PrecisionTable& table,
                                                           std::string_view quantization_config);

}  // namespace octavo
