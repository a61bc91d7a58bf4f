// Method: the rope objects of published configs and both spellings of each; then one member changed
// at a time, each refusal with its whole message.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/checkpoint/hf_config.h"
#include "octavo/checkpoint/hf_config_for_test.h"

namespace octavo {
namespace {

using ::testing::Pair;

using Json = nlohmann::ordered_json;

Json PublishedJson(const std::string& name) { return Json::parse(PublishedConfig(name)); }

// The error that follows from setting `key` of `json` to `value`.
std::pair<StatusCode, std::string> ErrorWith(Json json, const std::string& key, const Json& value) {
  json[key] = value;
  return ErrorOf(json.dump());
}

const char* const kLlama = "llama-3.1-8b";
const char* const kDeepseek = "deepseek-v3";

TEST(HfRope, ReadsLlama3) {
  const HfConfig config = ParseOk(PublishedJson(kLlama).dump());
  EXPECT_EQ(config.rope_theta, 500000.0);
  EXPECT_EQ(config.rope_scaling, (RopeScaling{.type = RopeType::kLlama3,
                                              .factor = 8.0,
                                              .original_max_position_embeddings = 8192,
                                              .low_freq_factor = 1.0,
                                              .high_freq_factor = 4.0}));
}

TEST(HfRope, ReadsYarn) {
  const HfConfig config = ParseOk(PublishedJson(kDeepseek).dump());
  EXPECT_EQ(config.rope_theta, 10000.0);
  const RopeScaling expected = {.type = RopeType::kYarn,
                                .factor = 40.0,
                                .original_max_position_embeddings = 4096,
                                .beta_fast = 32.0,
                                .beta_slow = 1.0,
                                .mscale = 1.0,
                                .mscale_all_dim = 1.0};
  EXPECT_EQ(config.rope_scaling, expected);
}

// transformers 5 puts everything into rope_parameters and adds rope_type beside an old "type".
TEST(HfRope, ReadsTheSameFromRopeParameters) {
  for (const char* name : {kLlama, kDeepseek}) {
    Json json = PublishedJson(name);
    const HfConfig old = ParseOk(json.dump());
    json["rope_parameters"] = json["rope_scaling"];
    json["rope_parameters"]["rope_theta"] = json["rope_theta"];
    json["rope_parameters"]["rope_type"] = RopeTypeName(old.rope_scaling.type);
    EXPECT_EQ(ParseOk(json.dump()).rope_scaling, old.rope_scaling) << "both places";
    json.erase("rope_scaling");
    json.erase("rope_theta");
    EXPECT_EQ(ParseOk(json.dump()).rope_scaling, old.rope_scaling);
    EXPECT_EQ(ParseOk(json.dump()).rope_theta, old.rope_theta);
  }
}

TEST(HfRope, FillsInWhatYarnLeavesOut) {
  Json json = PublishedJson(kDeepseek);
  json["rope_scaling"] = {{"rope_type", "yarn"}, {"factor", 4}};
  EXPECT_EQ(
      ParseOk(json.dump()).rope_scaling,
      (RopeScaling{
          .type = RopeType::kYarn, .factor = 4.0, .original_max_position_embeddings = 163840}));
  json["original_max_position_embeddings"] = 8192;
  EXPECT_EQ(ParseOk(json.dump()).rope_scaling.original_max_position_embeddings, 8192);
  json["rope_scaling"] = {{"rope_type", "yarn"},
                          {"factor", 4},
                          {"attention_factor", 1.25},
                          {"truncate", false},
                          {"mscale", nullptr}};
  EXPECT_EQ(ParseOk(json.dump()).rope_scaling.attention_factor, 1.25);
  EXPECT_FALSE(ParseOk(json.dump()).rope_scaling.truncate);
  // A ramp of no width: Kimi-K2.
  json["rope_scaling"] = {{"type", "yarn"}, {"factor", 32}, {"beta_fast", 1.0}, {"beta_slow", 1.0}};
  EXPECT_EQ(ParseOk(json.dump()).rope_scaling.beta_fast, 1.0);
}

TEST(HfRope, NamesEveryType) {
  EXPECT_EQ(RopeTypeName(RopeType::kDefault), "default");
  EXPECT_EQ(RopeTypeName(RopeType::kLlama3), "llama3");
  EXPECT_EQ(RopeTypeName(RopeType::kYarn), "yarn");
}

struct Change {
  const char* model;
  const char* key;  // Of rope_scaling.
  Json value;       // Null removes the member.
  const char* message;
};

void ExpectErrors(const std::vector<Change>& changes, StatusCode code) {
  for (const Change& change : changes) {
    Json json = PublishedJson(change.model);
    json["rope_scaling"][change.key] = change.value;
    EXPECT_THAT(ErrorOf(json.dump()),
                Pair(code, std::string("config.json: rope_scaling: ") + change.message));
  }
}

TEST(HfRope, RefusesMembersThatAreWrong) {
  ExpectErrors(
      {{kLlama, "factor", nullptr, "factor: expected a number from 1 to 1e+06, got nothing"},
       {kLlama, "factor", 0.5, "factor: expected a number from 1 to 1e+06, got 0.5"},
       {kLlama, "original_max_position_embeddings", 0,
        "original_max_position_embeddings: expected an integer from 1 to 1073741824, got 0"},
       {kLlama, "low_freq_factor", nullptr,
        "low_freq_factor: expected a number above 0 and at most 1e+06, got nothing"},
       {kLlama, "high_freq_factor", "4",
        "high_freq_factor: expected a number above 0 and at most 1e+06, got \"4\""},
       {kLlama, "high_freq_factor", 1.0,
        "high_freq_factor: expected a number above low_freq_factor 1, got 1.0"},
       {kDeepseek, "beta_fast", 0.5, "beta_fast: expected at least beta_slow 1, got 0.5"},
       {kDeepseek, "beta_slow", 0, "beta_slow: expected a number above 0 and at most 1e+06, got 0"},
       {kDeepseek, "attention_factor", 0,
        "attention_factor: expected a number above 0 and at most 1e+06, got 0"},
       {kDeepseek, "mscale", -1, "mscale: expected a number from 0 to 1e+06, got -1"},
       {kDeepseek, "mscale_all_dim", true,
        "mscale_all_dim: expected a number from 0 to 1e+06, got true"},
       {kDeepseek, "truncate", 1, "truncate: expected true or false, got 1"},
       {kDeepseek, "rope_type", "default",
        "type: expected \"default\" as in rope_type, got \"yarn\""}},
      StatusCode::kInvalidArgument);
}

TEST(HfRope, RefusesByNameWhatItDoesNotKnow) {
  ExpectErrors(
      {{kLlama, "attention_factor", 1.0,
        "attention_factor: expected no such member of a llama3 rope, got 1.0"},
       {kDeepseek,
        "short_factor",
        {1, 2},
        "short_factor: expected no such member of a yarn rope, got [1,2]"},
       {kDeepseek, "partial_rotary_factor", 0.5, "partial_rotary_factor: expected 1, got 0.5"},
       {kDeepseek, "type", "dynamic",
        "type: expected \"default\", \"llama3\" or \"yarn\", got \"dynamic\""},
       {kLlama, "rope_type", 3, "rope_type: expected \"default\", \"llama3\" or \"yarn\", got 3"}},
      StatusCode::kUnsupported);
}

// Members that older exporters left in the file, such as attn_factor, change no tensor.
TEST(HfRope, WhatIsNotServedIsReadAllTheSame) {
  Json json = PublishedJson(kDeepseek);
  json["rope_scaling"]["attn_factor"] = 1.0;
  const auto config = ParseHfConfig(json.dump(), "");
  ASSERT_TRUE(config.has_value()) << config.error().message();
  EXPECT_EQ(config->num_layers, ParseOk(PublishedJson(kDeepseek).dump()).num_layers);
  const Status status = CheckServedConfig(*config);
  EXPECT_EQ(status.code(), StatusCode::kUnsupported);
  EXPECT_EQ(status.message(),
            "config.json: rope_scaling: attn_factor: expected no such member of a yarn rope, got "
            "1.0");
  // What cannot be read stays an error.
  json["rope_scaling"]["factor"] = "4";
  EXPECT_EQ(ErrorOf(json.dump()).first, StatusCode::kInvalidArgument);
}

TEST(HfRope, RefusesPlacesThatContradictEachOther) {
  Json json = PublishedJson(kLlama);
  json["original_max_position_embeddings"] = 4096;
  EXPECT_EQ(ErrorOf(json.dump()).second,
            "config.json: rope_scaling: original_max_position_embeddings: expected 4096 as "
            "elsewhere in the file, got 8192");
  json.erase("original_max_position_embeddings");
  json["rope_parameters"] = json["rope_scaling"];
  json["rope_parameters"]["factor"] = 32.0;
  EXPECT_EQ(ErrorOf(json.dump()).first, StatusCode::kInvalidArgument);
  EXPECT_TRUE(
      ErrorOf(json.dump())
          .second.starts_with(
              "config.json: rope_parameters: expected the same scaling as in rope_scaling, got {"));
  EXPECT_EQ(ErrorWith(PublishedJson(kLlama), "rope_scaling", "llama3").second,
            "config.json: rope_scaling: expected an object or null, got \"llama3\"");
}

}  // namespace
}  // namespace octavo
