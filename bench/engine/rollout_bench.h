#pragma once
// What the modes of rollout_bench share, and the modes themselves. Each prints JSON objects, one a
// line, and exits with a message when something cannot be had.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/function_ref.h"
#include "octavo/base/status.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/matrix.h"
#include "octavo/model/model.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"
#include "octavo/sync/serving.h"

namespace octavo {

// Prints the message and exits with 1.
[[noreturn]] void Fail(std::string_view message);

template <typename T>
T Must(Result<T> result) {
  if (!result.has_value()) {
    Fail(result.error().message());
  }
  return std::move(*result);
}
void Must(const Status& status);

// Seconds of a steady clock.
double Now();

double Median(std::vector<double> values);

// Of the median: robust where other programs run beside. The bound is an order statistic: its rank
// is that of the normal approximation of the binomial.
struct Cost {
  double median = 0.0;
  double upper_95 = 0.0;
};
Cost CostOf(std::vector<double> ratios);

// A folder under bench/shapes, in one format, on `num_threads` (0: all that may be used).
struct ShapeArgs {
  std::string shape;
  std::string format;  // A name of --format: "bf16", "fp8", ...
  int num_threads = 0;
  int64_t max_total_tokens = 32768;  // Of the KV pool; at least a context of 4096.
};

// Served with random weights.
std::unique_ptr<Serving> StartShape(const ShapeArgs& args);

// Members of a line: "recipe":"serving-1/fp8","emulated":false
struct Arithmetic {
  std::string recipe;
  bool is_emulated = false;
};
std::string ArithmeticJson(const Serving& serving);
std::string ArithmeticJson(const Arithmetic& arithmetic);

// Runs `fn` on the engine's thread over the live weights and waits for it.
void OnLiveWeights(Serving& serving, FunctionRef<void(const ModelWeights&, Backend&)> fn);

// The random weights alone, for a backend of the same kind (MakeBenchBackend).
struct ShapeWeights {
  ModelSpec spec;
  std::unique_ptr<ModelWeights> weights;
  PrecisionTable table;
  std::vector<InputForm> inputs;  // WeightPlan::inputs.
};
// With `inputs` in the place of its own, all of the table's weights.
Arithmetic ArithmeticOf(const ShapeWeights& shape, const Backend& backend,
                        std::span<const InputForm> inputs);
ShapeWeights LoadShape(const ShapeArgs& args);

std::unique_ptr<Backend> MakeBenchBackend(int num_threads);

// --- Modes ---------------------------------------------------------------------------------------

// Output logprobs against none: decode steps of 1, 16 and 64 sequences, in pairs.
void BenchLogprobs(const ShapeArgs& args, int num_pairs);

// Distinct prompts, then groups of samples of one prompt: output tokens a second; before both,
// prompts alone.
struct GroupsArgs {
  int64_t num_groups = 0;
  int64_t group_size = 0;
};
void BenchGroups(ShapeArgs args, const GroupsArgs& groups);

// The digest of all live weights, against plain reads of them before and after.
void BenchDigest(const ShapeArgs& args, int num_rounds);

// Decode steps of each of `formats` against the first, in turns in one process, for 1, 8 and 64
// sequences of 128, 1024 and 4096 tokens. Cells whose pages do not fit the free memory are skipped,
// and a line says so. The cells of most tokens take half of the rounds.
struct StepsArgs {
  std::string shape;
  std::vector<std::string> formats;
  int num_rounds = 0;
  int num_threads = 0;
};
void BenchSteps(const StepsArgs& args);

// NVFP4 input scale modes token and pow2 against static, over the same weights and pages: decode
// steps of 1, 16 and 64 sequences, in turns.
struct InputScaleArgs {
  std::string shape;
  int num_rounds = 0;
  int num_threads = 0;
};
void BenchInputScale(const InputScaleArgs& args);

}  // namespace octavo
