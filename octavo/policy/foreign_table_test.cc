// Method: configurations as published converters write them, for one model of each family; what
// each row becomes is worked out from the dialects' rules. Then every key that makes a scheme
// another one, once.

#include "octavo/policy/foreign_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/formats/format.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"
#include "octavo/policy/spec_for_test.h"

namespace octavo {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Json = nlohmann::ordered_json;

PrecisionTable Read(const ModelSpec& spec, const std::string& config) {
  Result<PrecisionTable> table = TableFromForeignConfig(spec, config);
  EXPECT_TRUE(table.has_value()) << config << "\n" << table.error().message();
  return table ? *table : PrecisionTable{};
}

WeightFormat FormatOf(const PrecisionTable& table, std::string_view name) {
  const PrecisionRow* row = table.Find(name);
  EXPECT_NE(row, nullptr) << name;
  return row == nullptr ? WeightFormat::kBf16 : row->format;
}

// Whether the linear weights in BF16 are exactly those whose name holds one of `parts`.
void ExpectKept(const PrecisionTable& table, WeightFormat format,
                const std::vector<std::string>& parts) {
  for (const PrecisionRow& row : table.rows) {
    bool is_kept = !IsLinearRole(row.role);
    for (const std::string& part : parts) {
      is_kept = is_kept || row.name.find(part) != std::string::npos;
    }
    EXPECT_EQ(WeightFormatName(row.format),
              WeightFormatName(is_kept ? WeightFormat::kBf16 : format))
        << row.name;
    EXPECT_FALSE(row.rule.empty()) << row.name;
    EXPECT_FALSE(row.reason.empty()) << row.name;
  }
}

std::vector<std::string> Names(const std::vector<StoredTensorSpec>& specs) {
  std::vector<std::string> names;
  for (const StoredTensorSpec& spec : specs) {
    names.push_back(spec.name + (spec.is_optional ? "?" : ""));
  }
  return names;
}

constexpr const char* kUp0 = "model.layers.0.mlp.experts.0.up_proj.weight";
constexpr const char* kDown1 = "model.layers.1.mlp.experts.2.down_proj.weight";

TEST(ForeignFp8, BlocksWithPowersOfTwo) {
  const PrecisionTable table =
      Read(TestMoeSpec(), R"({"quant_method":"fp8","activation_scheme":"dynamic","fmt":"e4m3",
                         "weight_block_size":[128,128],"scale_fmt":"ue8m0",
                         "modules_to_not_convert":["lm_head","model.layers.2.mlp.experts"]})");
  EXPECT_EQ(table.format, WeightFormat::kFp8Ue8m0);
  EXPECT_EQ(table.layout, StoredLayout::kDefault);
  ExpectKept(table, WeightFormat::kFp8Ue8m0, {"layers.2.mlp.experts"});
}

TEST(ForeignFp8, OneScaleATensorWithAndWithoutActivationScales) {
  const PrecisionTable dynamic = Read(TestMoeSpec(), R"({"quant_method":"fp8"})");
  ExpectKept(dynamic, WeightFormat::kFp8Tensor, {});
  EXPECT_FALSE(dynamic.declares_input_scales);
  const PrecisionTable fixed =
      Read(TestMoeSpec(), R"({"quant_method":"fp8","activation_scheme":"static"})");
  ExpectKept(fixed, WeightFormat::kFp8Tensor, {});
  EXPECT_TRUE(fixed.declares_input_scales);
  EXPECT_THAT(Names(AcceptedTensorsOf(*fixed.Find(kUp0))),
              ElementsAre(kUp0, "model.layers.0.mlp.experts.0.up_proj.weight_scale",
                          "model.layers.0.mlp.experts.0.up_proj.input_scale?"));
}

TEST(ForeignMxfp8, ATrailingDotKeepsALayerAndOneExpertItsContainer) {
  // miles writes the block of its groups; SGLang fixes it in any case.
  for (const char* blocks :
       {"", R"("weight_block_size":[1,32],)", R"("weight_block_size":null,)"}) {
    const PrecisionTable table =
        Read(TestMoeSpec(), std::string(R"({"quant_method":"mxfp8","scale_fmt":"ue8m0",)") +
                                blocks + R"("modules_to_not_convert":["model.layers.3.",
                                "model.layers.1.mlp.experts.2.up_proj"]})");
    ExpectKept(table, WeightFormat::kMxfp8, {"layers.3.", "layers.1.mlp.experts"});
    EXPECT_EQ(table.Find("model.layers.3.self_attn.k_proj.weight")->rule,
              "modules_to_not_convert \"model.layers.3.\"");
    EXPECT_EQ(table.Find(kDown1)->rule,
              "modules_to_not_convert \"model.layers.1.mlp.experts.2.up_proj\"");
    EXPECT_EQ(table.Find(kUp0)->rule, "quant_method mxfp8");
  }
}

