// Method: a request as the server parses it is written as a record, and the record's own request is
// parsed again: every field must come back, floats in every bit. The rest is read by hand.

#include "octavo/server/replay_record.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "octavo/base/hash.h"
#include "octavo/base/status.h"
#include "octavo/engine/request.h"
#include "octavo/server/json.h"
#include "octavo/server/json_writer.h"
#include "octavo/server/parse_generate.h"
#include "octavo/text/tokenizer.h"

namespace octavo {
namespace {

class ReplayRecordTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    Result<Tokenizer> tokenizer = Tokenizer::Load("models/abacus-dense/tokenizer.json");
    ASSERT_TRUE(tokenizer.has_value()) << tokenizer.error().message();
    tokenizer_ = std::move(*tokenizer);
  }
  static void TearDownTestSuite() { tokenizer_.reset(); }

  GenerateItem Parse(std::string_view body) {
    Result<ParsedGenerate> parsed = ParseGenerate(
        body,
        {.tokenizer = &*tokenizer_, .rids = &rids_, .vocab_size = 690, .context_length = 4096});
    EXPECT_TRUE(parsed.has_value()) << parsed.error().message();
    return std::move(parsed->items.front());
  }

  // The record of `item` with what `last` says, as text.
  static std::string Record(const GenerateItem& item, const RequestOutput& last) {
    JsonWriter json;
    WriteReplayRecord(MakeReplayRequest(item, server_), last, json);
    return json.Take();
  }

  static JsonValue Json(std::string_view text) {
    Result<JsonValue> json = ParseJson(text);
    EXPECT_TRUE(json.has_value()) << json.error().message();
    return *std::move(json);
  }

  // The text of the record's first member, "request".
  static std::string RequestOf(std::string_view record) {
    constexpr std::string_view kBegin = "{\"request\":";
    const size_t end = record.find(",\"recipe\":");
    EXPECT_TRUE(record.starts_with(kBegin)) << record;
    return std::string(record.substr(kBegin.size(), end - kBegin.size()));
  }

  static inline std::optional<Tokenizer> tokenizer_;
  static inline const std::shared_ptr<const ReplayServer> server_ =
      std::make_shared<const ReplayServer>(ReplayServer{.recipe = "serving-1/fp8",
                                                        .weight_format = "fp8",
                                                        .policy_hash = "abc",
                                                        .kv_cache_dtype = "bf16"});
  RidSource rids_{7};
};

TEST_F(ReplayRecordTest, ItsRequestParsesToWhatWasInEffect) {
  const GenerateItem item = Parse(R"({"input_ids": [5, 6, 7], "return_logprob": true,
      "logprob_start_len": 1, "top_logprobs_num": 3, "token_ids_logprob": [9, 1],
      "sampling_params": {"max_new_tokens": 40, "min_new_tokens": 3, "temperature": 0.7,
        "top_p": 0.9, "top_k": 50, "min_p": 0.05, "frequency_penalty": 0.1,
        "presence_penalty": -0.3, "repetition_penalty": 1.1, "stop": ["a\"\n", "b"],
        "stop_token_ids": [4, 2], "ignore_eos": true, "skip_special_tokens": false,
        "no_stop_trim": true, "logit_bias": {"7": -1.5, "3": 0.1}}})");
  RequestOutput last;
  last.seed = -77;
  const GenerateItem again = Parse(RequestOf(Record(item, last)));

  EXPECT_EQ(again.request.input_ids, item.request.input_ids);
  EXPECT_EQ(again.request.return_logprob, item.request.return_logprob);
  EXPECT_EQ(again.request.logprob_start_len, item.request.logprob_start_len);
  EXPECT_EQ(again.request.top_logprobs_num, item.request.top_logprobs_num);
  EXPECT_EQ(again.request.token_ids_logprob, item.request.token_ids_logprob);
  EXPECT_EQ(again.stop, item.stop);
  EXPECT_EQ(again.skip_special_tokens, item.skip_special_tokens);
  EXPECT_EQ(again.no_stop_trim, item.no_stop_trim);
  const SamplingParams& a = item.request.sampling;
  const SamplingParams& b = again.request.sampling;
  EXPECT_EQ(b.max_new_tokens, a.max_new_tokens);
  EXPECT_EQ(b.min_new_tokens, a.min_new_tokens);
  EXPECT_EQ(b.temperature, a.temperature);
  EXPECT_EQ(b.top_p, a.top_p);
  EXPECT_EQ(b.top_k, a.top_k);
  EXPECT_EQ(b.min_p, a.min_p);
  EXPECT_EQ(b.frequency_penalty, a.frequency_penalty);
  EXPECT_EQ(b.presence_penalty, a.presence_penalty);
  EXPECT_EQ(b.repetition_penalty, a.repetition_penalty);
  EXPECT_EQ(b.ignore_eos, a.ignore_eos);
  EXPECT_EQ(b.stop_token_ids, a.stop_token_ids);
  EXPECT_EQ(b.logit_bias, a.logit_bias);
  EXPECT_EQ(b.seed, -77);  // The one that was used, given or drawn.
}

