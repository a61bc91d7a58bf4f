// Method: recorded lines are written by hand in each form that a client may keep, and in each
// broken form; plans are made against servers described by hand; the run talks to a scripted server
// that gives back what the test says.

#include "octavo/measure/replay.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/client/http_client.h"
#include "octavo/client/scripted_server.h"
#include "octavo/measure/replay_compare.h"
#include "octavo/measure/replay_file.h"

namespace octavo {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using Json = nlohmann::json;

constexpr const char* kDigest = "00112233445566778899aabbccddeeff";
constexpr const char* kOther = "ffffffffffffffffffffffffffffffff";

Json Span(const char* version, const char* digest, int tokens) {
  return {{"version", version}, {"digest", digest}, {"tokens", tokens}};
}

// A reply of three tokens, made by version 4.
Json Reply() {
  return Json::parse(R"({"text": "abc", "output_ids": [11, 12, 13], "meta_info": {
      "id": "r1", "finish_reason": {"type": "length", "length": 3}, "completion_tokens": 3,
      "weight_version": "4", "seed": 9, "recipe": "serving-1/fp8",
      "output_token_logprobs": [[-0.5, 11, null], [-0.25, 12, "b"], [-1.5, 13, null]],
      "input_token_logprobs": [[null, 5, null], [-2.0, 6, null]],
      "output_top_logprobs": [[[-0.5, 11, null], [-0.75, 8, null]], [], [[-1.5, 13, null]]],
      "replay": {"request": {"input_ids": [5, 6], "return_logprob": true, "logprob_start_len": 0,
          "sampling_params": {"max_new_tokens": 3, "min_new_tokens": 2, "temperature": 0.5,
                              "sampling_seed": 9, "stop": ["x"], "repetition_penalty": 1.0}},
        "recipe": "serving-1/fp8", "policy_hash": "p", "kv_cache_dtype": "bf16",
        "weights": [{"version": "4", "digest": "00112233445566778899aabbccddeeff", "tokens": 3}],
        "mixed_context": false, "depends_on_batch": false}}})");
}

ReplayTarget Target() {
  return {.url = "http://h:1",
          .recipe = "serving-1/fp8",
          .weight_version = "4",
          .digest = kDigest,
          .policy_hash = "p",
          .kv_cache_dtype = "bf16"};
}

std::vector<RecordedReply> Read(const Json& line) {
  Result<std::vector<RecordedReply>> replies = ParseReplayLine(line.dump(), 7);
  EXPECT_TRUE(replies.has_value()) << replies.error().message();
  return replies.has_value() ? *std::move(replies) : std::vector<RecordedReply>();
}

void ExpectRefused(const Json& line, StatusCode code, std::string_view message) {
  const Result<std::vector<RecordedReply>> replies = ParseReplayLine(line.dump(), 7);
  ASSERT_FALSE(replies.has_value()) << "accepted, expected: " << message;
  EXPECT_EQ(replies.error().code(), code) << replies.error().message();
  EXPECT_THAT(replies.error().message(), HasSubstr(std::string(message)));
  EXPECT_THAT(replies.error().message(), testing::StartsWith("line 7"));
}

// --- Lines ---

TEST(ReplayLine, IsAReplyOfGenerate) {
  const std::vector<RecordedReply> replies = Read(Reply());
  ASSERT_EQ(replies.size(), 1U);
  const RecordedReply& reply = replies[0];
  EXPECT_EQ(reply.Name(), "line 7 (rid r1)");
  EXPECT_EQ(reply.recipe, "serving-1/fp8");
  ASSERT_EQ(reply.weights.size(), 1U);
  EXPECT_EQ(reply.weights[0].digest, kDigest);
  EXPECT_THAT(reply.content.output_ids, ElementsAre(11, 12, 13));
  ASSERT_EQ(reply.content.scores.size(), 3U);
  EXPECT_EQ(reply.content.scores[0].key, "input_token_logprobs");
  EXPECT_FALSE(reply.content.scores[0].positions[0][0].logprob.has_value());
  EXPECT_EQ(reply.content.scores[1].positions[1][0].logprob, -0.25F);
  EXPECT_EQ(reply.content.scores[2].positions[0].size(), 2U);
  EXPECT_TRUE(reply.content.scores[2].positions[1].empty());
  EXPECT_EQ(Json::parse(reply.request)["return_replay"], true);
}

