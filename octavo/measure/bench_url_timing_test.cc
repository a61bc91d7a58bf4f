// Method: the arithmetic of the serving benchmark over event times written out by hand, and the
// events of each backend as servers send them, cut at every place.

#include "octavo/measure/bench_url_timing.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace octavo {
namespace {

using testing::DoubleNear;
using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

TEST(TimingRecorder, SpreadsAGapOverTheTokensThatItBrought) {
  TimingRecorder recorder;
  recorder.OnEvent(0.5, /*has_text=*/false, 1);  // No text yet: not the first token.
  recorder.OnEvent(1.0, true, 2);
  recorder.OnEvent(1.6, true, 5);  // 3 tokens in 0.6 s.
  recorder.OnEvent(1.8, true, 5);  // None: the gap goes on.
  recorder.OnEvent(2.0, true, 6);  // 1 token in 0.4 s.
  const RequestTiming timing = recorder.Finish(2.5);
  EXPECT_EQ(timing.first_token_s, 1.0);
  EXPECT_EQ(timing.latency_s, 2.5);
  EXPECT_EQ(timing.output_tokens, 6);
  EXPECT_THAT(timing.inter_token_s, ElementsAre(DoubleNear(0.2, 1e-12), DoubleNear(0.2, 1e-12),
                                                DoubleNear(0.2, 1e-12), DoubleNear(0.4, 1e-12)));
}

TEST(TimingRecorder, WithoutTextTheFirstTokenIsTheEnd) {
  TimingRecorder recorder;
  recorder.OnEvent(0.5, false, 1);
  const RequestTiming timing = recorder.Finish(0.75);
  EXPECT_EQ(timing.first_token_s, 0.75);
  EXPECT_EQ(timing.output_tokens, 1);
}

TEST(SummarizeTimings, AddsUpOverTheDuration) {
  const std::vector<RequestTiming> timings = {
      {.first_token_s = 1.0, .latency_s = 3.0, .inter_token_s = {1.0, 1.0}, .output_tokens = 3},
      {.first_token_s = 2.0, .latency_s = 2.0, .inter_token_s = {}, .output_tokens = 1}};
  const TimingSummary summary = SummarizeTimings(timings, 4.0);
  EXPECT_EQ(summary.completed, 2);
  EXPECT_DOUBLE_EQ(summary.requests_per_s, 0.5);
  EXPECT_DOUBLE_EQ(summary.output_tok_per_s, 1.0);   // (3 + 1) / 4
  EXPECT_DOUBLE_EQ(summary.mean_concurrency, 1.25);  // (3 + 2) / 4
  EXPECT_DOUBLE_EQ(summary.ttft_ms.mean, 1500.0);
  EXPECT_DOUBLE_EQ(summary.tpot_ms.mean, 1000.0);  // (3 - 1) / 2; one token alone has none.
  EXPECT_DOUBLE_EQ(summary.itl_ms.median, 1000.0);
  EXPECT_DOUBLE_EQ(summary.latency_ms.max, 3000.0);
}

TEST(SummarizeTimings, FindsTheBusiestSecond) {
  // Tokens at 10.5, 11.25, 11.5 and 11.1, 12.3: counted from 10.5, second 0 has 10.5, 11.25, 11.1
  // (and 11.5 begins second 1). The first touches seconds 0 and 1, the second 0, 1, the third 2.
  const std::vector<RequestTiming> timings = {
      {.start_s = 10.5, .first_token_s = 0.0, .latency_s = 1.0, .inter_token_s = {0.75, 0.25}},
      {.start_s = 11.0, .first_token_s = 0.1, .latency_s = 1.4, .inter_token_s = {1.2}},
      {.start_s = 12.6, .first_token_s = 0.1, .latency_s = 0.1, .inter_token_s = {}}};
  const TimingSummary summary = SummarizeTimings(timings, 4.0);
  EXPECT_EQ(summary.output_tok_per_s_peak, 3.0);
  EXPECT_EQ(summary.concurrency_peak, 2);
  EXPECT_EQ(SummarizeTimings({}, 1.0).concurrency_peak, 0);
}

// The same stream whole and cut in two at every place: the second half comes a second later.
RequestTiming MeterInPieces(const StreamMeterOptions& options, const std::string& stream) {
  RequestTiming last;
  for (size_t cut = 0; cut <= stream.size(); ++cut) {
    StreamMeter meter(options);
    meter.OnPiece(1.0, std::string_view(stream).substr(0, cut));
    meter.OnPiece(2.0, std::string_view(stream).substr(cut));
    const Result<RequestTiming> timing = meter.Finish();
    EXPECT_TRUE(timing.has_value()) << "cut " << cut << ": " << timing.error().message();
    last = timing.has_value() ? *timing : last;
    EXPECT_THAT(last.inter_token_s, Each(testing::AnyOf(0.0, 1.0, 0.5)));
  }
  return last;
}

std::string Event(std::string_view json) { return fmt::format("data: {}\n\n", json); }

TEST(StreamMeter, ReadsNativeEvents) {
  const std::string stream =
      Event(R"({"text":"","output_ids":[7],"meta_info":{"completion_tokens":1}})") +
      Event(R"({"text":"a","output_ids":[7,8],"meta_info":{"completion_tokens":2}})") +
      Event(R"({"text":"abc","output_ids":[7,8,9,9],"meta_info":{"completion_tokens":4}})") +
      Event("[DONE]");
  const RequestTiming timing = MeterInPieces({.keeps_text = true}, stream);
  EXPECT_EQ(timing.output_tokens, 4);
  EXPECT_EQ(timing.inter_token_s.size(), 2u);  // The first text had 2 tokens.

  StreamMeter meter({.counts_ids = true, .keeps_text = true});
  meter.OnPiece(1.0, stream);
  EXPECT_EQ(meter.Finish().value().inter_token_s.size(), 3u);
  EXPECT_EQ(meter.text(), "abc");
}

TEST(StreamMeter, ReadsOpenAiEvents) {
  const std::string completions = Event(R"({"choices":[{"index":0,"text":"ab"}]})") +
                                  Event(R"({"choices":[{"text":""}],"usage":null})") +
                                  Event(R"({"choices":[{"text":"c"}]})") + Event("[DONE]");
  const StreamMeterOptions options = {
      .backend = BenchBackend::kCompletions, .output_len = 9, .keeps_text = true};
  RequestTiming timing = MeterInPieces(options, completions);
  EXPECT_EQ(timing.output_tokens, 9);  // Nobody said how many.
  EXPECT_EQ(timing.inter_token_s.size(), 1u);

  const std::string chat =
      Event(R"({"choices":[{"delta":{"role":"assistant","content":""}}]})") +
      Event(R"({"choices":[{"delta":{"content":null,"reasoning_content":"hm"}}]})") +
      Event(R"({"choices":[{"delta":{"content":"yes"}}]})") +
      Event(R"({"choices":[{"delta":{},"finish_reason":"length"}]})") +
      Event(R"({"choices":[],"usage":{"completion_tokens":3}})") + Event("[DONE]");
  StreamMeter meter({.backend = BenchBackend::kChat, .output_len = 9, .keeps_text = true});
  meter.OnPiece(1.0, chat);
  timing = meter.Finish().value();
  EXPECT_EQ(timing.output_tokens, 3);
  EXPECT_THAT(timing.inter_token_s, ElementsAre(0.0));
  EXPECT_EQ(meter.text(), "hmyes");
}

TEST(StreamMeter, SaysWhatIsWrongWithAStream) {
  const auto failure_of = [](BenchBackend backend, const std::string& stream) {
    StreamMeter meter({.backend = backend});
    meter.OnPiece(1.0, stream);
    return meter.Finish().error();
  };
  for (const BenchBackend backend : {BenchBackend::kNative, BenchBackend::kCompletions}) {
    EXPECT_EQ(failure_of(backend, "").code(), StatusCode::kUnavailable);  // No [DONE].
    EXPECT_EQ(failure_of(backend, Event("{") + Event("[DONE]")).code(), StatusCode::kCorrupt);
    EXPECT_EQ(failure_of(backend, Event("{}") + Event("[DONE]")).code(), StatusCode::kCorrupt);
    const Status reported = failure_of(
        backend, Event(R"({"error":{"message":"out of pages","code":500}})") + Event("[DONE]"));
    EXPECT_EQ(reported.code(), StatusCode::kInternal);
    EXPECT_THAT(reported.message(), HasSubstr("out of pages"));
  }
}

}  // namespace
}  // namespace octavo
