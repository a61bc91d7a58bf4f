// Method: a sound checkpoint of each format as a list of dtypes, spoiled in one place at a time;
// foreign lists whose findings are worked out from the dialect's rules.

#include "octavo/policy/verdicts.h"

#include <fmt/core.h>
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
#include "octavo/policy/policy_finding.h"
#include "octavo/policy/precision_table.h"
#include "octavo/policy/random_policy_for_test.h"
#include "octavo/policy/spec_for_test.h"

namespace octavo {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr const char* kUp0 = "model.layers.0.mlp.up_proj.weight";
constexpr const char* kUp3 = "model.layers.3.mlp.up_proj.weight";

// The first layers of a small Qwen3 in `format`, its last in BF16.
PrecisionTable KeepLastTable(WeightFormat format, StoredLayout layout) {
  PrecisionTable table =
      CompilePolicy(TestSpec({}), {.format = WeightFormat::kFp8, .keep_last = 1}).value();
  table.layout = layout;
  for (PrecisionRow& row : table.rows) {
    row.format = row.format == WeightFormat::kBf16 ? row.format : format;
  }
  return table;
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

struct StoredForm {
  WeightFormat format;
  StoredLayout layout;
};

// A sound checkpoint in one format, to be spoiled.
class StoredDTypes : public ::testing::TestWithParam<StoredForm> {
 protected:
  void SetUp() override {
    for (const PrecisionRow& row : table_.rows) {
      for (const StoredTensorSpec& tensor : AcceptedTensorsOf(row, table_.layout)) {
        stored_.push_back({tensor.name, tensor.dtype});
      }
    }
  }
  std::vector<StoredTensorSpec> Parts(const char* weight) const {
    return AcceptedTensorsOf(*table_.Find(weight), table_.layout);
  }
  std::vector<StoredDType>::iterator Find(const std::string& name) {
    return std::ranges::find(stored_, name, &StoredDType::name);
  }
  void Set(const std::string& name, DType dtype) { Find(name)->dtype = dtype; }
  void Remove(const std::string& name) { stored_.erase(Find(name)); }
  std::vector<PolicyFinding> Check() const { return CheckStoredDTypes(spec_, table_, stored_); }
  void ExpectFinding(const std::string& head, const std::string& part) {
    const std::vector<PolicyFinding> findings = Check();
    EXPECT_EQ(Heads(findings), std::vector<std::string>{head});
    ASSERT_FALSE(findings.empty());
    EXPECT_EQ(findings[0].severity, "error");
    EXPECT_THAT(findings[0].message, HasSubstr(part));
  }

  ModelSpec spec_ = TestSpec({});
  PrecisionTable table_ = KeepLastTable(GetParam().format, GetParam().layout);
  std::vector<StoredDType> stored_;
};

TEST_P(StoredDTypes, SoundCheckpointsHaveNoFindings) {
  EXPECT_THAT(Heads(Check()), IsEmpty());
  // Kept weights stay what they were, and official Qwen3 checkpoints store BF16 scales.
  Set("model.norm.weight", DType::kF32);
  for (const StoredTensorSpec& part : Parts(kUp0)) {
    if (part.part != StoredPart::kCodes && part.dtype == DType::kF32) {
      Set(part.name, DType::kBf16);
    }
  }
  EXPECT_THAT(Heads(Check()), IsEmpty());
}

TEST_P(StoredDTypes, OptionalPartsMayBeMissing) {
  for (const StoredTensorSpec& part : Parts(kUp0)) {
    if (part.is_optional) {
      Remove(part.name);
    }
  }
  EXPECT_THAT(Heads(Check()), IsEmpty());
}

TEST_P(StoredDTypes, KeptModuleWithCodes) {
  Set(kUp3, Parts(kUp0)[0].dtype);
  ExpectFinding(std::string("expected-bf16 ") + kUp3, "expected BF16 by rule --keep-last 1, got ");
}

TEST_P(StoredDTypes, QuantizedModuleWithoutScales) {
  for (const StoredTensorSpec& part : Parts(kUp0)) {
    if (part.part == StoredPart::kCodes || part.is_optional) {
      continue;
    }
    Remove(part.name);
    ExpectFinding(std::string("scale-missing ") + kUp0, part.name + ", got none");
    stored_.push_back({part.name, part.dtype});
  }
}

TEST_P(StoredDTypes, QuantizedModuleWithBf16Data) {
  for (const StoredTensorSpec& part : Parts(kUp0)) {
    Remove(part.name);
  }
  stored_.push_back({kUp0, DType::kBf16});
  ExpectFinding(
      std::string("expected-quantized ") + kUp0,
      fmt::format("expected {} by rule --format fp8", WeightFormatName(GetParam().format)));
}

TEST_P(StoredDTypes, ScalesOfAnotherType) {
  for (const StoredTensorSpec& part : Parts(kUp0)) {
    if (part.part != StoredPart::kCodes) {
      Set(part.name, DType::kF16);
      ExpectFinding(std::string("scale-dtype ") + kUp0, "got F16");
      Set(part.name, part.dtype);
    }
  }
}

TEST_P(StoredDTypes, ScalesWithoutAQuantizedWeight) {
  const std::string up3 = "model.layers.3.mlp.up_proj.weight_scale";
  stored_.push_back({up3, DType::kF32});
  ExpectFinding("orphan-scale " + up3, "without a quantized weight");
}

TEST_P(StoredDTypes, ScalesOfAnUnknownWeight) {
  stored_.push_back({"x.weight_scale_inv", DType::kF32});
  stored_.push_back({"model.layers.0.self_attn.k_scale", DType::kF32});  // Of a KV cache.
  ExpectFinding("orphan-scale x.weight_scale_inv", "x.weight_scale_inv");
}

TEST_P(StoredDTypes, MissingWeight) {
  Remove("model.norm.weight");
  ExpectFinding("weight-missing model.norm.weight", "expected bf16 [256]");
}

TEST_P(StoredDTypes, KeptWeightOfAnotherType) {
  Set("model.norm.weight", DType::kI8);
  ExpectFinding("weight-dtype model.norm.weight", "got I8");
}

TEST_P(StoredDTypes, CodesOfAnotherFormat) {
  const StoredTensorSpec codes = Parts(kUp0)[0];
  const DType other = codes.dtype == DType::kU8 ? DType::kF8E4m3 : DType::kU8;
  Set(codes.name, other);
  std::vector<std::string> heads = Heads(Check());
  ASSERT_FALSE(heads.empty());
  EXPECT_EQ(heads[0], std::string("expected-quantized ") + kUp0);
}

INSTANTIATE_TEST_SUITE_P(
    EveryFormat, StoredDTypes,
    ::testing::Values(StoredForm{WeightFormat::kFp8, StoredLayout::kDefault},
                      StoredForm{WeightFormat::kFp8, StoredLayout::kCompressedTensors},
                      StoredForm{WeightFormat::kFp8Ue8m0, StoredLayout::kDefault},
                      StoredForm{WeightFormat::kFp8Channel, StoredLayout::kDefault},
                      StoredForm{WeightFormat::kFp8Tensor, StoredLayout::kDefault},
                      StoredForm{WeightFormat::kMxfp8, StoredLayout::kDefault},
                      StoredForm{WeightFormat::kMxfp8, StoredLayout::kCompressedTensors},
                      StoredForm{WeightFormat::kNvfp4, StoredLayout::kDefault},
                      StoredForm{WeightFormat::kNvfp4, StoredLayout::kCompressedTensors}));

TEST(StoredDTypesOfMtp, WholeLayersMayBeLeftOut) {
  const ModelSpec spec = TestMlaSpec();
  const PrecisionTable table = CompilePolicy(spec, {.format = WeightFormat::kFp8}).value();
  std::vector<StoredDType> stored;
  for (const PrecisionRow& row : table.rows) {
    for (const StoredTensorSpec& tensor : StoredTensorsOf(row)) {
      if (row.layer < 2) {
        stored.push_back({tensor.name, tensor.dtype});
      }
    }
  }
  EXPECT_THAT(Heads(CheckStoredDTypes(spec, table, stored)), IsEmpty());
  stored.push_back({"model.layers.2.enorm.weight", DType::kBf16});
  EXPECT_FALSE(CheckStoredDTypes(spec, table, stored).empty());
}

TEST(StoredDTypesOfStacks, ExpertsInBf16MayBeStacked) {
  const ModelSpec spec = TestMoeSpec();
  const PrecisionTable kept = CompilePolicy(spec, {}).value();
  std::vector<StoredDType> stored;
  for (const PrecisionRow& row : kept.rows) {
    if (!IsExpertRole(row.role)) {
      stored.push_back({row.name, DType::kBf16});
    }
  }
  for (int layer = 0; layer < 4; ++layer) {
    for (const char* part : {"gate_up_proj", "down_proj"}) {
      stored.push_back({fmt::format("model.layers.{}.mlp.experts.{}", layer, part), DType::kBf16});
    }
  }
  EXPECT_THAT(Heads(CheckStoredDTypes(spec, kept, stored)), IsEmpty());
}

// The findings of a list as the engine of its configuration reads it.
std::vector<PolicyFinding> ListFindingsOf(const ModelSpec& spec, const std::string& config) {
  const Result<PrecisionTable> table = TableFromQuantizationConfig(spec, config);
  EXPECT_TRUE(table.has_value()) << table.error().message();
  const auto findings = CheckQuantizationConfig(spec, *table, config, {});
  EXPECT_TRUE(findings.has_value()) << findings.error().message();
  return *findings;
}

std::vector<std::string> ListHeads(const ModelSpec& spec, const std::string& keys) {
  return Heads(ListFindingsOf(spec, R"({"quant_method":"fp8",)" + keys + "}"));
}

TEST(ForeignList, EntriesOfConvertersAreQuiet) {
  EXPECT_THAT(ListHeads(TestSpec({.tied = false}),
                        R"("modules_to_not_convert":["lm_head","model.embed_tokens",
                        "model.layers.0.input_layernorm","model.layers.0.self_attn.q_norm",
                        "model.norm","model.layers.3.","model.layers.2.self_attn.q_proj",
                        "model.layers.2.self_attn.k_proj","model.layers.2.self_attn.v_proj"])"),
              IsEmpty());
}

TEST(ForeignList, EntriesThatReachNothingAreNamed) {
  EXPECT_EQ(ListHeads(TestSpec({}), R"("ignored_layers":["model.layers.9.","mlp.gate",
            "model.layers.1.mlp.up_proj.weight","*mlp*","re:.*o_proj"])"),
            (std::vector<std::string>{"entry-unmatched model.layers.9.", "entry-unmatched mlp.gate",
                                      "entry-unmatched model.layers.1.mlp.up_proj.weight",
                                      "entry-unmatched *mlp*", "entry-unmatched re:.*o_proj"}));
  // The same in the dialects of other formats.
  EXPECT_EQ(Heads(ListFindingsOf(TestMoeSpec(), R"({"quant_method":"modelopt","quant_algo":"NVFP4",
            "group_size":16,"ignore":["model.layers.9*","lm_head","*.self_attn.*"]})")),
            std::vector<std::string>{"entry-unmatched model.layers.9*"});
  EXPECT_EQ(Heads(ListFindingsOf(TestMoeSpec(), R"({"quant_method":"mxfp8",
            "modules_to_not_convert":["model.layers.9.","model.layers.3."]})")),
            std::vector<std::string>{"entry-unmatched model.layers.9."});
}

