#pragma once
// `octavo bench --url`: a closed loop of streamed requests against a server, after the random-ids
// mode of SGLang's bench_serving.py.

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/client/http_client.h"
#include "octavo/measure/stats.h"

namespace octavo {

struct UrlBenchOptions {
  int64_t num_prompts = 64;
  int64_t input_len = 512;   // Tokens.
  int64_t output_len = 128;  // Tokens; end-of-sequence ids are ignored.
  int64_t parallel = 8;      // Requests in flight, at most 4096.
  int64_t vocab_size = 0;    // Ids are below this; 0: as /get_server_info says.
  uint64_t seed = 1;
  HttpTimeouts timeouts;
  std::function<void(int64_t done, int64_t total)> on_progress;  // May be empty.
};

// One request, in seconds from its POST.
struct RequestTiming {
  double first_token_s = 0.0;         // The first event with text.
  double latency_s = 0.0;             // The end of the stream.
  std::vector<double> inter_token_s;  // gap / d, d times, for an event that brought d tokens.
  int64_t output_tokens = 0;
};

// Feeds the events of one stream, in order. One thread.
class TimingRecorder {
 public:
  // `now_s` counts from the POST; `completion_tokens` is that of the event. Events without text
  // count only at the end.
  void OnEvent(double now_s, bool has_text, int64_t completion_tokens);
  RequestTiming Finish(double now_s);

 private:
  RequestTiming timing_;
  bool has_first_ = false;
  double last_event_s_ = 0.0;
  int64_t counted_tokens_ = 0;
};

struct UrlBenchReport {
  std::string url;
  int64_t completed = 0;
  int64_t parallel = 0;
  int64_t input_len = 0;
  int64_t output_len = 0;
  double duration_s = 0.0;  // From the first POST to the end of the last stream.
  double requests_per_s = 0.0;
  double input_tok_per_s = 0.0;
  double output_tok_per_s = 0.0;
  double mean_concurrency = 0.0;  // Sum of latencies / duration.
  LatencySummary ttft_ms;         // Time to first token.
  LatencySummary tpot_ms;         // (latency - TTFT) / (output tokens - 1), where there are two.
  LatencySummary itl_ms;          // Between tokens.
  LatencySummary latency_ms;
};

// Errors: kInvalidArgument for an option out of range or an unknown vocabulary size; whatever the
// first failed request says.
Result<UrlBenchReport> BenchUrl(const HttpUrl& url, const UrlBenchOptions& options);

// Token ids of prompt `prompt_idx`: (offset + prompt_idx + j) mod vocabulary at position j, the
// offset drawn from (seed, prompt_idx).
std::vector<int32_t> RandomPrompt(const UrlBenchOptions& options, int64_t vocab_size,
                                  int64_t prompt_idx);

// The figures of timings that ran for `duration_s` together.
UrlBenchReport SummarizeTimings(const UrlBenchOptions& options, const HttpUrl& url,
                                const std::vector<RequestTiming>& timings, double duration_s);

std::string UrlBenchReportText(const UrlBenchReport& report);
std::string UrlBenchReportJson(const UrlBenchReport& report);

}  // namespace octavo
