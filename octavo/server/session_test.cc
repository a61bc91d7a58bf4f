// Method: snapshots scripted by hand go through the session into a writer that records; no engine
// and no socket. The tokenizer is that of models/abacus-dense, the ids come from its own Encode.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/engine/request.h"
#include "octavo/server/answer_shape.h"
#include "octavo/server/generate_session.h"
#include "octavo/server/http.h"
#include "octavo/server/json.h"
#include "octavo/server/json_writer.h"
#include "octavo/server/reactor.h"
#include "octavo/server/recording_writer_for_test.h"
#include "octavo/server/render_sequence.h"
#include "octavo/server/stop_strings.h"
#include "octavo/text/tokenizer.h"

namespace octavo {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

// Runs what is posted when the test says so.
class ManualReactor final : public Reactor {
 public:
  void Post(std::function<void()> task) override { tasks.push_back(std::move(task)); }
  void PostAfter(double, std::function<void()> task) override { Post(std::move(task)); }
  bool RunBlocking(std::function<void()> task) override {
    task();
    return true;
  }
  void RunAll() {
    while (!tasks.empty()) {
      std::function<void()> task = std::move(tasks.front());
      tasks.pop_front();
      task();
    }
  }
  std::deque<std::function<void()>> tasks;
};

class SessionTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    Result<Tokenizer> tokenizer = Tokenizer::Load("models/abacus-dense/tokenizer.json");
    ASSERT_TRUE(tokenizer.has_value()) << tokenizer.error().message();
    tokenizer_ = std::move(*tokenizer);
  }
  static void TearDownTestSuite() { tokenizer_.reset(); }

  static std::vector<int32_t> Ids(std::string_view text) { return tokenizer_->Encode(text); }

  RenderOptions Render() {
    RenderOptions render;
    render.tokenizer = &*tokenizer_;
    render.recipe = "serving";
    render.is_emulated = true;
    render.max_new_tokens = 16;
    return render;
  }

  std::shared_ptr<GenerateSession> Start(std::vector<RenderOptions> sequences, bool stream,
                                         bool is_list = false) {
    SessionOptions options{.shape = MakeNativeShape(is_list), .stream = stream};
    for (size_t i = 0; i < sequences.size(); ++i) {
      options.rids.push_back(fmt::format("r{}", i));
    }
    options.sequences = std::move(sequences);
    options.abort = [this](const std::string& rid) { aborted_.push_back(rid); };
    options.done = [this](int64_t num_clamped) { done_clamped_ = num_clamped; };
    auto session = std::make_shared<GenerateSession>(std::move(options), writer_);
    session->Start();
    return session;
  }

  static RequestOutput Tokens(std::vector<int32_t> ids) {
    RequestOutput output;
    output.rid = "r0";
    output.new_ids = std::move(ids);
    output.prompt_tokens = 3;
    output.weight_version = "0";
    return output;
  }
  static RequestOutput Last(std::vector<int32_t> ids, FinishReason finish) {
    RequestOutput output = Tokens(std::move(ids));
    output.finish = std::move(finish);
    return output;
  }

  static JsonValue Json(std::string_view text) {
    Result<JsonValue> value = ParseJson(text);
    EXPECT_TRUE(value.has_value()) << text;
    return value.has_value() ? std::move(*value) : JsonValue();
  }
  JsonValue Event(size_t i) {
    const std::string& event = writer_->events.at(i);
    EXPECT_TRUE(event.starts_with("data: ") && event.ends_with("\n\n")) << event;
    EXPECT_EQ(event.find('\n'), event.size() - 2);
    return Json(std::string_view(event).substr(6, event.size() - 8));
  }
  static std::string Text(const JsonValue& object) { return *object.Find("text")->string(); }

  static inline std::optional<Tokenizer> tokenizer_;
  std::shared_ptr<RecordingWriter> writer_ = std::make_shared<RecordingWriter>();
  std::vector<std::string> aborted_;
  std::optional<int64_t> done_clamped_;
};

