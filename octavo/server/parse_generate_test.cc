// Method: each rule of the /generate body once, by the field it names: what is accepted, with the
// coercions that launchers need, and every refusal with its code and message. The model is the
// vocabulary of models/abacus-dense (690 tokens, context 4096).

#include "octavo/server/parse_generate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>

#include "octavo/base/status.h"
#include "octavo/engine/request.h"
#include "octavo/text/tokenizer.h"

namespace octavo {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

class ParseGenerateTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    Result<Tokenizer> tokenizer = Tokenizer::Load("models/abacus-dense/tokenizer.json");
    ASSERT_TRUE(tokenizer.has_value()) << tokenizer.error().message();
    tokenizer_ = std::move(*tokenizer);
  }
  static void TearDownTestSuite() { tokenizer_.reset(); }

  GenerateContext Context() {
    return {.tokenizer = &*tokenizer_, .rids = &rids_, .vocab_size = 690, .context_length = 4096};
  }
  Result<ParsedGenerate> Parse(std::string_view body) { return ParseGenerate(body, Context()); }

  // A prompt of three ids beside `fields`.
  Result<ParsedGenerate> ParseWith(std::string_view fields) {
    return Parse(fmt::format(R"({{"input_ids":[5,6,7],{}}})", fields));
  }
  Result<ParsedGenerate> ParseSamplingWith(std::string_view fields) {
    return ParseWith(fmt::format(R"("sampling_params":{{{}}})", fields));
  }

  void ExpectRefused(const Result<ParsedGenerate>& parsed, StatusCode code,
                     std::string_view message) {
    ASSERT_FALSE(parsed.has_value()) << "accepted, expected: " << message;
    EXPECT_EQ(parsed.error().code(), code) << parsed.error().message();
    EXPECT_THAT(parsed.error().message(), HasSubstr(std::string(message)));
  }

  static inline std::optional<Tokenizer> tokenizer_;
  RidSource rids_{7};
};

constexpr StatusCode kMalformed = StatusCode::kCorrupt;
constexpr StatusCode kRefused = StatusCode::kInvalidArgument;
constexpr StatusCode kUnbuilt = StatusCode::kUnsupported;

TEST_F(ParseGenerateTest, TakesTheSmallestRequestWithTheDocumentedDefaults) {
  const Result<ParsedGenerate> call = Parse(R"({"input_ids":[5,6,7]})");
  ASSERT_TRUE(call.has_value()) << call.error().message();
  ASSERT_EQ(call->items.size(), 1U);
  EXPECT_FALSE(call->is_list);
  EXPECT_FALSE(call->stream);
  const GenerateItem& item = call->items[0];
  EXPECT_TRUE(item.skip_special_tokens);
  EXPECT_FALSE(item.no_stop_trim);
  EXPECT_THAT(item.stop, IsEmpty());
  const Request& request = item.request;
  EXPECT_THAT(request.input_ids, ElementsAre(5, 6, 7));
  EXPECT_EQ(request.rid.size(), 32U);
  EXPECT_FALSE(request.return_logprob);
  EXPECT_EQ(request.logprob_start_len, -1);
  EXPECT_EQ(request.sampling.max_new_tokens, 128);
  EXPECT_EQ(request.sampling.temperature, 1.0F);
  EXPECT_EQ(request.sampling.top_p, 1.0F);
  EXPECT_EQ(request.sampling.top_k, -1);
  EXPECT_EQ(request.sampling.repetition_penalty, 1.0F);
  EXPECT_FALSE(request.sampling.seed.has_value());
}

