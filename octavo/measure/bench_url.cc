#include "octavo/measure/bench_url.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/client/generate_client.h"
#include "octavo/client/http_client.h"
#include "octavo/client/http_fleet.h"
#include "octavo/measure/bench_url_plan.h"
#include "octavo/measure/bench_url_timing.h"

namespace octavo {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kWarmUpTokens = 32;
constexpr auto kReadyPollEvery = std::chrono::seconds(1);
constexpr auto kPauseBeforeRun = std::chrono::seconds(1);

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
  const Bound bounds[] = {{"num-prompts", options.num_prompts, 1, INT32_MAX},
                          {"random-input-len", options.input_len, 1, INT32_MAX},
                          {"random-output-len", options.output_len, 1, INT32_MAX},
                          {"max-concurrency", options.max_concurrency, 0, INT32_MAX},
                          {"warmup-requests", options.warmup_requests, 0, INT32_MAX},
                          {"vocab-size", options.vocab_size, 0, INT32_MAX}};
  for (const Bound& bound : bounds) {
    if (bound.value < bound.min || bound.value > bound.max) {
      return InvalidArgument("bench: expected {} in {}..{}, got {}", bound.name, bound.min,
                             bound.max, bound.value);
    }
  }
  // Written so that NaN is refused.
  if (!(options.range_ratio >= 0.0 && options.range_ratio <= 1.0)) {
    return InvalidArgument("bench: expected random-range-ratio in [0, 1], got {}",
                           options.range_ratio);
  }
  if (!(options.request_rate > 0.0)) {
    return InvalidArgument("bench: expected request-rate above 0, got {}", options.request_rate);
  }
  if (options.backend == BenchBackend::kChat &&
      (options.tokenizer == nullptr || options.send_ids)) {
    return InvalidArgument("bench: a chat is text; give --tokenizer");
  }
  return OkStatus();
}

// What the run must know of the server.
struct ServerFacts {
  std::string model;  // The served name.
  int64_t vocab_size = 0;
  bool has_tokenizer = true;
};

Result<ServerFacts> AskServer(const HttpUrl& url, const UrlBenchOptions& options) {
  HttpClient client(url, options.timeouts);
  ServerFacts facts;
  ASSIGN_OR_RETURN(facts.model, AwaitServedName(url, options));
  facts.vocab_size = options.vocab_size;
  if (facts.vocab_size == 0 && options.tokenizer != nullptr) {
    facts.vocab_size = options.tokenizer->vocab_size();
  }
  if (facts.vocab_size == 0) {
    ASSIGN_OR_RETURN(const std::optional<int64_t> size, GetVocabSize(client));
    facts.vocab_size = size.value_or(0);
  }
  if (facts.vocab_size <= 0 || facts.vocab_size > INT32_MAX) {
    return InvalidArgument("bench: {} does not say its vocab_size; give --vocab-size",
                           url.ToString());
  }
  if (options.backend == BenchBackend::kNative) {
    ASSIGN_OR_RETURN(const ModelInfo info, GetModelInfo(client));
    facts.has_tokenizer = info.has_tokenizer;
  }
  return facts;
}

std::string_view TargetOf(BenchBackend backend) {
  switch (backend) {
    case BenchBackend::kNative:
      return "/generate";
    case BenchBackend::kCompletions:
      return "/v1/completions";
    case BenchBackend::kChat:
      return "/v1/chat/completions";
  }
  return "";
}

// The requests of one run. One thread: that of RunFleet.
class Run final : public FleetScript {
 public:
  Run(const UrlBenchOptions& options, const ServerFacts& facts,
      std::vector<PlannedRequest> requests)
      : options_(options), facts_(facts), requests_(std::move(requests)) {}