TEST_F(SessionTest, AnswersOnceWithTheWholeObject) {
  const auto session = Start({Render()}, false);
  session->OnOutput(0, Tokens(Ids("Tom has")));
  EXPECT_FALSE(writer_->sent.has_value());
  RequestOutput last = Last(Ids(" 3"), {.type = FinishType::kLength});
  last.completion_tokens = 3;
  last.cached_tokens = 2;
  last.versions = {{"0", 2}, {"1", 1}};
  last.weight_version = "1";
  last.seed = 42;
  session->OnOutput(0, last);
  ASSERT_TRUE(writer_->sent.has_value());
  EXPECT_EQ(writer_->sent->status, 200);
  const JsonValue reply = Json(writer_->sent->body);
  EXPECT_EQ(Text(reply), "Tom has 3");
  EXPECT_EQ(reply.Find("output_ids")->array()->size(), Ids("Tom has").size() + Ids(" 3").size());
  const JsonValue& meta = *reply.Find("meta_info");
  EXPECT_EQ(*meta.Find("id")->string(), "r0");
  EXPECT_EQ(*meta.Find("finish_reason")->Find("type")->string(), "length");
  EXPECT_EQ(*meta.Find("finish_reason")->Find("length")->integer(), 16);
  EXPECT_EQ(*meta.Find("prompt_tokens")->integer(), 3);
  EXPECT_EQ(*meta.Find("completion_tokens")->integer(), 3);
  EXPECT_EQ(*meta.Find("cached_tokens")->integer(), 2);
  EXPECT_EQ(*meta.Find("weight_version")->string(), "1");
  EXPECT_EQ(meta.Find("weight_versions")->array()->size(), 2U);
  EXPECT_EQ(*meta.Find("seed")->integer(), 42);
  EXPECT_EQ(*meta.Find("recipe")->string(), "serving");
  EXPECT_TRUE(*meta.Find("emulated")->boolean());
  EXPECT_NE(meta.Find("e2e_latency"), nullptr);
  EXPECT_EQ(meta.Find("output_token_logprobs"), nullptr);
  EXPECT_EQ(done_clamped_, 0);
}

TEST_F(SessionTest, ReturnsRoutedExpertsWithTheLastChunkAlone) {
  RenderOptions render = Render();
  render.routed_experts = true;
  render.routed_experts_start_len = 1;
  const auto session = Start({render}, false);
  session->OnOutput(0, Tokens(Ids("Tom has")));
  RequestOutput last = Last(Ids(" 3"), {.type = FinishType::kLength});
  last.routed_experts = {1, 2, 258};
  session->OnOutput(0, last);
  ASSERT_TRUE(writer_->sent.has_value());
  const JsonValue reply = Json(writer_->sent->body);
  const JsonValue& meta = *reply.Find("meta_info");
  // 01000000 02000000 02010000 in hexadecimal.
  EXPECT_EQ(*meta.Find("routed_experts")->string(), "AQAAAAIAAAACAQAA");
  EXPECT_EQ(*meta.Find("routed_experts_start_len")->integer(), 1);
}

TEST_F(SessionTest, WritesThreeElementsALogprobAndNullForTheFirstPromptPosition) {
  RenderOptions render = Render();
  render.return_logprob = true;
  render.top_logprobs = true;
  render.text_in_logprobs = true;
  const auto session = Start({render}, false);
  const int32_t id = Ids("Tom")[0];
  RequestOutput output = Last({id}, {.type = FinishType::kLength});
  output.new_logprobs = {{-0.5F, id}};
  output.new_top_logprobs = {{{-0.5F, id}, {-1.5F, 7}}};
  output.input_logprobs = {{std::nullopt, 5}, {-2.0F, 6}};
  output.input_top_logprobs = {{}, {{-2.0F, 6}}};
  session->OnOutput(0, output);
  const JsonValue reply = Json(writer_->sent->body);
  const JsonValue& meta = *reply.Find("meta_info");
  const JsonArray& output_entry = *(*meta.Find("output_token_logprobs")->array())[0].array();
  ASSERT_EQ(output_entry.size(), 3U);
  EXPECT_EQ(*output_entry[0].real(), -0.5);
  EXPECT_EQ(*output_entry[1].integer(), id);
  EXPECT_EQ(*output_entry[2].string(), tokenizer_->Decode(std::vector{id}, false));
  const JsonArray& inputs = *meta.Find("input_token_logprobs")->array();
  ASSERT_EQ(inputs.size(), 2U);
  EXPECT_TRUE((*inputs[0].array())[0].is_null());
  EXPECT_EQ(*(*inputs[0].array())[1].integer(), 5);
  EXPECT_EQ((*meta.Find("output_top_logprobs")->array())[0].array()->size(), 2U);
  EXPECT_TRUE((*meta.Find("input_top_logprobs")->array())[0].is_null());
  EXPECT_EQ(*meta.Find("output_token_logprobs_length")->integer(), 1);
  EXPECT_EQ(meta.Find("output_token_ids_logprobs"), nullptr);
}