TEST_F(ParseGenerateTest, TakesEveryFieldOfTheGsm8kClient) {
  const Result<ParsedGenerate> call = Parse(R"({"text":"Question: 1 + 1?\nAnswer:",
      "sampling_params":{"skip_special_tokens":true,"spaces_between_special_tokens":true,
      "max_new_tokens":512,"min_new_tokens":0,"n":1,
      "stop":["Question","Assistant:","<|separator|>"],"stop_token_ids":[],"stop_regex":[],
      "temperature":0.0,"top_p":1.0,"top_k":-1,"min_p":0.0,"frequency_penalty":0.0,
      "presence_penalty":0.0,"ignore_eos":false,"regex":null,"json_schema":null}})");
  ASSERT_TRUE(call.has_value()) << call.error().message();
  EXPECT_THAT(call->items[0].stop, ElementsAre("Question", "Assistant:", "<|separator|>"));
  EXPECT_EQ(call->items[0].request.sampling.temperature, 0.0F);
  EXPECT_EQ(call->items[0].request.sampling.max_new_tokens, 512);
  EXPECT_FALSE(call->items[0].request.input_ids.empty());
}

TEST_F(ParseGenerateTest, ReadsNullAsAbsent) {
  const Result<ParsedGenerate> call = Parse(
      R"({"text":null,"input_ids":[5],"sampling_params":{"temperature":null,"stop":null,
      "stop_token_ids":null,"logit_bias":null,"sampling_seed":null,"custom_params":null},
      "return_logprob":null,"stream":null,"rid":null,"image_data":null,"lora_path":null,
      "logprob_start_len":null,"top_logprobs_num":null,"token_ids_logprob":null,"model":null})");
  ASSERT_TRUE(call.has_value()) << call.error().message();
  EXPECT_EQ(call->items[0].request.sampling.temperature, 1.0F);
}

TEST_F(ParseGenerateTest, OneCallCannotCopyItsPromptWithoutBound) {
  // 4,095 tokens 65,536 times are more than 2^26.
  std::string ids = "5";
  for (int i = 1; i < 4095; ++i) {
    ids += ",5";
  }
  const std::string body =
      R"({{"input_ids":[{}],"sampling_params":{{"n":{},"max_new_tokens":1}}}})";
  ExpectRefused(Parse(fmt::format(fmt::runtime(body), ids, 65536)), kRefused,
                "n: expected at most 67108864 prompt tokens");
  EXPECT_TRUE(Parse(fmt::format(fmt::runtime(body), ids, 16)).has_value());
}

TEST_F(ParseGenerateTest, NullBudgetIsTheRestOfTheContext) {
  const Result<ParsedGenerate> call = ParseSamplingWith(R"("max_new_tokens":null)");
  ASSERT_TRUE(call.has_value()) << call.error().message();
  EXPECT_EQ(call->items[0].request.sampling.max_new_tokens, 4096 - 3);
}

TEST_F(ParseGenerateTest, CoercesNumericStringsAndBooleans) {
  const Result<ParsedGenerate> call = Parse(
      R"({"input_ids":[5],"stream":"true","return_logprob":1,"logprob_start_len":"0",
      "sampling_params":{"max_new_tokens":"16","temperature":"0.5","ignore_eos":"False",
      "top_k":20.0,"no_stop_trim":1}})");
  ASSERT_TRUE(call.has_value()) << call.error().message();
  const GenerateItem& item = call->items[0];
  EXPECT_TRUE(call->stream);
  EXPECT_TRUE(item.request.stream);
  EXPECT_TRUE(item.request.return_logprob);
  EXPECT_EQ(item.request.logprob_start_len, 0);
  EXPECT_EQ(item.request.sampling.max_new_tokens, 16);
  EXPECT_EQ(item.request.sampling.temperature, 0.5F);
  EXPECT_EQ(item.request.sampling.top_k, 20);
  EXPECT_FALSE(item.request.sampling.ignore_eos);
  EXPECT_TRUE(item.no_stop_trim);
}

