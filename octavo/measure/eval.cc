#include "octavo/measure/eval.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "octavo/base/hash.h"
#include "octavo/base/status.h"
#include "octavo/kernels/input_ranges.h"
#include "octavo/measure/generator.h"
#include "octavo/measure/problems.h"

namespace octavo {
namespace {

constexpr int64_t kMaxParallel = 4096;

Status CheckOptions(const EvalOptions& options, int64_t num_problems) {
  if (num_problems == 0) {
    return InvalidArgument("eval: no problems");
  }
  if (options.num_shots < 0 || options.num_shots > num_problems) {
    return InvalidArgument("eval: expected num-shots in 0..{}, got {}", num_problems,
                           options.num_shots);
  }
  if (options.num_questions < 0) {
    return InvalidArgument("eval: expected num-questions >= 0, got {}", options.num_questions);
  }
  if (options.parallel < 1 || options.parallel > kMaxParallel) {
    return InvalidArgument("eval: expected parallel in 1..{}, got {}", kMaxParallel,
                           options.parallel);
  }
  return OkStatus();
}

// The questions of one run, handed out to threads one by one. Thread-safe.
class Run {
 public:
  Run(std::span<const Problem> problems, TextGenerator& generator, const EvalOptions& options,
      std::span<EvalAnswer> answers)
      : problems_(problems), generator_(generator), options_(options), answers_(answers) {
    stop_ = {"Question", "Assistant:", "<|separator|>"};
    stop_.insert(stop_.end(), options.extra_stop.begin(), options.extra_stop.end());
  }

  // One thread's work: takes questions until none is left or one has failed.
  void Work() {
    const auto total = static_cast<int64_t>(answers_.size());
    for (int64_t i = next_.fetch_add(1); i < total && !failed_; i = next_.fetch_add(1)) {
      const Status outcome = Ask(i);
      const std::lock_guard lock(mutex_);
      if (!outcome.ok()) {
        failed_ = true;
        failure_ = failure_.ok() ? outcome.WithContext(fmt::format("question {}", i)) : failure_;
        return;
      }
      ++num_done_;
      if (options_.on_progress) {
        options_.on_progress(num_done_, total);
      }
    }
  }

  const Status& failure() const { return failure_; }

 private:
  Status Ask(int64_t i) {
    ASSIGN_OR_RETURN(TextReply reply,
                     generator_.Generate({.prompt = BuildPrompt(problems_, options_.num_shots, i),
                                          .max_new_tokens = options_.max_new_tokens,
                                          .temperature = options_.temperature,
                                          .top_p = options_.top_p,
                                          .stop = stop_}));
    if (reply.finish_type == "abort") {
      return Cancelled("the request was aborted");
    }
    EvalAnswer& answer = answers_[static_cast<size_t>(i)];
    answer.value = ReplyValue(reply.text);
    answer.text = std::move(reply.text);
    answer.completion_tokens = reply.completion_tokens;
    answer.weight_version = std::move(reply.weight_version);
    return OkStatus();
  }

