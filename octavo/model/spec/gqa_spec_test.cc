// Method: tables written out by hand for tiny configs of each architecture and option, with names
// and shapes as HF transformers' modules make them; then each refusal once.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/checkpoint/hf_config.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/model/spec/spec_for_test.h"

namespace octavo {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

ModelSpec SpecOf(const HfConfig& config) {
  auto spec = MakeModelSpec(config);
  EXPECT_TRUE(spec.has_value()) << spec.error().message();
  return spec.has_value() ? *std::move(spec) : ModelSpec();
}

// q 4 heads of 6 = 24, k and v 2 heads of 6 = 12.
TEST(LlamaSpec, HasNoNormsOfQueriesAndKeys) {
  EXPECT_EQ(TableText(SpecOf(TinyConfig("LlamaForCausalLM"))),
            R"(model.embed_tokens.weight embedding [20, 8]
model.layers.0.input_layernorm.weight norm [8] layer 0
model.layers.0.self_attn.q_proj.weight attention.q [24, 8] layer 0
model.layers.0.self_attn.k_proj.weight attention.k [12, 8] layer 0
model.layers.0.self_attn.v_proj.weight attention.v [12, 8] layer 0
model.layers.0.self_attn.o_proj.weight attention.o [8, 24] layer 0
model.layers.0.post_attention_layernorm.weight norm [8] layer 0
model.layers.0.mlp.gate_proj.weight mlp.gate [10, 8] layer 0
model.layers.0.mlp.up_proj.weight mlp.up [10, 8] layer 0
model.layers.0.mlp.down_proj.weight mlp.down [8, 10] layer 0
model.norm.weight norm [8]
lm_head.weight lm_head [20, 8]
)");
}

TEST(Qwen2Spec, HasBiasesOfQueriesKeysAndValuesOnly) {
  HfConfig config = TinyConfig("Qwen2ForCausalLM");
  config.tie_word_embeddings = true;
  const std::string expected = R"(model.embed_tokens.weight embedding [20, 8]
model.layers.0.input_layernorm.weight norm [8] layer 0
model.layers.0.self_attn.q_proj.weight attention.q [24, 8] layer 0
model.layers.0.self_attn.q_proj.bias bias [24] layer 0
model.layers.0.self_attn.k_proj.weight attention.k [12, 8] layer 0
model.layers.0.self_attn.k_proj.bias bias [12] layer 0
model.layers.0.self_attn.v_proj.weight attention.v [12, 8] layer 0
model.layers.0.self_attn.v_proj.bias bias [12] layer 0
model.layers.0.self_attn.o_proj.weight attention.o [8, 24] layer 0
model.layers.0.post_attention_layernorm.weight norm [8] layer 0
model.layers.0.mlp.gate_proj.weight mlp.gate [10, 8] layer 0
model.layers.0.mlp.up_proj.weight mlp.up [10, 8] layer 0
model.layers.0.mlp.down_proj.weight mlp.down [8, 10] layer 0
model.norm.weight norm [8]
)";
  const ModelSpec spec = SpecOf(config);
  EXPECT_EQ(TableText(spec), expected);
  EXPECT_TRUE(spec.has_qkv_bias);
  EXPECT_FALSE(spec.has_o_bias);
  // HF's class does not look at attention_bias.
  config.attention_bias = true;
  EXPECT_EQ(TableText(SpecOf(config)), expected);
}

TEST(GqaSpec, GivesAttentionBiasesToAllFourProjections) {
  for (const char* architecture : {"Qwen3ForCausalLM", "Qwen3MoeForCausalLM", "LlamaForCausalLM"}) {
    HfConfig config = TinyQwen3Moe();
    config.architecture = architecture;
    config.moe = config.architecture == "Qwen3MoeForCausalLM" ? config.moe : HfMoeConfig();
    config.attention_bias = true;
    const ModelSpec spec = SpecOf(config);
    EXPECT_TRUE(spec.has_qkv_bias);
    EXPECT_TRUE(spec.has_o_bias);
    for (const char* module : {"q_proj", "k_proj", "v_proj", "o_proj"}) {
      const std::string stem = std::string("model.layers.3.self_attn.") + module;
      const int weight = FindWeight(spec, stem + ".weight");
      const int bias = FindWeight(spec, stem + ".bias");
      ASSERT_GE(bias, 0) << stem;
      EXPECT_EQ(bias, weight + 1);
      EXPECT_EQ(spec.weights[static_cast<size_t>(bias)].role, Role::kBias);
      EXPECT_THAT(spec.weights[static_cast<size_t>(bias)].shape,
                  ElementsAre(spec.weights[static_cast<size_t>(weight)].shape[0]));
    }
    // They part no fused set: the members are the three weights.
    EXPECT_EQ(FusedSetsOf(spec)[0].members.size(), 3U);
  }
}