TEST(ReplayLine, IsAListOrAChatCompletionOrAPair) {
  const Json reply = Reply();
  EXPECT_EQ(Read(Json::array({reply, reply}))[1].Name(), "line 7 [1] (rid r1)");
  EXPECT_EQ(Read({{"request", {{"text", "q"}}}, {"response", reply}}).size(), 1U);

  Json choice = {
      {"index", 0}, {"message", {{"content", "abc"}}}, {"meta_info", reply["meta_info"]}};
  const Json chat = {{"object", "chat.completion"}, {"choices", Json::array({choice, choice})}};
  const std::vector<RecordedReply> replies = Read(chat);
  ASSERT_EQ(replies.size(), 2U);
  EXPECT_THAT(replies[1].content.output_ids, ElementsAre(11, 12, 13));  // From the logprobs.
  choice["meta_info"].erase("output_token_logprobs");
  ExpectRefused({{"choices", Json::array({choice})}}, StatusCode::kInvalidArgument,
                "ask for logprobs");
}

TEST(ReplayLine, OfAPairNeedsNoRecordForASinglePrompt) {
  Json reply = Reply();
  reply["meta_info"].erase("replay");
  ExpectRefused(reply, StatusCode::kInvalidArgument, "record with return_replay");
  const Json request = {{"text", "q"},
                        {"rid", "mine"},
                        {"stream", true},
                        {"return_logprob", true},
                        {"sampling_params", {{"temperature", 0.5}}}};
  const std::vector<RecordedReply> replies = Read({{"request", request}, {"response", reply}});
  ASSERT_EQ(replies.size(), 1U);
  EXPECT_EQ(Json::parse(replies[0].request),
            Json({{"text", "q"},
                  {"return_logprob", true},
                  {"return_replay", true},
                  {"sampling_params", {{"temperature", 0.5}, {"sampling_seed", 9}}}}));
  EXPECT_EQ(replies[0].weights[0].version, "4");
  EXPECT_EQ(replies[0].weights[0].digest, "");

  Json several = request;
  several["text"] = {"q", "r"};
  ExpectRefused({{"request", several}, {"response", reply}}, StatusCode::kInvalidArgument,
                "not one prompt");
  several = request;
  several["sampling_params"]["n"] = 2;
  ExpectRefused({{"request", several}, {"response", reply}}, StatusCode::kInvalidArgument,
                "not those of one sequence");
  reply["meta_info"].erase("seed");
  ExpectRefused({{"request", request}, {"response", reply}}, StatusCode::kInvalidArgument,
                "without a seed");
}

TEST(ReplayLine, RefusesWhatIsBroken) {
  ExpectRefused(Json("text"), StatusCode::kCorrupt, "expected a JSON object or list");
  ExpectRefused(Json::object(), StatusCode::kCorrupt, "meta_info");
  ExpectRefused({{"meta_info", 3}}, StatusCode::kCorrupt, "meta_info");
  Json reply = Reply();
  reply["meta_info"]["finish_reason"] = nullptr;
  ExpectRefused(reply, StatusCode::kInvalidArgument, "finished reply");
  reply = Reply();
  reply["output_ids"][1] = 2.5;
  ExpectRefused(reply, StatusCode::kCorrupt, "output_ids[1]");
  reply = Reply();
  reply["meta_info"]["output_token_logprobs"][2] = {-1.0};
  ExpectRefused(reply, StatusCode::kCorrupt, "output_token_logprobs[2]");
  reply = Reply();
  reply["meta_info"]["output_token_logprobs"][2][0] = 1e300;
  ExpectRefused(reply, StatusCode::kCorrupt, "float32");
  reply = Reply();
  reply["meta_info"]["replay"]["weights"][0]["tokens"] = 2;
  ExpectRefused(reply, StatusCode::kCorrupt, "expected spans of 3 tokens in all, got 2");
  reply = Reply();
  reply["meta_info"]["replay"]["request"] = "x";
  ExpectRefused(reply, StatusCode::kCorrupt, "meta_info.replay");
  EXPECT_FALSE(ParseReplayLine("{\"meta_info\": ", 1).has_value());
}

