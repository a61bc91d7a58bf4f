#pragma once
// `octavo eval`: accuracy over word problems, in the form of SGLang's GSM8K benchmark.

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/kernels/input_ranges.h"
#include "octavo/measure/generator.h"
#include "octavo/measure/problems.h"

namespace octavo {

struct EvalOptions {
  int64_t num_shots = 5;      // Solved problems in front of each question, from the same file.
  int64_t num_questions = 0;  // 0, or more than there are: all.
  int64_t parallel = 64;      // Requests in flight, at most 4096.
  int64_t max_new_tokens = 512;
  double temperature = 0.0;  // 0: greedy.
  double top_p = 1.0;
  // Besides "Question", "Assistant:" and "<|separator|>": see ChatStop.
  std::vector<std::string> extra_stop;
  // Called from one thread at a time with replies that have come and questions in all. May be
  // empty.
  std::function<void(int64_t done, int64_t total)> on_progress;
};

// One question with its reply.
struct EvalAnswer {
  std::string text;
  std::optional<std::string> value;  // What the text was read as; absent: invalid.
  std::string label;
  int64_t completion_tokens = 0;
  std::string weight_version;
};

struct EvalReport {
  double accuracy = 0.0;        // Share of values that equal their label.
  double invalid = 0.0;         // Share of replies without a value.
  double standard_error = 0.0;  // sqrt(p (1 - p) / n) at accuracy p over n questions.
  int64_t questions = 0;
  double latency_s = 0.0;  // From the first submission to the last reply.
  double output_tok_per_s = 0.0;
  int64_t output_tokens = 0;
  int64_t num_shots = 0;
  int64_t parallel = 0;
  // XXH3-128 over the canonical XXH3-128 values of the replies' texts, in the order of the
  // questions: equal for two runs whose replies are equal, byte for byte.
  std::string replies_digest;
  std::string recipe;  // The caller's: which arithmetic replied; empty when that is not known.
  bool is_emulated = false;
  InputRanges nvfp4_inputs;  // The caller's, of an engine in this process: of the replies alone.
  std::vector<EvalAnswer> answers;  // In the order of the questions.
};

// Errors: kInvalidArgument (an option out of range, a problem whose answer holds no number);
// whatever the first failed request says: a failure ends the run, none is counted as wrong.
Result<EvalReport> RunEval(std::span<const Problem> problems, TextGenerator& generator,
                           const EvalOptions& options);

// The stop string that SGLang's frontend adds for chat models of the Qwen family ("<|im_end|>" when
// the path matches qwen.*(chat|instruct), whatever the case); empty for all others.
std::string ChatStop(std::string_view model_path);

// The lines "Accuracy: 0.123", "Invalid: 0.000", "Latency: 1.234 s",
// "Output throughput: 123.456 token/s", "Standard error: 0.012 (n = 100)" and, when the recipe is
// known, "Recipe: serving-1/mxfp8 (emulated)"; where inputs were quantized to NVFP4, "NVFP4 input
// groups: 123 (4 above the range of their scale, 5 below)".
std::string EvalReportText(const EvalReport& report);
// {"accuracy","invalid","questions","latency_s","output_tok_per_s","standard_error",...}, with
// "nvfp4_inputs":{"groups","above","below"} where there are such groups.
std::string EvalReportJson(const EvalReport& report);

}  // namespace octavo
