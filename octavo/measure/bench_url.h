#pragma once
// `octavo bench --url`: streamed requests against a server, in the random-ids mode of SGLang's
// bench_serving.py. The traffic (bench_url_plan.h) and the definitions of the figures
// (bench_url_timing.h) are those of the original, so both can be run on one server and compared.

#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <string>

#include "octavo/base/status.h"
#include "octavo/client/http_client.h"
#include "octavo/measure/bench_url_plan.h"
#include "octavo/measure/bench_url_timing.h"
#include "octavo/text/tokenizer.h"

namespace octavo {

struct UrlBenchOptions {
  BenchBackend backend = BenchBackend::kNative;
  int64_t num_prompts = 1000;
  int64_t input_len = 1024;   // Tokens, at most.
  int64_t output_len = 1024;  // Tokens, at most; end-of-sequence ids are ignored.
  double range_ratio = 0.0;   // In [0, 1]: lengths are at least this share; 1: constant.
  // Requests a second, with exponential gaps; infinite: all at once.
  double request_rate = std::numeric_limits<double>::infinity();
  int64_t max_concurrency = 0;  // Requests in flight; 0: no bound.
  uint32_t seed = 1;
  int64_t warmup_requests = 1;  // Of the first prompt, at most 32 tokens each; not counted.
  bool flush_cache = false;     // POST /flush_cache between warm-up and run.
  double ready_s = 60.0;        // To wait for the server's GET /v1/models.
  // Prompts are its texts, and the outputs are counted again by it. Null: prompts are ids.
  const Tokenizer* tokenizer = nullptr;
  bool send_ids = false;   // Even so.
  int64_t vocab_size = 0;  // Ids are below this; 0: the tokenizer's, or as /get_server_info says.
  HttpTimeouts timeouts = {};
  std::function<void(int64_t done, int64_t total)> on_progress = {};  // May be empty.
};

struct UrlBenchReport {
  std::string url;
  UrlBenchOptions options;  // As given; the pointers are not used.
  bool sent_text = false;
  double duration_s = 0.0;  // From the first request to after the answer of /server_info.
  int64_t failed = 0;       // Requests that count in no figure.
  Status first_failure;
  int64_t input_tokens = 0;  // Of the requests that succeeded, as drawn.
  TimingSummary summary;
  std::optional<int64_t> output_tokens_retokenized;  // With a tokenizer.
  std::string server_info;                           // JSON as it came; empty: no answer.
};

// Polls GET /v1/models, at most ready_s, until it answers 200; the first name in it. BenchUrl
// begins with this too. Errors: kUnavailable, kCorrupt, and kInvalidArgument at once when the
// server refuses the call (a status of 4xx but 404 and 409).
Result<std::string> AwaitServedName(const HttpUrl& url, const UrlBenchOptions& options);

// Errors: kInvalidArgument for an option out of range, an unknown vocabulary size, or a chat
// without a tokenizer; kUnavailable for a server that is not ready; whatever the warm-up says; the
// first failure when all requests fail.
Result<UrlBenchReport> BenchUrl(const HttpUrl& url, const UrlBenchOptions& options);

std::string UrlBenchReportText(const UrlBenchReport& report);
// One line with the keys of the original's result file.
std::string UrlBenchReportJson(const UrlBenchReport& report);

}  // namespace octavo
