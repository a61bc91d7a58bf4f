#pragma once
// What a conversion will write, decided from headers alone, before a byte is written.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/checkpoint/writer.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"

namespace octavo {

enum class ConvertAction {
  kTransform,  // TransformWeight of the row.
  kKeep,       // A weight kept as it is: checked finite, bytes copied.
  kAdopt,      // Already in its stored form: checked with its scales, bytes copied.
  kCopy,       // A scale of an adopted weight, or a tensor that the weight table does not know.
};

// One tensor of the source. Pointers are into the checkpoint and the table.
struct ConvertStep {
  const StoredTensor* source = nullptr;
  const PrecisionRow* row = nullptr;  // Null for kCopy.
  ConvertAction action = ConvertAction::kCopy;
};

// One file, under the name that it has in the source.
struct ShardPlan {
  std::string file;
  std::vector<TensorHeader> headers;  // In the order in which the steps give their tensors.
  std::vector<ConvertStep> steps;     // By name as bytes.
};

struct ConversionPlan {
  std::vector<ShardPlan> shards;
  std::string config_json;
  std::vector<std::string> unknown;  // Tensors that the weight table does not know, by name.
  int64_t bytes_in = 0;
  int64_t bytes_out = 0;
  bool passes_through = false;  // The source already is stored by the table.
  // XXH3-128 (hex) over everything that decides the bytes, and over the source's files: names,
  // sizes and times of change. Two runs of one hash may share their finished files.
  std::string hash;
};

// `checkpoint` and `table` must outlive the plan.
// Errors: kInvalidArgument for a weight that is missing or of another shape or dtype, a scale
// without its weight, a table of another model; kUnsupported for a source that is quantized by
// another table; all name the tensor.
Result<ConversionPlan> PlanConversion(const Checkpoint& checkpoint, const ModelSpec& spec,
                                      const PrecisionTable& table);

// The tensors of `checkpoint` that belong to no weight of `table`, by name.
std::vector<const StoredTensor*> UnknownTensors(const Checkpoint& checkpoint,
                                                const PrecisionTable& table);

// QuantizationConfigJson(table) whose list also names the modules of the unknown matrices, which
// an engine could otherwise take for quantized ones.
std::string QuantizationConfigFor(const PrecisionTable& table,
                                  std::span<const StoredTensor* const> unknown);

// Whether a quantization_config carries our own table.
bool HasOwnTable(std::string_view quantization_config);

// modules_to_not_convert of a quantization_config, as it stands there; empty when there is none.
std::vector<std::string> ListedModules(std::string_view quantization_config);

}  // namespace octavo
