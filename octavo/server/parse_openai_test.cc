// Method: each field of the two bodies once, by name: what it becomes in the engine's request, what
// the answer is told, and each refusal with its code and the name that the client used. The model
// is the vocabulary of models/abacus-dense (690 tokens, context 4096) with its chat template.

#include "octavo/server/parse_openai.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/engine/request.h"
#include "octavo/server/openai_defaults.h"
#include "octavo/server/parse_generate.h"
#include "octavo/server/parse_sampling.h"
#include "octavo/server/server.h"
#include "octavo/text/chat_template.h"
#include "octavo/text/tokenizer.h"

namespace octavo {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Pair;

constexpr StatusCode kMalformed = StatusCode::kCorrupt;
constexpr StatusCode kRefused = StatusCode::kInvalidArgument;
constexpr StatusCode kUnbuilt = StatusCode::kUnsupported;

class ParseOpenAiTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    Result<Tokenizer> tokenizer = Tokenizer::LoadFolder("models/abacus-dense");
    ASSERT_TRUE(tokenizer.has_value()) << tokenizer.error().message();
    tokenizer_ = std::move(*tokenizer);
    Result<std::optional<ChatTemplate>> chat = ChatTemplate::LoadFolder("models/abacus-dense");
    ASSERT_TRUE(chat.has_value() && chat->has_value());
    template_ = std::move(*chat);
  }
  static void TearDownTestSuite() {
    tokenizer_.reset();
    template_.reset();
  }
  ParseOpenAiTest() : text_{.tokenizer = &*tokenizer_, .chat_template = &*template_} {}

  Result<ParsedOpenAi> Parse(OpenAiKind kind, std::string_view body) {
    return ParseOpenAi(body, kind,
                       {.generate = {.tokenizer = text_.tokenizer,
                                     .rids = &rids_,
                                     .vocab_size = 690,
                                     .context_length = 4096,
                                     .pool_tokens = pool_tokens_},
                        .text = &text_,
                        .chat_defaults = &defaults_,
                        .served_name = "served",
                        .now_unix_s = 1700000000});
  }
  // A prompt of three ids beside `fields`.
  Result<ParsedOpenAi> Completions(std::string_view fields) {
    return Parse(OpenAiKind::kCompletions, fmt::format(R"({{"prompt":[5,6,7],{}}})", fields));
  }
  Result<ParsedOpenAi> Chat(std::string_view fields) {
    return Parse(OpenAiKind::kChat,
                 fmt::format(R"({{"messages":[{{"role":"user","content":"Hi"}}],{}}})", fields));
  }
  static const GenerateItem& Item(const Result<ParsedOpenAi>& parsed) {
    return parsed->call.items.at(0);
  }
  static std::string Prompt(const Result<ParsedOpenAi>& parsed) {
    return tokenizer_->Decode(Item(parsed).request.input_ids, /*skip_special_tokens=*/false);
  }

  static void ExpectRefused(const Result<ParsedOpenAi>& parsed, StatusCode code,
                            std::string_view message) {
    ASSERT_FALSE(parsed.has_value()) << "accepted, expected: " << message;
    EXPECT_EQ(parsed.error().code(), code) << parsed.error().message();
    EXPECT_THAT(parsed.error().message(), HasSubstr(std::string(message)));
  }

  static inline std::optional<Tokenizer> tokenizer_;
  static inline std::optional<ChatTemplate> template_;
  ServerText text_;
  Result<SamplingFields> defaults_ = SamplingFields{};
  RidSource rids_{7};
  int64_t pool_tokens_ = 0;
};

// --- Completions ---