TEST(ForeignMxfp8, TheMtpLayerIsJudgedByTheNameOfItsOwnModel) {
  const PrecisionTable table =
      Read(TestMlaSpec(),
           R"({"quant_method":"mxfp8","modules_to_not_convert":["model.layers.2.","kv_b_proj"]})");
  ExpectKept(table, WeightFormat::kMxfp8, {"layers.2.", "kv_b_proj"});
}

TEST(ForeignModelOpt, FlatNestedAndTheFileBesideAgree) {
  const std::string list = R"(["lm_head","model.layers.3*","*self_attn*","*mlp.gate.*"])";
  const std::string flat =
      R"({"quant_method":"modelopt","quant_algo":"NVFP4","group_size":16,"ignore":)" + list + "}";
  const std::string fp4 =
      R"({"quant_method":"modelopt_fp4","quant_algo":"NVFP4","group_size":16,"ignore":)" + list +
      "}";
  // As ModelOpt's exporter writes config.json: the size in the groups alone.
  const std::string grouped = R"({"quant_method":"modelopt","quant_algo":"NVFP4","ignore":)" +
                              list +
                              R"(,"config_groups":{"group_0":{"targets":["Linear"],
          "weights":{"dynamic":false,"num_bits":4,"type":"float","group_size":16},
          "input_activations":{"dynamic":false,"num_bits":4,"type":"float","group_size":16}}}})";
  const std::string file = R"({"producer":{"name":"modelopt"},"quantization":{"quant_algo":"NVFP4",
      "kv_cache_quant_algo":null,"group_size":16,"exclude_modules":)" +
                           list + "}}";
  for (const std::string& config : {flat, fp4, grouped, file}) {
    const PrecisionTable table = Read(TestMoeSpec(), config);
    ExpectKept(table, WeightFormat::kNvfp4, {"layers.3.", "self_attn"});
    EXPECT_TRUE(table.declares_input_scales);
    EXPECT_THAT(Names(AcceptedTensorsOf(*table.Find(kUp0), table.layout)),
                ElementsAre(kUp0, "model.layers.0.mlp.experts.0.up_proj.weight_scale",
                            "model.layers.0.mlp.experts.0.up_proj.weight_scale_2",
                            "model.layers.0.mlp.experts.0.up_proj.input_scale?"));
  }
}

TEST(ForeignModelOpt, ALayerPrefixReachesNoContainer) {
  const PrecisionTable table =
      Read(TestMoeSpec(), R"({"quant_method":"modelopt","quant_algo":"NVFP4","group_size":16,
                              "ignore":["model.layers.3."]})");
  EXPECT_EQ(FormatOf(table, "model.layers.3.self_attn.q_proj.weight"), WeightFormat::kBf16);
  EXPECT_EQ(FormatOf(table, "model.layers.3.mlp.experts.0.up_proj.weight"), WeightFormat::kNvfp4);
}

TEST(ForeignModelOpt, Nvfp4LeavesTheMtpLayersAlone) {
  const PrecisionTable table = Read(
      TestMlaSpec(),
      R"({"quant_method":"modelopt","quant_algo":"NVFP4","group_size":16,"ignore":["kv_b_proj"]})");
  ExpectKept(table, WeightFormat::kNvfp4, {"layers.2.", "kv_b_proj"});
  EXPECT_EQ(table.Find("model.layers.2.mlp.experts.0.up_proj.weight")->rule,
            "layers of multi-token prediction");
}

TEST(ForeignModelOpt, Fp8HasOneScaleATensor) {
  const PrecisionTable table =
      Read(TestSpec({}), R"({"quant_method":"modelopt","quant_algo":"FP8","ignore":["lm_head"]})");
  ExpectKept(table, WeightFormat::kFp8Tensor, {});
  EXPECT_TRUE(table.declares_input_scales);
  EXPECT_EQ(table.Find("model.layers.0.mlp.up_proj.weight")->rule, "quant_algo FP8");
}

