// Method: the arithmetic of the serving benchmark over event times written out by hand; the loop
// itself against a scripted server, where only counts are checked, never times.

#include "octavo/measure/bench_url.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "octavo/client/scripted_server.h"

namespace octavo {
namespace {

using testing::DoubleNear;
using testing::ElementsAre;
using testing::HasSubstr;

TEST(TimingRecorder, SpreadsAGapOverTheTokensThatItBrought) {
  TimingRecorder recorder;
  recorder.OnEvent(0.5, /*has_text=*/false, 1);  // No text yet: not the first token.
  recorder.OnEvent(1.0, true, 2);
  recorder.OnEvent(1.6, true, 5);  // 3 tokens in 0.6 s.
  recorder.OnEvent(1.8, true, 5);  // None: no gap is counted ...
  recorder.OnEvent(2.0, true, 6);  // ... and the next one starts there.
  const RequestTiming timing = recorder.Finish(2.5);
  EXPECT_EQ(timing.first_token_s, 1.0);
  EXPECT_EQ(timing.latency_s, 2.5);
  EXPECT_EQ(timing.output_tokens, 6);
  EXPECT_THAT(timing.inter_token_s, ElementsAre(DoubleNear(0.2, 1e-12), DoubleNear(0.2, 1e-12),
                                                DoubleNear(0.2, 1e-12), DoubleNear(0.2, 1e-12)));
}

TEST(SummarizeTimings, AddsUpOverTheDuration) {
  const std::vector<RequestTiming> timings = {
      {.first_token_s = 1.0, .latency_s = 3.0, .inter_token_s = {1.0, 1.0}, .output_tokens = 3},
      {.first_token_s = 2.0, .latency_s = 2.0, .inter_token_s = {}, .output_tokens = 1}};
  UrlBenchOptions options;
  options.input_len = 10;
  const UrlBenchReport report =
      SummarizeTimings(options, ParseHttpUrl("http://h:1").value(), timings, 4.0);
  EXPECT_EQ(report.completed, 2);
  EXPECT_DOUBLE_EQ(report.requests_per_s, 0.5);
  EXPECT_DOUBLE_EQ(report.input_tok_per_s, 5.0);    // 2 * 10 / 4
  EXPECT_DOUBLE_EQ(report.output_tok_per_s, 1.0);   // (3 + 1) / 4
  EXPECT_DOUBLE_EQ(report.mean_concurrency, 1.25);  // (3 + 2) / 4
  EXPECT_DOUBLE_EQ(report.ttft_ms.mean, 1500.0);
  EXPECT_DOUBLE_EQ(report.tpot_ms.mean, 1000.0);  // (3 - 1) / 2; one token alone has none.
  EXPECT_DOUBLE_EQ(report.itl_ms.median, 1000.0);
  EXPECT_DOUBLE_EQ(report.latency_ms.max, 3000.0);
  EXPECT_THAT(UrlBenchReportJson(report), HasSubstr(R"("output_tok_per_s":1.0)"));
  EXPECT_THAT(UrlBenchReportText(report), HasSubstr("Output token throughput:       1.0 tok/s"));
}

TEST(RandomPrompt, CountsUpModuloTheVocabulary) {
  UrlBenchOptions options;
  options.input_len = 600;
  const std::vector<int32_t> ids = RandomPrompt(options, 256, 3);
  ASSERT_EQ(ids.size(), 600u);
  for (size_t j = 0; j < ids.size(); ++j) {
    EXPECT_EQ(ids[j], (ids[0] + static_cast<int32_t>(j)) % 256);
  }
  EXPECT_EQ(RandomPrompt(options, 256, 3), ids);
  EXPECT_NE(RandomPrompt(options, 256, 4), ids);
}

std::string EventStream(int64_t tokens) {
  return RawReply(200,
                  fmt::format("data: {{\"text\":\"a\",\"meta_info\":{{\"completion_tokens\":1}}}}"
                              "\n\ndata: {{\"text\":\"ab\",\"meta_info\":{{"
                              "\"completion_tokens\":{},\"finish_reason\":{{"
                              "\"type\":\"length\"}}}}}}\n\ndata: [DONE]\n\n",
                              tokens));
}

TEST(BenchUrl, SendsEveryPromptOnceAfterAWarmUp) {
  ScriptedServer server([](const ScriptedRequest& request) {
    return request.line == "GET /get_server_info" ? RawReply(200, R"({"vocab_size":50})")
                                                  : EventStream(4);
  });
  UrlBenchOptions options;
  options.num_prompts = 5;
  options.parallel = 2;
  options.input_len = 3;
  options.output_len = 4;
  std::vector<int64_t> seen;
  options.on_progress = [&](int64_t done, int64_t total) {
    EXPECT_EQ(total, 5);
    seen.push_back(done);
  };
  const auto report = BenchUrl(ParseHttpUrl(server.url()).value(), options);
  ASSERT_TRUE(report.has_value()) << report.error().message();
  EXPECT_EQ(report->completed, 5);
  EXPECT_THAT(seen, ElementsAre(1, 2, 3, 4, 5));
  const auto requests = server.requests();
  ASSERT_EQ(requests.size(), 7u);  // The vocabulary, the warm-up, five prompts.
  std::set<std::string> bodies;
  for (size_t i = 2; i < requests.size(); ++i) {
    EXPECT_EQ(requests[i].line, "POST /generate");
    EXPECT_THAT(requests[i].body, HasSubstr(R"("ignore_eos":true)"));
    EXPECT_THAT(requests[i].body, HasSubstr(R"("max_new_tokens":4)"));
    EXPECT_THAT(requests[i].body, HasSubstr(R"("stream":true)"));
    bodies.insert(requests[i].body);
  }
  EXPECT_EQ(bodies.size(), 5u);
}

TEST(BenchUrl, RefusesByName) {
  ScriptedServer server([](const ScriptedRequest& request) {
    return request.line == "GET /get_server_info" ? RawReply(200, "{}") : RawReply(503, "{}");
  });
  const HttpUrl url = ParseHttpUrl(server.url()).value();
  UrlBenchOptions options;
  EXPECT_THAT(BenchUrl(url, options).error().message(), HasSubstr("--vocab-size"));
  options.vocab_size = 8;
  EXPECT_EQ(BenchUrl(url, options).error().code(), StatusCode::kUnavailable);
  options.parallel = 0;
  EXPECT_THAT(BenchUrl(url, options).error().message(), HasSubstr("parallel"));
  options.parallel = 1;
  options.output_len = 0;
  EXPECT_THAT(BenchUrl(url, options).error().message(), HasSubstr("output-len"));
}

}  // namespace
}  // namespace octavo
