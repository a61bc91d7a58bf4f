// Method: small texts whose merge is written out by hand, and a config.json that is parsed before
// and after.

#include "octavo/checkpoint/config_merge.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "octavo/base/status.h"
#include "octavo/checkpoint/hf_config.h"
#include "octavo/checkpoint/hf_config_for_test.h"

namespace octavo {
namespace {

nlohmann::json Merged(std::string_view config, std::string_view overrides) {
  const Result<std::string> text = MergeConfigJson(config, overrides);
  EXPECT_TRUE(text.has_value());
  return nlohmann::json::parse(text.has_value() ? *text : std::string("null"));
}

TEST(MergeConfigJson, ReplacesWhatIsNamedAndKeepsTheRest) {
  EXPECT_EQ(Merged(R"({"a": 1, "b": [1, 2], "c": "x"})", R"({"b": [3], "d": true})"),
            nlohmann::json::parse(R"({"a": 1, "b": [3], "c": "x", "d": true})"));
}

TEST(MergeConfigJson, MergesObjectsInDepth) {
  EXPECT_EQ(
      Merged(R"({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}, "a": 1})",
             R"({"rope_scaling": {"factor": 4.0}})"),
      nlohmann::json::parse(R"({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "a": 1})"));
}

TEST(MergeConfigJson, NullRemovesAKey) {
  EXPECT_EQ(Merged(R"({"a": 1, "b": {"c": 1, "d": 2}})", R"({"a": null, "b": {"c": null}})"),
            nlohmann::json::parse(R"({"b": {"d": 2}})"));
}

TEST(MergeConfigJson, KeepsEveryDigitOfANumber) {
  const nlohmann::json merged =
      Merged(R"({"rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "big": 9007199254740993})", "{}");
  EXPECT_EQ(merged["rms_norm_eps"].get<double>(), 1e-06);
  EXPECT_EQ(merged["big"].get<int64_t>(), 9007199254740993);
}

TEST(MergeConfigJson, GivesAConfigThatDiffersInThoseMembersAlone) {
  const std::string text = PublishedConfig("llama-3.1-8b");
  HfConfig plain = ParseOk(text);
  const HfConfig merged = ParseOk(
      MergeConfigJson(text, R"({"rope_theta": 5e5, "max_position_embeddings": 512})").value());
  EXPECT_EQ(merged.rope_theta, 5e5);
  EXPECT_EQ(merged.max_position_embeddings, 512);
  EXPECT_EQ(merged.hidden_size, plain.hidden_size);
  EXPECT_EQ(merged.rms_norm_eps, plain.rms_norm_eps);
  EXPECT_EQ(merged.eos_token_ids, plain.eos_token_ids);
}

TEST(MergeConfigJson, RefusesWhatIsNoObject) {
  for (const std::string_view bad : {"", "[]", "3", "{", R"({"a": 1, "a": 2})"}) {
    const Result<std::string> merged = MergeConfigJson("{}", bad);
    ASSERT_FALSE(merged.has_value()) << bad;
    EXPECT_EQ(merged.error().code(), StatusCode::kCorrupt);
    EXPECT_NE(merged.error().message().find("overrides"), std::string::npos);
    EXPECT_FALSE(MergeConfigJson(bad, "{}").has_value()) << bad;
  }
}

}  // namespace
}  // namespace octavo