TEST_F(SessionTest, NeverWritesALogprobThatIsNotFinite) {
  RenderOptions render = Render();
  render.return_logprob = true;
  const auto session = Start({render}, false);
  RequestOutput output = Last({5, 6}, {.type = FinishType::kLength});
  output.new_logprobs = {{std::numeric_limits<float>::quiet_NaN(), 5},
                         {-std::numeric_limits<float>::infinity(), 6}};
  session->OnOutput(0, output);
  EXPECT_THAT(writer_->sent->body, HasSubstr("[[-1e+30,5,null],[-1e+30,6,null]]"));
  EXPECT_EQ(done_clamped_, 2);
}

TEST_F(SessionTest, AnAbortWithoutTokensStillHasEveryList) {
  RenderOptions render = Render();
  render.return_logprob = true;
  const auto session = Start({render}, false);
  session->OnOutput(0, Last({}, {.type = FinishType::kAbort, .message = "Abort before prefill"}));
  const JsonValue reply = Json(writer_->sent->body);
  EXPECT_THAT(*reply.Find("output_ids")->array(), IsEmpty());
  const JsonValue& meta = *reply.Find("meta_info");
  EXPECT_THAT(*meta.Find("output_token_logprobs")->array(), IsEmpty());
  EXPECT_EQ(*meta.Find("prompt_tokens")->integer(), 3);
  EXPECT_EQ(meta.Find("finish_reason")->object()->size(), 2U);  // type and message alone
}

TEST_F(SessionTest, AnAbortWhileRunningKeepsWhatIsThere) {
  const auto session = Start({Render()}, false);
  session->OnOutput(0, Tokens(Ids("Tom has")));
  session->OnOutput(0, Last({}, {.type = FinishType::kAbort, .message = "aborted"}));
  EXPECT_EQ(writer_->sent->status, 200);
  const JsonValue reply = Json(writer_->sent->body);
  EXPECT_EQ(Text(reply), "Tom has");
  EXPECT_THAT(
      writer_->sent->body,
      HasSubstr(R"({"type":"abort","message":"aborted","status_code":null,"err_type":null})"));
}

TEST_F(SessionTest, AnEngineErrorIsA500AndAbortsTheSiblings) {
  const auto session = Start({Render(), Render()}, false, true);
  session->OnOutput(0, Last({}, {.type = FinishType::kError, .message = "NaN in logits"}));
  EXPECT_EQ(writer_->sent->status, 500);
  EXPECT_THAT(writer_->sent->body, HasSubstr("NaN in logits"));
  EXPECT_THAT(aborted_, ElementsAre("r1"));
}

TEST_F(SessionTest, ABatchAnswersInOrderWhenAllAreDone) {
  const auto session = Start({Render(), Render()}, false, true);
  session->OnOutput(1, Last(Ids("second"), {.type = FinishType::kLength}));
  EXPECT_FALSE(writer_->sent.has_value());
  session->OnOutput(0, Last(Ids("first"), {.type = FinishType::kLength}));
  const JsonValue reply = Json(writer_->sent->body);
  ASSERT_EQ(reply.array()->size(), 2U);
  EXPECT_EQ(Text((*reply.array())[0]), "first");
  EXPECT_EQ(Text((*reply.array())[1]), "second");
}