TEST_F(ParseGenerateTest, NeverCoercesTokenIds) {
  ExpectRefused(Parse(R"({"input_ids":["5"]})"), kMalformed, "input_ids[0]: expected an integer");
  ExpectRefused(Parse(R"({"input_ids":[5.0]})"), kMalformed, "input_ids[0]");
  ExpectRefused(Parse(R"({"input_ids":[5,true]})"), kMalformed, "input_ids[1]");
  ExpectRefused(Parse(R"({"input_ids":[5,null]})"), kMalformed, "input_ids[1]");
  ExpectRefused(Parse(R"({"input_ids":[5,[6]]})"), kMalformed, "input_ids[1]");
  ExpectRefused(Parse(R"({"input_ids":[[5],6]})"), kMalformed, "input_ids[1]: expected a list");
  ExpectRefused(Parse(R"({"input_ids":[99999999999]})"), kMalformed, "32-bit");
  ExpectRefused(ParseSamplingWith(R"("stop_token_ids":["7"])"), kMalformed, "stop_token_ids[0]");
}

TEST_F(ParseGenerateTest, RefusesBodiesThatAreNoJsonObject) {
  for (const std::string_view body :
       {"{", "[1]", "\"x\"", "{\"a\":NaN}", "{\"input_ids\":[1,]}", "{\"text\":\"\xff\"}", "nul"}) {
    ExpectRefused(Parse(body), kMalformed, "body");
  }
  ExpectRefused(Parse(std::string(300, '[') + std::string(300, ']')), kMalformed, "nested");
}

TEST_F(ParseGenerateTest, WantsExactlyOnePrompt) {
  ExpectRefused(Parse("{}"), kRefused, "exactly one of text and input_ids, got neither");
  ExpectRefused(Parse(""), kRefused, "neither");
  ExpectRefused(Parse(R"({"text":"a","input_ids":[5]})"), kRefused, "got both");
  ExpectRefused(Parse(R"({"input_ids":[]})"), kRefused, "input_ids: expected a prompt");
  ExpectRefused(Parse(R"({"text":[]})"), kRefused, "text: expected a prompt");
  ExpectRefused(Parse(R"({"input_ids":[[5],[]]})"), kRefused, "input_ids[1]");
  ExpectRefused(Parse(R"({"text":""})"), kRefused, "at least one token");
  ExpectRefused(Parse(R"({"text":7})"), kMalformed, "text: expected a string, got a number");
  ExpectRefused(Parse(R"({"input_ids":5})"), kMalformed, "input_ids: expected a list of integers");
}

TEST_F(ParseGenerateTest, RefusesIdsBeyondTheVocabulary) {
  ExpectRefused(Parse(R"({"input_ids":[690]})"), kRefused, "token ids in [0, 690), got 690");
  ExpectRefused(Parse(R"({"input_ids":[-1]})"), kRefused, "got -1");
  ExpectRefused(ParseSamplingWith(R"("stop_token_ids":[690])"), kRefused, "stop_token_ids");
  ExpectRefused(ParseSamplingWith(R"("logit_bias":{"690":1})"), kRefused, "logit_bias");
  ExpectRefused(ParseWith(R"("return_logprob":true,"token_ids_logprob":[690])"), kRefused,
                "token_ids_logprob");
}

TEST_F(ParseGenerateTest, WithoutATokenizerOnlyIdsAreServed) {
  GenerateContext context = Context();
  context.tokenizer = nullptr;
  ExpectRefused(ParseGenerate(R"({"text":"a"})", context), kUnbuilt, "no tokenizer.json");
  ExpectRefused(ParseGenerate(R"({"input_ids":[5],"sampling_params":{"stop":"a"}})", context),
                kUnbuilt, "stop: the model folder has no tokenizer.json");
  EXPECT_TRUE(ParseGenerate(R"({"input_ids":[5]})", context).has_value());
}

struct BadValue {
  std::string_view fields;
  StatusCode code;
  std::string_view message;
};

