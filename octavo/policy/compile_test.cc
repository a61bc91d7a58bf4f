// Method: each rule on a small Qwen3 with the winner worked out by hand, each refused policy once
// with what its message must name, and seeded random policies for what must always hold.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/hash.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/formats/format.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"
#include "octavo/policy/random_policy_for_test.h"
#include "octavo/policy/spec_for_test.h"

namespace octavo {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

PrecisionTable Compile(const ModelSpec& spec, const PolicyOptions& options) {
  Result<PrecisionTable> table = CompilePolicy(spec, options);
  EXPECT_TRUE(table.has_value()) << table.error().message();
  return table ? std::move(table).value() : PrecisionTable();
}

// The names of the linear weights that stay in BF16.
std::vector<std::string> KeptLinear(const PrecisionTable& table) {
  std::vector<std::string> names;
  for (const PrecisionRow& row : table.rows) {
    if (IsLinearRole(row.role) && row.format == WeightFormat::kBf16) {
      names.push_back(row.name);
    }
  }
  return names;
}

TEST(CompilePolicy, QuantizesLinearWeightsAndNothingElse) {
  const ModelSpec spec = TestSpec({.tied = false});
  const PrecisionTable table = Compile(spec, {.format = WeightFormat::kFp8});
  ASSERT_EQ(table.rows.size(), spec.weights.size());
  EXPECT_EQ(table.format, WeightFormat::kFp8);
  for (size_t i = 0; i < table.rows.size(); ++i) {
    const PrecisionRow& row = table.rows[i];
    EXPECT_EQ(row.name, spec.weights[i].name);
    EXPECT_EQ(row.role, spec.weights[i].role);
    EXPECT_EQ(row.layer, spec.weights[i].layer);
    EXPECT_EQ(row.shape, spec.weights[i].shape);
    EXPECT_EQ(row.format == WeightFormat::kFp8, IsLinearRole(row.role)) << row.name;
    EXPECT_FALSE(row.reason.empty());
  }
  EXPECT_EQ(table.Find("lm_head.weight")->rule, "role lm_head");
  EXPECT_EQ(table.Find("model.embed_tokens.weight")->rule, "role embedding");
  EXPECT_EQ(table.Find("model.norm.weight")->rule, "role norm");
  EXPECT_EQ(table.Find("model.layers.2.mlp.up_proj.weight")->rule, "--format fp8");
  EXPECT_EQ(table.Find("model.layers.2.mlp.up_proj"), nullptr);
}

TEST(CompilePolicy, KeepsLayersAtBothEnds) {
  const PrecisionTable table = Compile(
      TestSpec({}), {.format = WeightFormat::kFp8, .keep_first = 1, .keep_last = 2, .keep = {}});
  for (const PrecisionRow& row : table.rows) {
    if (IsLinearRole(row.role)) {
      EXPECT_EQ(row.format == WeightFormat::kFp8, row.layer == 1) << row.name;
    }
  }
  const PrecisionRow& first = *table.Find("model.layers.0.mlp.up_proj.weight");
  EXPECT_EQ(first.rule, "--keep-first 1");
  EXPECT_THAT(first.shadowed, ElementsAre("--format fp8"));
  const PrecisionRow& last = *table.Find("model.layers.3.mlp.up_proj.weight");
  EXPECT_EQ(last.rule, "--keep-last 2");
  EXPECT_EQ(last.reason, "The last 2 of 4 decoder layers stay in BF16.");
}

TEST(CompilePolicy, NamesTheRulesThatLostStrongestFirst) {
  const PrecisionTable table = Compile(
      TestSpec({}),
      {.format = WeightFormat::kFp8, .keep_first = 2, .keep = {"down_proj", "layers.1.mlp"}});
  const PrecisionRow& row = *table.Find("model.layers.1.mlp.down_proj.weight");
  EXPECT_EQ(row.rule, "--keep down_proj");
  EXPECT_THAT(row.shadowed, ElementsAre("--keep layers.1.mlp", "--keep-first 2", "--format fp8"));
  EXPECT_THAT(table.Find("model.layers.1.input_layernorm.weight")->shadowed,
              ElementsAre("--keep-first 2"));
  EXPECT_THAT(table.Find("model.norm.weight")->shadowed, IsEmpty());
}

TEST(CompilePolicy, KeepPatternsNameModulesParametersAndRuns) {
  const ModelSpec spec = TestSpec({.num_layers = 12});
  const std::string name = "model.layers.1.mlp.down_proj.weight";
  for (const char* pattern :
       {"model.layers.1.mlp.down_proj", "model.layers.1.mlp.down_proj.weight",
        "layers.1.mlp.down_proj", "1.mlp.down_proj", "model.layers.1.mlp.down_proj..",
        "*.layers.1.*down_proj", "*layers.1.mlp.down_proj.weight"}) {
    const PrecisionTable table = Compile(spec, {.format = WeightFormat::kFp8, .keep = {pattern}});
    EXPECT_THAT(KeptLinear(table), ElementsAre(name)) << pattern;
  }
}

TEST(CompilePolicy, LayerOneIsNotLayerEleven) {
  const PrecisionTable table =
      Compile(TestSpec({.num_layers = 12}), {.format = WeightFormat::kFp8, .keep = {"layers.1."}});
  for (const PrecisionRow& row : table.rows) {
    if (IsLinearRole(row.role)) {
      EXPECT_EQ(row.format == WeightFormat::kBf16, row.layer == 1) << row.name;
    }
  }
}

TEST(CompilePolicy, Bf16KeepsEverythingByOneRule) {
  const PrecisionTable table = Compile(TestSpec({}), {});
  for (const PrecisionRow& row : table.rows) {
    EXPECT_EQ(row.format, WeightFormat::kBf16);
  }
  EXPECT_EQ(table.Find("model.layers.0.mlp.up_proj.weight")->rule, "--format bf16");
}

struct Refusal {
  PolicyOptions options;
  std::vector<std::string> parts;  // All must stand in the message.
};

void ExpectRefused(const ModelSpec& spec, const Refusal& refusal) {
  const Result<PrecisionTable> table = CompilePolicy(spec, refusal.options);
  ASSERT_FALSE(table.has_value()) << refusal.parts.front();
  EXPECT_EQ(table.error().code(), StatusCode::kInvalidArgument);
  for (const std::string& part : refusal.parts) {
    EXPECT_THAT(table.error().message(), HasSubstr(part));
  }
}

constexpr WeightFormat kFp8 = WeightFormat::kFp8;

TEST(CompilePolicy, RefusesLayerCountsBeyondTheModel) {
  const ModelSpec spec = TestSpec({});
  ExpectRefused(spec,
                {{.format = kFp8, .keep_first = 5, .keep = {}}, {"--keep-first 5", "0 to 4"}});
  ExpectRefused(spec, {{.format = kFp8, .keep_last = 5, .keep = {}}, {"--keep-last 5", "0 to 4"}});
  ExpectRefused(spec, {{.format = kFp8, .keep_first = -1, .keep = {}}, {"--keep-first -1"}});
  ExpectRefused(spec, {{.format = kFp8, .keep_last = -2, .keep = {}}, {"--keep-last -2"}});
}

TEST(CompilePolicy, RefusesPatternsThatMatchNothingAndSaysWhatWould) {
  const ModelSpec spec = TestSpec({});
  const auto keep = [](std::string pattern) {
    return PolicyOptions{.format = kFp8, .keep = {std::move(pattern)}};
  };
  ExpectRefused(spec,
                {keep("mlp.dwon_proj"), {"--keep mlp.dwon_proj: matches no", "mlp.down_proj"}});
  ExpectRefused(spec, {keep(".o_proj."), {"would match: o_proj"}});
  ExpectRefused(spec, {keep("O_PROJ"), {"would match: o_proj"}});
  ExpectRefused(spec, {keep("layers.3*down"), {"would match: *layers.3*down*"}});
  ExpectRefused(spec, {keep("layers.3.*"), {"would match: *layers.3.*"}});
  ExpectRefused(spec, {keep("proj"), {"would match: *proj*"}});
  ExpectRefused(spec, {keep("self_attn.qkv_proj"),
                       {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}});
  ExpectRefused(spec, {keep("layers.9"), {"--keep layers.9: matches no", "layers are 0 to 3"}});
  ExpectRefused(spec, {keep("re:.*o_proj"), {"'*' is the only wildcard"}});
  ExpectRefused(spec, {keep("layers.?.mlp"), {"'*' is the only wildcard"}});
  ExpectRefused(spec, {keep(""), {"matches no weight"}});
  ExpectRefused(spec, {keep("..."), {"matches no weight"}});
}

TEST(CompilePolicy, RefusesRulesThatWinNowhere) {
  const ModelSpec spec = TestSpec({.tied = false});
  ExpectRefused(spec, {{.format = kFp8, .keep = {"q_norm"}},
                       {"--keep q_norm: wins nowhere", "all 4 weights", "role norm"}});
  ExpectRefused(spec, {{.format = kFp8, .keep = {"lm_head"}},
                       {"--keep lm_head: wins nowhere", "the one weight", "role lm_head"}});
  ExpectRefused(spec, {{.format = kFp8, .keep = {"mlp", "layers.2.mlp"}},
                       {"--keep layers.2.mlp: wins nowhere", "by --keep mlp"}});
  ExpectRefused(spec, {{.format = kFp8, .keep = {"o_proj", "o_proj"}}, {"by --keep o_proj;"}});
  // Both ask for layer 3; the pattern is the stronger rule, so the count is the one that is idle.
  ExpectRefused(spec, {{.format = kFp8, .keep_last = 1, .keep = {"model.layers.3"}},
                       {"--keep-last 1: wins nowhere", "--keep model.layers.3"}});
}

TEST(CompilePolicy, RefusesAFormatThatNoWeightTakes) {
  const ModelSpec spec = TestSpec({});
  ExpectRefused(spec, {{.format = kFp8, .keep_last = 4, .keep = {}},
                       {"--format fp8: wins nowhere", "--keep-last 4", "--format bf16"}});
  ExpectRefused(spec, {{.format = kFp8, .keep = {"mlp", "self_attn"}},
                       {"--format fp8: wins nowhere", "--keep mlp, --keep self_attn"}});
}

TEST(CompilePolicy, RefusesKeepsWithoutAFormatToKeepFrom) {
  const ModelSpec spec = TestSpec({});
  ExpectRefused(spec, {{.keep_first = 1, .keep = {}}, {"--keep-first 1: asks for nothing"}});
  ExpectRefused(spec, {{.keep_last = 1, .keep = {}}, {"--keep-last 1: asks for nothing"}});
  ExpectRefused(spec, {{.keep = {"mlp"}}, {"--keep mlp: asks for nothing"}});
}

TEST(CompilePolicy, RefusesToSplitAFusedSet) {
  const ModelSpec spec = TestSpec({});
  ExpectRefused(spec, {{.format = kFp8, .keep = {"k_proj"}},
                       {"--keep k_proj: splits the fused set model.layers.0.self_attn.qkv_proj",
                        "q_proj fp8, k_proj bf16, v_proj fp8"}});
  ExpectRefused(spec, {{.format = kFp8, .keep = {"layers.2.mlp.up_proj"}},
                       {"--keep layers.2.mlp.up_proj: splits", "model.layers.2.mlp.gate_up_proj",
                        "gate_proj fp8, up_proj bf16"}});
  ExpectRefused(spec, {{.format = kFp8, .keep = {"q_proj", "k_proj"}},
                       {"--keep q_proj, --keep k_proj: splits"}});
}

TEST(CompilePolicy, TakesAWholeFusedSetNamedInParts) {
  const PrecisionTable table =
      Compile(TestSpec({}), {.format = kFp8, .keep = {"q_proj", "k_proj", "v_proj"}});
  EXPECT_EQ(KeptLinear(table).size(), 3U * 4U);
}

TEST(PrecisionTable, HashIsThatOfTheSortedDecisions) {
  PrecisionTable table;
  table.rows.resize(2);
  table.rows[0].name = "b.weight";
  table.rows[0].format = kFp8;
  table.rows[0].rule = "one";
  table.rows[1].name = "a.weight";
  EXPECT_EQ(table.Hash(), HashHex(HashText("a.weight bf16\nb.weight fp8\n")));
  table.rows[0].rule = "another";
  table.rows[0].reason = "Another.";
  std::swap(table.rows[0], table.rows[1]);
  EXPECT_EQ(table.Hash(), HashHex(HashText("a.weight bf16\nb.weight fp8\n")));
  table.rows[0].format = kFp8;
  EXPECT_NE(table.Hash(), HashHex(HashText("a.weight bf16\nb.weight fp8\n")));
}

TEST(PrecisionTable, TwoWaysOfAskingForOneTableHashAlike) {
  const ModelSpec spec = TestSpec({});
  EXPECT_EQ(Compile(spec, {.format = kFp8, .keep_last = 1, .keep = {}}).Hash(),
            Compile(spec, {.format = kFp8, .keep = {"layers.3"}}).Hash());
  EXPECT_NE(Compile(spec, {.format = kFp8, .keep_last = 1, .keep = {}}).Hash(),
            Compile(spec, {.format = kFp8}).Hash());
}

TEST(StoredTensorsOf, GivesCodesAndScalesOrTheWeightItself) {
  const PrecisionRow row{.name = "m.weight",
                         .role = Role::kMlpUp,
                         .shape = {300, 256},
                         .format = kFp8,
                         .rule = {},
                         .reason = {},
                         .shadowed = {}};
  const std::vector<StoredTensorSpec> fp8 = StoredTensorsOf(row);
  ASSERT_EQ(fp8.size(), 2U);
  EXPECT_EQ(fp8[0].name, "m.weight");
  EXPECT_EQ(fp8[0].dtype, DType::kF8E4m3);
  EXPECT_EQ(fp8[0].shape, (Shape{300, 256}));
  EXPECT_EQ(fp8[1].name, "m.weight_scale_inv");
  EXPECT_EQ(fp8[1].dtype, DType::kF32);
  EXPECT_EQ(fp8[1].shape, (Shape{3, 2}));  // 300 rows need a third, partial block.

  PrecisionRow norm = row;
  norm.format = WeightFormat::kBf16;
  norm.shape = {7};
  const std::vector<StoredTensorSpec> bf16 = StoredTensorsOf(norm);
  ASSERT_EQ(bf16.size(), 1U);
  EXPECT_EQ(bf16[0].dtype, DType::kBf16);
  EXPECT_EQ(bf16[0].shape, (Shape{7}));
}

TEST(CompilePolicy, HoldsItsInvariantsForRandomPolicies) {
  int num_compiled = 0;
  for (uint64_t seed = 0; seed < 300; ++seed) {
    const RandomPolicy random = MakeRandomPolicy(seed);
    const Result<PrecisionTable> table = CompilePolicy(random.spec, random.options);
    const Result<PrecisionTable> again = CompilePolicy(random.spec, random.options);
    ASSERT_EQ(table.has_value(), again.has_value()) << "seed " << seed;
    if (!table) {
      EXPECT_EQ(table.error().message(), again.error().message()) << "seed " << seed;
      EXPECT_EQ(table.error().code(), StatusCode::kInvalidArgument) << "seed " << seed;
      continue;
    }
    ++num_compiled;
    EXPECT_EQ(table->Hash(), again->Hash());
    for (const FusedSet& set : FusedSetsOf(random.spec)) {
      for (const int member : set.members) {
        EXPECT_EQ(table->rows[static_cast<size_t>(member)].format,
                  table->rows[static_cast<size_t>(set.members.front())].format)
            << "seed " << seed << " " << set.module;
      }
    }
    for (size_t i = 0; i < table->rows.size(); ++i) {
      const PrecisionRow& row = table->rows[i];
      EXPECT_EQ(row.rule, again->rows[i].rule);
      EXPECT_TRUE(IsLinearRole(row.role) || row.format == WeightFormat::kBf16) << row.name;
    }
  }
  // Most policies are sound; otherwise this test would show nothing.
  EXPECT_GT(num_compiled, 100);
}

TEST(CompilePolicy, OneMoreKeepNeverQuantizesMore) {
  int num_compared = 0;
  for (uint64_t seed = 0; seed < 300; ++seed) {
    const RandomPolicy random = MakeRandomPolicy(seed);
    PolicyOptions wider = random.options;
    wider.keep_last = std::min<int>(wider.keep_last + 1, static_cast<int>(random.spec.num_layers));
    wider.keep.push_back("o_proj");
    const Result<PrecisionTable> table = CompilePolicy(random.spec, random.options);
    const Result<PrecisionTable> more = CompilePolicy(random.spec, wider);
    if (!table || !more) {
      continue;
    }
    ++num_compared;
    for (size_t i = 0; i < table->rows.size(); ++i) {
      if (table->rows[i].format == WeightFormat::kBf16) {
        EXPECT_EQ(more->rows[i].format, WeightFormat::kBf16)
            << "seed " << seed << " " << table->rows[i].name;
      }
    }
  }
  EXPECT_GT(num_compared, 30);
}

}  // namespace
}  // namespace octavo
