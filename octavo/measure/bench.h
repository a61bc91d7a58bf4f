#pragma once
// `octavo bench MODEL`: speed of the forward pass, and its shares of what the machine can do.
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
  std::string format;  // Of the policy: "bf16", "fp8".
  int64_t batch = 0;
  int64_t input_len = 0;
  int64_t output_len = 0;
  Spread
      prefill_tok_per_s;  // Prompt tokens of all sequences, in chunks, and one row of logits each.
  Spread decode_tok_per_s;  // Tokens of all sequences.
  // Weight bytes that one decode step reads x steps per second / read bandwidth. KV is not counted.
  double share_of_read_bandwidth = 0.0;
  // Multiply-adds x 2 of the linear layers (head included, where it ran) in prefill / matrix peak.
  double share_of_matrix_peak = 0.0;
};

struct BenchReport {
  BenchMachine machine;
  std::string model_dir;
  int64_t weight_bytes_per_step = 0;  // Packed bytes of the linear layers, head and norms.
  int64_t ops_per_token = 0;          // 2 x weights of the linear layers, head included.
  std::vector<BenchRow> rows;
};

// Loads the model as `serving` says (its engine gets a KV pool as small as it may be) and measures
// one row a batch size.
// Errors: those of StartServing; kInvalidArgument for an option out of range; kExhausted when the
// KV pages of a batch do not fit in memory.
Result<BenchReport> BenchModel(ServingOptions serving, const BenchOptions& options);

// A table for people, and {"machine":{...},"rows":[...]}.
std::string BenchReportText(const BenchReport& report);
std::string BenchReportJson(const BenchReport& report);

}  // namespace octavo
