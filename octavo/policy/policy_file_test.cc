// Method: the example of the documentation as it stands there; each key in and out; each error
// once, with the place that it points to.

#include "octavo/policy/policy_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <string>
#include <string_view>

#include "octavo/base/file.h"
#include "octavo/base/status.h"
#include "octavo/formats/format.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/policy_presets.h"
#include "octavo/policy/precision_table.h"
#include "octavo/policy/spec_for_test.h"

namespace octavo {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

PolicyOptions Parsed(std::string_view text) {
  const Result<PolicyOptions> options = ParsePolicyFile(text, "p.toml");
  EXPECT_TRUE(options.has_value()) << options.error().message();
  return options.has_value() ? *options : PolicyOptions{};
}

TEST(PolicyFile, TheExampleOfTheDocumentationWorksAsItStands) {
  const std::string doc = ReadTextFile("docs/policy.md").value();
  const std::string fence = "```toml\n";
  const size_t begin = doc.find(fence);
  ASSERT_NE(begin, std::string::npos);
  const size_t end = doc.find("```", begin + fence.size());
  const PolicyOptions options =
      Parsed(doc.substr(begin + fence.size(), end - begin - fence.size()));
  const Result<PrecisionTable> table = CompilePolicy(TestMlaSpec(), options);
  ASSERT_TRUE(table.has_value()) << table.error().message();
  const auto format_of = [&](std::string_view name) { return table->Find(name)->format; };
  EXPECT_EQ(format_of("model.layers.0.mlp.up_proj.weight"), WeightFormat::kBf16);
  EXPECT_EQ(format_of("model.layers.1.mlp.experts.0.up_proj.weight"), WeightFormat::kNvfp4);
  EXPECT_EQ(format_of("model.layers.1.mlp.shared_experts.up_proj.weight"), WeightFormat::kBf16);
  EXPECT_EQ(format_of("model.layers.1.self_attn.q_b_proj.weight"), WeightFormat::kBf16);
  EXPECT_EQ(format_of("model.layers.1.self_attn.o_proj.weight"), WeightFormat::kFp8Channel);
  EXPECT_EQ(format_of("model.layers.2.self_attn.q_b_proj.weight"), WeightFormat::kFp8Channel);
}

TEST(PolicyFile, ReadsEveryKey) {
  const PolicyOptions options = Parsed(R"(
format = "nvfp4"
scope = "mlp"
layout = "compressed-tensors"
keep_first = 2
keep_last = 3
keep_mtp = true
keep = ["a", "b"]
[[rule]]
pattern = "c"
role = ["attention.o", "mla"]
layers = [1, "4-6"]
format = "fp8-channel"
optional = true
)");
  EXPECT_EQ(options.format, WeightFormat::kNvfp4);
  EXPECT_EQ(options.scope, QuantizeScope::kMlp);
  EXPECT_EQ(options.layout, StoredLayout::kCompressedTensors);
  EXPECT_EQ(options.keep_first, 2);
  EXPECT_EQ(options.keep_last, 3);
  EXPECT_TRUE(options.keep_mtp);
  EXPECT_THAT(options.keep, ElementsAre("a", "b"));
  ASSERT_EQ(options.rules.size(), 1U);
  const PolicyRule& rule = options.rules[0];
  EXPECT_THAT(rule.patterns, ElementsAre("c"));
  EXPECT_THAT(rule.roles, ElementsAre(Role::kAttentionO, Role::kMlaQA, Role::kMlaQB, Role::kMlaKvA,
                                      Role::kMlaKvB));
  ASSERT_EQ(rule.layers.size(), 2U);
  EXPECT_EQ(rule.layers[0].first, 1);
  EXPECT_EQ(rule.layers[0].last, 1);
  EXPECT_EQ(rule.layers[1].first, 4);
  EXPECT_EQ(rule.layers[1].last, 6);
  EXPECT_EQ(rule.format, WeightFormat::kFp8Channel);
  EXPECT_TRUE(rule.is_optional);
}

TEST(PolicyFile, StartsFromAPresetAndStandsBeforeIt) {
  const PolicyOptions options = Parsed(R"(
preset = "nvfp4-experts-fp8-rest"
keep_last = 1
[[rule]]
role = "attention"
format = "bf16"
)");
  EXPECT_EQ(options.format, WeightFormat::kFp8Channel);
  EXPECT_EQ(options.keep_last, 1);
  ASSERT_EQ(options.rules.size(), 3U);
  EXPECT_EQ(options.rules[0].roles.front(), Role::kAttentionQ);
  EXPECT_EQ(options.rules[2].format, WeightFormat::kNvfp4);
}

TEST(PolicyFile, EveryPresetIsDocumentedAndCompilesForAModelWithExperts) {
  const std::string doc = ReadTextFile("docs/policy.md").value();
  for (const PolicyPreset& preset : AllPolicyPresets()) {
    EXPECT_THAT(doc, HasSubstr("`" + std::string(preset.name) + "`"));
    const Result<PolicyOptions> options = PresetPolicy(preset.name);
    ASSERT_TRUE(options.has_value()) << options.error().message();
    for (const ModelSpec& spec : {TestMoeSpec(), TestMlaSpec()}) {
      const Result<PrecisionTable> table = CompilePolicy(spec, *options);
      EXPECT_TRUE(table.has_value()) << preset.name << ": " << table.error().message();
    }
  }
}

TEST(PolicyFile, EveryRoleIsDocumented) {
  const std::string doc = ReadTextFile("docs/policy.md").value();
  std::set<std::string> groups;
  for (int i = 0; i <= static_cast<int>(Role::kMtpProjection); ++i) {
    const std::string_view name = RoleName(static_cast<Role>(i));
    const size_t dot = name.find('.');
    EXPECT_THAT(doc, HasSubstr(std::string(name.substr(0, dot))));
    if (dot != std::string_view::npos) {
      EXPECT_THAT(doc, HasSubstr(std::string(name.substr(dot)) + "`")) << name;
    }
  }
}

// Of each range that toml++ has no answer for, at the places where it asks for blanks.
TEST(PolicyFile, CharactersBeyondAsciiStandInStringsAndCommentsAlone) {
  for (const std::string character :
       {"\xEF\xAC\xA6", "\xEF\xB7\xBF", "\xC3\xA9", "\xCC\x99", "\xE3\x80\x81"}) {
    for (const std::string& text :
         {character + "z", "format = " + character, "format = \"fp8\"\n" + character + " = 1",
          "keep_last = 2'" + character + "'"}) {
      const auto options = ParsePolicyFile(text, "p.toml");
      ASSERT_FALSE(options.has_value()) << text;
      EXPECT_THAT(options.error().message(), HasSubstr("p.toml:")) << text;
    }
    EXPECT_TRUE(ParsePolicyFile("# " + character + "\nformat = \"fp8\" # \"" + character, "p.toml")
                    .has_value());
    EXPECT_THAT(
        ParsePolicyFile("format = \"\"\"\\\n  " + character + "\"\"\"", "p.toml").error().message(),
        HasSubstr("\"" + character + "\""));
  }
  EXPECT_TRUE(ParsePolicyFile("\xEF\xBB\xBF"
                              "format = \"fp8\"\n",
                              "p.toml")
                  .has_value());  // A byte order mark.
}

TEST(PolicyFile, ErrorsPointAtTheirPlace) {
  struct Case {
    const char* text;
    const char* message;
  };
  const Case cases[] = {
      {"format = ", "p.toml:1:10: "},
      {"", "expected a format or a preset"},
      {"format = \"fp9\"", "p.toml:1:10: format: \"fp9\" is not known; nearest: fp8"},
      {"format = 8", "p.toml:1:10: format: expected a string"},
      {"fromat = \"fp8\"", "p.toml:1:1: unknown key \"fromat\"; nearest: format"},
      {"format = \"fp8\"\nkeep_last = -1", "p.toml:2:13: keep_last: expected 0 or more, got -1"},
      {"format = \"fp8\"\nkeep_mtp = 1", "p.toml:2:12: keep_mtp: expected true or false"},
      {"format = \"fp8\"\nkeep = [1]", "keep: expected a string or a list of strings"},
      {"format = \"fp8\"\nscope = \"expert\"", "scope: \"expert\" is not known; nearest: experts"},
      {"format = \"fp8\"\nlayout = \"x\"", "layout: \"x\" is not known; known: modelopt"},
      {"format = \"fp8\"\nrule = 1", "p.toml:2:8: rule: expected tables"},
      {"format = \"fp8\"\n[[rule]]\nformat = \"bf16\"",
       "p.toml:2:1: rule: expected a pattern, a role or layers"},
      {"format = \"fp8\"\n[[rule]]\nrole = \"expert\"", "rule: expected a format"},
      {"format = \"fp8\"\n[[rule]]\nrole = \"exprt\"\nformat = \"bf16\"",
       "p.toml:3:8: role: \"exprt\" is not known; nearest: expert"},
      {"format = \"fp8\"\n[[rule]]\nlayers = \"4-2\"\nformat = \"bf16\"",
       "p.toml:3:10: layers: expected a layer, \"FIRST-LAST\""},
      {"preset = \"miles\"", "p.toml:1:10: "},
  };
  for (const Case& c : cases) {
    const Result<PolicyOptions> options = ParsePolicyFile(c.text, "p.toml");
    ASSERT_FALSE(options.has_value()) << c.text;
    EXPECT_EQ(options.error().code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(options.error().message(), HasSubstr(c.message)) << c.text;
  }
}

}  // namespace
}  // namespace octavo
