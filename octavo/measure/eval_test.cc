// Method: a generator of this file answers from a table, so that every figure of the report can be
// worked out by hand; failures, bounds and the exact printed lines are checked too. What a server
// is asked is read back from a scripted one.

#include "octavo/measure/eval.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <mutex>
#include <set>
#include <thread>

#include "octavo/client/scripted_server.h"
#include "octavo/measure/progress.h"

namespace octavo {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

// Problem i has the answer i; question texts are "Q0", "Q1", ...
std::vector<Problem> Problems(int n) {
  std::vector<Problem> problems;
  for (int i = 0; i < n; ++i) {
    problems.push_back({fmt::format("Q{}", i), fmt::format("#### {}", i)});
  }
  return problems;
}

class ScriptedGenerator final : public TextGenerator {
 public:
  explicit ScriptedGenerator(std::function<Result<TextReply>(const TextRequest&)> reply)
      : reply_(std::move(reply)) {}
  Result<TextReply> Generate(const TextRequest& request) override {
    const int now = ++running_;
    most_ = std::max(most_.load(), now);
    Result<TextReply> reply = reply_(request);
    --running_;
    return reply;
  }
  int most_running() const { return most_; }

 private:
  std::function<Result<TextReply>(const TextRequest&)> reply_;
  std::atomic<int> running_{0};
  std::atomic<int> most_{0};
};

// The number behind the last "Q" of the prompt.
int QuestionOf(const TextRequest& request) {
  return std::stoi(request.prompt.substr(request.prompt.rfind('Q', request.prompt.size() - 9) + 1));
}

TEST(RunEval, CountsRightWrongAndInvalid) {
  // Of ten: 0..6 right, 7 and 8 wrong, 9 without a number; 3 tokens each.
  ScriptedGenerator generator([](const TextRequest& request) -> Result<TextReply> {
    const int i = QuestionOf(request);
    const std::string text = i <= 6 ? fmt::format(" so {}.", i) : i <= 8 ? "1,000" : "none";
    return TextReply{text, 3, "stop", "4"};
  });
  EvalOptions options;
  options.num_shots = 0;
  options.parallel = 3;
  const auto problems = Problems(10);
  const EvalReport report = RunEval(problems, generator, options).value();
  EXPECT_EQ(report.questions, 10);
  EXPECT_DOUBLE_EQ(report.accuracy, 0.7);
  EXPECT_DOUBLE_EQ(report.invalid, 0.1);
  EXPECT_DOUBLE_EQ(report.standard_error, std::sqrt(0.7 * 0.3 / 10));
  EXPECT_EQ(report.output_tokens, 30);
  EXPECT_DOUBLE_EQ(report.output_tok_per_s, 30 / report.latency_s);
  EXPECT_EQ(report.answers[8].value, "1000");
  EXPECT_EQ(report.answers[8].label, "8");
  EXPECT_FALSE(report.answers[9].value.has_value());
  EXPECT_EQ(report.answers[0].weight_version, "4");
  EXPECT_LE(generator.most_running(), 3);
}

TEST(RunEval, AsksEachQuestionOnceWithItsShotsAndStops) {
  std::mutex mutex;
  std::multiset<std::string> prompts;
  ScriptedGenerator generator([&](const TextRequest& request) -> Result<TextReply> {
    const std::lock_guard lock(mutex);
    prompts.insert(request.prompt);
    EXPECT_THAT(request.stop, ElementsAre("Question", "Assistant:", "<|separator|>", "<|im_end|>"));
    EXPECT_EQ(request.max_new_tokens, 512);
    EXPECT_EQ(request.temperature, 0.0);
    return TextReply{"1", 1, "stop", "0"};
  });
  EvalOptions options;
  options.num_shots = 1;
  options.num_questions = 2;
  options.extra_stop = {"<|im_end|>"};
  const auto problems = Problems(5);
  EXPECT_EQ(RunEval(problems, generator, options).value().questions, 2);
  EXPECT_THAT(prompts, ElementsAre("Question: Q0\nAnswer: #### 0\n\nQuestion: Q0\nAnswer:",
                                   "Question: Q0\nAnswer: #### 0\n\nQuestion: Q1\nAnswer:"));
}

TEST(RunEval, ReportsProgressToTheEnd) {
  ScriptedGenerator generator(
      [](const TextRequest&) -> Result<TextReply> { return TextReply{"1", 1, "stop", "0"}; });
  EvalOptions options;
  options.num_shots = 0;
  std::vector<int64_t> seen;
  options.on_progress = [&](int64_t done, int64_t total) {
    EXPECT_EQ(total, 4);
    seen.push_back(done);
  };
  const auto problems = Problems(4);
  ASSERT_TRUE(RunEval(problems, generator, options).has_value());
  EXPECT_THAT(seen, ElementsAre(1, 2, 3, 4));
}

TEST(RunEval, TheDigestOfRepliesFollowsTextsAndTheirOrder) {
  const auto digest = [](std::string first, std::string second) {
    ScriptedGenerator generator([&](const TextRequest& request) -> Result<TextReply> {
      return TextReply{QuestionOf(request) == 0 ? first : second, 1, "stop", "0"};
    });
    EvalOptions options;
    options.num_shots = 0;
    const auto problems = Problems(2);
    return RunEval(problems, generator, options).value().replies_digest;
  };
  EXPECT_EQ(digest("a", "b"), digest("a", "b"));
  EXPECT_NE(digest("a", "b"), digest("b", "a"));
  EXPECT_NE(digest("ab", ""), digest("a", "b"));
}

TEST(RunEval, AFailureEndsTheRunAndIsNotAWrongAnswer) {
  std::atomic<int> asked{0};
  ScriptedGenerator generator([&](const TextRequest& request) -> Result<TextReply> {
    ++asked;
    if (QuestionOf(request) == 2) {
      return Unavailable("gone");
    }
    return TextReply{"1", 1, "stop", "0"};
  });
  EvalOptions options;
  options.num_shots = 0;
  options.parallel = 1;
  const auto problems = Problems(50);
  const auto report = RunEval(problems, generator, options);
  ASSERT_FALSE(report.has_value());
  EXPECT_EQ(report.error().code(), StatusCode::kUnavailable);
  EXPECT_EQ(report.error().message(), "question 2: gone");
  EXPECT_EQ(asked, 3);
}

TEST(RunEval, AnAbortedReplyIsAFailure) {
  ScriptedGenerator generator(
      [](const TextRequest&) -> Result<TextReply> { return TextReply{"1", 1, "abort", "0"}; });
  EvalOptions options;
  options.num_shots = 0;
  const auto problems = Problems(1);
  EXPECT_EQ(RunEval(problems, generator, options).error().code(), StatusCode::kCancelled);
}

TEST(RunEval, RefusesOptionsOutOfRange) {
  ScriptedGenerator generator(
      [](const TextRequest&) -> Result<TextReply> { return TextReply{"1", 1, "stop", "0"}; });
  const auto problems = Problems(3);
  const auto code = [&](auto change) {
    EvalOptions options;
    options.num_shots = 0;
    change(options);
    return RunEval(problems, generator, options).error().code();
  };
  EXPECT_EQ(code([](EvalOptions& o) { o.num_shots = 4; }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](EvalOptions& o) { o.num_shots = -1; }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](EvalOptions& o) { o.num_questions = -1; }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](EvalOptions& o) { o.parallel = 0; }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](EvalOptions& o) { o.parallel = 4097; }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](EvalOptions& o) { o.num_shots = 3; }), StatusCode::kOk);
  EXPECT_EQ(RunEval({}, generator, {}).error().code(), StatusCode::kInvalidArgument);
}

