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
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"

namespace octavo {

// What is done so far, after each tensor of the source.
struct ConvertProgress {
  std::string_view tensor;
  int64_t bytes_done = 0;  // Of the source.
  int64_t bytes_total = 0;
};

struct ConvertOptions {
  // Made when it does not exist. An existing one must be empty, or hold an unfinished run of the
  // same plan (same source files, same table).
  std::string out_dir;
  int num_threads = 0;  // 0: NumUsableThreads(). Changes time, never bytes.
  // Keeps the finished files of an unfinished run in out_dir. Without it they are written anew.
  bool resume = false;
  std::optional<FunctionRef<void(const ConvertProgress&)>> progress;
};

// One tensor of the source and what became of it.
struct ConvertedTensor {
  std::string name;
  std::string format;     // The row's: "bf16", "fp8". For a tensor without row its dtype.
  int64_t bytes_in = 0;   // In the source.
  int64_t bytes_out = 0;  // With its scales.
  // Of fp8 weights encoded in this run: RMS error over RMS value (Fp8BlockError), and what the
  // blocks looked like.
  std::optional<double> relative_rms_error;
  int64_t num_saturated = 0;
  int64_t num_zero_blocks = 0;
  std::string note;  // Why a tensor is not plainly converted; empty as a rule.
};

struct ConvertReport {
  double seconds = 0.0;
  int64_t bytes_in = 0;         // Tensor bytes of the source.
  int64_t bytes_out = 0;        // Tensor bytes in out_dir.
  bool passed_through = false;  // The source was stored by this table already.
  int num_files_resumed = 0;    // Finished by an earlier run.
  std::string table_hash;
  std::vector<ConvertedTensor> tensors;  // By file, then by name as bytes.
};

// Memory: one tensor with its stored form, beside the mapped source. The source is never written.
// Errors: those of PlanConversion (conversion_plan.h), before anything is written;
// kInvalidArgument for an out_dir that is the source or holds something else; NaN and infinity by
// tensor, count and index; those of writing. After an error out_dir is no checkpoint.
Result<ConvertReport> ConvertCheckpoint(const Checkpoint& checkpoint, const ModelSpec& spec,
                                        const PrecisionTable& table, const ConvertOptions& options);

// {"seconds", "bytes_in", "bytes_out", "table_hash", "passed_through", "files_resumed",
//  "tensors": [{"name", "format", "bytes_in", "bytes", "relative_rms_error", "saturated",
//  "zero_blocks", "note"}]}; the error is null where none was measured.
std::string ConvertReportJson(const ConvertReport& report);

}  // namespace octavo