TEST(ForeignList, CuresFitTheEntry) {
  const std::vector<PolicyFinding> findings = ListFindingsOf(
      TestSpec({}), R"({"quant_method":"fp8","ignored_layers":["a.b.weight","*mlp*","x"]})");
  ASSERT_EQ(findings.size(), 3U);
  EXPECT_THAT(findings[0].cure, HasSubstr("not the parameter: a.b"));
  EXPECT_THAT(findings[1].cure, HasSubstr("no wildcards"));
  EXPECT_THAT(findings[2].cure, HasSubstr("remove it"));
  EXPECT_EQ(findings[2].severity, "warning");
}

TEST(ForeignList, FusedNamesAreInert) {
  EXPECT_EQ(ListHeads(TestSpec({}), R"("ignored_layers":["model.layers.1.self_attn.qkv_proj",
            "gate_up_proj"])"),
            (std::vector<std::string>{"entry-fused-name model.layers.1.self_attn.qkv_proj",
                                      "entry-fused-name gate_up_proj"}));
}

TEST(ForeignList, AHiddenListIsNamed) {
  EXPECT_EQ(ListHeads(TestSpec({}),
                      R"("ignored_layers":null,"modules_to_not_convert":["model.layers.1."])"),
            std::vector<std::string>{"list-hidden modules_to_not_convert"});
}

