// Method: bodies and replies are written out by hand from the tables of the rollout API
// (docs/http.md): what is sent is compared whole, what is read key by key, and broken replies
// must be refused by the key that is wrong.

#include "octavo/client/generate_client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "octavo/client/scripted_server.h"

namespace octavo {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

HttpClient ClientOf(const ScriptedServer& server) {
  return HttpClient(ParseHttpUrl(server.url()).value(), {.connect_s = 5.0, .idle_s = 5.0});
}

TEST(GenerateBody, NamesEverySamplingParameter) {
  GenerateCall call;
  call.text = "Question: \"1\"";
  call.max_new_tokens = 512;
  call.temperature = 0.0;
  call.stop = {"Question", "Assistant:"};
  EXPECT_EQ(GenerateBody(call),
            R"({"sampling_params":{"frequency_penalty":0.0,"ignore_eos":false,)"
            R"("json_schema":null,"max_new_tokens":512,"min_new_tokens":0,"min_p":0.0,"n":1,)"
            R"("presence_penalty":0.0,"regex":null,"skip_special_tokens":true,)"
            R"("spaces_between_special_tokens":true,"stop":["Question","Assistant:"],)"
            R"("stop_regex":[],"stop_token_ids":[],"temperature":0.0,"top_k":-1,"top_p":1.0},)"
            R"("text":"Question: \"1\""})");
}

TEST(GenerateBody, SendsWhatIsSetAndNothingElse) {
  GenerateCall call;
  call.input_ids = {1, 2};
  call.rid = "r7";
  call.seed = 5;
  call.return_logprob = true;
  call.logprob_start_len = 0;
  const std::string body = GenerateBody(call);
  EXPECT_THAT(body, HasSubstr(R"("input_ids":[1,2])"));
  EXPECT_THAT(body, HasSubstr(R"("rid":"r7")"));
  EXPECT_THAT(body, HasSubstr(R"("sampling_seed":5)"));
  EXPECT_THAT(body, HasSubstr(R"("return_logprob":true)"));
  EXPECT_THAT(body, HasSubstr(R"("logprob_start_len":0)"));
  EXPECT_THAT(body, Not(HasSubstr("\"text\"")));
}

constexpr const char* kReply = R"({"text":" 42","output_ids":[7,2],"meta_info":{"id":"a",
  "finish_reason":{"type":"stop","matched":2},"prompt_tokens":9,"completion_tokens":2,
  "cached_tokens":8,"num_retractions":1,"weight_version":"4",
  "weight_versions":[{"version":"3","tokens":1},{"version":"4","tokens":1}],
  "input_token_logprobs":[[null,5,null],[-1.5,6,null]],
  "output_token_logprobs":[[-0.25,7,null],[-0.5,2,"x"]]}})";

TEST(ParseGenerateReply, ReadsEveryKey) {
  const GenerateReply reply = ParseGenerateReply(kReply).value();
  EXPECT_EQ(reply.text, " 42");
  EXPECT_THAT(reply.output_ids, ElementsAre(7, 2));
  EXPECT_EQ(reply.prompt_tokens, 9);
  EXPECT_EQ(reply.completion_tokens, 2);
  EXPECT_EQ(reply.cached_tokens, 8);
  EXPECT_EQ(reply.num_retractions, 1);
  EXPECT_EQ(reply.finish_type, "stop");
  EXPECT_EQ(reply.weight_version, "4");
  ASSERT_EQ(reply.weight_versions.size(), 2u);
  EXPECT_EQ(reply.weight_versions[0].version, "3");
  EXPECT_EQ(reply.weight_versions[1].num_tokens, 1);
  ASSERT_EQ(reply.output_logprobs.size(), 2u);
  EXPECT_EQ(reply.output_logprobs[0].logprob, -0.25);
  EXPECT_EQ(reply.output_logprobs[1].id, 2);
  EXPECT_FALSE(reply.input_logprobs[0].logprob.has_value());
  EXPECT_EQ(reply.input_logprobs[1].logprob, -1.5);
}

TEST(ParseGenerateReply, RefusesWhatIsNotAReply) {
  for (const char* text : {"", "[]", "{", R"({"text":"x"})", R"({"meta_info":3})",
                           R"({"output_ids":["a"],"meta_info":{}})",
                           R"({"meta_info":{"output_token_logprobs":[[-1.0]]}})",
                           R"({"meta_info":{"output_token_logprobs":[["-1.0",2,null]]}})",
                           R"({"meta_info":{"output_token_logprobs":3}})"}) {
    const auto reply = ParseGenerateReply(text);
    ASSERT_FALSE(reply.has_value()) << text;
    EXPECT_EQ(reply.error().code(), StatusCode::kCorrupt) << text;
  }
}

TEST(Generate, NamesTheServerWhoseReplyIsBroken) {
  ScriptedServer server([](const ScriptedRequest&) { return RawReply(200, "{}"); });
  HttpClient client = ClientOf(server);
  EXPECT_THAT(Generate(client, {}).error().message(), HasSubstr(server.url()));
}

TEST(SseSplitter, GivesTheSameEventsForEveryCut) {
  constexpr std::string_view kEvents =
      ": comment\ndata: one\r\n\ndata:two\n\nevent: x\ndata: 3\n\n";
  for (size_t cut = 0; cut <= kEvents.size(); ++cut) {
    SseSplitter splitter;
    std::vector<std::string> events;
    auto on_data = [&](std::string_view data) {
      events.emplace_back(data);
      return true;
    };
    EXPECT_TRUE(splitter.Feed(kEvents.substr(0, cut), on_data));
    EXPECT_TRUE(splitter.Feed(kEvents.substr(cut), on_data));
    EXPECT_THAT(events, ElementsAre("one", "two", "3")) << "cut at " << cut;
  }
}

TEST(GetLoad, SumsTheRanks) {
  ScriptedServer server([](const ScriptedRequest&) {
    return RawReply(200, R"({"loads":[{"num_running_reqs":3,"num_waiting_reqs":1},
                                      {"num_running_reqs":2,"num_waiting_reqs":0}]})");
  });
  HttpClient client = ClientOf(server);
  const ServerLoad load = GetLoad(client).value();
  EXPECT_EQ(load.num_running, 5);
  EXPECT_EQ(load.num_waiting, 1);
}

}  // namespace
}  // namespace octavo
