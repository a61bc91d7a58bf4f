// Method: snapshots scripted by hand go through the session and each shape into a writer that
// records; every member of whole answers and chunks is compared. The tokenizer is that of
// models/abacus-dense.

#include "octavo/server/render_openai.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/engine/request.h"
#include "octavo/server/generate_session.h"
#include "octavo/server/parse_openai.h"
#include "octavo/server/recording_writer_for_test.h"
#include "octavo/server/render_sequence.h"
#include "octavo/text/tokenizer.h"

namespace octavo {
namespace {

using testing::HasSubstr;
using testing::Not;

constexpr int32_t kImEnd = 2;

class RenderOpenAiTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    Result<Tokenizer> tokenizer = Tokenizer::LoadFolder("models/abacus-dense");
    ASSERT_TRUE(tokenizer.has_value()) << tokenizer.error().message();
    tokenizer_ = std::move(*tokenizer);
  }
  static void TearDownTestSuite() { tokenizer_.reset(); }

  static OpenAiAnswer Answer(OpenAiKind kind) {
    return {.kind = kind, .id = "r0", .model = "m", .created_unix_s = 17};
  }

  std::shared_ptr<GenerateSession> Start(OpenAiAnswer answer, bool stream, size_t count = 1,
                                         RenderOptions render = {}) {
    render.tokenizer = &*tokenizer_;
    render.recipe = "r";
    render.is_emulated = true;
    render.max_new_tokens = 16;
    SessionOptions options{.shape = MakeOpenAiShape(std::move(answer), &*tokenizer_),
                           .stream = stream};
    for (size_t i = 0; i < count; ++i) {
      options.rids.push_back(fmt::format("r{}", i));
      options.sequences.push_back(render);
    }
    options.abort = [](const std::string&) {};
    options.done = [this](int64_t num_clamped) { num_clamped_ = num_clamped; };
    auto session = std::make_shared<GenerateSession>(std::move(options), writer_);
    session->Start();
    return session;
  }

  // The tokens of `text`, each with a logprob of -0.5, after `before` of them.
  static RequestOutput Tokens(std::string_view text, int64_t before = 0) {
    RequestOutput output;
    output.rid = "r0";
    output.new_ids = tokenizer_->Encode(text);
    for (const int32_t id : output.new_ids) {
      output.new_logprobs.push_back({-0.5F, id});
    }
    output.prompt_tokens = 10;
    output.cached_tokens = 4;
    output.completion_tokens = before + static_cast<int64_t>(output.new_ids.size());
    output.weight_version = "v7";
    return output;
  }
  static RequestOutput Last(std::string_view text, FinishReason finish, int64_t before = 0) {
    RequestOutput output = Tokens(text, before);
    output.finish = std::move(finish);
    return output;
  }

  static inline std::optional<Tokenizer> tokenizer_;
  std::shared_ptr<RecordingWriter> writer_ = std::make_shared<RecordingWriter>();
  std::optional<int64_t> num_clamped_;
};

constexpr std::string_view kUsage =
    R"("usage":{"prompt_tokens":10,"completion_tokens":2,"total_tokens":12,)"
    R"("prompt_tokens_details":{"cached_tokens":4},"reasoning_tokens":0})";

TEST_F(RenderOpenAiTest, AWholeCompletion) {
  const auto session = Start(Answer(OpenAiKind::kCompletions), false);
  session->OnOutput(0, Last("Question has", {.type = FinishType::kLength}));
  ASSERT_TRUE(writer_->sent.has_value());
  ASSERT_EQ(tokenizer_->Encode("Question has").size(), 2U);
  EXPECT_EQ(writer_->sent->body,
            fmt::format(R"({{"id":"r0","object":"text_completion","created":17,"model":"m",)"
                        R"("choices":[{{"index":0,"text":"Question has","logprobs":null,)"
                        R"("finish_reason":"length","matched_stop":null}}],{},)"
                        R"("metadata":{{"weight_version":"v7","recipe":"r","emulated":true}}}})",
                        kUsage));
}

TEST_F(RenderOpenAiTest, AWholeChat) {
  const auto session = Start(Answer(OpenAiKind::kChat), false);
  session->OnOutput(
      0, Last("Question has", {.type = FinishType::kStopString, .matched_string = " has"}));
  EXPECT_EQ(
      writer_->sent->body,
      fmt::format(R"({{"id":"r0","object":"chat.completion","created":17,"model":"m",)"
                  R"("choices":[{{"index":0,"message":{{"role":"assistant","content":"Question",)"
                  R"("reasoning_content":null,"tool_calls":null}},"logprobs":null,)"
                  R"("finish_reason":"stop","matched_stop":" has"}}],{},)"
                  R"("metadata":{{"weight_version":"v7","recipe":"r","emulated":true}}}})",
                  kUsage));
}

