#include "octavo/measure/bench_url_timing.h"

#include <simdjson.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/measure/bench_url_plan.h"
#include "octavo/measure/stats.h"

namespace octavo {
namespace {

using simdjson::dom::element;

Result<element> Parse(simdjson::dom::parser& parser, std::string_view data) {
  element event;
  if (parser.parse(data.data(), data.size()).get(event) != simdjson::SUCCESS ||
      !event.is_object()) {
    return Corrupt("stream: expected a JSON object, got '{}'", data.substr(0, 200));
  }
  if (event["error"].error() == simdjson::SUCCESS && !event["error"].is_null()) {
    return Internal("the stream reports {}", data);
  }
  return event;
}

int64_t IntOr(const simdjson::simdjson_result<element>& value, int64_t fallback) {
  int64_t number = 0;
  return value.get(number) == simdjson::SUCCESS ? number : fallback;
}

std::string_view TextOr(const simdjson::simdjson_result<element>& value) {
  std::string_view text;
  return value.get(text) == simdjson::SUCCESS ? text : std::string_view();
}

struct Peaks {
  double tokens = 0.0;
  int64_t requests = 0;
};

// A token's time is that of the first one plus the gaps so far.
Peaks PeaksOf(std::span<const RequestTiming> timings) {
  if (timings.empty()) {
    return {};
  }
  double begin_s = timings.front().start_s;
  double end_s = begin_s;
  for (const RequestTiming& timing : timings) {
    begin_s = std::min(begin_s, timing.start_s);
    end_s = std::max(end_s, timing.start_s + timing.latency_s);
  }
  const auto num_buckets = static_cast<size_t>(std::ceil(end_s - begin_s)) + 1;
  std::vector<int64_t> tokens(num_buckets);
  std::vector<int64_t> requests(num_buckets);
  const auto bucket_of = [&](double time_s) {
    return std::min(static_cast<size_t>(std::max(time_s - begin_s, 0.0)), num_buckets - 1);
  };
  for (const RequestTiming& timing : timings) {
    double time_s = timing.start_s + timing.first_token_s;
    ++tokens[bucket_of(time_s)];
    for (const double gap_s : timing.inter_token_s) {
      time_s += gap_s;
      ++tokens[bucket_of(time_s)];
    }
    const size_t last = bucket_of(timing.start_s + timing.latency_s);
    for (size_t i = bucket_of(timing.start_s); i <= last; ++i) {
      ++requests[i];
    }
  }
  return {.tokens = static_cast<double>(*std::max_element(tokens.begin(), tokens.end())),
          .requests = *std::max_element(requests.begin(), requests.end())};
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
  } else {
    return;  // Brings nothing: the gap goes on.
  }
  last_event_s_ = now_s;
  counted_tokens_ = completion_tokens;
}

RequestTiming TimingRecorder::Finish(double now_s) {
  timing_.latency_s = now_s;
  if (!has_first_) {
    timing_.first_token_s = now_s;
  }
  return std::move(timing_);
}

void StreamMeter::OnPiece(double now_s, std::string_view piece) {
  (void)splitter_.Feed(piece, [&](std::string_view data) { return OnData(now_s, data); });
}

bool StreamMeter::OnData(double now_s, std::string_view data) {
  last_event_s_ = now_s;
  if (data == "[DONE]") {
    is_done_ = true;
    return true;
  }
  if (failure_.ok()) {
    failure_ = options_.backend == BenchBackend::kNative ? ReadNative(now_s, data)
                                                         : ReadOpenAi(now_s, data);
  }
  return failure_.ok();
}

Status StreamMeter::ReadNative(double now_s, std::string_view data) {
  simdjson::dom::parser parser;
  ASSIGN_OR_RETURN(const element event, Parse(parser, data));
  const int64_t tokens = IntOr(event["meta_info"]["completion_tokens"], -1);
  if (tokens < 0) {
    return Corrupt("stream: no meta_info.completion_tokens in '{}'", data.substr(0, 200));
  }
  const std::string_view text = TextOr(event["text"]);
  recorder_.OnEvent(now_s, !text.empty() || (options_.counts_ids && tokens > 0), tokens);
  if (options_.keeps_text && !text.empty()) {
    text_ = text;
  }
  return OkStatus();
}

Status StreamMeter::ReadOpenAi(double now_s, std::string_view data) {
  simdjson::dom::parser parser;
  ASSIGN_OR_RETURN(const element event, Parse(parser, data));
  usage_tokens_ = IntOr(event["usage"]["completion_tokens"], usage_tokens_);
  simdjson::dom::array choices;
  if (event["choices"].get(choices) != simdjson::SUCCESS) {
    return Corrupt("stream: no choices in '{}'", data.substr(0, 200));
  }
  const bool is_chat = options_.backend == BenchBackend::kChat;
  const auto choice = choices.at(0);  // A chunk with the usage alone has none.
  const auto delta = choice["delta"];
  const std::string_view text = is_chat ? TextOr(delta["content"]) : TextOr(choice["text"]);
  const std::string_view thought = is_chat ? TextOr(delta["reasoning_content"]) : "";
  if (text.empty() && thought.empty()) {
    return OkStatus();
  }
  recorder_.OnEvent(now_s, /*has_text=*/true, ++num_events_);
  if (options_.keeps_text) {
    text_ += thought;
    text_ += text;
  }
  return OkStatus();
}

Result<RequestTiming> StreamMeter::Finish() {
  if (!failure_.ok()) {
    return failure_;
  }
  if (!is_done_) {
    return Unavailable("the stream ended before [DONE]");
  }
  RequestTiming timing = recorder_.Finish(last_event_s_);
  if (options_.backend != BenchBackend::kNative) {
    timing.output_tokens = usage_tokens_ > 0 ? usage_tokens_ : options_.output_len;
  }
  return timing;
}

TimingSummary SummarizeTimings(std::span<const RequestTiming> timings, double duration_s) {
  TimingSummary summary;
  summary.completed = static_cast<int64_t>(timings.size());
  std::vector<double> ttft;
  std::vector<double> tpot;
  std::vector<double> itl;
  std::vector<double> latency;
  for (const RequestTiming& timing : timings) {
    ttft.push_back(timing.first_token_s);
    latency.push_back(timing.latency_s);
    itl.insert(itl.end(), timing.inter_token_s.begin(), timing.inter_token_s.end());
    summary.output_tokens += timing.output_tokens;
    if (timing.output_tokens > 1) {
      tpot.push_back((timing.latency_s - timing.first_token_s) /
                     static_cast<double>(timing.output_tokens - 1));
    }
  }
  const auto completed = static_cast<double>(summary.completed);
  summary.requests_per_s = completed / duration_s;
  summary.output_tok_per_s = static_cast<double>(summary.output_tokens) / duration_s;
  summary.mean_concurrency = Mean(latency) * completed / duration_s;
  const Peaks peaks = PeaksOf(timings);
  summary.output_tok_per_s_peak = peaks.tokens;
  summary.concurrency_peak = peaks.requests;
  summary.ttft_ms = SummarizeLatency(ttft);
  summary.tpot_ms = SummarizeLatency(tpot);
  summary.itl_ms = SummarizeLatency(itl);
  summary.latency_ms = SummarizeLatency(latency);
  return summary;
}

}  // namespace octavo
