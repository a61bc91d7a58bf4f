// Method: both forms of a small table against text worked out by hand, sizes from the shapes, and
// every way to name a weight.

#include "octavo/policy/table_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/formats/format.h"
#include "octavo/policy/precision_table.h"
#include "octavo/policy/spec_for_test.h"
#include "octavo/policy/table_json.h"
#include "octavo/policy/table_sizes.h"

namespace octavo {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using Json = nlohmann::json;

PrecisionTable SmallTable() {
  return CompilePolicy(TestSpec({}), {.format = WeightFormat::kFp8, .keep_last = 1}).value();
}

TEST(TableSizes, CountCodesAndScales) {
  const PrecisionTable table = SmallTable();
  const PrecisionRow& row = *table.Find("model.layers.0.mlp.up_proj.weight");  // [300, 256]
  EXPECT_EQ(StoredBytes(row), 300 * 256 + 3 * 2 * 4);
  EXPECT_EQ(Bf16Bytes(row), 300 * 256 * 2);
  const PrecisionRow& kept = *table.Find("model.layers.3.mlp.up_proj.weight");
  EXPECT_EQ(StoredBytes(kept), Bf16Bytes(kept));
}

TEST(TableSizes, SumToTheWholeModel) {
  const PrecisionTable table = SmallTable();
  const std::vector<FormatSize> sizes = FormatSizesOf(table);
  ASSERT_EQ(sizes.size(), 2U);
  EXPECT_EQ(sizes[0].format, WeightFormat::kBf16);
  EXPECT_EQ(sizes[0].stored_bytes, sizes[0].bf16_bytes);
  EXPECT_EQ(sizes[1].num_tensors, 3 * 7);
  // A layer: q and o [256, 256], k and v [128, 256], gate and up [300, 256], down [256, 300].
  const int64_t layer_elems = 2 * 256 * 256 + 2 * 128 * 256 + 3 * 300 * 256;
  const int64_t layer_scales = 2 * 4 + 2 * 2 + 3 * 6;
  EXPECT_EQ(sizes[1].bf16_bytes, 3 * layer_elems * 2);
  EXPECT_EQ(sizes[1].stored_bytes, 3 * (layer_elems + 4 * layer_scales));
}

TEST(TableToJson, HasTheKeysThatScriptsRelyOn) {
  const PrecisionTable table = SmallTable();
  const Json json = Json::parse(TableToJson(table));
  EXPECT_EQ(json["format"], "fp8");
  EXPECT_EQ(json["hash"], table.Hash());
  ASSERT_EQ(json["tensors"].size(), table.rows.size());
  EXPECT_EQ(json["tensors"][0]["layer"], nullptr);
  const Json& last = json["tensors"][table.rows.size() - 2];
  EXPECT_EQ(last["name"], "model.layers.3.mlp.down_proj.weight");
  EXPECT_EQ(last["role"], "mlp.down");
  EXPECT_EQ(last["layer"], 3);
  EXPECT_EQ(last["shape"], Json::parse("[256, 300]"));
  EXPECT_EQ(last["format"], "bf16");
  EXPECT_EQ(last["rule"], "--keep-last 1");
  EXPECT_EQ(last["reason"], "The last 1 of 4 decoder layers stay in BF16.");
  EXPECT_EQ(last["shadowed"], Json::parse(R"(["--format fp8"])"));
  int64_t stored_bytes = 0;
  int64_t num_tensors = 0;
  for (const Json& row : json["tensors"]) {
    stored_bytes += row["stored_bytes"].get<int64_t>();
  }
  for (const Json& format : json["formats"]) {
    num_tensors += format["tensors"].get<int64_t>();
  }
  EXPECT_EQ(json["stored_bytes"], stored_bytes);
  EXPECT_EQ(num_tensors, static_cast<int64_t>(table.rows.size()));
  EXPECT_EQ(Json::parse(RowToJson(table.rows[0])), json["tensors"][0]);
}

TEST(TableToText, ShowsRunsOfEqualLayers) {
  const PrecisionTable table = SmallTable();
  const std::string expected =
      R"(layers     q     k     v     o     gate  up    down       stored     as bf16  rule
0-2        fp8   fp8   fp8   fp8   fp8   fp8   fp8       1.2 MiB     2.4 MiB  --format fp8
3          bf16  bf16  bf16  bf16  bf16  bf16  bf16    835.2 KiB   835.2 KiB  --keep-last 1

model.embed_tokens.weight                bf16    345.0 KiB  role embedding
model.norm.weight                        bf16        512 B  role norm

bf16      25 weights     1.2 MiB (1.2 MiB as bf16)
fp8       21 weights     1.2 MiB (2.4 MiB as bf16)
all       46 weights     2.4 MiB (3.6 MiB as bf16, 66.1 %)
hash  )";
  EXPECT_EQ(TableToText(table), expected + table.Hash());
}

