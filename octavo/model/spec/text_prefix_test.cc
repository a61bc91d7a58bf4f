// Method: names as published checkpoints of plain and wrapped models have them, towers among them;
// and a table for each prefix.

#include "octavo/model/spec/text_prefix.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/checkpoint/hf_config.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/model/spec/spec_for_test.h"

namespace octavo {
namespace {

using ::testing::HasSubstr;

constexpr const char* kPrefixes[] = {"model.", "language_model.model.", "model.language_model.",
                                     "model.text_model.", ""};

HfConfig TwoLayers() {
  HfConfig config = TinyConfig("Qwen3ForCausalLM");
  config.num_layers = 2;
  return config;
}

std::string Detect(const std::vector<std::string_view>& names) {
  return DetectPrefix(names, TwoLayers());
}

TEST(TextPrefix, NamesEveryWeightOfATable) {
  for (const std::string prefix : kPrefixes) {
    const auto spec = MakeModelSpec(TwoLayers(), prefix);
    ASSERT_TRUE(spec.has_value()) << spec.error().message();
    EXPECT_EQ(spec->prefix, prefix);
    EXPECT_EQ(FindWeight(*spec, prefix + "embed_tokens.weight"), 0);
    EXPECT_GE(FindWeight(*spec, prefix + "layers.1.mlp.up_proj.weight"), 0);
    EXPECT_GE(FindWeight(*spec, prefix + "norm.weight"), 0);
    EXPECT_EQ(spec->weights.back().name, prefix == "language_model.model."
                                             ? "language_model.lm_head.weight"
                                             : "lm_head.weight");
    EXPECT_EQ(FusedSetsOf(*spec)[0].module, prefix + "layers.0.self_attn.qkv_proj");
    // Its own names lead back to it, and without it all tables are one.
    std::vector<std::string_view> names;
    for (const WeightSpec& weight : spec->weights) {
      names.push_back(weight.name);
    }
    EXPECT_EQ(Detect(names), prefix);
    const auto bare = MakeModelSpec(TwoLayers(), "");
    for (size_t i = 0; i < names.size(); ++i) {
      EXPECT_EQ(StripPrefix(names[i]), bare->weights[i].name);
      EXPECT_EQ(LayerOfName(names[i]), spec->weights[i].layer);
    }
  }
}

TEST(TextPrefix, RefusesOthersByName) {
  for (const char* prefix : {"model", "transformer.", "language_model.", "model.layers."}) {
    EXPECT_FALSE(IsTextPrefix(prefix));
    const auto spec = MakeModelSpec(TwoLayers(), prefix);
    ASSERT_FALSE(spec.has_value());
    EXPECT_EQ(spec.error().code(), StatusCode::kUnsupported);
    EXPECT_THAT(spec.error().message(), HasSubstr(std::string("\"") + prefix + "\""));
  }
}

TEST(DetectPrefix, NeverCountsTowers) {
  EXPECT_EQ(Detect({"language_model.lm_head.weight", "language_model.model.embed_tokens.weight",
                    "language_model.model.layers.0.mlp.up_proj.weight",
                    "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight",
                    "vision_tower.vision_model.encoder.layers.1.mlp.fc1.weight"}),
            "language_model.model.");
  EXPECT_EQ(Detect({"lm_head.weight", "model.language_model.layers.0.mlp.up_proj.weight",
                    "model.visual.blocks.0.mlp.fc1.weight", "model.visual.blocks.1.mlp.fc1.weight",
                    "model.vision_tower.layers.0.mlp.fc1.weight",
                    "model.audio_tower.layers.1.mlp.fc1.weight"}),
            "model.language_model.");
  EXPECT_EQ(Detect({"model.text_model.layers.1.mlp.up_proj.weight",
                    "model.vision_model.encoder.layers.0.mlp.fc1.weight"}),
            "model.text_model.");
  EXPECT_EQ(Detect({"audio_tower.layers.0.fc1.weight", "audio_tower.layers.1.fc1.weight",
                    "layers.0.mlp.up_proj.weight"}),
            "");
}

TEST(DetectPrefix, CountsOnlyLayersOfTheConfig) {
  // Another stack under "model." with indices that the text model does not have.
  EXPECT_EQ(Detect({"model.layers.2.x", "model.layers.3.x", "model.layers.-1.x",
                    "model.layers.0x.y", "model.layers.", "model.layers.99999999999999999999.x",
                    "model.language_model.layers.1.x"}),
            "model.language_model.");
  // MTP layers are the text model's.
  HfConfig config = TinyDeepseek();  // 2 layers and 1.
  const std::string_view names[] = {"language_model.model.layers.2.eh_proj.weight"};
  EXPECT_EQ(DetectPrefix(names, config), "language_model.model.");
}

TEST(DetectPrefix, FallsBackToTheUsualOne) {
  EXPECT_EQ(Detect({}), "model.");
  EXPECT_EQ(Detect({"transformer.h.0.attn.weight"}), "model.");
  // A draw goes to the first of the list.
  EXPECT_EQ(Detect({"layers.0.x", "model.layers.0.x"}), "model.");
}

TEST(StripPrefix, LeavesWhatIsNotTheTextModels) {
  EXPECT_EQ(StripPrefix("model.visual.blocks.3.attn.qkv"), "visual.blocks.3.attn.qkv");
  EXPECT_EQ(StripPrefix("vision_tower.layers.3.mlp"), "vision_tower.layers.3.mlp");
  EXPECT_EQ(StripPrefix("language_model.lm_head"), "lm_head");
  EXPECT_EQ(StripPrefix("model."), "");
  EXPECT_EQ(StripPrefix(""), "");
  EXPECT_EQ(StripPrefix("models.layers.0"), "models.layers.0");
}

TEST(LayerOfName, IsThatOfTheTextModel) {
  EXPECT_EQ(LayerOfName("model.layers.11.mlp.experts.3.up_proj.weight"), 11);
  EXPECT_EQ(LayerOfName("model.layers.11"), 11);
  EXPECT_EQ(LayerOfName("model.language_model.layers.1.mlp"), 1);
  EXPECT_EQ(LayerOfName("layers.61.eh_proj"), 61);
  EXPECT_EQ(LayerOfName("model.layers.1x.mlp"), -1);
  EXPECT_EQ(LayerOfName("model.layers."), -1);
  EXPECT_EQ(LayerOfName("model.norm.weight"), -1);
  EXPECT_EQ(LayerOfName("vision_tower.encoder.layers.3.mlp"), -1);
  EXPECT_EQ(LayerOfName("model.visual.layers.3.mlp"), -1);
  EXPECT_EQ(LayerOfName("model.mtp.layers.0.mlp"), -1);
}

}  // namespace
}  // namespace octavo