// --- Parts ---

TEST(PartOfReply, MovesEarlierTokensIntoThePrompt) {
  const RecordedReply reply = Read(Reply())[0];
  const Result<RecordedReply> part = PartOfReply(reply, 1, 2);
  ASSERT_TRUE(part.has_value()) << part.error().message();
  const Json body = Json::parse(part->request);
  EXPECT_EQ(body["input_ids"], Json({5, 6, 11}));
  EXPECT_EQ(body["logprob_start_len"], -1);
  EXPECT_EQ(body["sampling_params"]["max_new_tokens"], 2);
  EXPECT_EQ(body["sampling_params"]["min_new_tokens"], 1);
  EXPECT_EQ(body["sampling_params"]["stop"], Json::array());
  EXPECT_EQ(body["sampling_params"]["sampling_seed"], 9);
  EXPECT_THAT(part->content.output_ids, ElementsAre(12, 13));
  ASSERT_EQ(part->content.scores.size(), 2U);  // The prompt's belong to the beginning.
  EXPECT_EQ(part->content.scores[0].positions.size(), 2U);
  EXPECT_EQ(part->content.finish_reason, "");

  const Result<RecordedReply> begin = PartOfReply(reply, 0, 1);
  ASSERT_TRUE(begin.has_value());
  EXPECT_EQ(begin->content.scores.size(), 3U);
  EXPECT_EQ(Json::parse(begin->request)["logprob_start_len"], 0);
}

TEST(PartOfReply, RefusesPenaltiesThatCountWhatCameBefore) {
  Json line = Reply();
  line["meta_info"]["replay"]["request"]["sampling_params"]["repetition_penalty"] = 1.1;
  const RecordedReply reply = Read(line)[0];
  EXPECT_TRUE(PartOfReply(reply, 0, 2).has_value());
  const Result<RecordedReply> part = PartOfReply(reply, 1, 2);
  ASSERT_FALSE(part.has_value());
  EXPECT_EQ(part.error().code(), StatusCode::kUnsupported);
}

// --- Comparison ---

std::string Compare(const Json& recorded, const Json& replayed) {
  const std::optional<ReplayDifference> difference =
      FirstDifference(Read(recorded)[0].content, Read(replayed)[0].content);
  return difference.has_value() ? DifferenceText(*difference) : "same";
}

TEST(FirstDifference, IsNoneForTheSameBits) {
  Json again = Reply();
  again["meta_info"]["output_token_logprobs"][0][2] = "text is not compared";
  again["meta_info"]["output_ids_logprobs"] = Json::array({1});  // Nor what was not recorded.
  EXPECT_EQ(Compare(Reply(), again), "same");
}

TEST(FirstDifference, ShowsTheBitsOfALogprob) {
  Json again = Reply();
  again["meta_info"]["output_token_logprobs"][1][0] = -0.25000003;  // One step of a float32.
  EXPECT_EQ(Compare(Reply(), again),
            "output_token_logprobs[1]: recorded -0.25 (0xbe800000), replayed -0.25000003 "
            "(0xbe800001)");
  Json zero = Reply();
  Json minus_zero = Reply();
  zero["meta_info"]["output_token_logprobs"][1][0] = 0.0;
  minus_zero["meta_info"]["output_token_logprobs"][1][0] = -0.0;
  EXPECT_THAT(Compare(zero, minus_zero), HasSubstr("recorded 0 (0x00000000), replayed -0"));
}

TEST(FirstDifference, TellsAnIdBeforeWhatFollowsFromIt) {
  Json again = Reply();
  again["output_ids"] = {11, 99, 13};
  again["meta_info"]["output_token_logprobs"][1] = {-3.0, 99, nullptr};
  EXPECT_EQ(Compare(Reply(), again), "output_ids[1]: recorded 12, replayed 99");
  again["meta_info"]["output_top_logprobs"][0][1][0] = -0.8;  // But not before an earlier position.
  EXPECT_THAT(Compare(Reply(), again), HasSubstr("output_top_logprobs[0]: recorded -0.75"));
  again["meta_info"]["input_token_logprobs"][1][0] = -2.5;  // The prompt comes first.
  EXPECT_THAT(Compare(Reply(), again), HasSubstr("input_token_logprobs[1]: recorded -2 "));
}