TEST_F(RenderOpenAiTest, ContentIsEmptyAndNeverNull) {
  const auto session = Start(Answer(OpenAiKind::kChat), false);
  session->OnOutput(0, Last("", {.type = FinishType::kAbort, .message = "Abort before prefill"}));
  EXPECT_EQ(writer_->sent->status, 200);
  EXPECT_THAT(writer_->sent->body, HasSubstr(R"("content":"",)"));
  EXPECT_THAT(writer_->sent->body, HasSubstr(R"("finish_reason":"abort","matched_stop":null)"));
}

TEST_F(RenderOpenAiTest, TheMatchedStopIdIsSaid) {
  const auto session = Start(Answer(OpenAiKind::kChat), false);
  session->OnOutput(0,
                    Last("<|im_end|>", {.type = FinishType::kStopToken, .matched_token = kImEnd}));
  EXPECT_THAT(writer_->sent->body, HasSubstr(R"("finish_reason":"stop","matched_stop":2)"));
}

TEST_F(RenderOpenAiTest, LogprobsOfACompletion) {
  OpenAiAnswer answer = Answer(OpenAiKind::kCompletions);
  answer.logprobs = true;
  answer.top_logprobs_num = 2;
  answer.echo = {"<Question>"};
  const auto session = Start(answer, false);
  RequestOutput output = Last("Question", {.type = FinishType::kLength});
  const int32_t id = output.new_ids[0];
  output.input_logprobs = {{std::nullopt, id}, {-2.0F, id}};
  output.input_top_logprobs = {{}, {{-2.0F, id}}};
  output.new_top_logprobs = {{{-0.5F, id}, {-1.5F, kImEnd}}};
  session->OnOutput(0, output);
  EXPECT_THAT(writer_->sent->body, HasSubstr(R"("text":"<Question>Question","logprobs":)"
                                             R"({"tokens":["Question","Question","Question"],)"
                                             R"("token_logprobs":[null,-2.0,-0.5],)"
                                             R"("top_logprobs":[null,{"Question":-2.0},)"
                                             R"({"Question":-0.5,"<|im_end|>":-1.5}],)"
                                             R"("text_offset":[-1,-1,-1]})"));
  // meta_info was not asked for, and what it would hold is nowhere.
  EXPECT_THAT(writer_->sent->body, Not(HasSubstr("output_token_logprobs")));
}

TEST_F(RenderOpenAiTest, LogprobsOfAChatHaveTheTokensOwnBytes) {
  OpenAiAnswer answer = Answer(OpenAiKind::kChat);
  answer.logprobs = true;
  answer.top_logprobs_num = 1;
  const auto session = Start(answer, false);
  // The euro sign is three bytes in several tokens, of which none is text by itself.
  RequestOutput output = Last("\xE2\x82\xAC", {.type = FinishType::kLength});
  ASSERT_GT(output.new_ids.size(), 1U);
  std::string bytes;
  for (const int32_t id : output.new_ids) {
    output.new_top_logprobs.push_back({{-0.5F, id}});
    for (const char c : tokenizer_->TokenBytes(id, false)) {
      bytes += fmt::format("{} ", static_cast<unsigned char>(c));
    }
  }
  EXPECT_EQ(bytes, "226 130 172 ");
  session->OnOutput(0, output);
  EXPECT_THAT(writer_->sent->body,
              HasSubstr(R"("logprobs":{"content":[{"token":")"
                        "\xEF\xBF\xBD"
                        R"(","bytes":[226],"logprob":-0.5,"top_logprobs":[{"token":")"
                        "\xEF\xBF\xBD"
                        R"(","bytes":[226],"logprob":-0.5}]},)"));
}

TEST_F(RenderOpenAiTest, TokensThatReadAlikeShareAKeyAndTheLikeliestHasIt) {
  OpenAiAnswer answer = Answer(OpenAiKind::kCompletions);
  answer.logprobs = true;
  answer.top_logprobs_num = 2;
  const auto session = Start(answer, false);
  RequestOutput output = Last("\xE2\x82\xAC", {.type = FinishType::kLength});
  const std::vector<TokenLogprob> both = {{-0.5F, output.new_ids[0]}, {-1.5F, output.new_ids[1]}};
  output.new_top_logprobs.assign(output.new_ids.size(), both);
  session->OnOutput(0, output);
  EXPECT_THAT(writer_->sent->body, HasSubstr("\"top_logprobs\":[{\"\xEF\xBF\xBD\":-0.5},{"));
}

