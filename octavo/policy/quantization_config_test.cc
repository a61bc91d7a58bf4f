// Method: the exact text for a small table; tables out and in again, through our own key and
// through the list alone, for random policies; foreign configurations worked out by hand; each
// refused text once.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/formats/format.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/json_depth.h"
#include "octavo/policy/natural_order.h"
#include "octavo/policy/precision_table.h"
#include "octavo/policy/random_policy_for_test.h"
#include "octavo/policy/spec_for_test.h"

namespace octavo {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Json = nlohmann::json;

constexpr WeightFormat kFp8 = WeightFormat::kFp8;

void ExpectSameRow(const PrecisionRow& a, const PrecisionRow& b) {
  EXPECT_EQ(a.name, b.name);
  EXPECT_EQ(a.role, b.role);
  EXPECT_EQ(a.layer, b.layer);
  EXPECT_EQ(a.shape, b.shape);
  EXPECT_EQ(a.format, b.format);
  EXPECT_EQ(a.rule, b.rule);
  EXPECT_EQ(a.reason, b.reason);
  EXPECT_EQ(a.shadowed, b.shadowed);
}

PrecisionTable Compile(const ModelSpec& spec, const PolicyOptions& options) {
  Result<PrecisionTable> table = CompilePolicy(spec, options);
  EXPECT_TRUE(table.has_value()) << table.error().message();
  return table ? std::move(table).value() : PrecisionTable();
}

Json ConfigOf(const ModelSpec& spec, const PolicyOptions& options) {
  return Json::parse(QuantizationConfigJson(Compile(spec, options)));
}

TEST(QuantizationConfig, HasAllKeysOfABlockCheckpoint) {
  const Json config =
      ConfigOf(TestSpec({.tied = false}), {.format = kFp8, .keep = {"layers.2.mlp", "o_proj"}});
  EXPECT_EQ(config["quant_method"], "fp8");
  EXPECT_EQ(config["activation_scheme"], "dynamic");
  EXPECT_EQ(config["fmt"], "e4m3");
  EXPECT_EQ(config["weight_block_size"], Json::parse("[128, 128]"));
  EXPECT_FALSE(config.contains("scale_fmt"));
  EXPECT_EQ(config["octavo"]["schema"], 2);
  EXPECT_EQ(config["octavo"]["format"], "fp8");
  EXPECT_EQ(config["octavo"]["hash"].get<std::string>().size(), 32U);
  EXPECT_THAT(config["modules_to_not_convert"].get<std::vector<std::string>>(),
              ElementsAre("lm_head", "model.layers.0.self_attn.o_proj",
                          "model.layers.1.self_attn.o_proj", "model.layers.2.mlp.down_proj",
                          "model.layers.2.mlp.gate_proj", "model.layers.2.mlp.up_proj",
                          "model.layers.2.self_attn.o_proj", "model.layers.3.self_attn.o_proj"));
}

TEST(QuantizationConfig, SortsLayersAsNumbers) {
  const Json config =
      ConfigOf(TestSpec({.num_layers = 11}), {.format = kFp8, .keep = {"layers.10", "layers.9"}});
  const auto list = config["modules_to_not_convert"].get<std::vector<std::string>>();
  ASSERT_EQ(list.size(), 14U);
  EXPECT_EQ(list.front(), "model.layers.9.mlp.down_proj");
  EXPECT_EQ(list.back(), "model.layers.10.self_attn.v_proj");
}

TEST(QuantizationConfig, LeavesOutAnEmptyList) {
  EXPECT_FALSE(ConfigOf(TestSpec({}), {.format = kFp8}).contains("modules_to_not_convert"));
}

TEST(QuantizationConfig, IsEmptyForABf16Table) {
  EXPECT_EQ(QuantizationConfigJson(Compile(TestSpec({}), {})), "");
}

TEST(QuantizationConfig, EmptyTextMeansBf16) {
  const Result<PrecisionTable> table = TableFromQuantizationConfig(TestSpec({}), "");
  ASSERT_TRUE(table.has_value());
  EXPECT_EQ(table->format, WeightFormat::kBf16);
  EXPECT_EQ(table->Hash(), Compile(TestSpec({}), {}).Hash());
}

TEST(QuantizationConfig, RandomTablesComeBackWholeAndThroughTheListAlone) {
  int num_compiled = 0;
  for (uint64_t seed = 1000; seed < 1300; ++seed) {
    const RandomPolicy random = MakeRandomPolicy(seed);
    const Result<PrecisionTable> table = CompilePolicy(random.spec, random.options);
    if (!table) {
      continue;
    }
    ++num_compiled;
    const std::string text = QuantizationConfigJson(*table);
    const Result<PrecisionTable> own = TableFromQuantizationConfig(random.spec, text);
    ASSERT_TRUE(own.has_value()) << "seed " << seed << " " << own.error().message();
    ASSERT_EQ(own->rows.size(), table->rows.size());
    EXPECT_EQ(own->format, table->format);
    for (size_t i = 0; i < table->rows.size(); ++i) {
      ExpectSameRow(own->rows[i], table->rows[i]);
    }
    // What another engine sees: the list without our key.
    Json foreign = Json::parse(text);
    foreign.erase("octavo");
    const Result<PrecisionTable> read = TableFromQuantizationConfig(random.spec, foreign.dump());
    ASSERT_TRUE(read.has_value()) << "seed " << seed << " " << read.error().message();
    EXPECT_EQ(read->Hash(), table->Hash()) << "seed " << seed << "\n" << text;
  }
  EXPECT_GT(num_compiled, 100);
}

TEST(QuantizationConfig, KeepsAReasonThatIsARowsOwn) {
  const ModelSpec spec = TestSpec({});
  PrecisionTable table = Compile(spec, {.format = kFp8});
  table.rows.back().reason = "Another.";
  const Result<PrecisionTable> read =
      TableFromQuantizationConfig(spec, QuantizationConfigJson(table));
  ASSERT_TRUE(read.has_value()) << read.error().message();
  EXPECT_EQ(read->rows.back().reason, "Another.");
  EXPECT_EQ(read->rows[1].reason, table.rows[1].reason);
}

Result<PrecisionTable> ReadList(const ModelSpec& spec, const std::string& keys) {
  return TableFromQuantizationConfig(spec, R"({"quant_method":"fp8","activation_scheme":"dynamic",)"
                                           R"("weight_block_size":[128,128])" +
                                               keys + "}");
}

TEST(ForeignConfig, TrailingDotsKeepWholeLayers) {
  const ModelSpec spec = TestSpec({.num_layers = 11, .tied = false});
  const Result<PrecisionTable> table =
      ReadList(spec, R"(,"modules_to_not_convert":["lm_head","model.layers.1.","model.norm"])");
  ASSERT_TRUE(table.has_value()) << table.error().message();
  EXPECT_EQ(table->Hash(), Compile(spec, {.format = kFp8, .keep = {"layers.1"}}).Hash());
  const PrecisionRow& kept = *table->Find("model.layers.1.self_attn.k_proj.weight");
  EXPECT_EQ(kept.rule, "modules_to_not_convert \"model.layers.1.\"");
  EXPECT_THAT(kept.shadowed, ElementsAre("quant_method fp8"));
  EXPECT_EQ(table->Find("lm_head.weight")->rule, "role lm_head");
  EXPECT_EQ(table->Find("model.layers.10.mlp.up_proj.weight")->rule, "quant_method fp8");
}

TEST(ForeignConfig, IgnoredLayersHideTheOtherKeyEvenWhenNull) {
  const ModelSpec spec = TestSpec({});
  const Result<PrecisionTable> table =
      ReadList(spec, R"(,"ignored_layers":null,"modules_to_not_convert":["model.layers.1."])");
  ASSERT_TRUE(table.has_value());
  EXPECT_EQ(table->Hash(), Compile(spec, {.format = kFp8}).Hash());
}

TEST(ForeignConfig, AFusedNameInTheListKeepsNothing) {
  const ModelSpec spec = TestSpec({});
  const Result<PrecisionTable> table =
      ReadList(spec, R"(,"ignored_layers":["model.layers.1.self_attn.qkv_proj"])");
  ASSERT_TRUE(table.has_value());
  EXPECT_EQ(table->Hash(), Compile(spec, {.format = kFp8}).Hash());
}

TEST(ForeignConfig, APartlyListedFusedSetIsRefusedByName) {
  const Result<PrecisionTable> table =
      ReadList(TestSpec({}), R"(,"ignored_layers":["model.layers.1.self_attn.q_proj"])");
  ASSERT_FALSE(table.has_value());
  EXPECT_EQ(table.error().code(), StatusCode::kInvalidArgument);
  for (const char* part :
       {"ignored_layers", "model.layers.1.self_attn.qkv_proj",
        "q_proj is listed by \"model.layers.1.self_attn.q_proj\"", "k_proj is not listed"}) {
    EXPECT_THAT(table.error().message(), HasSubstr(part));
  }
}

TEST(ForeignConfig, RefusesWhatIsNotBuiltByName) {
  struct Case {
    const char* text;
    StatusCode code;
    const char* part;
  };
  const Case cases[] = {
      {"[", StatusCode::kCorrupt, "JSON object"},
      {"[]", StatusCode::kCorrupt, "JSON object"},
      {"{}", StatusCode::kUnsupported,
       "quant_method: expected fp8, mxfp8, modelopt or compressed-tensors, got none"},
      {R"({"quant_method":"awq"})", StatusCode::kUnsupported, "got awq"},
      {R"({"quant_method":"fp8","weight_block_size":[1,32]})", StatusCode::kUnsupported,
       "weight_block_size: expected [128, 128], or none for one scale a tensor, got [1,32]"},
      {R"({"quant_method":"fp8","weight_block_size":[128,128],"activation_scheme":"static"})",
       StatusCode::kUnsupported, "activation_scheme: expected dynamic for fp8, got \"static\""},
      {R"({"quant_method":"mxfp8","activation_scheme":"static"})", StatusCode::kUnsupported,
       "dynamic for mxfp8"},
      {R"({"quant_method":"fp8","weight_block_size":[128,128],"fmt":"e5m2"})",
       StatusCode::kUnsupported, "fmt: expected e4m3 or float8_e4m3fn, got \"e5m2\""},
      {R"({"quant_method":"fp8","weight_block_size":[128,128],"scale_fmt":"int"})",
       StatusCode::kUnsupported, "scale_fmt: expected ue8m0 or float, got \"int\""},
      {R"({"quant_method":"fp8","scale_fmt":"ue8m0"})", StatusCode::kUnsupported,
       "weight_block_size: expected [128, 128], got none"},
      {R"({"quant_method":"fp8","weight_block_size":[128,128],"ignored_layers":"x"})",
       StatusCode::kInvalidArgument, "ignored_layers"},
      {R"({"quant_method":"fp8","weight_block_size":[128,128],"modules_to_not_convert":[1]})",
       StatusCode::kInvalidArgument, "modules_to_not_convert"},
  };
  for (const Case& c : cases) {
    const Result<PrecisionTable> table = TableFromQuantizationConfig(TestSpec({}), c.text);
    ASSERT_FALSE(table.has_value()) << c.text;
    EXPECT_EQ(table.error().code(), c.code) << c.text;
    EXPECT_THAT(table.error().message(), HasSubstr(c.part)) << c.text;
  }
}

TEST(OwnConfig, RefusesATableThatWasChanged) {
  const ModelSpec spec = TestSpec({});
  const Json config = ConfigOf(spec, {.format = kFp8, .keep_last = 1, .keep = {}});
  struct Case {
    std::function<void(Json&)> change;
    StatusCode code;
    const char* part;
  };
  const Case cases[] = {
      {[](Json& own) { own["table"][2]["format"] = "bf16"; }, StatusCode::kCorrupt, "hash"},
      {[](Json& own) { own["hash"] = "00"; }, StatusCode::kCorrupt, "the file says 00"},
      {[](Json& own) { own.erase("hash"); }, StatusCode::kCorrupt, "hash"},
      {[](Json& own) { own["schema"] = 3; }, StatusCode::kUnsupported, "expected 1 to 2, got 3"},
      {[](Json& own) { own.erase("schema"); }, StatusCode::kUnsupported, "schema"},
      {[](Json& own) { own["format"] = "int4"; }, StatusCode::kUnsupported, "int4"},
      {[](Json& own) { own["table"][2]["format"] = "int4"; }, StatusCode::kUnsupported, "int4"},
      {[](Json& own) { own["table"][0]["format"] = "fp8"; }, StatusCode::kCorrupt, "embedding"},
      {[](Json& own) { own["table"].erase(3); }, StatusCode::kCorrupt,
       "expected the row of model.layers.0.self_attn.k_proj.weight"},
      {[](Json& own) { std::swap(own["table"][2], own["table"][3]); }, StatusCode::kCorrupt,
       "expected the row of model.layers.0.self_attn.q_proj.weight"},
      {[](Json& own) { own["table"][2]["role"] = "norm"; }, StatusCode::kCorrupt, "attention.q"},
      {[](Json& own) { own["table"][2].erase("rule"); }, StatusCode::kCorrupt, "no rule"},
      {[](Json& own) { own["table"][2]["rule"] = "x"; }, StatusCode::kCorrupt, "no reason"},
      {[](Json& own) { own["table"][2]["shadowed"] = 1; }, StatusCode::kCorrupt, "shadowed"},
      {[](Json& own) { own["table"][2] = 1; }, StatusCode::kCorrupt, "object"},
      {[](Json& own) { own.erase("reasons"); }, StatusCode::kCorrupt, "reasons"},
      {[](Json& own) { own = 1; }, StatusCode::kCorrupt, "object"},
  };
  for (const Case& c : cases) {
    Json changed = config;
    c.change(changed["octavo"]);
    const Result<PrecisionTable> table = TableFromQuantizationConfig(spec, changed.dump());
    ASSERT_FALSE(table.has_value()) << c.part;
    EXPECT_EQ(table.error().code(), c.code) << c.part;
    EXPECT_THAT(table.error().message(), HasSubstr(c.part));
  }
}

TEST(OwnConfig, RefusesAnotherModelsTable) {
  const std::string text =
      QuantizationConfigJson(Compile(TestSpec({.num_layers = 3}), {.format = kFp8}));
  const Result<PrecisionTable> table = TableFromQuantizationConfig(TestSpec({}), text);
  ASSERT_FALSE(table.has_value());
  EXPECT_EQ(table.error().code(), StatusCode::kCorrupt);
}

TEST(ForeignConfig, RefusesDeepNestingBeforeParsing) {
  const std::string deep =
      R"({"fmt":)" + std::string(1000000, '[') + std::string(1000000, ']') + "}";
  const Result<PrecisionTable> table = TableFromQuantizationConfig(TestSpec({}), deep);
  ASSERT_FALSE(table.has_value());
  EXPECT_EQ(table.error().code(), StatusCode::kCorrupt);
  EXPECT_THAT(table.error().message(), HasSubstr("64 levels"));
}

TEST(IsShallowJson, CountsNestingOutsideStrings) {
  EXPECT_TRUE(IsShallowJson(std::string(64, '[') + std::string(64, ']')));
  EXPECT_FALSE(IsShallowJson(std::string(65, '[')));
  EXPECT_TRUE(IsShallowJson('"' + std::string(100, '{') + '"'));
  EXPECT_FALSE(IsShallowJson(R"("\\")" + std::string(100, '{')));
  EXPECT_TRUE(IsShallowJson(R"("\")" + std::string(100, '{')));
}

TEST(NaturalLess, ComparesDigitsAsNumbers) {
  EXPECT_TRUE(NaturalLess("a.9.b", "a.10.a"));
  EXPECT_FALSE(NaturalLess("a.10.a", "a.9.b"));
  EXPECT_TRUE(NaturalLess("a.9", "a.9.b"));
  EXPECT_TRUE(NaturalLess("a.007", "a.07"));  // Equal numbers: bytes decide.
  EXPECT_FALSE(NaturalLess("a", "a"));
  EXPECT_TRUE(NaturalLess("", "a"));
  EXPECT_TRUE(NaturalLess("a.99999999999999999999998", "a.99999999999999999999999"));
}

}  // namespace
}  // namespace octavo
