// Method: globs against a recursive definition over all short texts; patterns against names where
// whole segments matter; suggestions for the mistakes people make.

#include "octavo/policy/keep_pattern.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/spec_for_test.h"

namespace octavo {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

bool GlobByDefinition(std::string_view glob, std::string_view text) {
  if (glob.empty()) {
    return text.empty();
  }
  if (glob.front() == '*') {
    for (size_t skip = 0; skip <= text.size(); ++skip) {
      if (GlobByDefinition(glob.substr(1), text.substr(skip))) {
        return true;
      }
    }
    return false;
  }
  return !text.empty() && glob.front() == text.front() &&
         GlobByDefinition(glob.substr(1), text.substr(1));
}

std::vector<std::string> ShortTexts(std::string_view alphabet, size_t max_size) {
  std::vector<std::string> texts = {""};
  for (size_t begin = 0, size = 0; size < max_size; ++size) {
    const size_t end = texts.size();
    for (; begin < end; ++begin) {
      for (const char c : alphabet) {
        texts.push_back(texts[begin] + c);
      }
    }
  }
  return texts;
}

TEST(GlobMatches, EqualsItsDefinitionOnAllShortTexts) {
  for (const std::string& glob : ShortTexts("ab*", 5)) {
    for (const std::string& text : ShortTexts("ab", 6)) {
      ASSERT_EQ(GlobMatches(glob, text), GlobByDefinition(glob, text)) << glob << " " << text;
    }
  }
}

TEST(GlobMatches, TakesHostilePatternsInReasonableTime) {
  std::string glob;
  for (int i = 0; i < 2000; ++i) {
    glob += "*a";
  }
  EXPECT_FALSE(GlobMatches(glob + "b", std::string(5000, 'a')));
}

TEST(KeepMatches, HoldsWholeSegments) {
  const std::string name = "model.layers.1.mlp.gate_proj.weight";
  for (const char* pattern :
       {"gate_proj", "mlp", "mlp.gate_proj", "layers.1", "1", "model", "model.", "weight",
        "model.layers.1.mlp.gate_proj.weight", "gate_proj.weight...", "*gate*", "model.*.weight",
        "model.layers.1.mlp.gate_proj*", "*proj", "*"}) {
    EXPECT_TRUE(KeepMatches(pattern, name)) << pattern;
  }
  for (const char* pattern :
       {"gate", "gate_pro", "ate_proj", "layers.11", "layer", ".mlp", "mlp..", "Mlp", " mlp",
        "layers.?.mlp", "re:.*", "", ".", "*.mlp", "layers.1.*", "mode*.bias", "gate_proj*"}) {
    const bool only_trailing_dots = std::string_view(pattern) == "mlp..";
    EXPECT_EQ(KeepMatches(pattern, name), only_trailing_dots) << pattern;
  }
}

TEST(KeepMatches, MayCarryAModelThatTheNameLacks) {
  EXPECT_TRUE(KeepMatches("model.lm_head", "lm_head.weight"));
  EXPECT_TRUE(KeepMatches("model.layers.1", "layers.1.mlp.up_proj.weight"));
  EXPECT_FALSE(KeepMatches("model.up_proj", "layers.1.mlp.up_proj.weight"));
  EXPECT_FALSE(KeepMatches("model.layers.1", "layers.11.mlp.up_proj.weight"));
  EXPECT_FALSE(KeepMatches("model.model.norm", "model.norm.weight"));
}

TEST(SuggestKeeps, GivesPatternsThatMatch) {
  const ModelSpec spec = TestSpec({});
  for (const char* pattern :
       {"mlp.dwon_proj", ".o_proj.", "O_PROJ", "layers.3*down", "proj", "self_attn.qkv_proj",
        "qkv_proj.weight", "mlp.gate", "layers.3.mpl"}) {
    const std::vector<std::string> near = SuggestKeeps(spec, pattern, 3);
    EXPECT_FALSE(near.empty()) << pattern;
    EXPECT_LE(near.size(), 3U);
    for (const std::string& suggestion : near) {
      bool matches = false;
      for (const WeightSpec& weight : spec.weights) {
        matches = matches || KeepMatches(suggestion, weight.name);
      }
      EXPECT_TRUE(matches) << pattern << " -> " << suggestion;
    }
  }
  EXPECT_THAT(SuggestKeeps(spec, "qkv_proj.weight", 3), ElementsAre("q_proj", "k_proj", "v_proj"));
  EXPECT_THAT(SuggestKeeps(spec, "", 3), IsEmpty());
  EXPECT_THAT(SuggestKeeps(spec, "zzz", 3), IsEmpty());
  EXPECT_THAT(SuggestKeeps(spec, std::string(1000, 'q'), 3), IsEmpty());
}

TEST(NearestNames, ComeInOrderOfDistance) {
  EXPECT_THAT(NearestNames("down_proj", {"up_proj", "down_porj", "down_proj2", "x"}, 2),
              ElementsAre("down_proj2", "down_porj"));
  EXPECT_THAT(NearestNames("abc", {"xyz"}, 2), IsEmpty());
}

}  // namespace
}  // namespace octavo