TEST_F(RenderOpenAiTest, NoLogprobIsEverNotFinite) {
  OpenAiAnswer answer = Answer(OpenAiKind::kChat);
  answer.logprobs = true;
  const auto session = Start(answer, false);
  RequestOutput output = Last("Question", {.type = FinishType::kLength});
  output.new_logprobs[0].logprob = -std::numeric_limits<float>::infinity();
  session->OnOutput(0, output);
  EXPECT_THAT(writer_->sent->body, HasSubstr(R"("logprob":-1e+30)"));
  EXPECT_EQ(num_clamped_, 1);
}

TEST_F(RenderOpenAiTest, ATrainersFieldsAreInTheChoice) {
  OpenAiAnswer answer = Answer(OpenAiKind::kChat);
  answer.logprobs = true;
  answer.return_meta_info = true;
  answer.return_routed_experts = true;
  RenderOptions render;
  render.return_logprob = true;
  render.text_in_logprobs = true;
  render.routed_experts = true;
  render.return_prompt_token_ids = true;
  render.prompt_token_ids = {5, 6};
  const auto session = Start(answer, false, 1, render);
  RequestOutput output = Last("Question", {.type = FinishType::kLength});
  output.routed_experts = {1};
  session->OnOutput(0, output);
  EXPECT_THAT(writer_->sent->body,
              HasSubstr(R"("matched_stop":null,"meta_info":{"id":"r0","finish_reason":)"
                        R"({"type":"length","length":16})"));
  EXPECT_THAT(writer_->sent->body,
              HasSubstr(fmt::format(R"("output_token_logprobs":[[-0.5,{},"Question"]])",
                                    output.new_ids[0])));
  EXPECT_THAT(writer_->sent->body, HasSubstr(R"("prompt_token_ids":[5,6]}])"));
  EXPECT_THAT(writer_->sent->body, HasSubstr(R"("sglext":{"routed_experts":"AQAAAA=="})"));
}

TEST_F(RenderOpenAiTest, APromptCountsOnceHoweverManySamplesItHas) {
  OpenAiAnswer answer = Answer(OpenAiKind::kCompletions);
  answer.num_samples = 2;
  answer.echo = {"a>", "b>"};
  const auto session = Start(answer, false, 4);
  for (const size_t i : {3, 1, 0, 2}) {
    session->OnOutput(i, Last("Question has", {.type = FinishType::kLength}));
  }
  const std::string& body = writer_->sent->body;
  EXPECT_THAT(body, HasSubstr(R"("index":1,"text":"a>Question has")"));
  EXPECT_THAT(body, HasSubstr(R"("index":2,"text":"b>Question has")"));
  EXPECT_THAT(body, HasSubstr(R"("prompt_tokens":20,"completion_tokens":8,"total_tokens":28,)"
                              R"("prompt_tokens_details":{"cached_tokens":8})"));
}

TEST_F(RenderOpenAiTest, AStreamedChat) {
  OpenAiAnswer answer = Answer(OpenAiKind::kChat);
  answer.include_usage = true;
  const auto session = Start(answer, true);
  EXPECT_TRUE(writer_->streaming);
  session->OnOutput(0, Tokens("Question"));
  session->OnOutput(0, Last(" has", {.type = FinishType::kLength}, 1));
  std::string all;
  for (const std::string& event : writer_->events) {
    all += event;
  }
  const auto chunk = [](std::string_view choices, std::string_view rest) {
    return fmt::format(R"(data: {{"id":"r0","object":"chat.completion.chunk","created":17,)"
                       R"("model":"m","choices":[{}],{}}})"
                       "\n\n",
                       choices, rest);
  };
  constexpr std::string_view kRunning =
      R"("logprobs":null,"finish_reason":null,"matched_stop":null})";
  constexpr std::string_view kEnd =
      R"("usage":null,"metadata":{"weight_version":"v7","recipe":"r","emulated":true})";
  EXPECT_EQ(
      all,
      chunk(fmt::format(R"({{"index":0,"delta":{{"role":"assistant","content":"",)"
                        R"("reasoning_content":null}},{})",
                        kRunning),
            R"("usage":null)") +
          chunk(fmt::format(
                    R"({{"index":0,"delta":{{"content":"Question","reasoning_content":null}},{})",
                    kRunning),
                R"("usage":null)") +
          chunk(
              fmt::format(R"({{"index":0,"delta":{{"content":" has","reasoning_content":null}},{})",
                          kRunning),
              kEnd) +
          chunk(R"({"index":0,"delta":{"reasoning_content":null},"logprobs":null,)"
                R"("finish_reason":"length","matched_stop":null})",
                kEnd) +
          chunk("", kUsage) + "data: [DONE]\n\n");
  EXPECT_TRUE(writer_->finished);
}