TEST_F(ParseGenerateTest, ChecksEverySamplingRange) {
  const BadValue cases[] = {
      {R"("max_new_tokens":-1)", kRefused, "max_new_tokens: expected at least 0, got -1"},
      {R"("max_new_tokens":1.5)", kMalformed, "max_new_tokens: expected an integer"},
      {R"("max_new_tokens":true)", kMalformed, "max_new_tokens: expected an integer"},
      {R"("min_new_tokens":-1)", kRefused, "min_new_tokens"},
      {R"("min_new_tokens":9,"max_new_tokens":8)", kRefused, "at most max_new_tokens (8), got 9"},
      {R"("temperature":-0.1)", kRefused, "temperature: expected a finite number of at least 0"},
      {R"("temperature":1e39)", kRefused, "temperature"},
      {R"("temperature":"nan")", kMalformed, "temperature: expected a number"},
      {R"("temperature":"hot")", kMalformed, "got \"hot\""},
      {R"("top_p":0)", kRefused, "top_p: expected a number in (0, 1], got 0"},
      {R"("top_p":1.01)", kRefused, "top_p"},
      {R"("top_k":0)", kRefused, "top_k: expected -1 or at least 1, got 0"},
      {R"("top_k":-2)", kRefused, "top_k"},
      {R"("min_p":-0.1)", kRefused, "min_p: expected a number in [0, 1]"},
      {R"("min_p":1.1)", kRefused, "min_p"},
      {R"("frequency_penalty":2.1)", kRefused, "frequency_penalty: expected a number in [-2, 2]"},
      {R"("presence_penalty":-2.1)", kRefused, "presence_penalty"},
      {R"("repetition_penalty":0)", kRefused, "repetition_penalty: expected a number in (0, 2]"},
      {R"("repetition_penalty":2.1)", kRefused, "repetition_penalty"},
      {R"("stop":"")", kRefused, "stop: expected strings that are not empty"},
      {R"("stop":[1])", kMalformed, "stop: expected a string"},
      {R"("stop":{})", kMalformed, "stop"},
      {R"("stop_token_ids":7)", kMalformed, "stop_token_ids: expected a list"},
      {R"("n":0)", kRefused, "n: expected at least 1"},
      {R"("stream_interval":0)", kRefused, "stream_interval"},
      {R"("logit_bias":[1])", kMalformed, "logit_bias: expected an object"},
      {R"("logit_bias":{"x":1})", kMalformed, "logit_bias: expected a token id as key"},
      {R"("logit_bias":{"5":"y"})", kMalformed, "logit_bias"},
      {R"("logit_bias":{"5":1e300})", kRefused, "logit_bias[5]: expected a finite float32"},
      {R"("sampling_seed":1.5)", kMalformed, "sampling_seed"},
      {R"("ignore_eos":2)", kMalformed, "ignore_eos: expected a boolean"},
      {R"("skip_special_tokens":"yes")", kMalformed, "skip_special_tokens"},
      {R"("custom_params":[])", kMalformed, "custom_params: expected an object"},
  };
  for (const BadValue& bad : cases) {
    SCOPED_TRACE(bad.fields);
    ExpectRefused(ParseSamplingWith(bad.fields), bad.code, bad.message);
  }
}

TEST_F(ParseGenerateTest, RefusesAnUnknownSamplingKeyByName) {
  ExpectRefused(ParseSamplingWith(R"("temprature":0.5)"), kRefused, "unknown key \"temprature\"");
  ExpectRefused(ParseSamplingWith(R"("max_tokens":null)"), kRefused, "\"max_tokens\"");
  ExpectRefused(ParseWith(R"("sampling_params":7)"), kMalformed, "sampling_params");
}

TEST_F(ParseGenerateTest, IgnoresUnknownTopLevelKeys) {
  EXPECT_TRUE(ParseWith(R"("selector":"all","return_indexer_topk":true,"model":"x",
      "token_ids_logprob_positions":[1],"priority":3,"routing_key":"a","custom_labels":{},
      "log_metrics":false,"no_logs":true,"temprature":1)")
                  .has_value());
}

