// Method: tables written out by hand for tiny configs with and without a latent of q, with names
// and shapes as HF transformers' modules make them and MTP layers as the published checkpoint
// stores them; then each refusal once.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/checkpoint/hf_config.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/model/spec/spec_for_test.h"

namespace octavo {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

ModelSpec SpecOf(const HfConfig& config) {
  auto spec = MakeModelSpec(config);
  EXPECT_TRUE(spec.has_value()) << spec.error().message();
  return spec.has_value() ? *std::move(spec) : ModelSpec();
}

// q_b 4 * (3 + 2) = 20, kv_a 11 + 2 = 13, kv_b 4 * (3 + 7) = 40, o 4 * 7 = 28; shared 2 * 5 = 10.
constexpr const char* kTable = R"(model.embed_tokens.weight embedding [20, 8]
model.layers.0.input_layernorm.weight norm [8] layer 0
model.layers.0.self_attn.q_a_proj.weight mla.q_a [9, 8] layer 0
model.layers.0.self_attn.q_a_layernorm.weight norm [9] layer 0
model.layers.0.self_attn.q_b_proj.weight mla.q_b [20, 9] layer 0
model.layers.0.self_attn.kv_a_proj_with_mqa.weight mla.kv_a [13, 8] layer 0
model.layers.0.self_attn.kv_a_layernorm.weight norm [11] layer 0
model.layers.0.self_attn.kv_b_proj.weight mla.kv_b [40, 11] layer 0
model.layers.0.self_attn.o_proj.weight attention.o [8, 28] layer 0
model.layers.0.post_attention_layernorm.weight norm [8] layer 0
model.layers.0.mlp.gate_proj.weight mlp.gate [10, 8] layer 0
model.layers.0.mlp.up_proj.weight mlp.up [10, 8] layer 0
model.layers.0.mlp.down_proj.weight mlp.down [8, 10] layer 0
model.layers.1.input_layernorm.weight norm [8] layer 1
model.layers.1.self_attn.q_a_proj.weight mla.q_a [9, 8] layer 1
model.layers.1.self_attn.q_a_layernorm.weight norm [9] layer 1
model.layers.1.self_attn.q_b_proj.weight mla.q_b [20, 9] layer 1
model.layers.1.self_attn.kv_a_proj_with_mqa.weight mla.kv_a [13, 8] layer 1
model.layers.1.self_attn.kv_a_layernorm.weight norm [11] layer 1
model.layers.1.self_attn.kv_b_proj.weight mla.kv_b [40, 11] layer 1
model.layers.1.self_attn.o_proj.weight attention.o [8, 28] layer 1
model.layers.1.post_attention_layernorm.weight norm [8] layer 1
model.layers.1.mlp.gate.weight router [4, 8] layer 1
model.layers.1.mlp.gate.e_score_correction_bias router.bias [4] layer 1
model.layers.1.mlp.experts.0.gate_proj.weight expert.gate [5, 8] layer 1 expert 0
model.layers.1.mlp.experts.0.up_proj.weight expert.up [5, 8] layer 1 expert 0
model.layers.1.mlp.experts.0.down_proj.weight expert.down [8, 5] layer 1 expert 0
model.layers.1.mlp.experts.1.gate_proj.weight expert.gate [5, 8] layer 1 expert 1
model.layers.1.mlp.experts.1.up_proj.weight expert.up [5, 8] layer 1 expert 1
model.layers.1.mlp.experts.1.down_proj.weight expert.down [8, 5] layer 1 expert 1
model.layers.1.mlp.experts.2.gate_proj.weight expert.gate [5, 8] layer 1 expert 2
model.layers.1.mlp.experts.2.up_proj.weight expert.up [5, 8] layer 1 expert 2
model.layers.1.mlp.experts.2.down_proj.weight expert.down [8, 5] layer 1 expert 2
model.layers.1.mlp.experts.3.gate_proj.weight expert.gate [5, 8] layer 1 expert 3
model.layers.1.mlp.experts.3.up_proj.weight expert.up [5, 8] layer 1 expert 3
model.layers.1.mlp.experts.3.down_proj.weight expert.down [8, 5] layer 1 expert 3
model.layers.1.mlp.shared_experts.gate_proj.weight shared_expert.gate [10, 8] layer 1
model.layers.1.mlp.shared_experts.up_proj.weight shared_expert.up [10, 8] layer 1
model.layers.1.mlp.shared_experts.down_proj.weight shared_expert.down [8, 10] layer 1
model.norm.weight norm [8]
lm_head.weight lm_head [20, 8]
)";

