// Method: each step between the checkpoint's key and the matcher, with lists worked out by hand.

#include "octavo/policy/sglang_fp8.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/policy/sglang_match.h"

namespace octavo {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

std::vector<std::string> Texts(const std::vector<IgnoreEntry>& entries) {
  std::vector<std::string> texts;
  texts.reserve(entries.size());
  for (const IgnoreEntry& entry : entries) {
    texts.push_back(entry.text);
  }
  return texts;
}

std::vector<std::string> Entries(const std::vector<std::string>& written,
                                 const SglangFp8Options& options) {
  return Texts(SglangFp8Entries(written, options));
}

TEST(SglangFp8Entries, GivesEachEntryBothForms) {
  EXPECT_THAT(Entries({"model.layers.3.", "lm_head"}, {}),
              ElementsAre("layers.3.", "model.layers.3.", "lm_head", "model.lm_head"));
  // Only one leading "model." is taken off.
  EXPECT_THAT(Entries({"model.model.x"}, {}), ElementsAre("model.x", "model.model.x"));
  EXPECT_THAT(Entries({"model."}, {}), ElementsAre("", "model."));
  EXPECT_THAT(Entries({""}, {}), ElementsAre("", "model."));
  EXPECT_THAT(Entries({"model"}, {}), ElementsAre("model", "model.model"));
}

TEST(SglangFp8Entries, AppendsTheEnvironmentAsItIs) {
  EXPECT_THAT(Entries({"a"}, {.env_ignored = " model.b ,, c,\t,d.e. ", .mapper = {}}),
              ElementsAre("a", "model.a", "model.b", "c", "d.e."));
  EXPECT_THAT(Entries({}, {.env_ignored = ",", .mapper = {}}), IsEmpty());
}

TEST(SglangFp8Entries, RenamesByTheLongestKeyOfEachKind) {
  const WeightsMapper mapper = {
      .substr = {{"attn.qkv", "attn.qkv_proj"}},
      .prefix = {{"model.", "language_model.model."}, {"model.visual.", "visual."}},
      .suffix = {},
  };
  EXPECT_THAT(Entries({}, {.env_ignored = "model.visual.attn.qkv.attn.qkv,model.layers.0,x",
                           .mapper = mapper}),
              ElementsAre("visual.attn.qkv_proj.attn.qkv", "language_model.model.layers.0", "x"));
}

TEST(SglangFp8Entries, DropsEntriesWithoutATargetAndDuplicates) {
  const WeightsMapper mapper = {
      .substr = {}, .prefix = {{"mtp.", std::nullopt}}, .suffix = {{".g", ".gate"}}};
  EXPECT_THAT(Entries({}, {.env_ignored = "mtp.a,a.g,a.gate,b", .mapper = mapper}),
              ElementsAre("a.gate", "b"));
}

TEST(ReadSglangFp8List, ExistenceOfIgnoredLayersDecides) {
  struct Case {
    const char* config;
    const char* key;
    std::vector<std::string> written;
    bool hides_other_key;
  };
  const Case cases[] = {
      {"", "", {}, false},
      {"{}", "", {}, false},
      {R"({"ignored_layers":["a"]})", "ignored_layers", {"a"}, false},
      {R"({"modules_to_not_convert":["b"]})", "modules_to_not_convert", {"b"}, false},
      {R"({"ignored_layers":["a"],"modules_to_not_convert":["b"]})", "ignored_layers", {"a"}, true},
      {R"({"ignored_layers":null,"modules_to_not_convert":["b"]})", "ignored_layers", {}, true},
      {R"({"ignored_layers":[],"modules_to_not_convert":[]})", "ignored_layers", {}, false},
      {R"({"modules_to_not_convert":null})", "modules_to_not_convert", {}, false},
      {R"({"ignore":["a"],"exclude_modules":["b"]})", "", {}, false},
  };
  for (const Case& c : cases) {
    const Result<SglangFp8List> list = ReadSglangFp8List(c.config, {});
    ASSERT_TRUE(list.has_value()) << c.config;
    EXPECT_EQ(list->key, c.key) << c.config;
    EXPECT_EQ(list->written, c.written) << c.config;
    EXPECT_EQ(list->hides_other_key, c.hides_other_key) << c.config;
  }
}

TEST(ReadSglangFp8List, TakesTheEnvironmentForACheckpointWithoutAConfig) {
  const Result<SglangFp8List> list =
      ReadSglangFp8List("", {.env_ignored = "model.layers.0", .mapper = {}});
  ASSERT_TRUE(list.has_value());
  EXPECT_THAT(Texts(list->entries), ElementsAre("model.layers.0"));
}

TEST(ReadSglangFp8List, RefusesOtherTypes) {
  for (const char* config :
       {"[", "3", R"({"ignored_layers":"a"})", R"({"ignored_layers":[["a"]]})",
        R"({"modules_to_not_convert":{"a":1}})", R"({"modules_to_not_convert":[null]})"}) {
    EXPECT_FALSE(ReadSglangFp8List(config, {}).has_value()) << config;
  }
}

TEST(SglangFp8Match, OnlyLinearLayersAndContainersAreJudgedByTheList) {
  const std::vector<IgnoreEntry> entries = SglangFp8Entries(std::vector<std::string>{"a"}, {});
  for (const ModuleKind kind : {ModuleKind::kLinear, ModuleKind::kMoe}) {
    EXPECT_EQ(SglangFp8Match(entries, "b", kind, {}).verdict, Verdict::kQuantized);
    EXPECT_EQ(SglangFp8Match(entries, "a", kind, {}).rule, MatchRule::kPath);
  }
  for (const ModuleKind kind :
       {ModuleKind::kLmHead, ModuleKind::kEmbedding, ModuleKind::kRouter, ModuleKind::kNorm}) {
    EXPECT_EQ(SglangFp8Match(entries, "b", kind, {}).verdict, Verdict::kSkipped);
    EXPECT_EQ(SglangFp8Match(entries, "a", kind, {}).rule, MatchRule::kClass);
  }
}

TEST(ModuleKind, NamesReadBack) {
  for (const ModuleKind kind : {ModuleKind::kLinear, ModuleKind::kMoe, ModuleKind::kLmHead,
                                ModuleKind::kEmbedding, ModuleKind::kRouter, ModuleKind::kNorm}) {
    EXPECT_EQ(ParseModuleKind(ModuleKindName(kind)), kind);
  }
  EXPECT_EQ(ParseModuleKind("Linear"), std::nullopt);
}

}  // namespace
}  // namespace octavo