TEST_F(SessionTest, StreamsCumulativeChunksAndDone) {
  const auto session = Start({Render()}, true);
  EXPECT_TRUE(writer_->streaming);
  session->OnOutput(0, Tokens(Ids("Tom")));
  session->OnOutput(0, Last(Ids(" has"), {.type = FinishType::kLength}));
  ASSERT_EQ(writer_->events.size(), 3U);
  EXPECT_EQ(Text(Event(0)), "Tom");
  EXPECT_EQ(Event(0).Find("meta_info")->Find("finish_reason"), nullptr);  // null
  EXPECT_EQ(Text(Event(1)), "Tom has");
  EXPECT_NE(Event(1).Find("meta_info")->Find("finish_reason"), nullptr);
  EXPECT_EQ(writer_->events[2], "data: [DONE]\n\n");
  EXPECT_TRUE(writer_->finished);
}

// Chunks repeat text that was escaped before; whatever the tokens cut through, each must be what a
// rendering of all of it would be.
TEST_F(SessionTest, ACumulativeChunkIsWhatRenderingAtOnceGives) {
  const std::vector<int32_t> ids = Ids("a\"b\\ caf\u00e9 \u2028\n\x01 \U0001F600 \u65e5\u672c");
  const auto stream = Start({Render()}, true);
  IncrementalDecoder decoder(&*tokenizer_, /*skip_special_tokens=*/true);
  for (size_t i = 0; i < ids.size(); ++i) {
    stream->OnOutput(0, Tokens({ids[i]}));
    decoder.Append(ids[i]);
    std::string text;
    AppendJsonString(text, decoder.text());
    EXPECT_THAT(writer_->events.at(i), testing::StartsWith("data: {\"text\":" + text + ","));
  }
  stream->OnOutput(0, Last({}, {.type = FinishType::kLength}));
  const std::string last = writer_->events.at(ids.size());

  writer_ = std::make_shared<RecordingWriter>();
  Start({Render()}, false)->OnOutput(0, Last(ids, {.type = FinishType::kLength}));
  EXPECT_EQ(last, "data: " + writer_->sent->body + "\n\n");
}

TEST_F(SessionTest, StreamsDeltasWhenAsked) {
  RenderOptions render = Render();
  render.incremental = true;
  render.return_logprob = true;
  const auto session = Start({render}, true);
  RequestOutput first = Tokens(Ids("Tom"));
  first.new_logprobs = {{-1.0F, first.new_ids[0]}};
  session->OnOutput(0, first);
  session->OnOutput(0, Last(Ids(" has"), {.type = FinishType::kLength}));
  EXPECT_EQ(Text(Event(0)), "Tom");
  EXPECT_EQ(Text(Event(1)), " has");
  EXPECT_EQ(Event(1).Find("output_ids")->array()->size(), Ids(" has").size());
  EXPECT_THAT(*Event(1).Find("meta_info")->Find("output_token_logprobs")->array(), IsEmpty());
}

TEST_F(SessionTest, AStreamedBatchSaysWhichItemAChunkIsOf) {
  const auto session = Start({Render(), Render()}, true, true);
  session->OnOutput(1, Last(Ids("b"), {.type = FinishType::kLength}));
  EXPECT_EQ(*Event(0).Find("index")->integer(), 1);
  EXPECT_FALSE(writer_->finished);
  session->OnOutput(0, Last(Ids("a"), {.type = FinishType::kLength}));
  EXPECT_EQ(*Event(1).Find("index")->integer(), 0);
  EXPECT_TRUE(writer_->finished);
}

TEST_F(SessionTest, HoldsBackAChunkThatCouldBeginAStopString) {
  RenderOptions render = Render();
  render.stop = {"Question"};
  const auto session = Start({render}, true);
  session->OnOutput(0, Tokens(Ids("is 7. Quest")));
  EXPECT_THAT(writer_->events, IsEmpty());
  session->OnOutput(
      0, Last(Ids("ion:"), {.type = FinishType::kStopString, .matched_string = "Question"}));
  EXPECT_EQ(Text(Event(0)), "is 7. ");
  EXPECT_THAT(writer_->events[0], HasSubstr(R"({"type":"stop","matched":"Question"})"));
}