constexpr const char* kMtpTable =
    R"(model.layers.2.embed_tokens.weight embedding [20, 8] layer 2 mtp
model.layers.2.enorm.weight norm [8] layer 2 mtp
model.layers.2.hnorm.weight norm [8] layer 2 mtp
model.layers.2.eh_proj.weight mtp.projection [8, 16] layer 2 mtp
model.layers.2.input_layernorm.weight norm [8] layer 2 mtp
model.layers.2.self_attn.q_a_proj.weight mla.q_a [9, 8] layer 2 mtp
model.layers.2.self_attn.q_a_layernorm.weight norm [9] layer 2 mtp
model.layers.2.self_attn.q_b_proj.weight mla.q_b [20, 9] layer 2 mtp
model.layers.2.self_attn.kv_a_proj_with_mqa.weight mla.kv_a [13, 8] layer 2 mtp
model.layers.2.self_attn.kv_a_layernorm.weight norm [11] layer 2 mtp
model.layers.2.self_attn.kv_b_proj.weight mla.kv_b [40, 11] layer 2 mtp
model.layers.2.self_attn.o_proj.weight attention.o [8, 28] layer 2 mtp
model.layers.2.post_attention_layernorm.weight norm [8] layer 2 mtp
model.layers.2.mlp.gate.weight router [4, 8] layer 2 mtp
model.layers.2.mlp.gate.e_score_correction_bias router.bias [4] layer 2 mtp
model.layers.2.mlp.experts.0.gate_proj.weight expert.gate [5, 8] layer 2 expert 0 mtp
model.layers.2.mlp.experts.0.up_proj.weight expert.up [5, 8] layer 2 expert 0 mtp
model.layers.2.mlp.experts.0.down_proj.weight expert.down [8, 5] layer 2 expert 0 mtp
model.layers.2.mlp.experts.1.gate_proj.weight expert.gate [5, 8] layer 2 expert 1 mtp
model.layers.2.mlp.experts.1.up_proj.weight expert.up [5, 8] layer 2 expert 1 mtp
model.layers.2.mlp.experts.1.down_proj.weight expert.down [8, 5] layer 2 expert 1 mtp
model.layers.2.mlp.experts.2.gate_proj.weight expert.gate [5, 8] layer 2 expert 2 mtp
model.layers.2.mlp.experts.2.up_proj.weight expert.up [5, 8] layer 2 expert 2 mtp
model.layers.2.mlp.experts.2.down_proj.weight expert.down [8, 5] layer 2 expert 2 mtp
model.layers.2.mlp.experts.3.gate_proj.weight expert.gate [5, 8] layer 2 expert 3 mtp
model.layers.2.mlp.experts.3.up_proj.weight expert.up [5, 8] layer 2 expert 3 mtp
model.layers.2.mlp.experts.3.down_proj.weight expert.down [8, 5] layer 2 expert 3 mtp
model.layers.2.mlp.shared_experts.gate_proj.weight shared_expert.gate [10, 8] layer 2 mtp
model.layers.2.mlp.shared_experts.up_proj.weight shared_expert.up [10, 8] layer 2 mtp
model.layers.2.mlp.shared_experts.down_proj.weight shared_expert.down [8, 10] layer 2 mtp
model.layers.2.shared_head.norm.weight norm [8] layer 2 mtp
model.layers.2.shared_head.head.weight lm_head [20, 8] layer 2 mtp
)";

TEST(DeepseekV3Spec, WritesOutEveryWeight) {
  HfConfig config = TinyDeepseek();
  EXPECT_EQ(TableText(SpecOf(config)), std::string(kTable) + kMtpTable);
  config.num_mtp_layers = 0;
  EXPECT_EQ(TableText(SpecOf(config)), kTable);
}

