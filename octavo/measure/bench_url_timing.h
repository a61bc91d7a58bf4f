#pragma once
// One streamed request as the serving benchmark times it, and the figures of many.
//
// Definitions are those of SGLang's bench_serving.py:
//   TTFT     first event with text - start
//   ITL      a later event that brings d > 0 tokens counts gap / d, d times (an OpenAI event does
//            not say how many it brings and counts as one)
//   latency  last event, [DONE] included - start
//   TPOT     (latency - TTFT) / (output tokens - 1), for requests of two tokens and more

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/client/generate_client.h"
#include "octavo/measure/bench_url_plan.h"
#include "octavo/measure/stats.h"

namespace octavo {

// Seconds; all but start_s from the start of the request.
struct RequestTiming {
  double start_s = 0.0;  // From the start of the run.
  // Of a request without any text, its latency.
  double first_token_s = 0.0;
  double latency_s = 0.0;
  std::vector<double> inter_token_s;
  int64_t output_tokens = 0;
};

// Feeds the events of one stream, in order. One thread.
class TimingRecorder {
 public:
  // `now_s` counts from the start of the request; `completion_tokens` is that of the event. An
  // event without text counts only at the end.
  void OnEvent(double now_s, bool has_text, int64_t completion_tokens);
  RequestTiming Finish(double now_s);

 private:
  RequestTiming timing_;
  bool has_first_ = false;
  double last_event_s_ = 0.0;
  int64_t counted_tokens_ = 0;
};

struct StreamMeterOptions {
  BenchBackend backend = BenchBackend::kNative;
  int64_t output_len = 0;   // What was asked for: the count of a server that does not say.
  bool counts_ids = false;  // A server without a tokenizer sends ids and no text.
  bool keeps_text = false;
};

// Reads the body of one reply. One thread.
class StreamMeter {
 public:
  explicit StreamMeter(const StreamMeterOptions& options) : options_(options) {}

  // The bytes that came at `now_s`, counted from the start of the request. What is wrong with them
  // is told by Finish.
  void OnPiece(double now_s, std::string_view piece);

  // Call once, at the end. Errors: kCorrupt for an event that is not one of the backend,
  // kInternal with the text of an error event, kUnavailable when [DONE] is missing.
  Result<RequestTiming> Finish();
  const std::string& text() const { return text_; }  // If keeps_text.

 private:
  bool OnData(double now_s, std::string_view data);
  Status ReadNative(double now_s, std::string_view data);
  Status ReadOpenAi(double now_s, std::string_view data);

  StreamMeterOptions options_;
  SseSplitter splitter_;
  TimingRecorder recorder_;
  int64_t num_events_ = 0;    // With text.
  int64_t usage_tokens_ = 0;  // completion_tokens of OpenAI's usage; 0: not told.
  double last_event_s_ = 0.0;
  bool is_done_ = false;
  Status failure_;
  std::string text_;
};

// Figures over requests that succeeded; the throughputs are over `duration_s`.
struct TimingSummary {
  int64_t completed = 0;
  int64_t output_tokens = 0;
  double requests_per_s = 0.0;
  double output_tok_per_s = 0.0;
  double mean_concurrency = 0.0;  // Sum of latencies / duration.
  // Over seconds counted from the first start: most tokens in one, and most requests that one
  // touched.
  double output_tok_per_s_peak = 0.0;
  int64_t concurrency_peak = 0;
  LatencySummary ttft_ms = {};
  LatencySummary tpot_ms = {};
  LatencySummary itl_ms = {};
  LatencySummary latency_ms = {};
};
TimingSummary SummarizeTimings(std::span<const RequestTiming> timings, double duration_s);

}  // namespace octavo
