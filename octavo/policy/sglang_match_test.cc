// Method: what the published vectors (conformance_test.cc) leave open: the dotted test against its
// definition over all short texts, the pair rule, the order of explanations, and error texts.

#include "octavo/policy/sglang_match.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <string>
#include <vector>

namespace octavo {
namespace {

using ::testing::HasSubstr;

std::vector<IgnoreEntry> List(const std::vector<std::string>& texts) {
  std::vector<IgnoreEntry> entries;
  entries.reserve(texts.size());
  for (const std::string& text : texts) {
    entries.push_back({text, text});
  }
  return entries;
}

// The definition: "." + strip(e) + "." occurs in "." + strip(m) + ".".
bool IsDottedRunByDefinition(std::string entry, std::string path) {
  while (entry.ends_with('.')) {
    entry.pop_back();
  }
  while (path.ends_with('.')) {
    path.pop_back();
  }
  return ("." + path + ".").find("." + entry + ".") != std::string::npos;
}

// All texts of at most `max_size` characters over {a, b, .}.
std::vector<std::string> ShortTexts(size_t max_size) {
  std::vector<std::string> texts = {""};
  for (size_t begin = 0, size = 0; size < max_size; ++size) {
    const size_t end = texts.size();
    for (; begin < end; ++begin) {
      for (const char c : {'a', 'b', '.'}) {
        texts.push_back(texts[begin] + c);
      }
    }
  }
  return texts;
}

TEST(IsDottedRun, EqualsItsDefinitionOnAllShortTexts) {
  const std::vector<std::string> entries = ShortTexts(4);
  const std::vector<std::string> paths = ShortTexts(6);
  for (const std::string& entry : entries) {
    for (const std::string& path : paths) {
      ASSERT_EQ(IsDottedRun(entry, path), IsDottedRunByDefinition(entry, path))
          << '"' << entry << "\" in \"" << path << '"';
    }
  }
}

TEST(SglangMatch, ThePairRuleNeedsBothHalvesLiterally) {
  const std::string module = "model.layers.0.gate_up_proj.inner";
  const MatchResult both = SglangMatch(
      List({"model.layers.0.up_proj.inner", "model.layers.0.gate_proj.inner"}), module, {});
  EXPECT_EQ(both.verdict, Verdict::kSkipped);
  EXPECT_EQ(both.rule, MatchRule::kGateUpPair);
  EXPECT_EQ(both.entry, "model.layers.0.gate_proj.inner");
  for (const std::vector<std::string>& half :
       {std::vector<std::string>{"model.layers.0.gate_proj.inner"},
        std::vector<std::string>{"model.layers.0.up_proj.inner"},
        std::vector<std::string>{"model.layers.0.gate_proj.inner.",
                                 "model.layers.0.up_proj.inner"}}) {
    EXPECT_EQ(SglangMatch(List(half), module, {}).verdict, Verdict::kQuantized);
  }
}

TEST(SglangMatch, ThePairRuleSwitchesTheReverseTestOff) {
  const std::vector<IgnoreEntry> list = List({"x.experts.gate_up_proj.a.b"});
  EXPECT_EQ(SglangMatch(list, "x.experts.gate_up_proj.a", {}).verdict, Verdict::kQuantized);
  EXPECT_EQ(SglangMatch(List({"x.experts.other.a.b"}), "x.experts.other.a", {}).rule,
            MatchRule::kExpertReverse);
}

TEST(SglangMatch, APathEntryIsNamedBeforeAnEarlierReverseEntry) {
  const MatchResult match =
      SglangMatch(List({"m.mlp.experts.3.up_proj", "mlp", "m"}), "m.mlp.experts", {});
  EXPECT_EQ(match.rule, MatchRule::kPath);
  EXPECT_EQ(match.entry, "mlp");
}

TEST(SglangMatch, NamesTheEntryAsItWasWritten) {
  const std::vector<IgnoreEntry> list = {{"layers.1.", "model.layers.1."}};
  EXPECT_EQ(SglangMatch(list, "model.layers.1.mlp.down_proj", {}).entry, "model.layers.1.");
}

TEST(SglangMatch, AMappingOntoItselfMakesTheNameComparable) {
  const std::vector<FusedMapping> mapping = {{"c_attn", {"c_attn"}}};
  const MatchResult match = SglangMatch(List({"c_attn"}), "h.0.c_attn", mapping);
  EXPECT_EQ(match.verdict, Verdict::kSkipped);
  EXPECT_EQ(match.rule, MatchRule::kFused);
}

TEST(SglangMatch, ErrorsNameModuleShardsAndEntries) {
  const MatchResult match =
      SglangMatch(List({"q_proj", "x"}), "model.layers.0.self_attn.qkv_proj", {});
  EXPECT_EQ(match.verdict, Verdict::kError);
  EXPECT_EQ(match.error,
            "model.layers.0.self_attn.qkv_proj: its shards must all be listed or none of them: "
            "q_proj is listed by \"q_proj\", k_proj is not listed, v_proj is not listed");
  const std::vector<FusedMapping> empty = {{"fused", {}}};
  EXPECT_THAT(SglangMatch({}, "b.fused", empty).error, HasSubstr("names no shards"));
}

TEST(SglangMatch, TakesModulesOfAnyForm) {
  EXPECT_EQ(SglangMatch(List({""}), "", {}).verdict, Verdict::kSkipped);
  EXPECT_EQ(SglangMatch(List({""}), "a", {}).verdict, Verdict::kQuantized);
  EXPECT_EQ(SglangMatch(List({"a"}), "a...", {}).verdict, Verdict::kSkipped);
  // A trailing dot leaves an empty last component, which is no fused name.
  EXPECT_EQ(SglangMatch(List({"q_proj"}), "a.qkv_proj.", {}).verdict, Verdict::kQuantized);
  EXPECT_EQ(SglangMatch(List({"qkv_proj"}), "a.qkv_proj.", {}).rule, MatchRule::kPath);
}

}  // namespace
}  // namespace octavo