TEST(DeepseekV3Spec, HasOneProjectionOfQueriesWithoutTheirLatent) {
  HfConfig config = TinyDeepseek();
  config.num_layers = 1;
  config.num_mtp_layers = 0;
  config.mla.q_lora_rank = 0;
  config.attention_bias = true;
  config.tie_word_embeddings = true;
  config.moe = {};
  const ModelSpec spec = SpecOf(config);
  EXPECT_EQ(TableText(spec), R"(model.embed_tokens.weight embedding [20, 8]
model.layers.0.input_layernorm.weight norm [8] layer 0
model.layers.0.self_attn.q_proj.weight attention.q [20, 8] layer 0
model.layers.0.self_attn.kv_a_proj_with_mqa.weight mla.kv_a [13, 8] layer 0
model.layers.0.self_attn.kv_a_proj_with_mqa.bias bias [13] layer 0
model.layers.0.self_attn.kv_a_layernorm.weight norm [11] layer 0
model.layers.0.self_attn.kv_b_proj.weight mla.kv_b [40, 11] layer 0
model.layers.0.self_attn.o_proj.weight attention.o [8, 28] layer 0
model.layers.0.self_attn.o_proj.bias bias [8] layer 0
model.layers.0.post_attention_layernorm.weight norm [8] layer 0
model.layers.0.mlp.gate_proj.weight mlp.gate [10, 8] layer 0
model.layers.0.mlp.up_proj.weight mlp.up [10, 8] layer 0
model.layers.0.mlp.down_proj.weight mlp.down [8, 10] layer 0
model.norm.weight norm [8]
)");
  // Neither a lone q_proj nor a lone kv_a makes a set.
  const std::vector<FusedSet> sets = FusedSetsOf(spec);
  ASSERT_EQ(sets.size(), 1U);
  EXPECT_EQ(sets[0].module, "model.layers.0.mlp.gate_up_proj");
}

// HF: q_a, kv_a and o have biases, q_b and kv_b have none.
TEST(DeepseekV3Spec, GivesAttentionBiasesToWhatReadsAndWritesTheHiddenState) {
  HfConfig config = TinyDeepseek();
  config.attention_bias = true;
  const ModelSpec spec = SpecOf(config);
  std::vector<std::string> biases;
  for (const WeightSpec& weight : spec.weights) {
    if (weight.role == Role::kBias && weight.layer == 0) {
      biases.push_back(weight.name + " " + ShapeString(weight.shape));
    }
  }
  EXPECT_THAT(biases, ElementsAre("model.layers.0.self_attn.q_a_proj.bias [9]",
                                  "model.layers.0.self_attn.kv_a_proj_with_mqa.bias [13]",
                                  "model.layers.0.self_attn.o_proj.bias [8]"));
}

TEST(DeepseekV3Spec, FusesDownProjectionsAndGateWithUp) {
  const ModelSpec spec = SpecOf(TinyDeepseek());
  std::vector<std::string> sets;
  for (const FusedSet& set : FusedSetsOf(spec)) {
    std::string text = set.module + " =";
    for (const int member : set.members) {
      const std::string& name = spec.weights[static_cast<size_t>(member)].name;
      text += " " + name.substr(name.rfind('.', name.size() - 8) + 1);
    }
    sets.push_back(text);
  }
  ASSERT_EQ(sets.size(), 14U);  // 2, then 1 + 4 + 1 for each sparse layer.
  sets.resize(8);
  EXPECT_THAT(
      sets,
      ElementsAre("model.layers.0.self_attn.fused_qkv_a_proj_with_mqa = q_a_proj.weight "
                  "kv_a_proj_with_mqa.weight",
                  "model.layers.0.mlp.gate_up_proj = gate_proj.weight up_proj.weight",
                  "model.layers.1.self_attn.fused_qkv_a_proj_with_mqa = q_a_proj.weight "
                  "kv_a_proj_with_mqa.weight",
                  "model.layers.1.mlp.experts.0.gate_up_proj = gate_proj.weight up_proj.weight",
                  "model.layers.1.mlp.experts.1.gate_up_proj = gate_proj.weight up_proj.weight",
                  "model.layers.1.mlp.experts.2.gate_up_proj = gate_proj.weight up_proj.weight",
                  "model.layers.1.mlp.experts.3.gate_up_proj = gate_proj.weight up_proj.weight",
                  "model.layers.1.mlp.shared_experts.gate_up_proj = gate_proj.weight "
                  "up_proj.weight"));
}