  // Every request is the first, cut to the tokens of a warm-up.
  void BecomeWarmUp() {
    PlannedRequest first = requests_.front();
    first.output_len = std::min(first.output_len, kWarmUpTokens);
    first.send_after_s = 0.0;
    first.gap_s = 0.0;
    requests_.assign(static_cast<size_t>(options_.warmup_requests), first);
    is_warm_up_ = true;
  }

  Status Send(const HttpUrl& url) {
    meters_.reserve(requests_.size());
    for (const PlannedRequest& request : requests_) {
      meters_.emplace_back(StreamMeterOptions{.backend = options_.backend,
                                              .output_len = request.output_len,
                                              .counts_ids = !facts_.has_tokenizer,
                                              .keeps_text = options_.tokenizer != nullptr});
    }
    starts_s_.resize(requests_.size());
    outcomes_.resize(requests_.size());
    start_ = Clock::now();
    RETURN_IF_ERROR(RunFleet(url, TargetOf(options_.backend),
                             {.num_calls = static_cast<int64_t>(requests_.size()),
                              .in_flight_max = is_warm_up_ ? 0 : options_.max_concurrency,
                              .timeouts = options_.timeouts},
                             *this));
    const PlannedRequest& last = requests_.back();
    std::this_thread::sleep_until(start_ +
                                  std::chrono::duration<double>(last.send_after_s + last.gap_s));
    return OkStatus();
  }

  double SendAfter(int64_t call_idx) override {
    return requests_[static_cast<size_t>(call_idx)].send_after_s;
  }

  std::string Body(int64_t call_idx) override {
    const PlannedRequest& request = requests_[static_cast<size_t>(call_idx)];
    const int64_t request_idx = is_warm_up_ ? 0 : call_idx;
    return BenchBody(options_.backend,
                     {.ids = PromptIds(request, request_idx, facts_.vocab_size),
                      .tokenizer = options_.send_ids ? nullptr : options_.tokenizer},
                     request.output_len, facts_.model);
  }

  void OnSend(int64_t call_idx) override {
    starts_s_[static_cast<size_t>(call_idx)] = SecondsSince(start_);
  }

  void OnPiece(int64_t call_idx, std::string_view piece) override {
    const auto i = static_cast<size_t>(call_idx);
    meters_[i].OnPiece(SecondsSince(start_) - starts_s_[i], piece);
  }

  void OnEnd(int64_t call_idx, const Status& status) override {
    const auto i = static_cast<size_t>(call_idx);
    outcomes_[i] = status;
    if (status.ok()) {
      Result<RequestTiming> timing = meters_[i].Finish();
      outcomes_[i] = timing.error();
      if (timing.has_value()) {
        timing->start_s = starts_s_[i];
        timings_.push_back(std::move(*timing));
        done_.push_back(i);
      }
    }
    ++num_ended_;
    if (!is_warm_up_ && options_.on_progress) {
      options_.on_progress(num_ended_, static_cast<int64_t>(requests_.size()));
    }
  }

  // Of the first request that failed; ok when none did.
  Status first_failure() const {
    for (size_t i = 0; i < outcomes_.size(); ++i) {
      if (!outcomes_[i].ok()) {
        return outcomes_[i].WithContext(fmt::format("request {}", i));
      }
    }
    return OkStatus();
  }

  void Report(UrlBenchReport* report) const {
    report->failed = static_cast<int64_t>(requests_.size() - done_.size());
    report->first_failure = first_failure();
    report->summary = SummarizeTimings(timings_, report->duration_s);
    int64_t retokenized = 0;
    for (const size_t i : done_) {
      report->input_tokens += requests_[i].input_len;
      if (options_.tokenizer != nullptr) {
        const auto ids = options_.tokenizer->Encode(meters_[i].text(), false);
        retokenized += static_cast<int64_t>(ids.size());
      }
    }
    if (options_.tokenizer != nullptr) {
      report->output_tokens_retokenized = retokenized;
    }
  }