TEST(TableToText, ShowsTheExpertsOfALayerAsOneColumn) {
  PrecisionTable table;
  const auto add = [&](Role role, WeightFormat format) {
    table.rows.push_back(
        {.name = "model.layers.0.w" + std::to_string(table.rows.size()) + ".weight",
         .role = role,
         .layer = 0,
         .shape = {32, 32},
         .format = format,
         .rule = "rule"});
  };
  add(Role::kAttentionO, WeightFormat::kFp8Channel);
  add(Role::kRouter, WeightFormat::kBf16);
  for (int expert = 0; expert < 100; ++expert) {
    add(Role::kExpertGate, WeightFormat::kNvfp4);
    add(Role::kExpertUp, WeightFormat::kNvfp4);
    add(Role::kExpertDown, WeightFormat::kNvfp4);
  }
  add(Role::kSharedExpertUp, WeightFormat::kBf16);
  add(Role::kSharedExpertDown, WeightFormat::kFp8Channel);
  const std::string text = TableToText(table);
  EXPECT_THAT(text, testing::StartsWith("layers     o           experts     shared      "));
  EXPECT_THAT(text, HasSubstr("\n0          fp8-channel nvfp4       mixed       "));
}

TEST(TableToText, SeparatesLayersThatAreDecidedByOtherRules) {
  const PrecisionTable table =
      CompilePolicy(
          TestSpec({.num_layers = 6}),
          {.format = WeightFormat::kFp8, .keep_first = 1, .keep_last = 1, .keep = {"layers.3.mlp"}})
          .value();
  const std::string text = TableToText(table);
  for (const char* part : {"\n0  ", "\n1-2  ", "\n3  ", "\n4  ", "\n5  ",
                           "--format fp8, --keep layers.3.mlp\n", "--keep-first 1\n"}) {
    EXPECT_THAT(text, HasSubstr(part));
  }
  EXPECT_THAT(text, HasSubstr(table.Hash()));
}

TEST(BytesText, UsesTheLargestUnitThatFits) {
  EXPECT_EQ(BytesText(0), "0 B");
  EXPECT_EQ(BytesText(1023), "1023 B");
  EXPECT_EQ(BytesText(1536), "1.5 KiB");
  EXPECT_EQ(BytesText(int64_t{3} << 30), "3.0 GiB");
  EXPECT_EQ(BytesText(int64_t{5000} << 40), "5000.0 TiB");
}

TEST(FindRow, TakesParametersAndModulesWithAndWithoutModel) {
  const PrecisionTable table = SmallTable();
  for (const char* name :
       {"model.layers.2.mlp.up_proj.weight", "model.layers.2.mlp.up_proj",
        "layers.2.mlp.up_proj.weight", "layers.2.mlp.up_proj", "layers.2.mlp.up_proj."}) {
    const Result<const PrecisionRow*> row = FindRow(table, name);
    ASSERT_TRUE(row.has_value()) << name;
    EXPECT_EQ((*row)->name, "model.layers.2.mlp.up_proj.weight");
  }
  EXPECT_EQ((*FindRow(table, "norm"))->name, "model.norm.weight");
  const PrecisionTable untied =
      CompilePolicy(TestSpec({.tied = false}), {.format = WeightFormat::kFp8}).value();
  EXPECT_EQ((*FindRow(untied, "model.lm_head"))->name, "lm_head.weight");
}

TEST(FindRow, NamesTheNearestWhenThereIsNone) {
  const PrecisionTable table = SmallTable();
  struct Case {
    const char* name;
    const char* near;
  };
  for (const Case& c :
       {Case{"model.layers.2.mlp.up_porj", "nearest: model.layers.2.mlp.up_proj"},
        Case{"layers.2.mlp.donw_proj", "model.layers.2.mlp.down_proj"},
        Case{"layers.2.mlp", "nearest: model.layers.2.mlp.gate_proj, model.layers.2.mlp.up_proj"},
        Case{"lm_head.weight", "lm_head.weight: the model has no such weight"}}) {
    const Result<const PrecisionRow*> row = FindRow(table, c.name);
    ASSERT_FALSE(row.has_value()) << c.name;
    EXPECT_EQ(row.error().code(), StatusCode::kNotFound);
    EXPECT_THAT(row.error().message(), HasSubstr(c.near));
  }
  EXPECT_THAT(FindRow(table, "").error().message(), Not(HasSubstr("nearest")));
  EXPECT_THAT(FindRow(table, std::string(100000, 'x')).error().message(),
              Not(HasSubstr("nearest")));
}

TEST(ExplainRow, SaysEverythingAboutOneWeight) {
  const PrecisionTable table = SmallTable();
  const Result<std::string> kept = ExplainRow(table, "layers.3.mlp.down_proj");
  ASSERT_TRUE(kept.has_value());
  EXPECT_EQ(*kept, R"(model.layers.3.mlp.down_proj.weight: bf16
  role    mlp.down, layer 3, [256, 300]
  rule    --keep-last 1
  reason  The last 1 of 4 decoder layers stay in BF16.
  beats   --format fp8
  stored  model.layers.3.mlp.down_proj.weight BF16 [256, 300]
  bytes   153600 (153600 as bf16))");
  const Result<std::string> quantized = ExplainRow(table, "layers.0.mlp.down_proj");
  ASSERT_TRUE(quantized.has_value());
  EXPECT_THAT(*quantized, HasSubstr("beats   no other rule"));
  EXPECT_THAT(*quantized,
              HasSubstr("stored  model.layers.0.mlp.down_proj.weight_scale_inv F32 [2, 3]"));
}

}  // namespace
}  // namespace octavo