TEST(ForeignModelOpt, MixedPrecisionHasAnAlgorithmALayer) {
  const PrecisionTable table = Read(TestMoeSpec(), R"({"quant_method":"modelopt",
      "quant_algo":"MIXED_PRECISION","ignore":["model.layers.0.mlp.experts"],"quantized_layers":{
      "model.layers.0.self_attn.q_proj":{"quant_algo":"FP8"},
      "model.layers.0.self_attn.k_proj":{"quant_algo":"FP8"},
      "model.layers.0.self_attn.v_proj":{"quant_algo":"FP8"},
      "model.layers.1.mlp.experts.0.up_proj":{"quant_algo":"NVFP4","group_size":16},
      "model.layers.0.mlp.experts.0.up_proj":{"quant_algo":"NVFP4","group_size":16},
      "model.layers.2.mlp.experts":{"quant_algo":"W4A8_AWQ"}}})");
  EXPECT_EQ(FormatOf(table, "model.layers.0.self_attn.k_proj.weight"), WeightFormat::kFp8Tensor);
  EXPECT_EQ(FormatOf(table, "model.layers.0.self_attn.o_proj.weight"), WeightFormat::kBf16);
  EXPECT_EQ(FormatOf(table, kUp0), WeightFormat::kBf16);
  EXPECT_EQ(FormatOf(table, kDown1), WeightFormat::kNvfp4);
  EXPECT_EQ(FormatOf(table, "model.layers.2.mlp.experts.0.up_proj.weight"), WeightFormat::kBf16);
  EXPECT_EQ(table.Find(kUp0)->rule, "ignore \"model.layers.0.mlp.experts\"");
  EXPECT_EQ(table.Find("model.layers.2.mlp.experts.0.up_proj.weight")->rule, "quantized_layers");
}

// --- compressed-tensors --------------------------------------------------------------------------

Json Args(int bits, const char* strategy, const Json& dynamic, const Json& group_size) {
  return {{"num_bits", bits},   {"type", "float"},    {"strategy", strategy},
          {"symmetric", true},  {"dynamic", dynamic}, {"group_size", group_size},
          {"actorder", nullptr}};
}

Json Group(const Json& weights, const Json& activations) {
  return {{"targets", {"Linear"}},
          {"weights", weights},
          {"input_activations", activations},
          {"output_activations", nullptr}};
}

Json CtConfig(const char* format, const Json& group, const Json& ignore) {
  return {{"quant_method", "compressed-tensors"},
          {"format", format},
          {"ignore", ignore},
          {"config_groups", {{"group_0", group}}},
          {"sparsity_config", Json::object()},
          {"transform_config", Json::object()}};
}

Json BlockGroup() {
  Json weights = Args(8, "block", false, nullptr);
  weights["block_structure"] = {128, 128};
  return Group(weights, Args(8, "group", true, 128));
}

Json Nvfp4Group() {
  return Group(Args(4, "tensor_group", false, 16), Args(4, "tensor_group", "local", 16));
}

TEST(ForeignCompressedTensors, EverySchemeOfThePresets) {
  struct Case {
    const char* compressor;
    Json group;
    WeightFormat format;
    StoredLayout layout;
    bool has_input_scales;
    std::vector<std::string> suffixes;
  };
  constexpr StoredLayout kPlain = StoredLayout::kDefault;
  constexpr StoredLayout kPacked = StoredLayout::kCompressedTensors;
  const std::vector<Case> cases = {
      {"float-quantized",
       Group(Args(8, "tensor", false, nullptr), Args(8, "tensor", false, nullptr)),
       WeightFormat::kFp8Tensor,
       kPlain,
       true,
       {".weight", ".weight_scale", ".input_scale?"}},
      {"naive-quantized",
       Group(Args(8, "tensor", false, nullptr), Args(8, "token", true, nullptr)),
       WeightFormat::kFp8Tensor,
       kPlain,
       false,
       {".weight", ".weight_scale", ".input_scale?"}},
      {"float-quantized",
       Group(Args(8, "channel", false, nullptr), Args(8, "token", true, nullptr)),
       WeightFormat::kFp8Channel,
       kPlain,
       false,
       {".weight", ".weight_scale"}},
      {"float-quantized",
       BlockGroup(),
       WeightFormat::kFp8,
       kPacked,
       false,
       {".weight", ".weight_scale"}},
      {"mxfp8-quantized",
       Group(Args(8, "group", false, 32), Args(8, "group", true, 32)),
       WeightFormat::kMxfp8,
       kPacked,
       false,
       {".weight", ".weight_scale"}},
      {"nvfp4-pack-quantized",
       Nvfp4Group(),
       WeightFormat::kNvfp4,
       kPacked,
       true,
       {".weight_packed", ".weight_scale", ".weight_global_scale", ".input_global_scale?"}},
  };
  for (const Case& c : cases) {
    const PrecisionTable table = Read(
        TestMoeSpec(),
        CtConfig(c.compressor, c.group, {"lm_head", "re:.*self_attn.*", "re:model.layers.2\\..*"})
            .dump());
    ExpectKept(table, c.format, {"self_attn", "layers.2."});
    EXPECT_EQ(table.layout, c.layout) << WeightFormatName(c.format);
    EXPECT_EQ(table.declares_input_scales, c.has_input_scales) << WeightFormatName(c.format);
    std::vector<std::string> names;
    for (const std::string& suffix : c.suffixes) {
      names.push_back("model.layers.0.mlp.experts.0.up_proj" + suffix);
    }
    EXPECT_EQ(Names(AcceptedTensorsOf(*table.Find(kUp0), table.layout)), names);
    EXPECT_EQ(table.Find(kUp0)->rule, "config_groups.group_0");
  }
}

