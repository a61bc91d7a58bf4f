// Method: a sound checkpoint as a list of dtypes, spoiled in one place at a time; foreign lists
// whose findings are worked out from the dialect's rules.

#include "octavo/policy/verdicts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/formats/format.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/engine_modules.h"
#include "octavo/policy/precision_table.h"
#include "octavo/policy/random_policy_for_test.h"
#include "octavo/policy/sglang_fp8.h"
#include "octavo/policy/spec_for_test.h"

namespace octavo {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr const char* kUp0 = "model.layers.0.mlp.up_proj.weight";
constexpr const char* kUp3 = "model.layers.3.mlp.up_proj.weight";

PrecisionTable KeepLastTable() {
  return CompilePolicy(TestSpec({}), {.format = WeightFormat::kFp8, .keep_last = 1}).value();
}

std::vector<StoredDType> SoundDTypes(const PrecisionTable& table) {
  std::vector<StoredDType> stored;
  for (const PrecisionRow& row : table.rows) {
    for (const StoredTensorSpec& tensor : StoredTensorsOf(row)) {
      stored.push_back({tensor.name, tensor.dtype});
    }
  }
  return stored;
}

// "code tensor" of each finding.
std::vector<std::string> Heads(const std::vector<PolicyFinding>& findings) {
  std::vector<std::string> heads;
  for (const PolicyFinding& finding : findings) {
    EXPECT_FALSE(finding.message.empty());
    EXPECT_FALSE(finding.cure.empty());
    heads.push_back(finding.code + " " + finding.tensor);
  }
  return heads;
}

class StoredDTypes : public ::testing::Test {
 protected:
  void Set(const std::string& name, DType dtype) {
    std::ranges::find(stored_, name, &StoredDType::name)->dtype = dtype;
  }
  void Remove(const std::string& name) {
    stored_.erase(std::ranges::find(stored_, name, &StoredDType::name));
  }
  void ExpectFinding(const std::string& head, const std::string& part) {
    const std::vector<PolicyFinding> findings = CheckStoredDTypes(table_, stored_);
    EXPECT_EQ(Heads(findings), std::vector<std::string>{head});
    ASSERT_FALSE(findings.empty());
    EXPECT_EQ(findings[0].severity, "error");
    EXPECT_THAT(findings[0].message, HasSubstr(part));
  }

  PrecisionTable table_ = KeepLastTable();
  std::vector<StoredDType> stored_ = SoundDTypes(table_);
};

TEST_F(StoredDTypes, SoundCheckpointsHaveNoFindings) {
  EXPECT_THAT(Heads(CheckStoredDTypes(table_, stored_)), IsEmpty());
  // Kept weights stay what they were, and official Qwen3 checkpoints store BF16 scales.
  Set("model.norm.weight", DType::kF32);
  Set(std::string(kUp0) + "_scale_inv", DType::kBf16);
  EXPECT_THAT(Heads(CheckStoredDTypes(table_, stored_)), IsEmpty());
}

TEST_F(StoredDTypes, KeptModuleWithFp8Data) {
  Set(kUp3, DType::kF8E4m3);
  ExpectFinding(std::string("kept-but-fp8 ") + kUp3,
                "expected BF16 by rule --keep-last 1, got F8_E4M3");
}

TEST_F(StoredDTypes, QuantizedModuleWithoutScales) {
  Remove(std::string(kUp0) + "_scale_inv");
  ExpectFinding(std::string("scale-missing ") + kUp0, "weight_scale_inv, got none");
}

TEST_F(StoredDTypes, QuantizedModuleWithBf16Data) {
  Set(kUp0, DType::kBf16);
  Remove(std::string(kUp0) + "_scale_inv");
  ExpectFinding(std::string("fp8-but-kept ") + kUp0, "expected F8_E4M3 by rule --format fp8");
}

TEST_F(StoredDTypes, ScalesOfAnotherType) {
  Set(std::string(kUp0) + "_scale_inv", DType::kF16);
  ExpectFinding(std::string("scale-dtype ") + kUp0, "got F16");
}

TEST_F(StoredDTypes, ScalesWithoutAQuantizedWeight) {
  stored_.push_back({std::string(kUp3) + "_scale_inv", DType::kF32});
  ExpectFinding(std::string("orphan-scale ") + kUp3 + "_scale_inv", "without a quantized weight");
}

TEST_F(StoredDTypes, ScalesOfAnUnknownWeight) {
  stored_.push_back({"x.weight_scale_inv", DType::kF32});
  ExpectFinding("orphan-scale x.weight_scale_inv", "x.weight_scale_inv");
}

TEST_F(StoredDTypes, MissingWeight) {
  Remove("model.norm.weight");
  ExpectFinding("weight-missing model.norm.weight", "expected bf16 [256]");
}

TEST_F(StoredDTypes, KeptWeightOfAnotherType) {
  Set("model.norm.weight", DType::kI8);
  ExpectFinding("weight-dtype model.norm.weight", "got I8");
}

std::vector<std::string> ListHeads(const ModelSpec& spec, const std::string& config) {
  const Result<SglangFp8List> list = ReadSglangFp8List(config, {});
  EXPECT_TRUE(list.has_value());
  return Heads(CheckForeignList(EngineModulesOf(spec), DeclaredMappingOf(spec), *list));
}

TEST(ForeignList, EntriesOfConvertersAreQuiet) {
  EXPECT_THAT(ListHeads(TestSpec({.tied = false}),
                        R"({"modules_to_not_convert":["lm_head","model.embed_tokens",
                        "model.layers.0.input_layernorm","model.layers.0.self_attn.q_norm",
                        "model.norm","model.layers.3.","model.layers.2.self_attn.q_proj"]})"),
              IsEmpty());
}