TEST(RunEval, RefusesAProblemWithoutANumber) {
  ScriptedGenerator generator(
      [](const TextRequest&) -> Result<TextReply> { return TextReply{"1", 1, "stop", "0"}; });
  auto problems = Problems(2);
  problems[1].answer = "####";
  EvalOptions options;
  options.num_shots = 0;
  EXPECT_THAT(RunEval(problems, generator, options).error().message(), HasSubstr("problem 1"));
}

TEST(UrlGenerator, SendsWhatTheBenchmarkSendsOnAFreshConnectionEach) {
  ScriptedServer server([](const ScriptedRequest&) {
    return RawReply(200, R"({"text":" 5","output_ids":[1],"meta_info":{"completion_tokens":4,
                        "finish_reason":{"type":"stop","matched":"Question"},
                        "weight_version":"9"}})");
  });
  const auto generator = MakeUrlGenerator(ParseHttpUrl(server.url()).value(), {});
  const TextRequest request = {.prompt = "Question: x\nAnswer:", .stop = {"Question"}};
  for (int i = 0; i < 2; ++i) {
    const TextReply reply = generator->Generate(request).value();
    EXPECT_EQ(reply.text, " 5");
    EXPECT_EQ(reply.completion_tokens, 4);
    EXPECT_EQ(reply.finish_type, "stop");
    EXPECT_EQ(reply.weight_version, "9");
    EXPECT_EQ(server.requests().back().connection_idx, i);
  }
  EXPECT_THAT(server.requests()[0].body, HasSubstr(R"("temperature":0.0)"));
  EXPECT_THAT(server.requests()[0].body, HasSubstr(R"("max_new_tokens":512)"));
  EXPECT_THAT(server.requests()[0].body, HasSubstr(R"("stop":["Question"])"));
}

