#pragma once
// What a conversion will write, decided from headers alone, before a byte is written.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/checkpoint/writer.h"
#include "octavo/convert/inverse_scales.h"
#include "octavo/convert/source.h"
#include "octavo/convert/source_tensors.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"

namespace octavo {

// ModelOpt's second description of a quantized checkpoint, beside config.json.
inline constexpr std::string_view kHfQuantConfigFile = "hf_quant_config.json";

enum class ConvertAction {
  kEncode,          // Quantized from values, or from what other codes decode to.
  kKeep,            // Values checked finite, bytes copied.
  kDecode,          // Codes to BF16.
  kAdopt,           // Codes copied as they are, scales in the form that the target has.
  kPassThrough,     // Everything copied as it is, and checked.
  kBlocksToGroups,  // Blocks with power-of-two scales to mxfp8: the codes stay.
  kGroupsToBlocks,  // mxfp8 to such blocks: the codes only change by a power of two. Where one
                    // does not survive that, kEncode.
  kCopy,            // A tensor that the weight table does not know: bytes copied.
};

// One tensor that a step writes.
struct StepOutput {
  StoredTensorSpec spec;
  // What it is copied from, for kAdopt and kPassThrough. Null where `value` says what it holds.
  const StoredTensor* from = nullptr;
  float value = 1.0F;  // Of an adopted tensor of one element.
};

// One weight, or one tensor that is no weight. Pointers are into the checkpoint and the table.
struct ConvertStep {
  std::string_view name;
  const PrecisionRow* row = nullptr;  // Null for kCopy.
  int row_idx = -1;                   // In table.rows.
  ConvertAction action = ConvertAction::kCopy;
  WeightSource source;  // For kCopy the bytes.
  std::vector<StepOutput> outputs;
  size_t first_header = 0;                    // Of outputs, in ShardPlan::headers.
  int64_t bytes_in = 0;                       // Of everything that the step reads.
  std::string note;                           // For the report.
  const StoredTensor* input_scale = nullptr;  // What the source has for activations; null: none.
};

// One file, under the name that it has in the source.
struct ShardPlan {
  std::string file;
  std::vector<TensorHeader> headers;  // In the order in which the steps give their tensors.
  std::vector<ConvertStep> steps;     // By name as bytes.
};

struct ConversionPlan {
  std::vector<ShardPlan> shards;
  // Rows whose weights are encoded with one amax: every row of a format with SharesScale that has
  // a step to encode it is in one set, alone or with the others.
  std::vector<std::vector<int>> amax_sets;
  StoredLayout layout = StoredLayout::kDefault;
  bool direct = false;
  // What steps look into beside the checkpoint.
  std::vector<std::unique_ptr<InvertedScales>> inverted;
  std::string config_json;
  std::string hf_quant_config_json;   // Empty: there is none.
  std::vector<std::string> unknown;   // Tensors that the weight table does not know, by name.
  std::vector<std::string> warnings;  // Sentences about what the result lacks.
  int64_t bytes_in = 0;
  int64_t bytes_out = 0;
  bool passes_through = false;  // The source already is stored by the table.
  // XXH3-128 (hex) over everything that decides the bytes, and over the source's files: names,
  // sizes and times of change. Two runs of one hash may share their finished files.
  std::string hash;
};

struct PlanOptions {
  // F32 and F16 weights are encoded as they are, not rounded to BF16 first. Default: false, for the
  // trainer runs a BF16 model.
  bool direct = false;
  SourceOptions source = {};
};

// `checkpoint` and `table` must outlive the plan. Weights of MTP layers may be missing, all of a
// layer; scales go into the file of their weight.
// Errors: kInvalidArgument for a weight that is missing, a table of another model; those of
// FindSources (source_tensors.h); all name the tensor.
Result<ConversionPlan> PlanConversion(const Checkpoint& checkpoint, const ModelSpec& spec,
                                      const PrecisionTable& table, const PlanOptions& options = {});

// The tensors of `checkpoint` that belong to no weight of `table`, by name.
std::vector<const StoredTensor*> UnknownTensors(const Checkpoint& checkpoint,
                                                const PrecisionTable& table);

// The modules of the matrices among `unknown`, which an engine could otherwise take for quantized
// ones: configurations name them as kept.
std::vector<std::string> UnknownModules(std::span<const StoredTensor* const> unknown);
// QuantizationConfigJson(table, UnknownModules(unknown)).
std::string QuantizationConfigFor(const PrecisionTable& table,
                                  std::span<const StoredTensor* const> unknown);

// Whether a quantization_config carries our own table.
bool HasOwnTable(std::string_view quantization_config);

// modules_to_not_convert of a quantization_config, as it stands there; empty when there is none.
std::vector<std::string> ListedModules(std::string_view quantization_config);

}  // namespace octavo