// Layer i is sparse if i >= first_k_dense_replace and i % moe_layer_freq == 0; MTP layers always.
TEST(DeepseekV3Spec, KnowsWhichLayersAreSparse) {
  HfConfig config = TinyDeepseek();
  config.num_layers = 5;
  config.moe.moe_layer_freq = 2;
  EXPECT_THAT(SpecOf(config).moe.is_sparse, ElementsAre(false, false, true, false, true, true));
  config.moe.moe_layer_freq = 1;
  config.moe.first_k_dense_replace = 0;
  EXPECT_THAT(SpecOf(config).moe.is_sparse, ElementsAre(true, true, true, true, true, true));
  config.moe.first_k_dense_replace = 9;
  EXPECT_THAT(SpecOf(config).moe.is_sparse, ElementsAre(false, false, false, false, false, true));
  config.moe = {};
  EXPECT_THAT(SpecOf(config).moe.is_sparse, IsEmpty());
}

TEST(DeepseekV3Spec, HasNoSharedExpertWhereTheConfigHasNone) {
  HfConfig config = TinyDeepseek();
  config.moe.n_shared_experts = 0;
  const ModelSpec spec = SpecOf(config);
  EXPECT_EQ(spec.moe.shared_intermediate_size, 0);
  EXPECT_EQ(FindWeight(spec, "model.layers.1.mlp.shared_experts.up_proj.weight"), -1);
}

TEST(DeepseekV3Spec, CarriesWhatTheForwardPassNeeds) {
  HfConfig config = TinyDeepseek();
  config.rope_scaling = {.type = RopeType::kYarn, .factor = 40.0, .mscale_all_dim = 1.0};
  const ModelSpec spec = SpecOf(config);
  EXPECT_EQ(spec.num_mtp_layers, 1);
  EXPECT_EQ(spec.num_kv_heads, 4);
  EXPECT_EQ(spec.head_dim, 5);  // 3 + 2
  EXPECT_EQ(spec.rope_scaling, config.rope_scaling);
  EXPECT_EQ(spec.mla.q_lora_rank, 9);
  EXPECT_EQ(spec.mla.kv_lora_rank, 11);
  EXPECT_EQ(spec.mla.qk_nope_head_dim, 3);
  EXPECT_EQ(spec.mla.qk_rope_head_dim, 2);
  EXPECT_EQ(spec.mla.v_head_dim, 7);
  EXPECT_EQ(spec.mla.latent_norm_eps, 1e-6F);
  EXPECT_EQ(spec.rms_norm_eps, 1e-5F);
  EXPECT_TRUE(spec.mla.is_rope_interleaved);  // HF's default.
  EXPECT_EQ(spec.moe.scoring, RouterScoring::kSigmoid);
  EXPECT_EQ(spec.moe.num_groups, 2);
  EXPECT_EQ(spec.moe.top_groups, 1);
  EXPECT_EQ(spec.moe.routed_scaling_factor, 2.5);
  EXPECT_TRUE(spec.moe.norm_topk_prob);  // HF's default.
  config.mla.rope_interleave = false;
  config.moe.norm_topk_prob = false;
  EXPECT_FALSE(SpecOf(config).mla.is_rope_interleaved);
  EXPECT_FALSE(SpecOf(config).moe.norm_topk_prob);
}

struct Refusal {
  const char* message;
  std::function<void(HfConfig&)> change;
};

void ExpectRefusals(StatusCode code, const std::vector<Refusal>& cases) {
  for (const Refusal& c : cases) {
    HfConfig config = TinyDeepseek();
    c.change(config);
    const auto spec = MakeModelSpec(config);
    ASSERT_FALSE(spec.has_value()) << c.message;
    EXPECT_EQ(spec.error().code(), code) << c.message;
    EXPECT_EQ(spec.error().message(), c.message);
  }
}

TEST(DeepseekV3Spec, RefusesByNameWhatItDoesNotHave) {
  ExpectRefusals(
      StatusCode::kUnsupported,
      {{"config.json: scoring_func: expected sigmoid for DeepseekV3ForCausalLM, got softmax",
        [](HfConfig& c) { c.moe.scoring_func = "softmax"; }},
       {"config.json: topk_method: expected noaux_tc for DeepseekV3ForCausalLM, got "
        "group_limited_greedy",
        [](HfConfig& c) { c.moe.topk_method = "group_limited_greedy"; }},
       {"config.json: decoder_sparse_step: expected 1 for DeepseekV3ForCausalLM, got 2",
        [](HfConfig& c) { c.moe.decoder_sparse_step = 2; }},
       {"config.json: mlp_only_layers: expected none for DeepseekV3ForCausalLM, got 2",
        [](HfConfig& c) { c.moe.mlp_only_layers = {0, 1}; }}});
}