TEST(ForeignList, ContainersKeptByOneExpertAreNamed) {
  const std::vector<PolicyFinding> findings =
      ListFindingsOf(TestMoeSpec(), R"({"quant_method":"mxfp8","ignored_layers":[
                     "model.layers.0.mlp.experts.2.up_proj","model.layers.1."]})");
  EXPECT_EQ(Heads(findings),
            std::vector<std::string>{"kept-by-one-expert model.layers.0.mlp.experts"});
  EXPECT_THAT(findings[0].message, HasSubstr("experts.2.up_proj"));
}

TEST(CheckQuantizationConfig, OurOwnListsAreQuiet) {
  for (uint64_t seed = 0; seed < 60; ++seed) {
    const RandomPolicy random = MakeRandomPolicy(seed);
    const Result<PrecisionTable> table = CompilePolicy(random.spec, random.options);
    if (!table) {
      continue;
    }
    const auto findings =
        CheckQuantizationConfig(random.spec, *table, QuantizationConfigJson(*table), {});
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
  const auto findings = CheckQuantizationConfig(spec, table, config.dump(), {});
  ASSERT_TRUE(findings.has_value());
  EXPECT_EQ(Heads(*findings),
            (std::vector<std::string>{"list-differs model.layers.1.self_attn.o_proj.weight",
                                      "list-differs model.layers.1.mlp.down_proj.weight"}));
  config["modules_to_not_convert"] = {"model.layers.1.self_attn.q_proj"};
  const auto split = CheckQuantizationConfig(spec, table, config.dump(), {});
  ASSERT_TRUE(split.has_value());
  ASSERT_EQ(split->size(), 1U);
  EXPECT_THAT((*split)[0].message, HasSubstr("qkv_proj"));
}

TEST(CheckQuantizationConfig, EmptyTextGivesNothingToSay) {
  const ModelSpec spec = TestSpec({});
  const auto findings = CheckQuantizationConfig(spec, CompilePolicy(spec, {}).value(), "", {});
  ASSERT_TRUE(findings.has_value());
  EXPECT_THAT(*findings, IsEmpty());
}

}  // namespace
}  // namespace octavo
