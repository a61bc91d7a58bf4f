#include "octavo/measure/bench_url.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>

#include "octavo/base/random.h"
#include "octavo/client/generate_client.h"

namespace octavo {
namespace {

using Clock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;

constexpr int64_t kMaxParallel = 4096;
constexpr int64_t kWarmUpTokens = 32;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

Status CheckOptions(const UrlBenchOptions& options) {
  struct Bound {
    const char* name;
    int64_t value;
    int64_t min;
    int64_t max;
  };
  const Bound bounds[] = {{"num-prompts", options.num_prompts, 1, INT64_MAX},
                          {"input-len", options.input_len, 1, INT32_MAX},
                          {"output-len", options.output_len, 1, INT32_MAX},
                          {"parallel", options.parallel, 1, kMaxParallel},
                          {"vocab-size", options.vocab_size, 0, INT32_MAX}};
  for (const Bound& bound : bounds) {
    if (bound.value < bound.min || bound.value > bound.max) {
      return InvalidArgument("bench: expected {} in {}..{}, got {}", bound.name, bound.min,
                             bound.max, bound.value);
    }
  }
  return OkStatus();
}

Result<int64_t> VocabSize(const HttpUrl& url, const UrlBenchOptions& options) {
  if (options.vocab_size > 0) {
    return options.vocab_size;
  }
  HttpClient client(url, options.timeouts);
  ASSIGN_OR_RETURN(const std::optional<int64_t> size, GetVocabSize(client));
  if (!size.has_value() || *size <= 0 || *size > INT32_MAX) {
    return InvalidArgument("bench: {} does not say its vocab_size; give --vocab-size",
                           url.ToString());
  }
  return *size;
}

// The prompts of one run, handed out to threads one by one. Thread-safe.
class Run {
 public:
  Run(const HttpUrl& url, const UrlBenchOptions& options, int64_t vocab_size)
      : url_(url),
        options_(options),
        vocab_size_(vocab_size),
        timings_(static_cast<size_t>(options.num_prompts)) {}

  void Work() {
    HttpClient client(url_, options_.timeouts);
    for (int64_t i = next_.fetch_add(1); i < options_.num_prompts && !failed_;
         i = next_.fetch_add(1)) {
      Result<RequestTiming> timing = Send(client, i, options_.output_len);
      const std::lock_guard lock(mutex_);
      if (!timing.has_value()) {
        failed_ = true;
        failure_ = failure_.ok() ? timing.error() : failure_;
        return;
      }
      timings_[static_cast<size_t>(i)] = std::move(*timing);
      ++num_done_;
      if (options_.on_progress) {
        options_.on_progress(num_done_, options_.num_prompts);
      }
    }
  }

  // One request to its end; not counted.
  Status WarmUp() {
    HttpClient client(url_, options_.timeouts);
    return Send(client, options_.num_prompts, std::min(options_.output_len, kWarmUpTokens)).error();
  }

  const Status& failure() const { return failure_; }
  const std::vector<RequestTiming>& timings() const { return timings_; }

 private:
  Result<RequestTiming> Send(HttpClient& client, int64_t prompt_idx, int64_t output_len) {
    GenerateCall call;
    call.input_ids = RandomPrompt(options_, vocab_size_, prompt_idx);
    call.max_new_tokens = output_len;
    call.temperature = 0.0;
    call.ignore_eos = true;
    TimingRecorder recorder;
    const Clock::time_point start = Clock::now();
    std::string finish;
    RETURN_IF_ERROR(GenerateStream(client, call, [&](const GenerateReply& event) {
      // A server without a tokenizer sends ids and no text: either is progress.
      recorder.OnEvent(SecondsSince(start), !event.text.empty() || !event.output_ids.empty(),
                       event.completion_tokens);
      finish = event.finish_type;
      return true;
    }));
    if (finish != "length") {
      return Internal("bench: expected finish type length of prompt {}, got '{}'", prompt_idx,
                      finish);
    }
    return recorder.Finish(SecondsSince(start));
  }