TEST(DeepseekV3Spec, RefusesAttentionThatDoesNotFit) {
  ExpectRefusals(
      StatusCode::kInvalidArgument,
      {{"config.json: kv_lora_rank: expected 1 to 1073741824, got 0",
        [](HfConfig& c) { c.mla.kv_lora_rank = 0; }},
       {"config.json: q_lora_rank: expected 1 to 1073741824, got -1",
        [](HfConfig& c) { c.mla.q_lora_rank = -1; }},
       {"config.json: qk_nope_head_dim: expected 1 to 1073741824, got 0",
        [](HfConfig& c) { c.mla.qk_nope_head_dim = 0; }},
       {"config.json: qk_rope_head_dim: expected 1 to 1073741824, got 0",
        [](HfConfig& c) { c.mla.qk_rope_head_dim = 0; }},
       {"config.json: qk_rope_head_dim: expected an even number, got 3",
        [](HfConfig& c) { c.mla.qk_rope_head_dim = 3; }},
       {"config.json: v_head_dim: expected 1 to 1073741824, got 0",
        [](HfConfig& c) { c.mla.v_head_dim = 0; }},
       {"config.json: num_attention_heads * (qk_nope_head_dim + qk_rope_head_dim): expected 1 to "
        "1073741824, got 4294967304",
        [](HfConfig& c) { c.mla.qk_nope_head_dim = 1 << 30; }},
       {"config.json: num_attention_heads * (qk_nope_head_dim + v_head_dim): expected 1 to "
        "1073741824, got 4294967308",
        [](HfConfig& c) { c.mla.v_head_dim = 1 << 30; }},
       {"config.json: num_key_value_heads: expected num_attention_heads 4 as latent attention has, "
        "got 2",
        [](HfConfig& c) { c.num_kv_heads = 2; }},
       {"config.json: num_nextn_predict_layers: expected 0 to 4096, got -1",
        [](HfConfig& c) { c.num_mtp_layers = -1; }}});
}

TEST(DeepseekV3Spec, RefusesRoutingThatDoesNotFit) {
  ExpectRefusals(
      StatusCode::kInvalidArgument,
      {{"config.json: first_k_dense_replace: expected a number, got nothing",
        [](HfConfig& c) { c.moe.first_k_dense_replace.reset(); }},
       {"config.json: n_shared_experts: expected a number, got nothing",
        [](HfConfig& c) { c.moe.n_shared_experts.reset(); }},
       {"config.json: n_group: expected a number, got nothing",
        [](HfConfig& c) { c.moe.n_group.reset(); }},
       {"config.json: topk_group: expected a number, got nothing",
        [](HfConfig& c) { c.moe.topk_group.reset(); }},
       {"config.json: routed_scaling_factor: expected a number, got nothing",
        [](HfConfig& c) { c.moe.routed_scaling_factor.reset(); }},
       {"config.json: n_shared_experts: expected 1 to 1073741824, got -1",
        [](HfConfig& c) { c.moe.n_shared_experts = -1; }},
       {"config.json: moe_intermediate_size * n_shared_experts: expected 1 to 1073741824, got "
        "5000000000",
        [](HfConfig& c) { c.moe.n_shared_experts = 1000000000; }},
       {"config.json: moe_layer_freq: expected 1 to 1073741824, got 0",
        [](HfConfig& c) { c.moe.moe_layer_freq = 0; }},
       {"config.json: n_group: expected a divisor of n_routed_experts 4, got 3",
        [](HfConfig& c) { c.moe.n_group = 3; }},
       {"config.json: n_group: expected groups of 2 experts or more, got 4 of 4 experts",
        [](HfConfig& c) { c.moe.n_group = 4; }},
       {"config.json: topk_group: expected 1 to n_group 2, got 3",
        [](HfConfig& c) { c.moe.topk_group = 3; }},
       {"config.json: num_experts_per_tok: expected at most 2 experts of 1 groups, got 3",
        [](HfConfig& c) { c.moe.num_experts_per_tok = 3; }}});
}

}  // namespace
}  // namespace octavo