TEST_F(SessionTest, ReleasesAHeldChunkWhenItWasNoStopString) {
  RenderOptions render = Render();
  render.stop = {"Question"};
  const auto session = Start({render}, true);
  session->OnOutput(0, Tokens(Ids("Qu")));
  EXPECT_THAT(writer_->events, IsEmpty());
  session->OnOutput(0, Tokens(Ids("een")));
  EXPECT_EQ(Text(Event(0)), "Queen");
}

TEST_F(SessionTest, TextEndsBeforeTheStopUnlessAskedOtherwise) {
  const std::vector<int32_t> ids = Ids("7.\nQuestion: x");
  const FinishReason finish = {.type = FinishType::kStopString, .matched_string = "Question"};
  RenderOptions keep = Render();
  keep.no_stop_trim = true;
  for (const bool trims : {true, false}) {
    writer_ = std::make_shared<RecordingWriter>();
    const auto session = Start({trims ? Render() : keep}, false);
    session->OnOutput(0, Last(ids, finish));
    EXPECT_EQ(Text(Json(writer_->sent->body)), trims ? "7.\n" : "7.\nQuestion: x");
  }
}

TEST_F(SessionTest, TheMatchedStopIdIsAnOutputButNoText) {
  constexpr int32_t kImEnd = 2;  // <|im_end|>
  std::vector<int32_t> ids = Ids("7");
  ids.push_back(kImEnd);
  RenderOptions shown = Render();
  shown.skip_special_tokens = false;
  RenderOptions kept = shown;
  kept.no_stop_trim = true;
  const FinishReason finish = {.type = FinishType::kStopToken, .matched_token = kImEnd};
  const auto text_with = [&](const RenderOptions& render) {
    writer_ = std::make_shared<RecordingWriter>();
    Start({render}, false)->OnOutput(0, Last(ids, finish));
    const JsonValue reply = Json(writer_->sent->body);
    EXPECT_EQ(reply.Find("output_ids")->array()->size(), ids.size());
    EXPECT_THAT(writer_->sent->body, HasSubstr(R"({"type":"stop","matched":2})"));
    return Text(reply);
  };
  EXPECT_EQ(text_with(shown), "7");
  EXPECT_EQ(text_with(kept), "7" + tokenizer_->Decode(std::vector{kImEnd}, false));
  kept.skip_special_tokens = true;
  EXPECT_EQ(text_with(kept), "7");
}

TEST_F(SessionTest, HoldsBackAnIncompleteCharacter) {
  const std::vector<int32_t> ids = Ids("\xE2\x82\xAC");  // The euro sign: several byte tokens.
  ASSERT_GT(ids.size(), 1U);
  const auto session = Start({Render()}, true);
  session->OnOutput(0, Tokens({ids[0]}));
  EXPECT_EQ(Text(Event(0)), "");
  session->OnOutput(0, Last({}, {.type = FinishType::kLength}));
  EXPECT_EQ(Text(Event(1)), "\xEF\xBF\xBD");
}

TEST_F(SessionTest, SkipsChunksForAReaderThatIsBehind) {
  const auto session = Start({Render()}, true);
  writer_->pending_bytes = int64_t{8} << 20;
  session->OnOutput(0, Tokens(Ids("Tom")));
  EXPECT_THAT(writer_->events, IsEmpty());
  session->OnOutput(0, Last(Ids(" has"), {.type = FinishType::kLength}));
  EXPECT_EQ(Text(Event(0)), "Tom has");
}

TEST_F(SessionTest, APeerThatLeavesAbortsWhatRuns) {
  const auto session = Start({Render(), Render()}, false, true);
  session->OnOutput(0, Last({}, {.type = FinishType::kLength}));
  writer_->on_gone();
  EXPECT_THAT(aborted_, ElementsAre("r1"));
  session->OnOutput(1, Last({}, {.type = FinishType::kAbort}));
  EXPECT_FALSE(writer_->sent.has_value());
  EXPECT_TRUE(done_clamped_.has_value());
}