 private:
  const UrlBenchOptions& options_;
  const ServerFacts& facts_;
  std::vector<PlannedRequest> requests_;
  bool is_warm_up_ = false;
  Clock::time_point start_;
  std::vector<StreamMeter> meters_;
  std::vector<double> starts_s_;
  std::vector<Status> outcomes_;
  std::vector<RequestTiming> timings_;  // Of those that succeeded, as they ended.
  std::vector<size_t> done_;            // Their indices.
  int64_t num_ended_ = 0;
};

PlanOptions PlanOf(const UrlBenchOptions& options, const ServerFacts& facts) {
  const bool sends_text = options.tokenizer != nullptr && !options.send_ids;
  return {.num_prompts = options.num_prompts,
          .input_len = options.input_len,
          .output_len = options.output_len,
          .range_ratio = options.range_ratio,
          .request_rate = options.request_rate,
          .seed = options.seed,
          .num_special_tokens =
              sends_text ? static_cast<int64_t>(options.tokenizer->Encode("").size()) : 0,
          .vocab_size = facts.vocab_size};
}

Status WarmUp(const HttpUrl& url, const UrlBenchOptions& options, Run run) {
  if (options.warmup_requests > 0) {
    run.BecomeWarmUp();
    RETURN_IF_ERROR(run.Send(url));
    RETURN_IF_ERROR(run.first_failure().WithContext("bench: warm-up"));
  }
  if (options.flush_cache) {
    HttpClient client(url, options.timeouts);
    RETURN_IF_ERROR(PostJson(client, "/flush_cache", "").error());
  }
  std::this_thread::sleep_for(kPauseBeforeRun);
  return OkStatus();
}

}  // namespace

Result<std::string> AwaitServedName(const HttpUrl& url, const UrlBenchOptions& options) {
  HttpClient client(url, options.timeouts);
  const Clock::time_point start = Clock::now();
  Result<std::string> text = GetText(client, "/v1/models");
  const auto is_refused = [&] {  // As without a key that it wants: time does not mend it.
    return !text.has_value() && text.error().code() == StatusCode::kInvalidArgument;
  };
  while (!text.has_value() && !is_refused() && SecondsSince(start) < options.ready_s) {
    std::this_thread::sleep_for(kReadyPollEvery);
    text = GetText(client, "/v1/models");
  }
  if (is_refused()) {
    return text.error().WithContext("bench");
  }
  if (!text.has_value()) {
    return text.error().WithContext(fmt::format("bench: not ready after {} s", options.ready_s));
  }
  const auto json = nlohmann::json::parse(*text, nullptr, /*allow_exceptions=*/false);
  const auto id = nlohmann::json::json_pointer("/data/0/id");
  if (!json.is_object() || !json.contains(id) || !json.at(id).is_string()) {
    return Corrupt("{}/v1/models: no name in '{}'", url.ToString(), text->substr(0, 200));
  }
  return json.at(id).get<std::string>();
}

Result<UrlBenchReport> BenchUrl(const HttpUrl& url, const UrlBenchOptions& options) {
  RETURN_IF_ERROR(CheckOptions(options));
  ASSIGN_OR_RETURN(const ServerFacts facts, AskServer(url, options));
  Run run(options, facts, PlanRequests(PlanOf(options, facts)));
  RETURN_IF_ERROR(WarmUp(url, options, run));

  const Clock::time_point start = Clock::now();
  RETURN_IF_ERROR(run.Send(url));
  HttpClient client(url, options.timeouts);
  const Result<std::string> info = GetText(client, "/server_info");
  UrlBenchReport report;
  report.duration_s = SecondsSince(start);
  report.url = url.ToString();
  report.options = options;
  report.sent_text = options.tokenizer != nullptr && !options.send_ids;
  report.server_info = info.has_value() ? *info : "";
  run.Report(&report);
  if (report.summary.completed == 0) {
    return report.first_failure;
  }
  return report;
}

}  // namespace octavo