TEST(ForeignList, EntriesThatReachNothingAreNamed) {
  EXPECT_EQ(ListHeads(TestSpec({}), R"({"ignored_layers":["model.layers.9.","mlp.gate",
            "model.layers.1.mlp.up_proj.weight","*mlp*","re:.*o_proj"]})"),
            (std::vector<std::string>{"entry-unmatched model.layers.9.", "entry-unmatched mlp.gate",
                                      "entry-unmatched model.layers.1.mlp.up_proj.weight",
                                      "entry-unmatched *mlp*", "entry-unmatched re:.*o_proj"}));
}

TEST(ForeignList, CuresFitTheEntry) {
  const ModelSpec spec = TestSpec({});
  const Result<SglangFp8List> list =
      ReadSglangFp8List(R"({"ignored_layers":["a.b.weight","*mlp*","x"]})", {});
  ASSERT_TRUE(list.has_value());
  const std::vector<PolicyFinding> findings =
      CheckForeignList(EngineModulesOf(spec), DeclaredMappingOf(spec), *list);
  ASSERT_EQ(findings.size(), 3U);
  EXPECT_THAT(findings[0].cure, HasSubstr("not the parameter: a.b"));
  EXPECT_THAT(findings[1].cure, HasSubstr("no wildcards"));
  EXPECT_THAT(findings[2].cure, HasSubstr("remove it"));
  EXPECT_EQ(findings[2].severity, "warning");
}

TEST(ForeignList, FusedNamesAreInert) {
  EXPECT_EQ(ListHeads(TestSpec({}), R"({"ignored_layers":["model.layers.1.self_attn.qkv_proj",
            "gate_up_proj"]})"),
            (std::vector<std::string>{"entry-fused-name model.layers.1.self_attn.qkv_proj",
                                      "entry-fused-name gate_up_proj"}));
}

TEST(ForeignList, AHiddenListIsNamed) {
  EXPECT_EQ(ListHeads(TestSpec({}),
                      R"({"ignored_layers":null,"modules_to_not_convert":["model.layers.1."]})"),
            std::vector<std::string>{"list-hidden modules_to_not_convert"});
}

TEST(ForeignList, ContainersKeptByOneExpertAreNamed) {
  const std::vector<EngineModule> modules = {
      {"model.layers.0.mlp.experts", ModuleKind::kMoe, {}},
      {"model.layers.1.mlp.experts", ModuleKind::kMoe, {}},
      {"model.layers.2.mlp.experts", ModuleKind::kMoe, {}},
  };
  const Result<SglangFp8List> list = ReadSglangFp8List(
      R"({"ignored_layers":["model.layers.0.mlp.experts.7.up_proj","model.layers.1."]})", {});
  ASSERT_TRUE(list.has_value());
  const std::vector<PolicyFinding> findings = CheckForeignList(modules, {}, *list);
  EXPECT_EQ(Heads(findings),
            std::vector<std::string>{"kept-by-one-expert model.layers.0.mlp.experts"});
  EXPECT_THAT(findings[0].message, HasSubstr("experts.7.up_proj"));
}

TEST(CheckQuantizationConfig, OurOwnListsAreQuiet) {
  for (uint64_t seed = 0; seed < 60; ++seed) {
    const RandomPolicy random = MakeRandomPolicy(seed);
    const Result<PrecisionTable> table = CompilePolicy(random.spec, random.options);
    if (!table) {
      continue;
    }
    const auto findings =
        CheckQuantizationConfig(random.spec, *table, QuantizationConfigJson(*table));
    ASSERT_TRUE(findings.has_value());
    EXPECT_THAT(Heads(*findings), IsEmpty()) << "seed " << seed;
  }
}

TEST(CheckQuantizationConfig, AChangedListDiffersFromTheTable) {
  const ModelSpec spec = TestSpec({});
  const PrecisionTable table =
      CompilePolicy(spec, {.format = WeightFormat::kFp8, .keep = {"layers.1.mlp.down_proj"}})
          .value();
  nlohmann::json config = nlohmann::json::parse(QuantizationConfigJson(table));
  config["modules_to_not_convert"] = {"model.layers.1.self_attn.o_proj"};
  const auto findings = CheckQuantizationConfig(spec, table, config.dump());
  ASSERT_TRUE(findings.has_value());
  EXPECT_EQ(Heads(*findings),
            (std::vector<std::string>{"list-differs model.layers.1.self_attn.o_proj.weight",
                                      "list-differs model.layers.1.mlp.down_proj.weight"}));
  config["modules_to_not_convert"] = {"model.layers.1.self_attn.q_proj"};
  const auto split = CheckQuantizationConfig(spec, table, config.dump());
  ASSERT_TRUE(split.has_value());
  ASSERT_EQ(split->size(), 1U);
  EXPECT_THAT((*split)[0].message, HasSubstr("qkv_proj"));
}

TEST(CheckQuantizationConfig, EmptyTextGivesNothingToSay) {
  const ModelSpec spec = TestSpec({});
  const auto findings = CheckQuantizationConfig(spec, CompilePolicy(spec, {}).value(), "");
  ASSERT_TRUE(findings.has_value());
  EXPECT_THAT(*findings, IsEmpty());
}

}  // namespace
}  // namespace octavo