TEST_F(ParseOpenAiTest, ACompletionHasTheDocumentedDefaults) {
  const Result<ParsedOpenAi> parsed = Parse(OpenAiKind::kCompletions, R"({"prompt":"Tom has 3"})");
  ASSERT_TRUE(parsed.has_value()) << parsed.error().message();
  ASSERT_EQ(parsed->call.items.size(), 1U);
  const GenerateItem& item = Item(parsed);
  EXPECT_EQ(item.request.input_ids, tokenizer_->Encode("Tom has 3"));
  EXPECT_EQ(item.request.sampling.max_new_tokens, 16);
  EXPECT_EQ(item.request.sampling.temperature, 1.0F);
  EXPECT_FALSE(item.request.return_logprob);
  EXPECT_TRUE(item.skip_special_tokens);
  EXPECT_FALSE(parsed->call.shows_meta);
  const OpenAiAnswer& answer = parsed->answer;
  EXPECT_EQ(answer.model, "served");
  EXPECT_EQ(answer.id, item.request.rid);
  EXPECT_EQ(answer.created_unix_s, 1700000000);
  EXPECT_FALSE(answer.logprobs || answer.include_usage || answer.return_meta_info);
  EXPECT_THAT(answer.echo, IsEmpty());
}

TEST_F(ParseOpenAiTest, EverySamplingFieldReachesTheEngine) {
  const Result<ParsedOpenAi> parsed = Completions(
      R"("max_tokens":9,"temperature":0.5,"top_p":0.9,"top_k":4,"min_p":0.1,"seed":11,
      "frequency_penalty":0.5,"presence_penalty":-0.5,"repetition_penalty":1.1,"min_tokens":2,
      "stop":["a","b"],"stop_token_ids":[3],"ignore_eos":true,"no_stop_trim":true,
      "skip_special_tokens":false,"logit_bias":{"5":1.5},"best_of":1,"user":"me","model":"any",
      "extra_key":"adapter","cache_salt":"salt-","rid":"mine")");
  ASSERT_TRUE(parsed.has_value()) << parsed.error().message();
  const GenerateItem& item = Item(parsed);
  const SamplingParams& params = item.request.sampling;
  EXPECT_EQ(params.max_new_tokens, 9);
  EXPECT_EQ(params.min_new_tokens, 2);
  EXPECT_EQ(params.temperature, 0.5F);
  EXPECT_EQ(params.top_p, 0.9F);
  EXPECT_EQ(params.top_k, 4);
  EXPECT_EQ(params.min_p, 0.1F);
  EXPECT_EQ(params.seed, 11);
  EXPECT_EQ(params.frequency_penalty, 0.5F);
  EXPECT_EQ(params.presence_penalty, -0.5F);
  EXPECT_EQ(params.repetition_penalty, 1.1F);
  EXPECT_TRUE(params.ignore_eos);
  EXPECT_THAT(params.stop_token_ids, ElementsAre(3));
  EXPECT_THAT(params.logit_bias, ElementsAre(Pair(5, 1.5F)));
  EXPECT_THAT(item.stop, ElementsAre("a", "b"));
  EXPECT_TRUE(item.no_stop_trim);
  EXPECT_FALSE(item.skip_special_tokens);
  EXPECT_EQ(item.request.extra_key, "salt-adapter");
  EXPECT_EQ(item.request.rid, "mine");
  EXPECT_EQ(parsed->answer.id, "mine");
  EXPECT_EQ(parsed->answer.model, "any");
}

TEST_F(ParseOpenAiTest, NullIsAbsentAndUnknownKeysMeanNothing) {
  const Result<ParsedOpenAi> parsed = Completions(
      R"("max_tokens":null,"temperature":null,"n":null,"stop":null,"seed":null,"logprobs":null,
      "stream":null,"stream_options":null,"suffix":null,"model":null,"response_format":null,
      "best_of":null,"echo":null,"logit_bias":null,"rid":null,"of_the_future":{"a":1})");
  ASSERT_TRUE(parsed.has_value()) << parsed.error().message();
  EXPECT_EQ(Item(parsed).request.sampling.max_new_tokens, 16);
  EXPECT_EQ(parsed->answer.model, "served");
}