TEST_F(RenderOpenAiTest, AStreamedCompletionBeginsWithItsEchoAndEndsInOneChunk) {
  OpenAiAnswer answer = Answer(OpenAiKind::kCompletions);
  answer.echo = {"Ben and "};
  answer.continuous_usage_stats = true;
  answer.logprobs = true;
  const auto session = Start(answer, true);
  session->OnOutput(0, Tokens("Question"));
  session->OnOutput(0, Last(" has", {.type = FinishType::kLength}, 1));
  ASSERT_EQ(writer_->events.size(), 3U);
  EXPECT_THAT(writer_->events[0],
              HasSubstr(R"("text":"Ben and Question","logprobs":{"tokens":["Question"],)"
                        R"("token_logprobs":[-0.5],"top_logprobs":[],"text_offset":[-1]},)"
                        R"("finish_reason":null,"matched_stop":null}],"usage":{"prompt_tokens":10,)"
                        R"("completion_tokens":1,"total_tokens":11)"));
  EXPECT_THAT(writer_->events[1], HasSubstr(R"("text":" has","logprobs":{"tokens":[" has"])"));
  EXPECT_THAT(writer_->events[1], HasSubstr(R"("finish_reason":"length")"));
  EXPECT_THAT(writer_->events[1], HasSubstr(R"("completion_tokens":2,"total_tokens":12)"));
  EXPECT_EQ(writer_->events[2], "data: [DONE]\n\n");
}

TEST_F(RenderOpenAiTest, AChunkThatWouldShowNothingIsNotSentButItsLogprobsAre) {
  const std::vector<int32_t> euro = tokenizer_->Encode("\xE2\x82\xAC");
  for (const OpenAiKind kind : {OpenAiKind::kCompletions, OpenAiKind::kChat}) {
    for (const bool logprobs : {false, true}) {
      writer_ = std::make_shared<RecordingWriter>();
      OpenAiAnswer answer = Answer(kind);
      answer.logprobs = logprobs;
      const auto session = Start(answer, true);
      RequestOutput half = Tokens("");
      half.new_ids = {euro[0]};
      half.new_logprobs = {{-0.5F, euro[0]}};
      session->OnOutput(0, half);
      std::string all;
      for (const std::string& event : writer_->events) {
        EXPECT_FALSE(event.empty());
        all += event;
      }
      EXPECT_EQ(all.find("\"bytes\":[226]") != std::string::npos,
                logprobs && kind == OpenAiKind::kChat);
      EXPECT_EQ(all.find("\"token_logprobs\":[-0.5]") != std::string::npos,
                logprobs && kind == OpenAiKind::kCompletions);
      EXPECT_EQ(all.empty(), !logprobs && kind == OpenAiKind::kCompletions);
    }
  }
}

TEST_F(RenderOpenAiTest, AStreamNeverShowsAPartOfAStopString) {
  RenderOptions render;
  render.stop = {"Question"};
  const auto session = Start(Answer(OpenAiKind::kCompletions), true, 1, render);
  session->OnOutput(0, Tokens("is 7. Quest"));
  EXPECT_TRUE(writer_->events.empty());
  session->OnOutput(0,
                    Last("ion:", {.type = FinishType::kStopString, .matched_string = "Question"}));
  EXPECT_THAT(writer_->events[0],
              HasSubstr(R"("text":"is 7. ","logprobs":null,"finish_reason":"stop",)"
                        R"("matched_stop":"Question")"));
}

TEST_F(RenderOpenAiTest, StreamedExpertsComeBeforeTheUsage) {
  OpenAiAnswer answer = Answer(OpenAiKind::kChat);
  answer.return_routed_experts = true;
  answer.include_usage = true;
  RenderOptions render;
  render.routed_experts = true;
  const auto session = Start(answer, true, 1, render);
  RequestOutput output = Last("Question", {.type = FinishType::kLength});
  output.routed_experts = {1};
  session->OnOutput(0, output);
  const std::string& tail = writer_->events[1];
  EXPECT_THAT(tail,
              HasSubstr(R"("choices":[],"usage":null,"sglext":{"routed_experts":"AQAAAA=="})"));
  EXPECT_LT(tail.find("sglext"), tail.find("total_tokens"));
}

TEST_F(RenderOpenAiTest, AnEngineErrorIsA500OrAnErrorEvent) {
  auto session = Start(Answer(OpenAiKind::kChat), false);
  session->OnOutput(0, Last("", {.type = FinishType::kError, .message = "NaN in logits"}));
  EXPECT_EQ(writer_->sent->status, 500);
  writer_ = std::make_shared<RecordingWriter>();
  session = Start(Answer(OpenAiKind::kChat), true);
  session->OnOutput(0, Last("", {.type = FinishType::kError, .message = "NaN in logits"}));
  EXPECT_THAT(writer_->events[0], HasSubstr(R"({"error":{"message":"NaN in logits")"));
  EXPECT_EQ(writer_->events.back(), "data: [DONE]\n\n");
}

}  // namespace
}  // namespace octavo
