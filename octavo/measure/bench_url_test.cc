// Method: whole runs against a scripted server, where only counts and bodies are checked, never
// times; and the reports of figures written out by hand.

#include "octavo/measure/bench_url.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "octavo/client/scripted_server.h"

namespace octavo {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using Json = nlohmann::json;

constexpr std::string_view kModels = R"({"object":"list","data":[{"id":"policy"}]})";

std::string EventStream(int64_t tokens) {
  return RawReply(200,
                  fmt::format("data: {{\"text\":\"a\",\"meta_info\":{{\"completion_tokens\":1}}"
                              "}}\n\ndata: {{\"text\":\"ab\",\"meta_info\":{{"
                              "\"completion_tokens\":{}}}}}\n\ndata: [DONE]\n\n",
                              tokens));
}

// A server with 50 ids whose every stream brings 4 tokens.
std::string Answer(const ScriptedRequest& request) {
  if (request.line == "GET /v1/models") {
    return RawReply(200, kModels);
  }
  if (request.line == "GET /get_server_info" || request.line == "GET /server_info") {
    return RawReply(200, R"({"vocab_size":50,"internal_states":[{"avg_spec_accept_length":2.5}]})");
  }
  if (request.line == "GET /get_model_info") {
    return RawReply(200, R"({"model_path":"m","tokenizer_path":"m"})");
  }
  return request.line == "POST /flush_cache" ? RawReply(200, "") : EventStream(4);
}

std::vector<Json> BodiesOf(const std::vector<ScriptedRequest>& requests, std::string_view line) {
  std::vector<Json> bodies;
  for (const ScriptedRequest& request : requests) {
    if (request.line == line) {
      bodies.push_back(Json::parse(request.body));
    }
  }
  return bodies;
}

UrlBenchOptions FivePrompts() {
  return {.num_prompts = 5,
          .input_len = 40,
          .output_len = 200,
          .range_ratio = 1.0,
          .max_concurrency = 2};
}

TEST(BenchUrl, SendsEveryPromptOnceAfterAWarmUp) {
  ScriptedServer server(Answer);
  UrlBenchOptions options = FivePrompts();
  options.flush_cache = true;
  std::vector<int64_t> seen;
  options.on_progress = [&](int64_t done, int64_t total) {
    EXPECT_EQ(total, 5);
    seen.push_back(done);
  };
  const auto report = BenchUrl(ParseHttpUrl(server.url()).value(), options);
  ASSERT_TRUE(report.has_value()) << report.error().message();
  EXPECT_EQ(report->summary.completed, 5);
  EXPECT_EQ(report->failed, 0);
  EXPECT_EQ(report->input_tokens, 200);
  EXPECT_EQ(report->summary.output_tokens, 20);
  EXPECT_FALSE(report->output_tokens_retokenized.has_value());
  EXPECT_THAT(seen, ElementsAre(1, 2, 3, 4, 5));

  const auto requests = server.requests();
  const std::vector<Json> bodies = BodiesOf(requests, "POST /generate");
  ASSERT_EQ(bodies.size(), 6u);
  EXPECT_EQ(bodies[0]["sampling_params"]["max_new_tokens"], 32);
  std::set<Json> prompts;
  for (size_t i = 1; i < bodies.size(); ++i) {
    EXPECT_EQ(bodies[i]["sampling_params"],
              Json({{"temperature", 0.0}, {"max_new_tokens", 200}, {"ignore_eos", true}}));
    EXPECT_EQ(bodies[i]["stream"], true);
    EXPECT_EQ(bodies[i]["input_ids"].size(), 40u);
    prompts.insert(bodies[i]["input_ids"]);
  }
  EXPECT_EQ(prompts.size(), 5u);
  // The warm-up is one of them, cut; which of two in flight arrives first is not said.
  EXPECT_TRUE(prompts.contains(bodies[0]["input_ids"]));
  EXPECT_EQ(std::count_if(requests.begin(), requests.end(),
                          [](const auto& x) { return x.line == "POST /flush_cache"; }),
            1);
  EXPECT_EQ(requests.back().line, "GET /server_info");
}

TEST(BenchUrl, AsksTheOpenAiEndpointsInTheirWords) {
  for (const bool is_chat : {false, true}) {
    const std::string line = is_chat ? "POST /v1/chat/completions" : "POST /v1/completions";
    ScriptedServer server([&](const ScriptedRequest& request) {
      return request.line == line
                 ? RawReply(200, is_chat ? "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}"
                                           "\n\ndata: [DONE]\n\n"
                                         : "data: {\"choices\":[{\"text\":\"a\"}]}\n\n"
                                           "data: [DONE]\n\n")
                 : Answer(request);
    });
    const Tokenizer tokenizer = Tokenizer::LoadFolder("models/abacus-dense").value();
    UrlBenchOptions options = FivePrompts();
    options.backend = is_chat ? BenchBackend::kChat : BenchBackend::kCompletions;
    options.tokenizer = &tokenizer;
    const auto report = BenchUrl(ParseHttpUrl(server.url()).value(), options);
    ASSERT_TRUE(report.has_value()) << report.error().message();
    EXPECT_EQ(report->summary.output_tokens, 1000);  // 5 * 200: nobody said otherwise.
    EXPECT_EQ(report->output_tokens_retokenized, 5);
    for (const Json& body : BodiesOf(server.requests(), line)) {
      EXPECT_EQ(body["model"], "policy");
      EXPECT_EQ(body["ignore_eos"], true);
      const Json& text = is_chat ? body["messages"][0]["content"] : body["prompt"];
      EXPECT_TRUE(text.is_string());
    }
  }
}

TEST(BenchUrl, CountsWhatFailedApart) {
  ScriptedServer server([](const ScriptedRequest& request) {
    const bool is_odd = request.body.find("\"max_new_tokens\":200") != std::string::npos &&
                        request.connection_idx % 2 == 1;
    return is_odd ? RawReply(503, R"({"message":"queue full"})") : Answer(request);
  });
  const auto report = BenchUrl(ParseHttpUrl(server.url()).value(), FivePrompts());
  ASSERT_TRUE(report.has_value()) << report.error().message();
  EXPECT_EQ(report->summary.completed + report->failed, 5);
  EXPECT_GE(report->failed, 2);
  EXPECT_GE(report->summary.completed, 2);
  EXPECT_EQ(report->summary.output_tokens, 4 * report->summary.completed);
  EXPECT_EQ(report->input_tokens, 40 * report->summary.completed);
  EXPECT_THAT(report->first_failure.message(), HasSubstr("queue full"));
  EXPECT_THAT(UrlBenchReportText(*report), HasSubstr("First failure: request"));
}

TEST(BenchUrl, RefusesByName) {
  ScriptedServer server([](const ScriptedRequest& request) {
    if (request.line == "GET /v1/models") {
      return RawReply(200, kModels);
    }
    return request.line.starts_with("GET") ? RawReply(200, "{}") : RawReply(503, "{}");
  });
  const HttpUrl url = ParseHttpUrl(server.url()).value();
  EXPECT_THAT(BenchUrl(url, {}).error().message(), HasSubstr("--vocab-size"));
  EXPECT_EQ(BenchUrl(url, {.vocab_size = 8}).error().code(), StatusCode::kUnavailable);
  const auto message = [&](const UrlBenchOptions& options) {
    return BenchUrl(url, options).error().message();
  };
  EXPECT_THAT(message({.num_prompts = 0}), HasSubstr("num-prompts"));
  EXPECT_THAT(message({.output_len = 0}), HasSubstr("random-output-len"));
  EXPECT_THAT(message({.range_ratio = 1.5}), HasSubstr("random-range-ratio"));
  EXPECT_THAT(message({.range_ratio = std::numeric_limits<double>::quiet_NaN()}),
              HasSubstr("random-range-ratio"));
  EXPECT_THAT(message({.request_rate = 0.0}), HasSubstr("request-rate"));
  EXPECT_THAT(message({.max_concurrency = -1}), HasSubstr("max-concurrency"));
  EXPECT_THAT(message({.backend = BenchBackend::kChat, .vocab_size = 8}), HasSubstr("--tokenizer"));
}

TEST(BenchUrl, SaysThatAServerIsNotReady) {
  ScriptedServer server([](const ScriptedRequest&) { return RawReply(503, "starting"); });
  const auto report = BenchUrl(ParseHttpUrl(server.url()).value(), {.ready_s = 0.0});
  EXPECT_EQ(report.error().code(), StatusCode::kUnavailable);
  EXPECT_THAT(report.error().message(), HasSubstr("not ready after 0 s"));
}

UrlBenchReport SmallReport() {
  UrlBenchReport report;
  report.url = "http://h:1";
  report.options.num_prompts = 3;
  report.duration_s = 4.0;
  report.failed = 1;
  report.input_tokens = 20;
  report.server_info = R"({"version":"x","internal_states":[{"avg_spec_accept_length":2.5}]})";
  report.summary = {
      .completed = 2, .output_tokens = 4, .requests_per_s = 0.5, .output_tok_per_s = 1.0};
  report.summary.itl_ms.p95 = 7.0;
  return report;
}

TEST(UrlBenchReportJson, HasTheKeysOfTheOriginal) {
  const Json json = Json::parse(UrlBenchReportJson(SmallReport()));
  EXPECT_EQ(json["request_rate"], "inf");
  EXPECT_EQ(json["max_concurrency"], nullptr);
  EXPECT_EQ(json["completed"], 2);
  EXPECT_EQ(json["failed"], 1);
  EXPECT_EQ(json["input_throughput"], 5.0);  // 20 / 4
  EXPECT_EQ(json["total_throughput"], 6.0);  // (20 + 4) / 4
  EXPECT_EQ(json["p95_itl_ms"], 7.0);
  EXPECT_EQ(json["accept_length"], 2.5);
  EXPECT_EQ(json["server_info"]["version"], "x");
  for (const char* key : {"backend",
                          "dataset_name",
                          "random_input_len",
                          "random_output_len",
                          "random_range_ratio",
                          "duration",
                          "total_input_tokens",
                          "total_output_tokens",
                          "total_output_tokens_retokenized",
                          "request_throughput",
                          "output_throughput",
                          "mean_e2e_latency_ms",
                          "median_e2e_latency_ms",
                          "std_e2e_latency_ms",
                          "p90_e2e_latency_ms",
                          "p99_e2e_latency_ms",
                          "mean_ttft_ms",
                          "median_ttft_ms",
                          "std_ttft_ms",
                          "p99_ttft_ms",
                          "mean_tpot_ms",
                          "median_tpot_ms",
                          "std_tpot_ms",
                          "p99_tpot_ms",
                          "mean_itl_ms",
                          "median_itl_ms",
                          "std_itl_ms",
                          "p99_itl_ms",
                          "concurrency",
                          "max_output_tokens_per_s",
                          "max_concurrent_requests"}) {
    EXPECT_TRUE(json.contains(key)) << key;
  }
  UrlBenchReport silent = SmallReport();
  silent.server_info.clear();
  silent.options.request_rate = 2.5;
  const Json other = Json::parse(UrlBenchReportJson(silent));
  EXPECT_EQ(other["server_info"], nullptr);
  EXPECT_EQ(other["request_rate"], 2.5);
}

TEST(UrlBenchReportText, TellsThroughputAndFailures) {
  const std::string text = UrlBenchReportText(SmallReport());
  EXPECT_THAT(text, HasSubstr("2 requests (1 failed) as sglang, all at once, all in flight"));
  EXPECT_THAT(text, HasSubstr("Output token throughput:       1.0 tok/s"));
}

}  // namespace
}  // namespace octavo