TEST_F(ParseOpenAiTest, TakesAllFourKindsOfPrompt) {
  const auto ids_of = [&](std::string_view prompt) {
    const Result<ParsedOpenAi> parsed =
        Parse(OpenAiKind::kCompletions, fmt::format(R"({{"prompt":{}}})", prompt));
    std::vector<std::vector<int32_t>> ids;
    EXPECT_TRUE(parsed.has_value()) << prompt;
    for (size_t i = 0; parsed.has_value() && i < parsed->call.items.size(); ++i) {
      ids.push_back(parsed->call.items[i].request.input_ids);
    }
    return ids;
  };
  EXPECT_THAT(ids_of(R"("Tom")"), ElementsAre(tokenizer_->Encode("Tom")));
  EXPECT_THAT(ids_of(R"(["Tom","Ben"])"),
              ElementsAre(tokenizer_->Encode("Tom"), tokenizer_->Encode("Ben")));
  EXPECT_THAT(ids_of("[5,6]"), ElementsAre(ElementsAre(5, 6)));
  EXPECT_THAT(ids_of("[[5,6],[7]]"), ElementsAre(ElementsAre(5, 6), ElementsAre(7)));
}

TEST_F(ParseOpenAiTest, RefusesPromptsThatAreNone) {
  const auto parse = [&](std::string_view prompt) {
    return Parse(OpenAiKind::kCompletions, fmt::format(R"({{"prompt":{}}})", prompt));
  };
  ExpectRefused(Parse(OpenAiKind::kCompletions, "{}"), kMalformed, "prompt");
  ExpectRefused(parse(R"("")"), kRefused, "prompt");
  ExpectRefused(parse("[]"), kRefused, "prompt");
  ExpectRefused(parse("[[]]"), kRefused, "prompt[0]");
  ExpectRefused(parse(R"(["Tom",""])"), kRefused, "prompt[1]");
  ExpectRefused(parse(R"(["Tom",5])"), kMalformed, "prompt[1]");
  ExpectRefused(parse(R"([5,"Tom"])"), kMalformed, "prompt[1]");
  ExpectRefused(parse("5"), kMalformed, "prompt");
  ExpectRefused(parse("[5,690]"), kRefused, "prompt");
  ExpectRefused(parse("[5.5]"), kMalformed, "prompt");
}

TEST_F(ParseOpenAiTest, NChoicesOfEachPromptShareOneId) {
  const Result<ParsedOpenAi> parsed =
      Parse(OpenAiKind::kCompletions, R"({"prompt":[[5],[6]],"n":2,"seed":40})");
  ASSERT_TRUE(parsed.has_value()) << parsed.error().message();
  ASSERT_EQ(parsed->call.items.size(), 4U);
  EXPECT_EQ(parsed->answer.num_samples, 2);
  // Abort by the id of the answer ends all four.
  EXPECT_EQ(parsed->call.batch_rid, parsed->answer.id);
  EXPECT_EQ(parsed->answer.id, Item(parsed).request.rid);
  EXPECT_EQ(parsed->call.items[1].request.sampling.seed, 41);
  EXPECT_THAT(parsed->call.items[2].request.input_ids, ElementsAre(6));
}

TEST_F(ParseOpenAiTest, ABatchKeepsItsRid) {
  const Result<ParsedOpenAi> parsed =
      Parse(OpenAiKind::kCompletions, R"({"prompt":[[5],[6]],"rid":"b"})");
  ASSERT_TRUE(parsed.has_value()) << parsed.error().message();
  EXPECT_EQ(parsed->answer.id, "b");
  EXPECT_EQ(parsed->call.items[1].request.rid, "b_1");
}

