// Method: manifests of small models written and read back, figures counted from the model, and one
// case for each documented error.

#include "octavo/policy/manifest.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/formats/format.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"
#include "octavo/policy/spec_for_test.h"

namespace octavo {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

Manifest ManifestOf(const ModelSpec& spec, WeightFormat format) {
  const PrecisionTable table =
      CompilePolicy(spec, {.format = format, .scope = QuantizeScope::kAll}).value();
  Manifest manifest = MakeManifest(spec, table, {});
  manifest.weight_version = "7";
  return manifest;
}

TEST(Manifest, ComesBackAsItWasWritten) {
  for (const ModelSpec& spec : {TestSpec({.tied = true}), TestMoeSpec(), TestMlaSpec()}) {
    const WeightFormat format =
        spec.moe.num_experts > 0 ? WeightFormat::kNvfp4 : WeightFormat::kFp8;
    const Manifest manifest = ManifestOf(spec, format);
    const Result<Manifest> read = ParseManifest(ManifestToJson(manifest));
    ASSERT_TRUE(read.has_value()) << read.error().message();
    EXPECT_EQ(ManifestToJson(*read), ManifestToJson(manifest));
    EXPECT_EQ(read->table.rows.size(), spec.weights.size());
    EXPECT_EQ(read->group_of, manifest.group_of);
    EXPECT_EQ(read->weight_version, "7");
  }
}

TEST(Manifest, GroupsAreTheSetsThatShareAScale) {
  const ModelSpec spec = TestSpec({.num_layers = 2});
  const Manifest nvfp4 = ManifestOf(spec, WeightFormat::kFp8Tensor);
  std::vector<int> counts;  // Of each group.
  for (const int group : nvfp4.group_of) {
    if (group >= 0) {
      counts.resize(std::max(counts.size(), static_cast<size_t>(group) + 1));
      ++counts[static_cast<size_t>(group)];
    }
  }
  // A layer has q/k/v and gate/up.
  EXPECT_THAT(counts, ::testing::UnorderedElementsAre(3, 2, 3, 2));
  // Blocks have scales of their own.
  const Manifest fp8 = ManifestOf(spec, WeightFormat::kFp8);
  EXPECT_THAT(fp8.group_of, ::testing::Each(-1));
}

TEST(Manifest, SaysInWhichPartsAWeightMayCome) {
  const Json json = Json::parse(ManifestToJson(ManifestOf(TestSpec({}), WeightFormat::kFp8)));
  const auto& tensors = json["tensors"];
  EXPECT_EQ(tensors[0]["name"], "model.embed_tokens.weight");
  EXPECT_TRUE(tensors[0]["parts"].empty());
  for (const Json& tensor : tensors) {
    if (tensor["name"] == "model.layers.0.mlp.up_proj.weight") {  // [300, 256]
      EXPECT_EQ(tensor["format"], "fp8");
      EXPECT_EQ(tensor["parts"][0]["dtype"], "F8_E4M3");
      EXPECT_EQ(tensor["parts"][1]["name"], "model.layers.0.mlp.up_proj.weight_scale_inv");
      EXPECT_EQ(tensor["parts"][1]["kind"], "scales");
      EXPECT_EQ(tensor["parts"][1]["shape"], Json({3, 2}));
      EXPECT_EQ(tensor["optional"], false);
    }
  }
  EXPECT_EQ(json["tied_head"], "lm_head.weight");
}

TEST(Manifest, LayersOfMultiTokenPredictionAreNeededExactlyWhenTheyAreLive) {
  const ModelSpec spec = TestMlaSpec();
  const PrecisionTable table = CompilePolicy(spec, {.format = WeightFormat::kFp8}).value();
  const Manifest without = MakeManifest(spec, table, std::vector<bool>(spec.weights.size(), false));
  const Manifest with = MakeManifest(spec, table, std::vector<bool>(spec.weights.size(), true));
  for (size_t i = 0; i < spec.weights.size(); ++i) {
    EXPECT_EQ(without.is_optional[i], spec.weights[i].is_mtp) << spec.weights[i].name;
    EXPECT_FALSE(with.is_optional[i]) << spec.weights[i].name;
  }
}

TEST(Manifest, ListsTheExpertsOfALayerAsOneTensorToo) {
  const ModelSpec spec = TestMoeSpec();
  const Manifest manifest = ManifestOf(spec, WeightFormat::kFp8);
  ASSERT_EQ(manifest.stacked.size(), 2U * static_cast<size_t>(spec.num_layers));
  EXPECT_EQ(manifest.stacked[0].name, "model.layers.0.mlp.experts.gate_up_proj");
}

TEST(ParseManifest, NamesWhatIsWrong) {
  const Json good = Json::parse(ManifestToJson(ManifestOf(TestSpec({}), WeightFormat::kFp8)));
  const auto refused = [&](const char* pointer, const Json& value) {
    Json bad = good;
    bad[Json::json_pointer(pointer)] = value;
    const Result<Manifest> read = ParseManifest(bad.dump());
    EXPECT_FALSE(read.has_value()) << pointer;
    return read.has_value() ? Status() : read.error();
  };
  EXPECT_EQ(ParseManifest("[]").error().code(), StatusCode::kCorrupt);
  EXPECT_EQ(ParseManifest(std::string(1000, '[')).error().code(), StatusCode::kCorrupt);
  EXPECT_THAT(refused("/weight_version", 3).message(), HasSubstr("weight_version"));
  EXPECT_EQ(refused("/format", "fp5").code(), StatusCode::kUnsupported);
  EXPECT_EQ(refused("/layout", "new").code(), StatusCode::kUnsupported);
  EXPECT_EQ(refused("/tensors/0/role", "new").code(), StatusCode::kUnsupported);
  EXPECT_THAT(refused("/tensors", 1).message(), HasSubstr("tensors"));
  EXPECT_THAT(refused("/tensors/0", 1).message(), HasSubstr("tensors"));
  EXPECT_THAT(refused("/tensors/0/shape", {-1}).message(), HasSubstr("shape"));
  EXPECT_THAT(refused("/tensors/0/shape", {1, 1, 1, 1, 1}).message(), HasSubstr("shape"));
  EXPECT_THAT(refused("/tensors/0/layer", "a").message(), HasSubstr("layer"));
  EXPECT_THAT(refused("/tensors/0/group", -2).message(), HasSubstr("group"));
  EXPECT_THAT(refused("/tensors/0/optional", 1).message(), HasSubstr("optional"));
  EXPECT_THAT(refused("/stacked", 1).message(), HasSubstr("stacked"));
  EXPECT_THAT(refused("/tied_head", 1).message(), HasSubstr("tied_head"));
  EXPECT_THAT(refused("/tensors/0/format", "fp8").message(), HasSubstr("table_hash"));
  // A quantized row that is no matrix.
  Json bad = good;
  for (Json& tensor : bad["tensors"]) {
    if (tensor["format"] == "fp8") {
      tensor["shape"] = {256};
    }
  }
  EXPECT_THAT(ParseManifest(bad.dump()).error().message(), HasSubstr("matrix"));
}

}  // namespace
}  // namespace octavo