  const HttpUrl& url_;
  const UrlBenchOptions& options_;
  const int64_t vocab_size_;
  std::atomic<int64_t> next_{0};
  std::atomic<bool> failed_{false};
  std::mutex mutex_;  // Guards the three below.
  int64_t num_done_ = 0;
  Status failure_;
  std::vector<RequestTiming> timings_;
};

Json SummaryJson(const LatencySummary& summary) {
  return {{"mean", summary.mean}, {"median", summary.median}, {"p90", summary.p90},
          {"p95", summary.p95},   {"p99", summary.p99},       {"max", summary.max}};
}

std::string SummaryLine(std::string_view name, const LatencySummary& summary) {
  return fmt::format("{:<24} {:9.2f} {:9.2f} {:9.2f} {:9.2f} {:9.2f} {:9.2f}\n", name, summary.mean,
                     summary.median, summary.p90, summary.p95, summary.p99, summary.max);
}

}  // namespace

void TimingRecorder::OnEvent(double now_s, bool has_text, int64_t completion_tokens) {
  timing_.output_tokens = std::max(timing_.output_tokens, completion_tokens);
  if (!has_text) {
    return;
  }
  if (!has_first_) {
    has_first_ = true;
    timing_.first_token_s = now_s;
  } else if (const int64_t fresh = completion_tokens - counted_tokens_; fresh > 0) {
    timing_.inter_token_s.insert(timing_.inter_token_s.end(), static_cast<size_t>(fresh),
                                 (now_s - last_event_s_) / static_cast<double>(fresh));
  }
  last_event_s_ = now_s;
  counted_tokens_ = completion_tokens;
}

RequestTiming TimingRecorder::Finish(double now_s) {
  timing_.latency_s = now_s;
  return std::move(timing_);
}

std::vector<int32_t> RandomPrompt(const UrlBenchOptions& options, int64_t vocab_size,
                                  int64_t prompt_idx) {
  const auto size = static_cast<uint64_t>(vocab_size);
  const uint64_t offset = Philox(options.seed, static_cast<uint64_t>(prompt_idx))[0] % size;
  std::vector<int32_t> ids(static_cast<size_t>(options.input_len));
  for (size_t j = 0; j < ids.size(); ++j) {
    ids[j] = static_cast<int32_t>((offset + static_cast<uint64_t>(prompt_idx) + j) % size);
  }
  return ids;
}

UrlBenchReport SummarizeTimings(const UrlBenchOptions& options, const HttpUrl& url,
                                const std::vector<RequestTiming>& timings, double duration_s) {
  std::vector<double> ttft;
  std::vector<double> tpot;
  std::vector<double> itl;
  std::vector<double> latency;
  int64_t output_tokens = 0;
  for (const RequestTiming& timing : timings) {
    ttft.push_back(timing.first_token_s);
    latency.push_back(timing.latency_s);
    itl.insert(itl.end(), timing.inter_token_s.begin(), timing.inter_token_s.end());
    output_tokens += timing.output_tokens;
    if (timing.output_tokens > 1) {
      tpot.push_back((timing.latency_s - timing.first_token_s) /
                     static_cast<double>(timing.output_tokens - 1));
    }
  }
  const auto completed = static_cast<int64_t>(timings.size());
  return {.url = url.ToString(),
          .completed = completed,
          .parallel = options.parallel,
          .input_len = options.input_len,
          .output_len = options.output_len,
          .duration_s = duration_s,
          .requests_per_s = static_cast<double>(completed) / duration_s,
          .input_tok_per_s = static_cast<double>(completed * options.input_len) / duration_s,
          .output_tok_per_s = static_cast<double>(output_tokens) / duration_s,
          .mean_concurrency = Mean(latency) * static_cast<double>(completed) / duration_s,
          .ttft_ms = SummarizeLatency(ttft),
          .tpot_ms = SummarizeLatency(tpot),
          .itl_ms = SummarizeLatency(itl),
          .latency_ms = SummarizeLatency(latency)};
}

Result<UrlBenchReport> BenchUrl(const HttpUrl& url, const UrlBenchOptions& options) {
  RETURN_IF_ERROR(CheckOptions(options));
  ASSIGN_OR_RETURN(const int64_t vocab_size, VocabSize(url, options));
  Run run(url, options, vocab_size);
  RETURN_IF_ERROR(run.WarmUp());

  std::vector<std::thread> threads;
  const Clock::time_point start = Clock::now();
  for (int64_t i = 0; i < std::min(options.parallel, options.num_prompts); ++i) {
    threads.emplace_back([&run] { run.Work(); });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  const double duration_s = SecondsSince(start);
  RETURN_IF_ERROR(run.failure());
  return SummarizeTimings(options, url, run.timings(), duration_s);
}

std::string UrlBenchReportText(const UrlBenchReport& report) {
  std::string text = fmt::format(
      "{} requests of {} + {} tokens, {} in flight ({:.1f} on average), {:.2f} s\n"
      "Request throughput:      {:9.2f} req/s\n"
      "Input token throughput:  {:9.1f} tok/s\n"
      "Output token throughput: {:9.1f} tok/s\n\n"
      "{:<24} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}\n",
      report.completed, report.input_len, report.output_len, report.parallel,
      report.mean_concurrency, report.duration_s, report.requests_per_s, report.input_tok_per_s,
      report.output_tok_per_s, "ms", "mean", "median", "p90", "p95", "p99", "max");
  text += SummaryLine("Time to first token", report.ttft_ms);
  text += SummaryLine("Time per output token", report.tpot_ms);
  text += SummaryLine("Inter-token latency", report.itl_ms);
  text += SummaryLine("End-to-end latency", report.latency_ms);
  return text;
}

std::string UrlBenchReportJson(const UrlBenchReport& report) {
  const Json json = {{"url", report.url},
                     {"completed", report.completed},
                     {"parallel", report.parallel},
                     {"input_len", report.input_len},
                     {"output_len", report.output_len},
                     {"duration_s", report.duration_s},
                     {"requests_per_s", report.requests_per_s},
                     {"input_tok_per_s", report.input_tok_per_s},
                     {"output_tok_per_s", report.output_tok_per_s},
                     {"mean_concurrency", report.mean_concurrency},
                     {"ttft_ms", SummaryJson(report.ttft_ms)},
                     {"tpot_ms", SummaryJson(report.tpot_ms)},
                     {"itl_ms", SummaryJson(report.itl_ms)},
                     {"latency_ms", SummaryJson(report.latency_ms)}};
  return json.dump();
}

}  // namespace octavo