TEST_F(ParseOpenAiTest, LogprobsOfACompletionAreACount) {
  Result<ParsedOpenAi> parsed = Completions(R"("logprobs":0)");
  ASSERT_TRUE(parsed.has_value()) << parsed.error().message();
  EXPECT_TRUE(parsed->answer.logprobs);
  EXPECT_TRUE(Item(parsed).request.return_logprob);
  EXPECT_EQ(Item(parsed).request.top_logprobs_num, 0);
  EXPECT_EQ(Item(parsed).request.logprob_start_len, -1);
  parsed = Completions(R"("logprobs":5,"echo":true)");
  ASSERT_TRUE(parsed.has_value()) << parsed.error().message();
  EXPECT_EQ(Item(parsed).request.top_logprobs_num, 5);
  EXPECT_EQ(Item(parsed).request.logprob_start_len, 0);  // The prompt is scored too.
  ExpectRefused(Completions(R"("logprobs":-1)"), kRefused, "logprobs");
  ExpectRefused(Completions(R"("logprobs":691)"), kRefused, "logprobs");
  ExpectRefused(Completions(R"("logprobs":true)"), kMalformed, "logprobs");
}

TEST_F(ParseOpenAiTest, EchoIsTheTextAsSentOrAsTheIdsRead) {
  Result<ParsedOpenAi> parsed =
      Parse(OpenAiKind::kCompletions, R"({"prompt":["Tom ","<|im_start|>"],"echo":true})");
  ASSERT_TRUE(parsed.has_value()) << parsed.error().message();
  EXPECT_THAT(parsed->answer.echo, ElementsAre("Tom ", "<|im_start|>"));
  EXPECT_FALSE(Item(parsed).request.return_logprob);
  parsed = Completions(R"("echo":true)");
  ASSERT_TRUE(parsed.has_value()) << parsed.error().message();
  EXPECT_THAT(parsed->answer.echo,
              ElementsAre(tokenizer_->Decode(std::vector<int32_t>{5, 6, 7}, true)));
}

TEST_F(ParseOpenAiTest, TheBudgetIsAtLeastOneAndFitsTheContext) {
  ExpectRefused(Completions(R"("max_tokens":0)"), kRefused, "max_tokens: expected at least 1");
  ExpectRefused(Completions(R"("max_tokens":-3)"), kRefused, "max_tokens: expected at least 1");
  ExpectRefused(Completions(R"("max_tokens":"many")"), kMalformed, "max_tokens");
  ExpectRefused(Completions(R"("max_tokens":4094)"), kRefused, "max_tokens: expected at most 4093");
  ExpectRefused(Completions(R"("max_tokens":4,"min_tokens":5)"), kRefused, "min_tokens");
  EXPECT_TRUE(Completions(R"("max_tokens":4093)").has_value());
  ExpectRefused(Chat(R"("max_completion_tokens":5000)"), kRefused, "max_completion_tokens");
  ExpectRefused(Chat(R"("max_completion_tokens":0)"), kRefused, "max_completion_tokens");
  ExpectRefused(Chat(R"("max_completion_tokens":5,"max_tokens":6)"), kRefused, "max_tokens");
  EXPECT_TRUE(Chat(R"("max_completion_tokens":5,"max_tokens":5)").has_value());
}

TEST_F(ParseOpenAiTest, RefusesWhatWouldChangeTheTokens) {
  ExpectRefused(Completions(R"("suffix":"end")"), kUnbuilt, "suffix");
  ExpectRefused(Completions(R"("best_of":3,"n":2)"), kUnbuilt, "best_of");
  EXPECT_TRUE(Completions(R"("best_of":1,"n":2)").has_value());
  for (const auto& [fields, name] : std::initializer_list<std::pair<const char*, const char*>>{
           {R"("response_format":{"type":"json_object"})", "response_format"},
           {R"("response_format":{"type":"json_schema","json_schema":{}})", "response_format"},
           {R"("json_schema":"{}")", "json_schema"},
           {R"("regex":"a")", "regex"},
           {R"("ebnf":"a")", "ebnf"},
           {R"("structural_tag":"a")", "structural_tag"},
           {R"("stop_regex":"a")", "stop_regex"},
           {R"("lora_path":"a")", "lora_path"},
           {R"("custom_logit_processor":"a")", "custom_logit_processor"},
           {R"("return_hidden_states":true)", "return_hidden_states"},
           {R"("custom_params":{"return_top_p_token_ids":true})", "custom_params"}}) {
    ExpectRefused(Completions(fields), kUnbuilt, name);
    ExpectRefused(Chat(fields), kUnbuilt, name);
  }
  EXPECT_TRUE(Completions(R"("response_format":{"type":"text"},"suffix":"")").has_value());
}