TEST_F(ParseGenerateTest, RefusesWhatIsNotBuiltByName) {
  for (const std::string_view key :
       {"stop_regex", "json_schema", "regex", "ebnf", "structural_tag"}) {
    ExpectRefused(ParseSamplingWith(fmt::format(R"("{}":"a")", key)), kUnbuilt, key);
  }
  EXPECT_TRUE(ParseSamplingWith(R"("stop_regex":"")").has_value());
  ExpectRefused(ParseSamplingWith(R"("custom_params":{"return_top_p_token_ids":true})"), kUnbuilt,
                "custom_params.return_top_p_token_ids");
  EXPECT_TRUE(ParseSamplingWith(R"("custom_params":{"return_top_p_token_ids":false})").has_value());
  for (const std::string_view key :
       {"image_data", "video_data", "audio_data", "lora_path", "custom_logit_processor",
        "input_embeds", "bootstrap_host", "bootstrap_port", "bootstrap_room"}) {
    ExpectRefused(ParseWith(fmt::format(R"("{}":"x")", key)), kUnbuilt, key);
  }
  for (const std::string_view key : {"return_hidden_states", "return_entropy"}) {
    ExpectRefused(ParseWith(fmt::format(R"("{}":true)", key)), kUnbuilt, key);
    EXPECT_TRUE(ParseWith(fmt::format(R"("{}":false)", key)).has_value());
  }
}

TEST_F(ParseGenerateTest, PassesRoutedExpertsOn) {
  const Result<ParsedGenerate> call =
      ParseWith(R"("return_routed_experts":true,"routed_experts_start_len":2)");
  ASSERT_TRUE(call.has_value()) << call.error().message();
  EXPECT_TRUE(call->items[0].request.return_routed_experts);
  EXPECT_EQ(call->items[0].request.routed_experts_start_len, 2);
  EXPECT_FALSE(
      ParseWith(R"("return_routed_experts":null)")->items[0].request.return_routed_experts);
}

TEST_F(ParseGenerateTest, KnowsOneRank) {
  EXPECT_TRUE(ParseWith(R"("data_parallel_rank":0,"routed_dp_rank":"0")").has_value());
  ExpectRefused(ParseWith(R"("data_parallel_rank":1)"), kRefused, "data_parallel_rank");
  ExpectRefused(ParseWith(R"("routed_dp_rank":1)"), kRefused, "routed_dp_rank");
}

TEST_F(ParseGenerateTest, BroadcastsOverABatch) {
  const Result<ParsedGenerate> call = Parse(
      R"({"input_ids":[[5],[6,7]],"sampling_params":[{"max_new_tokens":1},{"max_new_tokens":2}],
      "return_logprob":[true,false],"logprob_start_len":0,"token_ids_logprob":[[1],null],
      "top_logprobs_num":2,"extra_key":"v1"})");
  ASSERT_TRUE(call.has_value()) << call.error().message();
  EXPECT_TRUE(call->is_list);
  ASSERT_EQ(call->items.size(), 2U);
  const Request& first = call->items[0].request;
  const Request& second = call->items[1].request;
  EXPECT_EQ(first.sampling.max_new_tokens, 1);
  EXPECT_EQ(second.sampling.max_new_tokens, 2);
  EXPECT_TRUE(first.return_logprob);
  EXPECT_EQ(first.logprob_start_len, 0);
  EXPECT_EQ(first.top_logprobs_num, 2);
  EXPECT_THAT(first.token_ids_logprob, ElementsAre(1));
  EXPECT_FALSE(second.return_logprob);
  EXPECT_EQ(second.top_logprobs_num, 0);  // It only shapes what return_logprob returns.
  EXPECT_THAT(second.token_ids_logprob, IsEmpty());
  EXPECT_EQ(second.extra_key, "v1");
  EXPECT_TRUE(Parse(R"({"text":["a"]})")->is_list);  // A batch of one stays a batch.
}

TEST_F(ParseGenerateTest, RefusesListsOfAnotherLength) {
  ExpectRefused(Parse(R"({"input_ids":[[5],[6]],"return_logprob":[true]})"), kRefused,
                "return_logprob: expected a list of 2");
  ExpectRefused(Parse(R"({"input_ids":[[5],[6]],"sampling_params":[{}]})"), kRefused,
                "sampling_params: expected a list of 2");
  ExpectRefused(Parse(R"({"input_ids":[[5],[6]],"rid":["a"]})"), kRefused, "rid");
  ExpectRefused(ParseWith(R"("return_logprob":[true])"), kMalformed, "for a single prompt");
}

