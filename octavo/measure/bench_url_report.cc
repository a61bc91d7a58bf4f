// The report of `octavo bench --url`, for people and for scripts.

#include <cmath>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "octavo/measure/bench_url.h"
#include "octavo/measure/bench_url_plan.h"
#include "octavo/measure/bench_url_timing.h"
#include "octavo/measure/stats.h"

namespace octavo {
namespace {

using Json = nlohmann::ordered_json;

std::string_view BackendName(BenchBackend backend) {
  switch (backend) {
    case BenchBackend::kNative:
      return "sglang";
    case BenchBackend::kCompletions:
      return "sglang-oai";
    case BenchBackend::kChat:
      return "sglang-oai-chat";
  }
  return "";
}

std::string SummaryLine(std::string_view name, const LatencySummary& summary) {
  return fmt::format("{:<24} {:9.2f} {:9.2f} {:9.2f} {:9.2f} {:9.2f} {:9.2f}\n", name, summary.mean,
                     summary.median, summary.p90, summary.p95, summary.p99, summary.max);
}

void AddSummary(Json& json, const std::string& name, const LatencySummary& summary) {
  json["mean_" + name + "_ms"] = summary.mean;
  json["median_" + name + "_ms"] = summary.median;
  json["std_" + name + "_ms"] = summary.std;
  json["p90_" + name + "_ms"] = summary.p90;
  json["p95_" + name + "_ms"] = summary.p95;
  json["p99_" + name + "_ms"] = summary.p99;
  json["max_" + name + "_ms"] = summary.max;
}

// internal_states[0].avg_spec_accept_length of /server_info; null where there is none.
Json AcceptLength(const Json& server_info) {
  const auto path = Json::json_pointer("/internal_states/0/avg_spec_accept_length");
  return server_info.is_object() && server_info.contains(path) ? server_info.at(path) : Json();
}

std::string RateText(double request_rate) {
  return std::isfinite(request_rate) ? fmt::format("{} a second", request_rate) : "all at once";
}

}  // namespace

std::string UrlBenchReportText(const UrlBenchReport& report) {
  const UrlBenchOptions& options = report.options;
  const TimingSummary& summary = report.summary;
  std::string text = fmt::format(
      "{} requests ({} failed) as {}, {}, {} in flight at most, in {:.2f} s\n"
      "{} tokens of prompts ({}), {} tokens generated\n"
      "Request throughput:      {:9.2f} req/s\n"
      "Input token throughput:  {:9.1f} tok/s\n"
      "Output token throughput: {:9.1f} tok/s (most in a second: {:.0f})\n"
      "Total token throughput:  {:9.1f} tok/s\n"
      "Concurrency:             {:9.1f} (most in a second: {})\n",
      summary.completed, report.failed, BackendName(options.backend),
      RateText(options.request_rate),
      options.max_concurrency == 0 ? "all" : fmt::format("{}", options.max_concurrency),
      report.duration_s, report.input_tokens, report.sent_text ? "text" : "ids",
      summary.output_tokens, summary.requests_per_s,
      static_cast<double>(report.input_tokens) / report.duration_s, summary.output_tok_per_s,
      summary.output_tok_per_s_peak,
      static_cast<double>(report.input_tokens + summary.output_tokens) / report.duration_s,
      summary.mean_concurrency, summary.concurrency_peak);
  if (report.output_tokens_retokenized.has_value()) {
    text += fmt::format("Output tokens, counted again from the text: {}\n",
                        *report.output_tokens_retokenized);
  }
  text += fmt::format("\n{:<24} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}\n", "ms", "mean", "median",
                      "p90", "p95", "p99", "max");
  text += SummaryLine("Time to first token", summary.ttft_ms);
  text += SummaryLine("Time per output token", summary.tpot_ms);
  text += SummaryLine("Inter-token latency", summary.itl_ms);
  text += SummaryLine("End-to-end latency", summary.latency_ms);
  if (report.failed > 0) {
    text += fmt::format("First failure: {}\n", report.first_failure.message());
  }
  return text;
}

std::string UrlBenchReportJson(const UrlBenchReport& report) {
  const UrlBenchOptions& options = report.options;
  const TimingSummary& summary = report.summary;
  const auto per_second = [&](int64_t count) {
    return static_cast<double>(count) / report.duration_s;
  };
  const Json info = Json::parse(report.server_info, nullptr, /*allow_exceptions=*/false);
  Json json = {{"url", report.url},
               {"backend", BackendName(options.backend)},
               {"dataset_name", "random-ids"},
               {"prompts", report.sent_text ? "text" : "ids"},
               {"num_prompts", options.num_prompts},
               {"request_rate", nullptr},
               {"max_concurrency", nullptr},
               {"random_input_len", options.input_len},
               {"random_output_len", options.output_len},
               {"random_range_ratio", options.range_ratio},
               {"seed", options.seed},
               {"server_info", info.is_discarded() ? Json() : info},
               {"duration", report.duration_s},
               {"completed", summary.completed},
               {"failed", report.failed},
               {"total_input_tokens", report.input_tokens},
               {"total_output_tokens", summary.output_tokens},
               {"total_output_tokens_retokenized", nullptr},
               {"request_throughput", summary.requests_per_s},
               {"input_throughput", per_second(report.input_tokens)},
               {"output_throughput", summary.output_tok_per_s},
               {"total_throughput", per_second(report.input_tokens + summary.output_tokens)}};
  // JSON has no infinity; the original writes the bare word.
  json["request_rate"] = std::isfinite(options.request_rate) ? Json(options.request_rate) : "inf";
  if (options.max_concurrency > 0) {
    json["max_concurrency"] = options.max_concurrency;
  }
  if (report.output_tokens_retokenized.has_value()) {
    json["total_output_tokens_retokenized"] = *report.output_tokens_retokenized;
  }
  AddSummary(json, "e2e_latency", summary.latency_ms);
  AddSummary(json, "ttft", summary.ttft_ms);
  AddSummary(json, "tpot", summary.tpot_ms);
  AddSummary(json, "itl", summary.itl_ms);
  json["concurrency"] = summary.mean_concurrency;
  json["accept_length"] = AcceptLength(info);
  json["max_output_tokens_per_s"] = summary.output_tok_per_s_peak;
  json["max_concurrent_requests"] = summary.concurrency_peak;
  return json.dump();
}

}  // namespace octavo