TEST_F(ParseOpenAiTest, NamesAFieldAsTheClientSpellsIt) {
  ExpectRefused(Completions(R"("seed":"x")"), kMalformed, "seed");
  ExpectRefused(Completions(R"("min_tokens":-1)"), kRefused, "min_tokens");
  ExpectRefused(Completions(R"("temperature":-1)"), kRefused, "temperature");
  ExpectRefused(Completions(R"("top_p":0)"), kRefused, "top_p");
  ExpectRefused(Completions(R"("n":0)"), kRefused, "n:");
  ExpectRefused(Completions(R"("logit_bias":{"690":1})"), kRefused, "logit_bias");
  ExpectRefused(Completions(R"("stream_options":true)"), kMalformed, "stream_options");
  ExpectRefused(Completions(R"("model":5)"), kMalformed, "model");
  ExpectRefused(Completions(R"("data_parallel_rank":1)"), kRefused, "data_parallel_rank");
}

// --- Chat ---

TEST_F(ParseOpenAiTest, AChatPromptIsTheTemplatesWithTheGenerationPrompt) {
  const Result<ParsedOpenAi> parsed = Parse(OpenAiKind::kChat, R"({"messages":[
      {"role":"system","content":"Add."},{"role":"user","content":"1 + 1?"}]})");
  ASSERT_TRUE(parsed.has_value()) << parsed.error().message();
  EXPECT_EQ(Prompt(parsed),
            "<|im_start|>system\nAdd.<|im_end|>\n<|im_start|>user\n1 + 1?<|im_end|>\n"
            "<|im_start|>assistant\n");
  const auto prompt_tokens = static_cast<int64_t>(Item(parsed).request.input_ids.size());
  EXPECT_EQ(Item(parsed).request.sampling.max_new_tokens, 4096 - prompt_tokens);
  EXPECT_FALSE(parsed->call.is_list);
}

TEST_F(ParseOpenAiTest, WithoutABudgetAChatEndsWhereTheKvPoolDoes) {
  pool_tokens_ = 100;
  const Result<ParsedOpenAi> parsed = Chat(R"("n":1)");
  ASSERT_TRUE(parsed.has_value()) << parsed.error().message();
  EXPECT_EQ(Item(parsed).request.sampling.max_new_tokens,
            100 - static_cast<int64_t>(Item(parsed).request.input_ids.size()));
  pool_tokens_ = 4;
  ExpectRefused(Chat(R"("n":1)"), kRefused, "messages: expected fewer than 4 tokens (KV pool)");
}

TEST_F(ParseOpenAiTest, InputIdsReplaceTheTemplate) {
  text_.chat_template = nullptr;
  const Result<ParsedOpenAi> parsed = Chat(R"("input_ids":[5,6])");
  ASSERT_TRUE(parsed.has_value()) << parsed.error().message();
  EXPECT_THAT(Item(parsed).request.input_ids, ElementsAre(5, 6));
  ExpectRefused(Parse(OpenAiKind::kChat, R"({"input_ids":[5,6]})"), kMalformed, "messages");
  ExpectRefused(Chat(R"("input_ids":[[5,6]])"), kMalformed, "input_ids");
  ExpectRefused(Chat(R"("input_ids":[])"), kRefused, "input_ids");
  ExpectRefused(Chat(R"("input_ids":[690])"), kRefused, "input_ids");
}