TEST_F(SessionTest, TheSinkPostsToTheIoThreadAndKeepsTheSession) {
  const auto reactor = std::make_shared<ManualReactor>();
  std::shared_ptr<RequestSink> sink;
  {
    const auto session = Start({Render()}, false);
    sink = session->MakeSink(0, reactor);
  }
  sink->OnOutput(Last(Ids("x"), {.type = FinishType::kLength}));
  EXPECT_FALSE(writer_->sent.has_value());
  reactor->RunAll();
  EXPECT_EQ(Text(Json(writer_->sent->body)), "x");
}

TEST_F(SessionTest, PromptIdsAndNoTokenizer) {
  RenderOptions render = Render();
  render.tokenizer = nullptr;
  render.return_prompt_token_ids = true;
  render.prompt_token_ids = {5, 6};
  const auto session = Start({render}, false);
  session->OnOutput(0, Last({7}, {.type = FinishType::kLength}));
  const JsonValue reply = Json(writer_->sent->body);
  EXPECT_EQ(Text(reply), "");
  EXPECT_EQ(reply.Find("prompt_token_ids")->array()->size(), 2U);
}

// --- Stop strings ---

TEST_F(SessionTest, TheMatcherFindsAStopAcrossTokens) {
  for (const std::string_view text : {"abc Question: d", "Question", "QQuestion"}) {
    StopStringMatcher matcher(&*tokenizer_, {"Question"});
    std::optional<std::string> found;
    for (const int32_t id : Ids(text)) {
      ASSERT_FALSE(found.has_value() && found != "Question");
      found = found.has_value() ? found : matcher.OnToken(id);
    }
    EXPECT_EQ(found, "Question") << text;
  }
}

TEST_F(SessionTest, TheMatcherStaysSilentOnPartsOfAStop) {
  StopStringMatcher matcher(&*tokenizer_, {"Question", "END"});
  for (const int32_t id : Ids("Questio Quest EN D question")) {
    EXPECT_EQ(matcher.OnToken(id), std::nullopt);
  }
}

TEST_F(SessionTest, TheStopThatBeginsFirstWins) {
  const auto first_of = [&](std::vector<std::string> stop, std::string_view text) {
    StopStringMatcher matcher(&*tokenizer_, std::move(stop));
    for (const int32_t id : Ids(text)) {
      if (const std::optional<std::string> found = matcher.OnToken(id)) {
        return *found;
      }
    }
    return std::string();
  };
  EXPECT_EQ(first_of({"tion", "Ques"}, "Question"), "Ques");
  // The same start in one token: the first of the list.
  ASSERT_EQ(Ids("Question").size(), 1U);
  EXPECT_EQ(first_of({"Question", "Quest"}, "Question"), "Question");
  EXPECT_EQ(first_of({"Quest", "Question"}, "Question"), "Quest");
}

TEST_F(SessionTest, TheMatcherSeesSpecialTokens) {
  StopStringMatcher matcher(&*tokenizer_, {tokenizer_->Decode(std::vector{2}, false)});
  EXPECT_TRUE(matcher.OnToken(2).has_value());
}

TEST(EndsInStopPrefix, IsTrueForProperPrefixesAlone) {
  const std::vector<std::string> stop = {"Question", "\n\n"};
  EXPECT_TRUE(EndsInStopPrefix("a Q", stop));
  EXPECT_TRUE(EndsInStopPrefix("a\n", stop));
  EXPECT_TRUE(EndsInStopPrefix("Questio", stop));
  EXPECT_FALSE(EndsInStopPrefix("a", stop));
  EXPECT_FALSE(EndsInStopPrefix("", stop));
  EXPECT_FALSE(EndsInStopPrefix("Questi ", stop));
  EXPECT_FALSE(EndsInStopPrefix("abc", {}));
  EXPECT_FALSE(EndsInStopPrefix("abc", {"x"}));  // One byte: it has no proper prefix.
}