TEST_F(ParseGenerateTest, ChecksLogprobOptions) {
  EXPECT_TRUE(ParseWith(R"("return_logprob":true,"logprob_start_len":3)").has_value());
  ExpectRefused(ParseWith(R"("return_logprob":true,"logprob_start_len":4)"), kRefused,
                "logprob_start_len: expected -1 to 3");
  ExpectRefused(ParseWith(R"("logprob_start_len":-2)"), kRefused, "logprob_start_len");
  ExpectRefused(ParseWith(R"("return_logprob":true,"top_logprobs_num":-1)"), kRefused,
                "top_logprobs_num");
  ExpectRefused(ParseWith(R"("return_logprob":true,"top_logprobs_num":691)"), kRefused,
                "top_logprobs_num");
  EXPECT_TRUE(ParseWith(R"("return_logprob":true,"token_ids_logprob":[])").has_value());
  ExpectRefused(ParseWith(R"("routed_experts_start_len":-1)"), kRefused,
                "routed_experts_start_len");
  ExpectRefused(ParseWith(R"("routed_experts_start_len":4)"), kRefused, "routed_experts_start_len");
}

TEST_F(ParseGenerateTest, SpreadsSamplesPromptMajorWithFreshRids) {
  const Result<ParsedGenerate> call =
      Parse(R"({"input_ids":[[5],[6]],"rid":"x","sampling_params":{"n":2,"sampling_seed":10}})");
  ASSERT_TRUE(call.has_value()) << call.error().message();
  ASSERT_EQ(call->items.size(), 4U);
  std::set<std::string> rids;
  for (const GenerateItem& item : call->items) {
    rids.insert(item.request.rid);
  }
  EXPECT_EQ(rids.size(), 4U);
  EXPECT_FALSE(rids.contains("x_0"));
  EXPECT_EQ(call->batch_rid, "");
  EXPECT_THAT(call->items[1].request.input_ids, ElementsAre(5));
  EXPECT_THAT(call->items[2].request.input_ids, ElementsAre(6));
  EXPECT_EQ(call->items[0].request.sampling.seed, 10);
  EXPECT_EQ(call->items[1].request.sampling.seed, 11);
}

TEST_F(ParseGenerateTest, RefusesMixedOrUnboundedN) {
  ExpectRefused(Parse(R"({"input_ids":[[5],[6]],"sampling_params":[{"n":2},{"n":3}]})"), kRefused,
                "n: expected the same for all items");
  ExpectRefused(Parse(R"({"input_ids":[[5]],"return_logprob":[true],"sampling_params":{"n":2}})"),
                kRefused, "list-valued logprob options");
  ExpectRefused(ParseSamplingWith(R"("n":1000000000000)"), kRefused, "sequences in one call");
}

TEST_F(ParseGenerateTest, NamesTheItemsOfABatchAfterItsRid) {
  const Result<ParsedGenerate> call = Parse(R"({"input_ids":[[5],[6]],"rid":"x"})");
  ASSERT_TRUE(call.has_value());
  EXPECT_EQ(call->batch_rid, "x");
  EXPECT_EQ(call->items[0].request.rid, "x_0");
  EXPECT_EQ(call->items[1].request.rid, "x_1");
  EXPECT_EQ(Parse(R"({"input_ids":[[5],[6]],"rid":["a","b"]})")->items[1].request.rid, "b");
  EXPECT_EQ(ParseWith(R"("rid":"mine")")->items[0].request.rid, "mine");
  ExpectRefused(Parse(R"({"input_ids":[[5],[6]],"rid":["a","a"]})"), kRefused, "\"a\" twice");
  ExpectRefused(ParseWith(R"("rid":7)"), kMalformed, "rid: expected a string");
}