TEST_F(ParseOpenAiTest, SaysWhyThereIsNoChat) {
  text_.chat_template = nullptr;
  text_.no_chat_reason = "chat template: line 3: the filter title is not built";
  ExpectRefused(Chat(R"("n":1)"), kUnbuilt, "the filter title is not built");
  text_.tokenizer = nullptr;
  ExpectRefused(Chat(R"("n":1)"), kUnbuilt, "tokenizer.json");
}

TEST_F(ParseOpenAiTest, ChatSamplesByTheModelsOwnDefaults) {
  defaults_ = ParseChatDefaults(
      R"({"temperature":0.6,"top_p":0.95,"top_k":20,"min_p":0.05,"repetition_penalty":1.05})", 690);
  ASSERT_TRUE(defaults_.has_value()) << defaults_.error().message();
  Result<ParsedOpenAi> parsed = Chat(R"("top_k":7,"temperature":null)");
  ASSERT_TRUE(parsed.has_value()) << parsed.error().message();
  const SamplingParams& params = Item(parsed).request.sampling;
  EXPECT_EQ(params.temperature, 0.6F);
  EXPECT_EQ(params.top_p, 0.95F);
  EXPECT_EQ(params.top_k, 7);  // The request's own.
  EXPECT_EQ(params.min_p, 0.05F);
  EXPECT_EQ(params.repetition_penalty, 1.05F);
  parsed = Completions(R"("n":1)");
  ASSERT_TRUE(parsed.has_value()) << parsed.error().message();
  EXPECT_EQ(Item(parsed).request.sampling.temperature, 1.0F);  // Completions have OpenAI's.
}

TEST_F(ParseOpenAiTest, DefaultsThatAreNoneRefuseChatAlone) {
  defaults_ = ParseChatDefaults(R"({"top_p":2})", 690);
  ExpectRefused(Chat(R"("n":1)"), kRefused, "top_p");
  EXPECT_TRUE(Completions(R"("n":1)").has_value());
}

TEST_F(ParseOpenAiTest, LogprobsOfAChatAreASwitchAndACount) {
  const Result<ParsedOpenAi> parsed = Chat(R"("logprobs":true,"top_logprobs":3)");
  ASSERT_TRUE(parsed.has_value()) << parsed.error().message();
  EXPECT_TRUE(parsed->answer.logprobs);
  EXPECT_EQ(Item(parsed).request.top_logprobs_num, 3);
  EXPECT_EQ(Item(parsed).request.logprob_start_len, -1);
  const Result<ParsedOpenAi> none = Chat(R"("top_logprobs":3)");
  ASSERT_TRUE(none.has_value()) << none.error().message();
  EXPECT_FALSE(Item(none).request.return_logprob);
  EXPECT_EQ(Item(none).request.top_logprobs_num, 0);
  ExpectRefused(Chat(R"("logprobs":true,"top_logprobs":-1)"), kRefused, "top_logprobs");
}

TEST_F(ParseOpenAiTest, TheFieldsOfAMultiTurnTrainerAreTakenUnlessItStreams) {
  const Result<ParsedOpenAi> parsed = Chat(
      R"("logprobs":true,"return_prompt_token_ids":true,"return_meta_info":true,
      "no_stop_trim":false,"input_ids":[5],"continue_final_message":false,"separate_reasoning":true,
      "stream_reasoning":true,"stream":false,"tools":null,"tool_choice":null)");
  ASSERT_TRUE(parsed.has_value()) << parsed.error().message();
  EXPECT_TRUE(parsed->call.shows_meta && parsed->answer.return_meta_info);
  EXPECT_TRUE(parsed->call.return_prompt_token_ids);
  EXPECT_TRUE(parsed->call.return_text_in_logprobs);
  EXPECT_FALSE(parsed->call.return_replay);
  EXPECT_TRUE(Chat(R"("return_meta_info":true,"return_replay":true)")->call.return_replay);
  ExpectRefused(Chat(R"("return_replay":true)"), kRefused, "return_replay");
  ExpectRefused(Chat(R"("return_meta_info":true,"stream":true)"), kRefused, "return_meta_info");
  ExpectRefused(Chat(R"("return_prompt_token_ids":true,"stream":true)"), kRefused,
                "return_prompt_token_ids");
}