// --- Version conflicts
// ----------------------------------------------------------------------------

FinishReason Conflict() {
  return {.type = FinishType::kVersionConflict, .message = "weight version: demanded exactly 0"};
}

RenderOptions Demanding(RenderOptions render) {
  render.version_demand = {.kind = VersionDemand::Kind::kExact, .version = "0"};
  return render;
}

TEST_F(SessionTest, AConflictBeforeAnyTokenIs409) {
  const auto session = Start({Demanding(Render()), Demanding(Render())}, false, /*is_list=*/true);
  RequestOutput last = Last({}, Conflict());
  last.weight_version = "1";
  session->OnOutput(0, last);
  EXPECT_FALSE(writer_->sent.has_value());
  session->OnOutput(1, last);
  ASSERT_TRUE(writer_->sent.has_value());
  EXPECT_EQ(writer_->sent->status, 409);
  EXPECT_EQ(writer_->sent->body,
            R"({"object":"error","message":"weight version: demanded exactly 0, 1 is live",)"
            R"("type":"WeightVersionConflict","param":"exact_weight_version","code":409,)"
            R"("retryable":true,"demanded_weight_version":"0","weight_version":"1"})");
  EXPECT_TRUE(done_clamped_.has_value());
}

TEST_F(SessionTest, AConflictWithTokensKeepsThem) {
  const auto session = Start({Demanding(Render()), Demanding(Render())}, false, /*is_list=*/true);
  RequestOutput kept = Last(Ids("Tom has"), Conflict());
  kept.completion_tokens = static_cast<int64_t>(Ids("Tom has").size());
  session->OnOutput(0, kept);
  session->OnOutput(1, Last({}, Conflict()));
  ASSERT_TRUE(writer_->sent.has_value());
  EXPECT_EQ(writer_->sent->status, 200);
  const JsonValue reply = Json(writer_->sent->body);
  EXPECT_EQ(Text((*reply.array())[0]), "Tom has");
  for (const JsonValue& item : *reply.array()) {
    const JsonValue& finish = *item.Find("meta_info")->Find("finish_reason");
    EXPECT_EQ(*finish.Find("type")->string(), "abort");
    EXPECT_EQ(*finish.Find("status_code")->integer(), 409);
    EXPECT_EQ(*finish.Find("err_type")->string(), "WeightVersionConflict");
  }
}

TEST_F(SessionTest, AConflictInAStreamIsAnEventOrTheLastChunk) {
  const auto session = Start({Demanding(Render())}, true);
  session->OnOutput(0, Last({}, Conflict()));
  const JsonValue event = Event(0);
  const JsonValue& error = *event.Find("error");
  EXPECT_EQ(*error.Find("code")->integer(), 409);
  EXPECT_TRUE(*error.Find("retryable")->boolean());
  EXPECT_EQ(*error.Find("demanded_weight_version")->string(), "0");
  EXPECT_EQ(writer_->events.back(), "data: [DONE]\n\n");

  writer_ = std::make_shared<RecordingWriter>();
  const auto begun = Start({Demanding(Render())}, true);
  RequestOutput kept = Last(Ids("Tom"), Conflict());
  kept.completion_tokens = 1;
  begun->OnOutput(0, kept);
  const JsonValue chunk = Event(0);
  const JsonValue& finish = *chunk.Find("meta_info")->Find("finish_reason");
  EXPECT_EQ(*finish.Find("status_code")->integer(), 409);
}

TEST_F(SessionTest, TellsOfStaleKv) {
  const auto session = Start({Render()}, false);
  RequestOutput last = Last(Ids("Tom"), {.type = FinishType::kLength});
  last.cached_tokens = 96;
  last.cached_tokens_stale = 64;
  last.mixed_context = true;
  session->OnOutput(0, last);
  const JsonValue reply = Json(writer_->sent->body);
  const JsonValue& meta = *reply.Find("meta_info");
  EXPECT_EQ(*meta.Find("cached_tokens_stale")->integer(), 64);
  EXPECT_TRUE(*meta.Find("mixed_context")->boolean());
}

}  // namespace
}  // namespace octavo