  std::span<const Problem> problems_;
  TextGenerator& generator_;
  const EvalOptions& options_;
  std::span<EvalAnswer> answers_;  // Each written by the thread that took its question.
  std::vector<std::string> stop_;
  std::atomic<int64_t> next_{0};
  std::atomic<bool> failed_{false};
  std::mutex mutex_;  // Guards the two below.
  int64_t num_done_ = 0;
  Status failure_;
};

void Score(EvalReport* report) {
  int64_t num_right = 0;
  int64_t num_invalid = 0;
  std::vector<std::byte> hashes;
  for (const EvalAnswer& answer : report->answers) {
    num_right += answer.value == answer.label ? 1 : 0;
    num_invalid += answer.value.has_value() ? 0 : 1;
    report->output_tokens += answer.completion_tokens;
    const Hash128 hash = HashText(answer.text);
    hashes.insert(hashes.end(), hash.begin(), hash.end());
  }
  report->replies_digest = HashHex(HashBytes(hashes));
  const auto n = static_cast<double>(report->questions);
  report->accuracy = static_cast<double>(num_right) / n;
  report->invalid = static_cast<double>(num_invalid) / n;
  report->standard_error = std::sqrt(report->accuracy * (1.0 - report->accuracy) / n);
  report->output_tok_per_s = static_cast<double>(report->output_tokens) / report->latency_s;
}

}  // namespace

Result<EvalReport> RunEval(std::span<const Problem> problems, TextGenerator& generator,
                           const EvalOptions& options) {
  const auto num_problems = static_cast<int64_t>(problems.size());
  RETURN_IF_ERROR(CheckOptions(options, num_problems));
  EvalReport report;
  report.num_shots = options.num_shots;
  report.parallel = options.parallel;
  report.questions =
      options.num_questions == 0 ? num_problems : std::min(options.num_questions, num_problems);
  report.answers.resize(static_cast<size_t>(report.questions));
  for (size_t i = 0; i < report.answers.size(); ++i) {
    const std::optional<std::string> label = ReplyValue(problems[i].answer);
    if (!label.has_value()) {
      return InvalidArgument("eval: the answer of problem {} holds no number", i);
    }
    report.answers[i].label = *label;
  }

  Run run(problems, generator, options, report.answers);
  const int64_t num_threads = std::min(options.parallel, report.questions);
  std::vector<std::thread> threads;
  threads.reserve(static_cast<size_t>(num_threads));
  const auto start = std::chrono::steady_clock::now();
  for (int64_t i = 0; i < num_threads; ++i) {
    threads.emplace_back([&run] { run.Work(); });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  report.latency_s =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  RETURN_IF_ERROR(run.failure());
  Score(&report);
  return report;
}

std::string ChatStop(std::string_view model_path) {
  std::string path(model_path);
  std::transform(path.begin(), path.end(), path.begin(), [](unsigned char c) {
    return static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
  });
  const size_t qwen = path.find("qwen");
  if (qwen == std::string::npos) {
    return "";
  }
  const bool is_chat = path.find("chat", qwen) != std::string::npos ||
                       path.find("instruct", qwen) != std::string::npos;
  return is_chat ? "<|im_end|>" : "";
}

std::string EvalReportText(const EvalReport& report) {
  std::string text = fmt::format(
      "Accuracy: {:.3f}\nInvalid: {:.3f}\nLatency: {:.3f} s\n"
      "Output throughput: {:.3f} token/s\nStandard error: {:.3f} (n = {})\n",
      report.accuracy, report.invalid, report.latency_s, report.output_tok_per_s,
      report.standard_error, report.questions);
  if (!report.recipe.empty()) {
    text += fmt::format("Recipe: {}{}\n", report.recipe, report.is_emulated ? " (emulated)" : "");
  }
  const InputRanges& inputs = report.nvfp4_inputs;
  if (inputs.num_groups > 0) {
    text += fmt::format("NVFP4 input groups: {} ({} above the range of their scale, {} below)\n",
                        inputs.num_groups, inputs.num_above, inputs.num_below);
  }
  return text;
}

std::string EvalReportJson(const EvalReport& report) {
  nlohmann::ordered_json json = {{"accuracy", report.accuracy},
                                 {"invalid", report.invalid},
                                 {"questions", report.questions},
                                 {"latency_s", report.latency_s},
                                 {"output_tok_per_s", report.output_tok_per_s},
                                 {"standard_error", report.standard_error},
                                 {"output_tokens", report.output_tokens},
                                 {"replies_digest", report.replies_digest},
                                 {"recipe", report.recipe},
                                 {"emulated", report.is_emulated},
                                 {"num_shots", report.num_shots},
                                 {"parallel", report.parallel}};
  const InputRanges& inputs = report.nvfp4_inputs;
  if (inputs.num_groups > 0) {
    json["nvfp4_inputs"] = {
        {"groups", inputs.num_groups}, {"above", inputs.num_above}, {"below", inputs.num_below}};
  }
  return json.dump();
}

}  // namespace octavo