TEST_F(ParseOpenAiTest, StreamOptionsAreRead) {
  const Result<ParsedOpenAi> parsed = Chat(
      R"("stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true})");
  ASSERT_TRUE(parsed.has_value()) << parsed.error().message();
  EXPECT_TRUE(parsed->call.stream && Item(parsed).request.stream);
  EXPECT_TRUE(parsed->answer.include_usage && parsed->answer.continuous_usage_stats);
}

TEST_F(ParseOpenAiTest, ToolsShowTheMarksOfTheirCallsAndCannotBeForced) {
  constexpr std::string_view kTools = R"("tools":[{"type":"function","function":{"name":"f"}}])";
  EXPECT_FALSE(Item(Chat(kTools)).skip_special_tokens);
  EXPECT_TRUE(Item(Chat(fmt::format(R"({},"tool_choice":"none")", kTools))).skip_special_tokens);
  EXPECT_TRUE(
      Item(Chat(fmt::format(R"({},"skip_special_tokens":true)", kTools))).skip_special_tokens);
  ExpectRefused(Chat(R"("tool_choice":"required")"), kUnbuilt, "tool_choice");
  ExpectRefused(Chat(R"("tool_choice":{"type":"function","function":{"name":"f"}})"), kUnbuilt,
                "tool_choice");
  ExpectRefused(Chat(R"("tool_choice":"maybe")"), kRefused, "tool_choice");
  ExpectRefused(Chat(R"("functions":[])"), kUnbuilt, "functions");
}

TEST_F(ParseOpenAiTest, RefusesMessagesThatAreNone) {
  const auto parse = [&](std::string_view messages) {
    return Parse(OpenAiKind::kChat, fmt::format(R"({{"messages":{}}})", messages));
  };
  ExpectRefused(Parse(OpenAiKind::kChat, "{}"), kMalformed, "messages");
  ExpectRefused(parse("[]"), kRefused, "messages");
  ExpectRefused(parse(R"("Hi")"), kMalformed, "messages");
  ExpectRefused(parse(R"(["Hi"])"), kMalformed, "messages[0]");
  ExpectRefused(parse(R"([{"content":"Hi"}])"), kMalformed, "messages[0].role");
  ExpectRefused(parse(R"([{"role":"user","content":5}])"), kMalformed, "messages[0].content");
}

// --- generation_config.json ---

TEST(ChatDefaults, AreOfTheFileAndNothingElse) {
  Result<SamplingFields> defaults = ParseChatDefaults(
      R"({"top_k":0,"do_sample":true,"max_new_tokens":7,"eos_token_id":[2],"temperature":null})",
      690);
  ASSERT_TRUE(defaults.has_value()) << defaults.error().message();
  EXPECT_EQ(defaults->params.top_k, -1);  // HF's 0: all.
  EXPECT_EQ(defaults->params.max_new_tokens, SamplingParams{}.max_new_tokens);
  EXPECT_EQ(defaults->params.temperature, 1.0F);
  defaults = ReadChatDefaults("models/abacus-dense", 690);
  ASSERT_TRUE(defaults.has_value()) << defaults.error().message();
  EXPECT_EQ(defaults->params.temperature, 1.0F);
  EXPECT_TRUE(ReadChatDefaults("models", 690).has_value());  // No such file there.
}

TEST(ChatDefaults, RefuseWhatCannotBe) {
  for (const std::string_view json : {"[]", "{", R"({"temperature":-1})", R"({"top_k":"x"})"}) {
    EXPECT_FALSE(ParseChatDefaults(json, 690).has_value()) << json;
  }
}

}  // namespace
}  // namespace octavo
