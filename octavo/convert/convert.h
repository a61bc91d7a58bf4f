#pragma once
// The converter: a checkpoint folder into another, shard by shard, through the one transform.
//
// OUT gets the files of the source under their names, scales in the file of their weight, an index
// in any case, the other files of the source, and config.json last of all: until it stands there,
// nothing takes OUT for a checkpoint. The state of an unfinished run is OUT/.octavo-convert.json.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/function_ref.h"
#include "octavo/base/status.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/convert/source_tensors.h"
#include "octavo/formats/quantize.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"

namespace octavo {

// What is done so far, now and then.
struct ConvertProgress {
  std::string_view tensor;  // One of those at work.
  int64_t bytes_done = 0;   // Of the source.
  int64_t bytes_total = 0;
};

struct ConvertOptions {
  // Made when it does not exist. An existing one must be empty, or hold an unfinished run of the
  // same plan (same source files, same table).
  std::string out_dir;
  int num_threads = 0;  // 0: NumUsableThreads(). Changes time, never bytes.
  // Keeps the finished files of an unfinished run in out_dir. Without it they are written anew.
  bool resume = false;
  // F32 and F16 weights are encoded as they are, not rounded to BF16 first. Default: false.
  bool direct = false;
  SourceOptions source = {};
  // Called on the caller's thread.
  std::optional<FunctionRef<void(const ConvertProgress&)>> progress;
};

// One weight, or one tensor that is none, and what became of it.
struct ConvertedTensor {
  std::string name;
  std::string role;       // Of the weight table; empty for a tensor that it does not know.
  std::string format;     // The row's: "bf16", "fp8". For a tensor without row its dtype.
  std::string rule;       // Of the policy, that decided so.
  int64_t bytes_in = 0;   // In the source, with its scales.
  int64_t bytes_out = 0;  // With its scales.
  // Of weights encoded in this run, against what was encoded.
  std::optional<QuantizationError> error;
  std::string note;  // Why a tensor is not plainly converted; empty as a rule.
};

struct ConvertReport {
  double seconds = 0.0;
  int64_t bytes_in = 0;         // Tensor bytes of the source.
  int64_t bytes_out = 0;        // Tensor bytes in out_dir.
  bool passed_through = false;  // The source was stored by this table already.
  int num_files_resumed = 0;    // Finished by an earlier run.
  std::string table_hash;
  std::vector<std::string> warnings;     // Sentences about what the result lacks.
  std::vector<ConvertedTensor> tensors;  // By file, then by name as bytes.
};

// Memory: a few MiB a thread beside the mapped source, whatever the size of the model. The source
// is never written.
// Errors: those of PlanConversion (conversion_plan.h), before anything is written;
// kInvalidArgument for an out_dir that is the source or holds something else; kExhausted when the
// disk has no room for the result; NaN and infinity by tensor, count and index; those of writing.
// After an error out_dir is no checkpoint.
Result<ConvertReport> ConvertCheckpoint(const Checkpoint& checkpoint, const ModelSpec& spec,
                                        const PrecisionTable& table, const ConvertOptions& options);

// {"seconds", "bytes_in", "bytes_out", "table_hash", "passed_through", "files_resumed", "warnings",
//  "tensors": [{"name", "role", "format", "rule", "bytes_in", "bytes", "relative_rms_error",
//  "max_error", "saturated_share", "zero_blocks", "subnormal_scale_share", "note"}]}; what was not
// measured is null.
std::string ConvertReportJson(const ConvertReport& report);

}  // namespace octavo