TEST(Qwen3MoeSpec, HasARouterAndExpertsInSparseLayers) {
  HfConfig config = TinyQwen3Moe();
  config.num_layers = 1;
  EXPECT_EQ(TableText(SpecOf(config)),
            R"(model.embed_tokens.weight embedding [20, 8]
model.layers.0.input_layernorm.weight norm [8] layer 0
model.layers.0.self_attn.q_proj.weight attention.q [24, 8] layer 0
model.layers.0.self_attn.k_proj.weight attention.k [12, 8] layer 0
model.layers.0.self_attn.v_proj.weight attention.v [12, 8] layer 0
model.layers.0.self_attn.q_norm.weight norm [6] layer 0
model.layers.0.self_attn.k_norm.weight norm [6] layer 0
model.layers.0.self_attn.o_proj.weight attention.o [8, 24] layer 0
model.layers.0.post_attention_layernorm.weight norm [8] layer 0
model.layers.0.mlp.gate.weight router [3, 8] layer 0
model.layers.0.mlp.experts.0.gate_proj.weight expert.gate [5, 8] layer 0 expert 0
model.layers.0.mlp.experts.0.up_proj.weight expert.up [5, 8] layer 0 expert 0
model.layers.0.mlp.experts.0.down_proj.weight expert.down [8, 5] layer 0 expert 0
model.layers.0.mlp.experts.1.gate_proj.weight expert.gate [5, 8] layer 0 expert 1
model.layers.0.mlp.experts.1.up_proj.weight expert.up [5, 8] layer 0 expert 1
model.layers.0.mlp.experts.1.down_proj.weight expert.down [8, 5] layer 0 expert 1
model.layers.0.mlp.experts.2.gate_proj.weight expert.gate [5, 8] layer 0 expert 2
model.layers.0.mlp.experts.2.up_proj.weight expert.up [5, 8] layer 0 expert 2
model.layers.0.mlp.experts.2.down_proj.weight expert.down [8, 5] layer 0 expert 2
model.norm.weight norm [8]
lm_head.weight lm_head [20, 8]
)");
}

// Layer i is sparse if (i + 1) % decoder_sparse_step == 0 and mlp_only_layers does not list it.
TEST(Qwen3MoeSpec, KnowsWhichLayersAreSparse) {
  HfConfig config = TinyQwen3Moe();
  EXPECT_THAT(SpecOf(config).moe.is_sparse, ElementsAre(true, true, true, true));
  config.moe.mlp_only_layers = {0, 2};
  EXPECT_THAT(SpecOf(config).moe.is_sparse, ElementsAre(false, true, false, true));
  config.moe.decoder_sparse_step = 2;
  config.moe.mlp_only_layers = {1};
  const ModelSpec spec = SpecOf(config);
  EXPECT_THAT(spec.moe.is_sparse, ElementsAre(false, false, false, true));
  for (int64_t layer = 0; layer < 4; ++layer) {
    const std::string mlp = "model.layers." + std::to_string(layer) + ".mlp.";
    EXPECT_EQ(IsSparseLayer(spec, layer), layer == 3);
    EXPECT_EQ(FindWeight(spec, mlp + "up_proj.weight") >= 0, layer != 3);
    EXPECT_EQ(FindWeight(spec, mlp + "experts.2.up_proj.weight") >= 0, layer == 3);
  }
  EXPECT_FALSE(IsSparseLayer(spec, -1));
  EXPECT_FALSE(IsSparseLayer(spec, 4));
}

TEST(Qwen3MoeSpec, CarriesTheRouting) {
  HfConfig config = TinyQwen3Moe();
  MoeSpec moe = SpecOf(config).moe;
  EXPECT_EQ(moe.num_experts, 3);
  EXPECT_EQ(moe.top_k, 2);
  EXPECT_EQ(moe.intermediate_size, 5);
  EXPECT_EQ(moe.shared_intermediate_size, 0);
  EXPECT_EQ(moe.scoring, RouterScoring::kSoftmax);
  EXPECT_EQ(moe.num_groups, 1);
  EXPECT_EQ(moe.top_groups, 1);
  EXPECT_EQ(moe.routed_scaling_factor, 1.0);
  EXPECT_FALSE(moe.norm_topk_prob);  // HF's default.
  config.moe.norm_topk_prob = true;
  EXPECT_TRUE(SpecOf(config).moe.norm_topk_prob);
}

TEST(GqaSpec, CarriesWhatTheForwardPassNeeds) {
  HfConfig config = TinyConfig("LlamaForCausalLM");
  config.rope_scaling = {.type = RopeType::kLlama3, .factor = 8.0};
  const ModelSpec spec = SpecOf(config);
  EXPECT_EQ(spec.rope_scaling, config.rope_scaling);
  EXPECT_EQ(spec.head_dim, 6);
  EXPECT_EQ(spec.mla.kv_lora_rank, 0);
  EXPECT_EQ(spec.moe.num_experts, 0);
  EXPECT_THAT(spec.moe.is_sparse, IsEmpty());
  EXPECT_FALSE(IsSparseLayer(spec, 0));
  EXPECT_FALSE(spec.has_qk_norm);
  EXPECT_TRUE(SpecOf(TinyConfig("Qwen3ForCausalLM")).has_qk_norm);
  EXPECT_FALSE(SpecOf(TinyConfig("Qwen2ForCausalLM")).has_qk_norm);
}