TEST_F(ParseGenerateTest, AutoTruncateCutsPromptAndBudget) {
  GenerateContext context = Context();
  context.auto_truncate = true;
  context.context_length = 4;
  const Result<ParsedGenerate> call = ParseGenerate(
      R"({"input_ids":[1,2,3,4,5,6],"sampling_params":{"min_new_tokens":2}})", context);
  ASSERT_TRUE(call.has_value()) << call.error().message();
  EXPECT_THAT(call->items[0].request.input_ids, ElementsAre(1, 2, 3));
  EXPECT_EQ(call->items[0].request.sampling.max_new_tokens, 1);
  EXPECT_EQ(call->items[0].request.sampling.min_new_tokens, 1);
}

TEST_F(ParseGenerateTest, AutoTruncateCutsToAPoolThatIsSmallerThanTheContext) {
  GenerateContext context = Context();
  context.auto_truncate = true;
  context.context_length = 8;
  context.pool_tokens = 4;
  const Result<ParsedGenerate> call = ParseGenerate(R"({"input_ids":[1,2,3,4,5,6]})", context);
  ASSERT_TRUE(call.has_value()) << call.error().message();
  EXPECT_THAT(call->items[0].request.input_ids, ElementsAre(1, 2, 3));
  EXPECT_EQ(call->items[0].request.sampling.max_new_tokens, 1);
}

TEST_F(ParseGenerateTest, RefusesTextThatCannotFitUnread) {
  GenerateContext context = Context();
  context.max_text_bytes = 8;
  ExpectRefused(ParseGenerate(R"({"text":"123456789"})", context), kRefused, "9 bytes of text");
}

// --- Versions
// -------------------------------------------------------------------------------------

TEST_F(ParseGenerateTest, ReadsTheVersionThatARequestDemands) {
  const auto demand = [&](std::string_view fields) {
    const Result<ParsedGenerate> call = ParseWith(fields);
    EXPECT_TRUE(call.has_value()) << fields;
    return call.has_value() ? call->items[0].request.version_demand : VersionDemand();
  };
  EXPECT_FALSE(demand(R"("stream":false)").any());
  EXPECT_FALSE(demand(R"("min_weight_version":null,"exact_weight_version":null)").any());
  EXPECT_EQ(demand(R"("exact_weight_version":"step-7")").version, "step-7");
  EXPECT_EQ(demand(R"("exact_weight_version":7)").kind, VersionDemand::Kind::kExact);
  EXPECT_EQ(demand(R"("exact_weight_version":7)").version, "7");
  EXPECT_EQ(demand(R"("min_weight_version":"12")").kind, VersionDemand::Kind::kMinimum);
  EXPECT_EQ(demand(R"("min_weight_version":12)").version, "12");
  ExpectRefused(ParseWith(R"("min_weight_version":"latest")"), kRefused, "min_weight_version");
  ExpectRefused(ParseWith(R"("min_weight_version":-1)"), kRefused, "min_weight_version");
  ExpectRefused(ParseWith(R"("exact_weight_version":"")"), kRefused, "exact_weight_version");
  ExpectRefused(ParseWith(R"("min_weight_version":[1])"), kMalformed, "min_weight_version");
  ExpectRefused(ParseWith(R"("min_weight_version":1,"exact_weight_version":1)"), kRefused,
                "none beside exact_weight_version");
}

TEST_F(ParseGenerateTest, DemandsHoldForEverySampleOfABatch) {
  const auto call = Parse(R"({"input_ids":[[5],[6]],"sampling_params":{"n":2},
                              "exact_weight_version":"3","stale_prefix_versions":1})");
  ASSERT_TRUE(call.has_value()) << call.error().message();
  ASSERT_EQ(call->items.size(), 4U);
  for (const GenerateItem& item : call->items) {
    EXPECT_EQ(item.request.version_demand.version, "3");
    EXPECT_EQ(item.request.stale_prefix_versions, 1);
  }
  EXPECT_FALSE(ParseWith(R"("stream":false)")->items[0].request.stale_prefix_versions.has_value());
}

}  // namespace
}  // namespace octavo
