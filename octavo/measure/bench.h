#pragma once
// `octavo bench MODEL`: speed of the forward pass, and its shares of what the machine can do; of
// one model or of several (formats of one model, as a rule) in turns.
//
// Measured straight over Model::Forward and Model::Logits with the engine's own live weights and
// backend, between two steps of an otherwise idle engine: no HTTP, no scheduler, no sampling.
// Inputs are random token ids. `docs/bench.md` says how to compare with llama-bench.

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/kernels/input_ranges.h"
#include "octavo/measure/stats.h"
#include "octavo/sync/serving.h"

namespace octavo {

struct BenchOptions {
  std::vector<int64_t> batches = {1};  // Sequences decoded together; one row each.
  int64_t input_len = 512;             // Prompt tokens of each sequence.
  int64_t output_len = 128;            // Decode steps.
  int64_t chunk_tokens = 512;          // Prompt tokens of one forward pass, as served by default.
  int64_t repeats = 3;                 // Medians are over these.
  // Called with a sentence before each part. May be empty.
  std::function<void(std::string_view what)> on_progress;
};

struct BenchMachine {
  // A plain reduction over the engine's own packed weights with its threads, alternating with the
  // decode steps: the bytes of a step divided by the median time.
  double read_gb_per_s = 0.0;
  // The backend's matrix instruction on operands in registers, all threads, for at least a second.
  double matrix_tflop_per_s = 0.0;
  std::string backend;  // Such as "cpu/avx512".
  int num_threads = 0;
};

struct BenchRow {
  std::string format;        // The label: "bf16", "fp8".
  std::string recipe = {};   // Serving::recipe.
  bool is_emulated = false;  // Serving::is_emulated.
  int64_t batch = 0;
  int64_t input_len = 0;
  int64_t output_len = 0;
  // Packed bytes that a decode step reads (bench_pass.h).
  double weight_bytes_per_step = 0.0;
  Spread
      prefill_tok_per_s;  // Prompt tokens of all sequences, in chunks, and one row of logits each.
  Spread decode_tok_per_s;  // Tokens of all sequences.
  // weight_bytes_per_step x steps per second / read bandwidth. KV is not counted.
  double share_of_read_bandwidth = 0.0;
  // Multiply-adds x 2 of the linear layers (head included, where it ran) in prefill / matrix peak.
  double share_of_matrix_peak = 0.0;
  // Rates over those of the first subject in the same round, median and extremes; 1 for the first.
  Spread prefill_ratio;
  Spread decode_ratio;
  InputRanges nvfp4_inputs;  // Of all rounds, decode and prefill.
};

struct BenchReport {
  BenchMachine machine;
  std::string model_dir;
  int64_t ops_per_token = 0;   // 2 x weights of the linear layers, head included.
  std::vector<BenchRow> rows;  // By batch size, then by subject.
};

// What is measured, under a label of its own.
struct BenchSubject {
  std::string label;  // Empty: the format of its table.
  ServingOptions serving;
};

// Loads every subject as `serving` says (its engine gets a KV pool as small as it may be) and
// measures one row a subject and batch size. Subjects take turns, in an order that is reversed
// every other round, so that what the machine does meanwhile meets all of them.
// Errors: those of StartServing; kInvalidArgument for an option out of range or no subject;
// kExhausted when the KV pages of a batch do not fit in memory.
Result<BenchReport> BenchModels(std::vector<BenchSubject> subjects, const BenchOptions& options);

// One sentence for each subject and batch size at which it is slower than the first one, or not
// clearly faster (the ratio's extremes lie on both sides of 1). Empty for one subject.
std::vector<std::string> BenchVerdicts(const BenchReport& report);

// A table for people, and {"machine":{...},"rows":[...]}.
// With several subjects also ratios, verdicts and, in JSON, "verdicts":[...].
std::string BenchReportText(const BenchReport& report);
std::string BenchReportJson(const BenchReport& report);

// An SVG picture of the rates by batch size and subject.
std::string BenchReportSvg(const BenchReport& report);

}  // namespace octavo