// Digits that are read as a double and rounded to a float must be the float that they came from.
TEST_F(ReplayRecordTest, ItsFloatsComeBackInEveryBit) {
  GenerateItem item = Parse(R"({"input_ids": [5]})");
  uint32_t bits = 0x3DCCCCCD;  // 0.1, and on from there through odd steps to about 1.9.
  for (int i = 0; i < 2000; ++i, bits += 17'881) {
    item.request.sampling.temperature = std::bit_cast<float>(bits);
    const GenerateItem again = Parse(RequestOf(Record(item, {})));
    ASSERT_EQ(std::bit_cast<uint32_t>(again.request.sampling.temperature), bits);
  }
}

TEST_F(ReplayRecordTest, NamesTheWeightsOfEverySpan) {
  RequestOutput last;
  last.versions = {{.version = "0", .num_tokens = 3, .digest = HashText("a")},
                   {.version = "x\"", .num_tokens = 2, .digest = {}}};
  last.mixed_context = true;
  const JsonValue record = Json(Record(Parse(R"({"input_ids": [5]})"), last));
  const JsonArray& weights = *record.Find("weights")->array();
  ASSERT_EQ(weights.size(), 2U);
  EXPECT_EQ(*weights[0].Find("version")->string(), "0");
  EXPECT_EQ(*weights[0].Find("digest")->string(), HashHex(HashText("a")));
  EXPECT_EQ(*weights[0].Find("tokens")->integer(), 3);
  EXPECT_EQ(*weights[1].Find("version")->string(), "x\"");
  EXPECT_EQ(weights[1].Find("digest"), nullptr);  // null: not sealed.
  EXPECT_TRUE(*record.Find("mixed_context")->boolean());
  EXPECT_FALSE(*record.Find("depends_on_batch")->boolean());
  EXPECT_EQ(*record.Find("recipe")->string(), "serving-1/fp8");
  EXPECT_EQ(*record.Find("policy_hash")->string(), "abc");
  EXPECT_EQ(*record.Find("weight_format")->string(), "fp8");
  EXPECT_EQ(*record.Find("kv_cache_dtype")->string(), "bf16");
}

TEST_F(ReplayRecordTest, NamesTheWeightsOfAReplyWithoutTokens) {
  RequestOutput last;
  last.weight_version = "4";
  last.weight_digest = HashText("b");
  const JsonValue record = Json(Record(Parse(R"({"input_ids": [5]})"), last));
  const JsonArray& weights = *record.Find("weights")->array();
  ASSERT_EQ(weights.size(), 1U);
  EXPECT_EQ(*weights[0].Find("version")->string(), "4");
  EXPECT_EQ(*weights[0].Find("digest")->string(), HashHex(HashText("b")));
  EXPECT_EQ(*weights[0].Find("tokens")->integer(), 0);
}

}  // namespace
}  // namespace octavo
