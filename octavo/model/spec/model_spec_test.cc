// Method: the weight table of a small Qwen3 written out by hand (names and shapes as HF
// transformers builds Qwen3ForCausalLM), and one case for each refused setting.

#include "octavo/model/spec/model_spec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <set>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/checkpoint/hf_config.h"

namespace octavo {
namespace {

using ::testing::HasSubstr;

// Two layers, 4 query heads and 2 key/value heads of 64.
HfConfig SmallConfig() {
  HfConfig config;
  config.architecture = "Qwen3ForCausalLM";
  config.model_type = "qwen3";
  config.hidden_size = 192;
  config.num_layers = 2;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 64;
  config.intermediate_size = 320;
  config.vocab_size = 690;
  config.max_position_embeddings = 4096;
  config.rms_norm_eps = 1e-6;
  config.rope_theta = 10000.0;
  return config;
}

TEST(ModelSpec, WritesOutEveryWeightOfQwen3) {
  const Result<ModelSpec> spec = MakeModelSpec(SmallConfig());
  ASSERT_TRUE(spec.has_value()) << spec.error().message();
  // 1 embedding, 2 layers of 11, the final norm and the head.
  ASSERT_EQ(spec->weights.size(), 1 + 2 * 11 + 2U);
  struct Expected {
    const char* name;
    Role role;
    int layer;
    Shape shape;
  };
  const Expected expected[] = {
      {"model.embed_tokens.weight", Role::kEmbedding, -1, {690, 192}},
      {"model.layers.0.input_layernorm.weight", Role::kNorm, 0, {192}},
      {"model.layers.0.self_attn.q_proj.weight", Role::kAttentionQ, 0, {256, 192}},
      {"model.layers.0.self_attn.k_proj.weight", Role::kAttentionK, 0, {128, 192}},
      {"model.layers.0.self_attn.v_proj.weight", Role::kAttentionV, 0, {128, 192}},
      {"model.layers.0.self_attn.q_norm.weight", Role::kNorm, 0, {64}},
      {"model.layers.0.self_attn.k_norm.weight", Role::kNorm, 0, {64}},
      {"model.layers.0.self_attn.o_proj.weight", Role::kAttentionO, 0, {192, 256}},
      {"model.layers.0.post_attention_layernorm.weight", Role::kNorm, 0, {192}},
      {"model.layers.0.mlp.gate_proj.weight", Role::kMlpGate, 0, {320, 192}},
      {"model.layers.0.mlp.up_proj.weight", Role::kMlpUp, 0, {320, 192}},
      {"model.layers.0.mlp.down_proj.weight", Role::kMlpDown, 0, {192, 320}},
      {"model.layers.1.input_layernorm.weight", Role::kNorm, 1, {192}},
  };
  for (size_t i = 0; i < std::size(expected); ++i) {
    EXPECT_EQ(spec->weights[i].name, expected[i].name);
    EXPECT_EQ(spec->weights[i].role, expected[i].role) << expected[i].name;
    EXPECT_EQ(spec->weights[i].layer, expected[i].layer) << expected[i].name;
    EXPECT_EQ(spec->weights[i].shape, expected[i].shape) << expected[i].name;
  }
  EXPECT_EQ(spec->weights[23].name, "model.norm.weight");
  EXPECT_EQ(spec->weights[24].name, "lm_head.weight");
  EXPECT_EQ(spec->weights[24].role, Role::kLmHead);
}

TEST(ModelSpec, CarriesTheDimensions) {
  HfConfig config = SmallConfig();
  config.tie_word_embeddings = true;
  const Result<ModelSpec> spec = MakeModelSpec(config);
  ASSERT_TRUE(spec.has_value());
  EXPECT_EQ(spec->architecture, "Qwen3ForCausalLM");
  EXPECT_EQ(spec->hidden_size, 192);
  EXPECT_EQ(spec->num_layers, 2);
  EXPECT_EQ(spec->num_heads, 4);
  EXPECT_EQ(spec->num_kv_heads, 2);
  EXPECT_EQ(spec->head_dim, 64);
  EXPECT_EQ(spec->intermediate_size, 320);
  EXPECT_EQ(spec->vocab_size, 690);
  EXPECT_EQ(spec->max_position_embeddings, 4096);
  EXPECT_EQ(spec->rms_norm_eps, 1e-6F);
  EXPECT_EQ(spec->rope_theta, 10000.0);
  EXPECT_TRUE(spec->tie_word_embeddings);
}

TEST(ModelSpec, HasNoHeadWhenEmbeddingsAreTied) {
  HfConfig config = SmallConfig();
  config.tie_word_embeddings = true;
  const Result<ModelSpec> spec = MakeModelSpec(config);
  ASSERT_TRUE(spec.has_value());
  EXPECT_EQ(FindWeight(*spec, "lm_head.weight"), -1);
  EXPECT_EQ(spec->weights.back().name, "model.norm.weight");
}

TEST(ModelSpec, FindsAWeightByItsWholeName) {
  const Result<ModelSpec> spec = MakeModelSpec(SmallConfig());
  ASSERT_TRUE(spec.has_value());
  EXPECT_EQ(FindWeight(*spec, "model.embed_tokens.weight"), 0);
  EXPECT_EQ(FindWeight(*spec, "model.norm.weight"), 23);
  EXPECT_EQ(FindWeight(*spec, "model.norm"), -1);
  EXPECT_EQ(FindWeight(*spec, ""), -1);
}

TEST(ModelSpec, RefusesOtherArchitecturesByName) {
  for (const char* name : {"GptOssForCausalLM", "DeepseekV2ForCausalLM", ""}) {
    HfConfig config = SmallConfig();
    config.architecture = name;
    const Result<ModelSpec> spec = MakeModelSpec(config);
    ASSERT_FALSE(spec.has_value());
    EXPECT_EQ(spec.error().code(), StatusCode::kUnsupported);
    EXPECT_THAT(spec.error().message(), HasSubstr(*name != 0 ? name : "none"));
  }
}

TEST(ModelSpec, RefusesDimensionsThatDoNotFit) {
  struct Case {
    const char* key;
    std::function<void(HfConfig&)> change;
  };
  const Case cases[] = {
      {"hidden_size", [](HfConfig& c) { c.hidden_size = 0; }},
      {"num_hidden_layers", [](HfConfig& c) { c.num_layers = -1; }},
      {"num_hidden_layers", [](HfConfig& c) { c.num_layers = int64_t{1} << 40; }},
      {"num_attention_heads", [](HfConfig& c) { c.num_heads = 0; }},
      {"num_attention_heads", [](HfConfig& c) { c.num_heads = 3; }},
      {"num_attention_heads * head_dim",
       [](HfConfig& c) { c.num_heads = c.head_dim = int64_t{1} << 29; }},
      {"num_key_value_heads", [](HfConfig& c) { c.num_kv_heads = 0; }},
      {"head_dim", [](HfConfig& c) { c.head_dim = 63; }},
      {"intermediate_size", [](HfConfig& c) { c.intermediate_size = int64_t{1} << 50; }},
      {"vocab_size", [](HfConfig& c) { c.vocab_size = 0; }},
      {"max_position_embeddings", [](HfConfig& c) { c.max_position_embeddings = 0; }},
  };
  for (const Case& c : cases) {
    HfConfig config = SmallConfig();
    c.change(config);
    const Result<ModelSpec> spec = MakeModelSpec(config);
    ASSERT_FALSE(spec.has_value()) << c.key;
    EXPECT_EQ(spec.error().code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(spec.error().message(), HasSubstr(c.key));
  }
}

TEST(FusedSets, AreQkvAndGateUpOfEachLayer) {
  const Result<ModelSpec> spec = MakeModelSpec(SmallConfig());
  ASSERT_TRUE(spec.has_value());
  const std::vector<FusedSet> sets = FusedSetsOf(*spec);
  ASSERT_EQ(sets.size(), 4U);
  EXPECT_EQ(sets[0].module, "model.layers.0.self_attn.qkv_proj");
  EXPECT_EQ(sets[0].members, (std::vector<int>{2, 3, 4}));
  EXPECT_EQ(sets[1].module, "model.layers.0.mlp.gate_up_proj");
  EXPECT_EQ(sets[1].members, (std::vector<int>{9, 10}));
  EXPECT_EQ(sets[3].module, "model.layers.1.mlp.gate_up_proj");
}

TEST(ModuleOfWeight, RemovesOnlyTheLastPart) {
  EXPECT_EQ(ModuleOfWeight("lm_head.weight"), "lm_head");
  EXPECT_EQ(ModuleOfWeight("a.weight.b.weight"), "a.weight.b");
  EXPECT_EQ(ModuleOfWeight("a.bias"), "a.bias");
}

TEST(Role, NamesAreDistinctAndOnlyProjectionsAreLinear) {
  std::set<std::string_view> names;
  int num_linear = 0;
  int num_expert = 0;
  constexpr int kNumRoles = static_cast<int>(Role::kMtpProjection) + 1;
  for (int i = 0; i < kNumRoles; ++i) {
    names.insert(RoleName(static_cast<Role>(i)));
    num_linear += IsLinearRole(static_cast<Role>(i)) ? 1 : 0;
    num_expert += IsExpertRole(static_cast<Role>(i)) ? 1 : 0;
  }
  EXPECT_EQ(names.size(), static_cast<size_t>(kNumRoles));
  EXPECT_EQ(names.count("unknown"), 0U);
  // All but embedding, head, norm, bias, router, its bias, eh_proj.
  EXPECT_EQ(num_linear, kNumRoles - 7);
  EXPECT_EQ(num_expert, 3);
}

}  // namespace
}  // namespace octavo