TEST(ChatStop, IsThatOfQwenChatModelsOnly) {
  EXPECT_EQ(ChatStop("Qwen/Qwen2.5-7B-Instruct"), "<|im_end|>");
  EXPECT_EQ(ChatStop("/m/QWEN-chat"), "<|im_end|>");
  EXPECT_EQ(ChatStop("Qwen/Qwen3-8B"), "");
  EXPECT_EQ(ChatStop("chat/qwen3"), "");
  EXPECT_EQ(ChatStop("models/abacus-dense"), "");
}

TEST(EvalReportText, HasTheLinesOfTheBenchmark) {
  EvalReport report;
  report.accuracy = 0.97949;
  report.invalid = 0.0008;
  report.latency_s = 12.34567;
  report.output_tok_per_s = 5432.1;
  report.standard_error = 0.0039;
  report.questions = 1319;
  EXPECT_EQ(EvalReportText(report),
            "Accuracy: 0.979\nInvalid: 0.001\nLatency: 12.346 s\n"
            "Output throughput: 5432.100 token/s\nStandard error: 0.004 (n = 1319)\n");
  EXPECT_THAT(EvalReportJson(report), HasSubstr(R"("questions":1319,"latency_s":12.34567)"));
  report.recipe = "serving-1/mxfp8";
  report.is_emulated = true;
  EXPECT_THAT(EvalReportText(report), HasSubstr("\nRecipe: serving-1/mxfp8 (emulated)\n"));
  EXPECT_THAT(EvalReportJson(report), HasSubstr(R"("recipe":"serving-1/mxfp8","emulated":true)"));
  EXPECT_THAT(EvalReportJson(report), Not(HasSubstr("nvfp4_inputs")));
  report.nvfp4_inputs = {.num_groups = 123, .num_above = 4, .num_below = 5};
  EXPECT_THAT(EvalReportText(report),
              HasSubstr("\nNVFP4 input groups: 123 (4 above the range of their scale, 5 below)\n"));
  EXPECT_THAT(EvalReportJson(report),
              HasSubstr(R"("nvfp4_inputs":{"groups":123,"above":4,"below":5})"));
}

TEST(ProgressLine, FillsWithTheShareDone) {
  EXPECT_EQ(ProgressLine(0, 10, "questions", 0.0),
            "[..............................]   0%  0/10 questions  0 s");
  EXPECT_EQ(ProgressLine(5, 10, "questions", 2.4),
            "[###############...............]  50%  5/10 questions  2 s");
  EXPECT_EQ(ProgressLine(10, 10, "questions", 3.0),
            "[##############################] 100%  10/10 questions  3 s");
  EXPECT_THAT(ProgressLine(0, 0, "bytes", 0.0), HasSubstr("0%  0.00/0.00 GB  0 s"));
  EXPECT_THAT(ProgressLine(4'000'000'000, 8'000'000'000, "bytes", 5.0),
              HasSubstr("50%  4.00/8.00 GB, 0.80 GB/s, 5 s left  5 s"));
}

}  // namespace
}  // namespace octavo