TEST(FirstDifference, TellsLengthsMissingListsAndTheFinish) {
  Json again = Reply();
  again["meta_info"]["finish_reason"] = {{"type", "stop"}, {"matched", 13}};
  EXPECT_THAT(Compare(Reply(), again), HasSubstr("finish_reason: recorded {"));
  again = Reply();
  again["meta_info"]["input_token_logprobs"][0][0] = -1.0;
  EXPECT_THAT(Compare(Reply(), again), HasSubstr("input_token_logprobs[0]: recorded null"));
  again = Reply();
  again["meta_info"].erase("output_top_logprobs");
  EXPECT_EQ(Compare(Reply(), again),
            "output_top_logprobs: recorded 3 positions, replayed no such list");
  again = Reply();
  again["output_ids"] = {11, 12};
  again["meta_info"]["replay"]["weights"][0]["tokens"] = 2;
  for (const char* key : {"output_token_logprobs", "output_top_logprobs"}) {
    again["meta_info"][key].erase(2);
  }
  EXPECT_EQ(Compare(Reply(), again),
            "output_token_logprobs: recorded 3 positions, replayed 2 positions");
}

// --- Plans ---

void ExpectNoPlan(const Json& line, const ReplayOptions& options, std::string_view message) {
  const std::vector<RecordedReply> replies = Read(line);
  const Result<ReplayPlan> plan = PlanReplay(replies, Target(), options);
  ASSERT_FALSE(plan.has_value()) << "planned, expected: " << message;
  EXPECT_EQ(plan.error().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(plan.error().message(), HasSubstr(std::string(message)));
}

Json WithRecord(const char* key, const Json& value) {
  Json line = Reply();
  line["meta_info"]["replay"][key] = value;
  return line;
}

TEST(PlanReplay, RefusesWhatTheServerCannotMakeAgain) {
  ExpectNoPlan(WithRecord("recipe", "serving-1/bf16"), {}, "made by recipe serving-1/bf16");
  ExpectNoPlan(WithRecord("kv_cache_dtype", "fp8_e4m3"), {}, "KV cache in fp8_e4m3");
  ExpectNoPlan(WithRecord("policy_hash", "q"), {}, "precision table q");
  ExpectNoPlan(WithRecord("mixed_context", true), {}, "in_place");
  ExpectNoPlan(WithRecord("depends_on_batch", true), {}, "other requests of a step");
  ExpectNoPlan(WithRecord("weights", Json::array({Span("4", kOther, 3)})), {},
               fmt::format("digest {} (version 4), the server holds {}", kOther, kDigest));
  ExpectNoPlan(WithRecord("weights", Json::array({Span("3", kDigest, 3)})), {}, "--any-version");
  ExpectNoPlan(WithRecord("weights", Json::array({Span("3", kOther, 2), Span("4", kDigest, 1)})),
               {}, "made by weight versions 3 (2 tokens), 4 (1 tokens)");
  const std::vector<RecordedReply> two =
      Read(Json::array({Reply(), WithRecord("recipe", "serving-1/bf16")}));
  const Result<ReplayPlan> plan = PlanReplay(two, Target(), {});
  ASSERT_FALSE(plan.has_value());
  EXPECT_THAT(plan.error().message(), HasSubstr("1 of 2 replies cannot be replayed"));
}

TEST(PlanReplay, GoesByTheDigestWhenAsked) {
  const std::vector<RecordedReply> replies =
      Read(WithRecord("weights", Json::array({Span("3", kDigest, 2), Span("5", kDigest, 1)})));
  const Result<ReplayPlan> plan = PlanReplay(replies, Target(), {.any_version = true});
  ASSERT_TRUE(plan.has_value()) << plan.error().message();
  ASSERT_EQ(plan->tasks.size(), 1U);
  EXPECT_THAT(plan->tasks[0].sent.content.output_ids, ElementsAre(11, 12, 13));
  ExpectNoPlan(WithRecord("weights", Json::array({Span("4", kOther, 3)})), {.any_version = true},
               "digest");
}

TEST(PlanReplay, TakesTheMatchingPartOfAReplyWhenAsked) {
  const std::vector<RecordedReply> replies = Read(Json::array(
      {WithRecord("weights", Json::array({Span("3", kOther, 2), Span("4", kDigest, 1)})),
       WithRecord("recipe", "serving-1/bf16"), Reply()}));
  const Result<ReplayPlan> plan = PlanReplay(replies, Target(), {.matching = true});
  ASSERT_TRUE(plan.has_value()) << plan.error().message();
  ASSERT_EQ(plan->tasks.size(), 2U);
  EXPECT_EQ(plan->tasks[0].first_token, 2);
  EXPECT_THAT(plan->tasks[0].sent.content.output_ids, ElementsAre(13));
  EXPECT_THAT(plan->tasks[1].sent.content.output_ids, ElementsAre(11, 12, 13));
  ASSERT_EQ(plan->left_out.size(), 1U);
  EXPECT_EQ(plan->left_out[0].num_replies, 1);
  EXPECT_THAT(plan->left_out[0].reason, HasSubstr("recipe"));
}

TEST(PlanReplay, TakesTheBeginningThatAnAbortedReplyIs) {
  Json aborted = Reply();
  aborted["meta_info"]["finish_reason"] = {{"type", "abort"}, {"message", "m"}};
  aborted["meta_info"]["replay"]["request"]["sampling_params"]["max_new_tokens"] = 100;
  Json empty = aborted;
  empty["output_ids"] = Json::array();
  empty["meta_info"]["output_token_logprobs"] = Json::array();
  empty["meta_info"]["output_top_logprobs"] = Json::array();
  empty["meta_info"]["replay"]["weights"][0]["tokens"] = 0;
  const std::vector<RecordedReply> replies = Read(Json::array({aborted, empty}));
  const Result<ReplayPlan> plan = PlanReplay(replies, Target(), {});
  ASSERT_TRUE(plan.has_value()) << plan.error().message();
  ASSERT_EQ(plan->tasks.size(), 1U);
  EXPECT_EQ(Json::parse(plan->tasks[0].sent.request)["sampling_params"]["max_new_tokens"], 3);
  EXPECT_EQ(plan->tasks[0].sent.content.finish_reason, "");
  ASSERT_EQ(plan->left_out.size(), 1U);
  EXPECT_EQ(plan->left_out[0].reason, "aborted before its first token");
  ExpectNoPlan(Json::array({empty}), {}, "none of 1 replies");
}

// --- The run ---

// Answers every request with the reply whose record it was made of, by its seed, as `change` edits
// it.
class Echo {
 public:
  explicit Echo(std::function<void(int64_t seed, Json& reply)> change)
      : server_([change = std::move(change)](const ScriptedRequest& request) {
          const Json body = Json::parse(request.body);
          Json reply = Reply();
          change(body["sampling_params"]["sampling_seed"].get<int64_t>(), reply);
          return RawReply(200, reply.dump());
        }) {}

  Result<ReplayReport> Run(const std::vector<RecordedReply>& replies) {
    const ReplayTarget target = Target();
    const Result<ReplayPlan> plan = PlanReplay(replies, target, {});
    EXPECT_TRUE(plan.has_value()) << plan.error().message();
    const Result<HttpUrl> url = ParseHttpUrl(server_.url());
    return RunReplay(*url, target, *plan, {.parallel = 4});
  }

 private:
  ScriptedServer server_;
};

// Replies with the seeds 0, 1, ...
std::vector<RecordedReply> Seeded(int count) {
  Json lines = Json::array();
  for (int seed = 0; seed < count; ++seed) {
    Json line = Reply();
    line["meta_info"]["replay"]["request"]["sampling_params"]["sampling_seed"] = seed;
    lines.push_back(line);
  }
  return Read(lines);
}

TEST(RunReplay, CountsWhatIsTheSame) {
  Echo echo([](int64_t, Json&) {});
  const Result<ReplayReport> report = echo.Run(Seeded(20));
  ASSERT_TRUE(report.has_value()) << report.error().message();
  EXPECT_EQ(report->num_same, 20);
  EXPECT_EQ(report->num_different, 0);
  EXPECT_EQ(report->num_tokens, 60);
  EXPECT_EQ(report->num_scores, 20 * (2 + 3 + 3));
  EXPECT_FALSE(report->first.has_value());
  EXPECT_THAT(ReplayReportText(*report), HasSubstr("same       20, bit for bit"));
}

TEST(ReplayReport, SaysWhatTheServerComputesAndWhetherItIsEmulated) {
  ReplayReport report{.target = Target()};
  EXPECT_THAT(ReplayReportText(report), HasSubstr("\nrecipe     serving-1/fp8\n"));
  EXPECT_THAT(ReplayReportJson(report), HasSubstr(R"("recipe":"serving-1/fp8","emulated":false)"));
  report.target.is_emulated = true;
  EXPECT_THAT(ReplayReportText(report), HasSubstr("\nrecipe     serving-1/fp8 (emulated)\n"));
  EXPECT_THAT(ReplayReportJson(report), HasSubstr(R"("recipe":"serving-1/fp8","emulated":true)"));
}

TEST(RunReplay, ReportsTheFirstDifferenceInTheOrderOfTheFile) {
  Echo echo([](int64_t seed, Json& reply) {
    if (seed == 7 || seed == 15) {
      reply["meta_info"]["output_token_logprobs"][2][0] = -1.5 - static_cast<double>(seed);
    }
  });
  const Result<ReplayReport> report = echo.Run(Seeded(20));
  ASSERT_TRUE(report.has_value()) << report.error().message();
  EXPECT_EQ(report->num_different, 2);
  ASSERT_TRUE(report->first.has_value());
  EXPECT_EQ(report->first->index, 7);
  EXPECT_EQ(report->first->difference.position, 2);
  const Json json = Json::parse(ReplayReportJson(*report));
  EXPECT_EQ(json["different"], 2);
  EXPECT_EQ(json["first_difference"]["what"], "output_token_logprobs");
  EXPECT_EQ(json["first_difference"]["recorded"], "-1.5 (0xbfc00000)");
}

TEST(RunReplay, StopsWhenTheWeightsChangeMeanwhile) {
  Echo echo([](int64_t seed, Json& reply) {
    if (seed == 3) {
      reply["meta_info"]["replay"]["weights"] = Json::array({Span("5", kOther, 3)});
    }
  });
  const Result<ReplayReport> report = echo.Run(Seeded(10));
  ASSERT_FALSE(report.has_value());
  EXPECT_EQ(report.error().code(), StatusCode::kUnavailable);
  EXPECT_THAT(report.error().message(), HasSubstr("weights changed while"));
}

TEST(GetReplayTarget, RefusesLiveWeightsThatAreNotTheSealedOnes) {
  const auto serve = [](const char* sealed) {
    return [sealed](const ScriptedRequest& request) {
      const Json info = {{"recipe", "r"},         {"emulated", true},
                         {"policy_hash", "p"},    {"kv_cache_dtype", "bf16"},
                         {"weight_version", "4"}, {"weight_digest", sealed}};
      const Json digest = {{"digest", kDigest}, {"weight_version", "4"}};
      return RawReply(200, (request.line == "GET /server_info" ? info : digest).dump());
    };
  };
  ScriptedServer good(serve(kDigest));
  const Result<ReplayTarget> target = GetReplayTarget(*ParseHttpUrl(good.url()));
  ASSERT_TRUE(target.has_value()) << target.error().message();
  EXPECT_EQ(target->digest, kDigest);
  EXPECT_TRUE(target->is_emulated);
  ScriptedServer bad(serve(kOther));
  const Result<ReplayTarget> none = GetReplayTarget(*ParseHttpUrl(bad.url()));
  ASSERT_FALSE(none.has_value());
  EXPECT_EQ(none.error().code(), StatusCode::kInternal);
  EXPECT_THAT(none.error().message(), HasSubstr("changed in place"));
}

}  // namespace
}  // namespace octavo