struct Refusal {
  const char* message;
  std::function<void(HfConfig&)> change;
};

void ExpectRefusals(const HfConfig& good, StatusCode code, const std::vector<Refusal>& cases) {
  for (const Refusal& c : cases) {
    HfConfig config = good;
    c.change(config);
    const auto spec = MakeModelSpec(config);
    ASSERT_FALSE(spec.has_value()) << c.message;
    EXPECT_EQ(spec.error().code(), code) << c.message;
    EXPECT_EQ(spec.error().message(), c.message);
  }
}

TEST(Qwen3MoeSpec, RefusesByNameWhatItDoesNotHave) {
  ExpectRefusals(
      TinyQwen3Moe(), StatusCode::kUnsupported,
      {{"config.json: kv_lora_rank: expected nothing for Qwen3MoeForCausalLM, got 4",
        [](HfConfig& c) { c.mla.kv_lora_rank = 4; }},
       {"config.json: num_nextn_predict_layers: expected 0 for Qwen3MoeForCausalLM, got 1",
        [](HfConfig& c) { c.num_mtp_layers = 1; }},
       {"config.json: n_shared_experts: expected 0 for Qwen3MoeForCausalLM, got 1",
        [](HfConfig& c) { c.moe.n_shared_experts = 1; }},
       {"config.json: n_group: expected 1 for Qwen3MoeForCausalLM, got 8",
        [](HfConfig& c) { c.moe.n_group = 8; }},
       {"config.json: routed_scaling_factor: expected 1 for Qwen3MoeForCausalLM, got 2.5",
        [](HfConfig& c) { c.moe.routed_scaling_factor = 2.5; }},
       {"config.json: first_k_dense_replace: expected 0 for Qwen3MoeForCausalLM, got 3",
        [](HfConfig& c) { c.moe.first_k_dense_replace = 3; }},
       {"config.json: moe_layer_freq: expected 1 for Qwen3MoeForCausalLM, got 2",
        [](HfConfig& c) { c.moe.moe_layer_freq = 2; }},
       {"config.json: scoring_func: expected softmax for Qwen3MoeForCausalLM, got sigmoid",
        [](HfConfig& c) { c.moe.scoring_func = "sigmoid"; }},
       {"config.json: topk_method: expected greedy for Qwen3MoeForCausalLM, got noaux_tc",
        [](HfConfig& c) { c.moe.topk_method = "noaux_tc"; }}});
  // The values that say what it does anyway.
  HfConfig config = TinyQwen3Moe();
  config.moe.n_shared_experts = 0;
  config.moe.n_group = 1;
  config.moe.routed_scaling_factor = 1.0;
  config.moe.first_k_dense_replace = 0;
  config.moe.scoring_func = "softmax";
  config.moe.topk_method = "greedy";
  EXPECT_EQ(TableText(SpecOf(config)), TableText(SpecOf(TinyQwen3Moe())));
}

TEST(Qwen3MoeSpec, RefusesSizesThatDoNotFit) {
  ExpectRefusals(TinyQwen3Moe(), StatusCode::kInvalidArgument,
                 {{"config.json: num_experts: expected 1 to 1073741824, got 0",
                   [](HfConfig& c) { c.moe.num_experts = 0; }},
                  {"config.json: num_hidden_layers * num_experts: expected 1 to 262144, got 400000",
                   [](HfConfig& c) { c.moe.num_experts = 100000; }},
                  {"config.json: num_experts_per_tok: expected 1 to 3, got 4",
                   [](HfConfig& c) { c.moe.num_experts_per_tok = 4; }},
                  {"config.json: num_experts_per_tok: expected 1 to 3, got 0",
                   [](HfConfig& c) { c.moe.num_experts_per_tok = 0; }},
                  {"config.json: moe_intermediate_size: expected 1 to 1073741824, got 0",
                   [](HfConfig& c) { c.moe.moe_intermediate_size = 0; }},
                  {"config.json: decoder_sparse_step: expected 1 to 1073741824, got 0",
                   [](HfConfig& c) { c.moe.decoder_sparse_step = 0; }}});
}

TEST(GqaSpec, RefusesExpertsInADenseArchitecture) {
  for (const char* architecture : {"Qwen3ForCausalLM", "LlamaForCausalLM", "Qwen2ForCausalLM"}) {
    HfConfig config = TinyConfig(architecture);
    config.moe.num_experts = 8;
    const auto spec = MakeModelSpec(config);
    ASSERT_FALSE(spec.has_value());
    EXPECT_EQ(spec.error().code(), StatusCode::kUnsupported);
    EXPECT_THAT(spec.error().message(), HasSubstr("num_experts: expected nothing for "));
    EXPECT_THAT(spec.error().message(), HasSubstr(architecture));
  }
}

}  // namespace
}  // namespace octavo