TEST(ForeignCompressedTensors, GroupsOfSeveralFormats) {
  Json config = CtConfig("mixed-precision", BlockGroup(), {"lm_head"});
  config["config_groups"]["group_0"]["targets"] = {"re:.*self_attn.*"};
  config["config_groups"]["group_0"]["format"] = "float-quantized";
  config["config_groups"]["group_1"] = Nvfp4Group();
  config["config_groups"]["group_1"]["targets"] = {"re:.*mlp.experts.*"};
  const PrecisionTable table = Read(TestMoeSpec(), config.dump());
  EXPECT_EQ(FormatOf(table, "model.layers.0.self_attn.q_proj.weight"), WeightFormat::kFp8);
  EXPECT_EQ(FormatOf(table, kUp0), WeightFormat::kNvfp4);
  EXPECT_EQ(table.Find(kUp0)->rule, "config_groups.group_1");
}

TEST(ForeignCompressedTensors, RefusesListsThatSplitWhatEnginesServeAsOne) {
  const Json config =
      CtConfig("float-quantized", BlockGroup(), {"lm_head", "model.layers.0.self_attn.q_proj"});
  const Result<PrecisionTable> set = TableFromForeignConfig(TestMoeSpec(), config.dump());
  ASSERT_FALSE(set.has_value());
  EXPECT_EQ(set.error().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(set.error().message(),
              HasSubstr("splits model.layers.0.self_attn.qkv_proj: "
                        "model.layers.0.self_attn.q_proj.weight is bf16 by ignore"));
  const Json one =
      CtConfig("float-quantized", BlockGroup(), {"lm_head", "re:.*layers.1.mlp.experts.0\\..*"});
  const Result<PrecisionTable> container = TableFromForeignConfig(TestMoeSpec(), one.dump());
  ASSERT_FALSE(container.has_value());
  EXPECT_THAT(container.error().message(), HasSubstr("splits model.layers.1.mlp.experts: "));
}

TEST(ForeignCompressedTensors, AQuantizedHeadIsRefusedByName) {
  const Result<PrecisionTable> table = TableFromForeignConfig(
      TestMoeSpec(), CtConfig("float-quantized", BlockGroup(), Json::array()).dump());
  ASSERT_FALSE(table.has_value());
  EXPECT_EQ(table.error().code(), StatusCode::kUnsupported);
  EXPECT_THAT(table.error().message(),
              HasSubstr("lm_head.weight: quantized by config_groups.group_0"));
}

TEST(ForeignTable, RowsThatDoNotFitTheFormatAreRefusedByName) {
  const Result<PrecisionTable> table =
      TableFromForeignConfig(TestSpec({}), R"({"quant_method":"mxfp8"})");
  ASSERT_FALSE(table.has_value());
  EXPECT_EQ(table.error().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(
      table.error().message(),
      HasSubstr("model.layers.0.mlp.down_proj.weight: mxfp8 by quant_method mxfp8: expected "
                "rows of a multiple of 32 values, got 300 values"));
}

TEST(ForeignTable, SchemesThatAreNotReadAreNamedByTheirKey) {
  const auto changed = [](Json group, std::string_view pointer, const Json& value) {
    Json config = CtConfig("float-quantized", group, {"lm_head"});
    config[Json::json_pointer(std::string(pointer))] = value;
    return config.dump();
  };
  const std::string weights = "/config_groups/group_0/weights";
  const std::string inputs = "/config_groups/group_0/input_activations";
  struct Case {
    std::string config;
    const char* part;
  };
  const Case cases[] = {
      {changed(BlockGroup(), weights + "/type", "int"), "config_groups.group_0.weights.type"},
      {changed(BlockGroup(), weights + "/num_bits", 6), "weights.num_bits: expected 8, or 4"},
      {changed(BlockGroup(), weights, nullptr), "group_0.weights: expected quantized weights"},
      {changed(BlockGroup(), weights + "/block_structure", {64, 128}),
       "weights.block_structure: expected [128, 128], got [64,128]"},
      {changed(BlockGroup(), weights + "/symmetric", false), "weights.symmetric"},
      {changed(BlockGroup(), weights + "/actorder", "group"), "weights.actorder"},
      {changed(BlockGroup(), weights + "/strategy", "token"), "weights.strategy"},
      {changed(BlockGroup(), weights + "/dynamic", true), "weights.dynamic"},
      {changed(BlockGroup(), inputs, nullptr),
       "group_0.input_activations: expected quantized activations (weight-only"},
      {changed(BlockGroup(), inputs + "/group_size", 64),
       "input_activations: expected strategy group, dynamic true, group_size 128 for fp8"},
      {changed(BlockGroup(), "/config_groups/group_0/output_activations", Json::object()),
       "group_0.output_activations: expected none"},
      {changed(BlockGroup(), "/format", "marlin-24"), "format: expected float-quantized"},
      {changed(BlockGroup(), "/transform_config", {{"config_groups", {{"u", 1}}}}),
       "transform_config: expected none"},
      {changed(BlockGroup(), "/sparsity_config", {{"format", "sparse-24-bitmask"}}),
       "sparsity_config: expected none"},
      {changed(BlockGroup(), "/linear_fp8_config", Json::object()), "linear_fp8_config"},
      {changed(BlockGroup(), "/config_groups", Json::object()), "config_groups: expected at least"},
      {changed(Group(Args(4, "group", false, 32), Args(4, "group", true, 32)), "/format",
               "mxfp4-pack-quantized"),
       "weights.strategy: expected \"tensor_group\" (groups of 16) for 4 bits, got \"group\""},
      {changed(Nvfp4Group(), weights + "/group_size", 32), "weights.group_size: expected 16"},
      {R"({"quant_method":"modelopt","quant_algo":"NVFP4","group_size":32,"ignore":[]})",
       "group_size: expected 16, got 32"},
      {R"({"quant_method":"modelopt","quant_algo":"NVFP4_AWQ","group_size":16,"ignore":[]})",
       "quant_algo: expected FP8, NVFP4 or MIXED_PRECISION, got \"NVFP4_AWQ\""},
      {R"({"quant_method":"modelopt","ignore":[]})", "quant_algo: expected FP8"},
      {R"({"quant_method":"modelopt","quant_algo":"NVFP4","group_size":16,"ignore":[],
           "config_groups":{"group_0":{"weights":{"group_size":16}}}})",
       "config_groups.group_0.input_activations: expected quantized activations"},
      {R"({"quant_method":"modelopt","quant_algo":"MIXED_PRECISION","ignore":[],
           "quantized_layers":{"a.b":{"quant_algo":"NVFP4","group_size":32}}})",
       "quantized_layers.a.b.group_size: expected 16, got 32"},
  };
  for (const Case& c : cases) {
    const Result<PrecisionTable> table = TableFromForeignConfig(TestMoeSpec(), c.config);
    ASSERT_FALSE(table.has_value()) << c.config;
    EXPECT_EQ(table.error().code(), StatusCode::kUnsupported) << table.error().message();
    EXPECT_THAT(table.error().message(), HasSubstr(c.part));
  }
}

TEST(ForeignTable, ErrorsOfTheDialectNameTheKey) {
  const Result<PrecisionTable> table = TableFromForeignConfig(
      TestMoeSpec(), R"({"quant_method":"modelopt","quant_algo":"NVFP4","ignore":[]})");
  ASSERT_FALSE(table.has_value());
  EXPECT_EQ(table.error().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(table.error().message(), HasSubstr("group_size: expected one beside NVFP4"));
}

}  // namespace
}  // namespace octavo
