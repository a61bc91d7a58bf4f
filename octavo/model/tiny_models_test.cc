// Method: random tiny checkpoints of every architecture and option against the logits of HF
// transformers' FP32 forward pass (tests/data/model/tiny, scripts/make_tiny_models.py), in the
// reference's fp32 recipe, and where HF's routers sent the tokens. Then each option is turned and
// the logits must leave the tolerance: it was looked at. Decoding token by token must have the bits
// of one pass, and the serving recipe on the vector backend those of the oracle.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/checkpoint/hf_config.h"
#include "octavo/kernels/backend.h"
#include "octavo/model/golden_for_test.h"
#include "octavo/model/model.h"
#include "octavo/model/model_for_test.h"
#include "octavo/model/spec/model_spec.h"

namespace octavo {
namespace {

// Both sides compute in FP32 and differ by the order of their sums alone.
constexpr double kTolerance = 2e-4;

std::string Folder(const std::string& name) { return "tests/data/model/tiny/" + name; }

std::vector<GoldenPrompt> Expected(const std::string& name) {
  return LoadGolden(Folder(name) + "/expected.golden");
}

class TinyModel : public testing::TestWithParam<const char*> {};

TEST_P(TinyModel, Fp32LogitsEqualTransformersWithin2e4) {
  ModelRunner runner(MakeReferenceBackend(Recipe::kFp32, 1), Folder(GetParam()), {});
  const Mismatch mismatch = Compare(runner, Expected(GetParam()));
  RecordProperty("max_abs_logit", std::to_string(mismatch.max_abs_logit));
  EXPECT_LE(mismatch.max_abs_logit, kTolerance);
}

// Empty for dense models; zeros for dense layers.
TEST_P(TinyModel, RoutedExpertsAreThoseOfTransformers) {
  ModelRunner runner(MakeReferenceBackend(Recipe::kFp32, 1), Folder(GetParam()), {});
  for (const GoldenPrompt& prompt : Expected(GetParam())) {
    runner.ClearCache();
    runner.Run(prompt.ids);
    const std::span<const int32_t> routed = runner.model().RoutedExperts();
    EXPECT_EQ(std::vector<int32_t>(routed.begin(), routed.end()), prompt.experts);
    EXPECT_EQ(routed.empty(), runner.spec().moe.num_experts == 0);
  }
}

TEST_P(TinyModel, DecodingTokenByTokenGivesTheBitsOfOnePass) {
  for (const Recipe recipe : {Recipe::kFp32, Recipe::kServing}) {
    ModelRunner runner(MakeReferenceBackend(recipe, 1), Folder(GetParam()), {});
    const std::vector<int32_t> ids = Expected(GetParam())[0].ids;
    const std::vector<float> whole = runner.Run(ids);
    runner.ClearCache();
    std::vector<float> stepwise;
    for (size_t t = 0; t < ids.size(); ++t) {
      const std::vector<float> logits = runner.Run(std::span(ids).subspan(t, 1));
      stepwise.insert(stepwise.end(), logits.begin(), logits.end());
    }
    EXPECT_EQ(std::memcmp(stepwise.data(), whole.data(), whole.size() * sizeof(float)), 0);
  }
}

TEST_P(TinyModel, CpuBackendGivesTheBitsOfTheServingRecipe) {
  Result<std::unique_ptr<Backend>> cpu = MakeCpuBackend(BestIsa(), 2);
  ASSERT_TRUE(cpu.has_value()) << cpu.error().message();
  ModelRunner fast(std::move(*cpu), Folder(GetParam()), {});
  ModelRunner oracle(MakeReferenceBackend(Recipe::kServing, 1), Folder(GetParam()), {});
  const std::vector<int32_t> ids = Expected(GetParam())[0].ids;
  const std::vector<float> actual = fast.Run(ids);
  const std::vector<float> expected = oracle.Run(ids);
  ASSERT_EQ(actual.size(), expected.size());
  EXPECT_EQ(std::memcmp(actual.data(), expected.data(), expected.size() * sizeof(float)), 0);
}

std::string TestName(const testing::TestParamInfo<const char*>& info) {
  std::string name = info.param;
  std::erase(name, '-');
  return name;
}

INSTANTIATE_TEST_SUITE_P(All, TinyModel,
                         testing::Values("qwen3-tied", "qwen3-bias-yarn", "qwen3moe-norm",
                                         "qwen3moe-step2", "qwen3moe-listed", "deepseek-plain",
                                         "deepseek-yarn", "deepseek-split", "llama-tied",
                                         "llama-bias", "qwen2", "qwen2-tied", "qwen3-heads",
                                         "qwen3moe-heads", "deepseek-unshared", "deepseek-freq",
                                         "llama-eps", "qwen2-window"),
                         TestName);

// Both would end in the first forward pass: a latent that the cache cannot hold, and a layer that a
// vector backend takes for a vector.
TEST(ServableModel, HasAnEvenLatentAndLayersOfTwoOutputs) {
  ModelSpec spec = RandomSpec("DeepseekV3ForCausalLM");
  EXPECT_TRUE(CheckServable(spec).ok());
  spec.mla.kv_lora_rank = 5;
  EXPECT_EQ(CheckServable(spec).message(),
            "config.json: kv_lora_rank: expected an even number for a model that is served, got 5");
  spec = RandomSpec("DeepseekV3ForCausalLM");
  spec.mla.v_head_dim = 1;
  EXPECT_EQ(CheckServable(spec).code(), StatusCode::kUnsupported);
  spec = RandomSpec("Qwen3MoeForCausalLM");
  EXPECT_TRUE(CheckServable(spec).ok());
  spec.weights[static_cast<size_t>(FindWeight(spec, "model.layers.0.mlp.gate.weight"))].shape = {
      1, 96};
  EXPECT_EQ(CheckServable(spec).message(),
            "serving model.layers.0.mlp.gate.weight: expected two outputs or more, got [1, 96] by "
            "config.json");
}

// Each option of a checkpoint, turned: logits leave the tolerance by a factor of ten at least.
TEST(TinyModelOptions, AreAllLookedAt) {
  struct Case {
    const char* name;
    const char* option;
    void (*change)(ModelSpec& spec);
  };
  const Case cases[] = {
      {"qwen3-bias-yarn", "yarn", [](ModelSpec& s) { s.rope_scaling.type = RopeType::kDefault; }},
      {"qwen3-bias-yarn", "attention factor of yarn",
       [](ModelSpec& s) { s.rope_scaling.attention_factor = 1.0; }},
      {"qwen3-bias-yarn", "beta_slow", [](ModelSpec& s) { s.rope_scaling.beta_slow = 0.1; }},
      {"llama-tied", "llama3", [](ModelSpec& s) { s.rope_scaling.type = RopeType::kDefault; }},
      {"llama-bias", "low_freq_factor", [](ModelSpec& s) { s.rope_scaling.low_freq_factor = 2.0; }},
      {"llama-bias", "high_freq_factor",
       [](ModelSpec& s) { s.rope_scaling.high_freq_factor = 8.0; }},
      {"qwen3moe-norm", "norm_topk_prob", [](ModelSpec& s) { s.moe.norm_topk_prob = false; }},
      {"qwen3moe-listed", "norm_topk_prob", [](ModelSpec& s) { s.moe.norm_topk_prob = true; }},
      {"qwen3moe-norm", "top_k", [](ModelSpec& s) { s.moe.top_k = 1; }},
      {"deepseek-plain", "interleaved rope",
       [](ModelSpec& s) { s.mla.is_rope_interleaved = false; }},
      {"deepseek-split", "half-split rope", [](ModelSpec& s) { s.mla.is_rope_interleaved = true; }},
      {"deepseek-plain", "routed_scaling_factor",
       [](ModelSpec& s) { s.moe.routed_scaling_factor = 1.0; }},
      {"deepseek-plain", "norm_topk_prob", [](ModelSpec& s) { s.moe.norm_topk_prob = false; }},
      {"deepseek-split", "norm_topk_prob", [](ModelSpec& s) { s.moe.norm_topk_prob = true; }},
      {"deepseek-split", "groups", [](ModelSpec& s) { s.moe.num_groups = 1; }},
      {"deepseek-yarn", "topk_group", [](ModelSpec& s) { s.moe.top_groups = 4; }},
      {"deepseek-yarn", "shared experts", [](ModelSpec& s) { s.moe.shared_intermediate_size = 0; }},
      {"deepseek-yarn", "mscale_all_dim",
       [](ModelSpec& s) { s.rope_scaling.mscale_all_dim = 0.5; }},
      {"deepseek-split", "mscale", [](ModelSpec& s) { s.rope_scaling.mscale = 1.3; }},
      {"deepseek-plain", "norms of latents", [](ModelSpec& s) { s.mla.latent_norm_eps = 0.1F; }},
      {"deepseek-unshared", "norms of latents have an epsilon of their own",
       [](ModelSpec& s) { s.mla.latent_norm_eps = s.rms_norm_eps; }},
      {"deepseek-unshared", "mscale_all_dim without mscale",
       [](ModelSpec& s) { s.rope_scaling.mscale_all_dim = 0.0; }},
      {"deepseek-unshared", "groups", [](ModelSpec& s) { s.moe.num_groups = 1; }},
      {"deepseek-freq", "routed_scaling_factor",
       [](ModelSpec& s) { s.moe.routed_scaling_factor = 1.0; }},
      {"llama-eps", "rms_norm_eps", [](ModelSpec& s) { s.rms_norm_eps = 1e-6F; }},
      {"qwen3moe-heads", "rms_norm_eps", [](ModelSpec& s) { s.rms_norm_eps = 1e-6F; }},
      {"qwen3moe-heads", "norm_topk_prob", [](ModelSpec& s) { s.moe.norm_topk_prob = true; }},
      {"qwen3-heads", "attention_factor",
       [](ModelSpec& s) { s.rope_scaling.attention_factor = 0.0; }},
      {"qwen3-heads", "truncate", [](ModelSpec& s) { s.rope_scaling.truncate = true; }},
      {"qwen3-heads", "beta_fast", [](ModelSpec& s) { s.rope_scaling.beta_fast = 32.0; }},
  };
  for (const Case& c : cases) {
    ModelRunner runner(MakeReferenceBackend(Recipe::kFp32, 1), Folder(c.name),
                       {.change_spec = c.change});
    EXPECT_GT(Compare(runner, Expected(c.name)).max_abs_logit, 10 * kTolerance)
        << c.name << ": " << c.option;
  }
}

// The bias that chooses experts, set to zero: other experts, and so other logits.
TEST(TinyModelOptions, TheCorrectionBiasIsLookedAt) {
  for (const char* const name : {"deepseek-plain", "deepseek-yarn", "deepseek-split",
                                 "deepseek-unshared", "deepseek-freq"}) {
    ModelRunner runner(MakeReferenceBackend(Recipe::kFp32, 1), Folder(name), {});
    for (size_t i = 0; i < runner.spec().weights.size(); ++i) {
      if (runner.spec().weights[i].role == Role::kRouterBias) {
        std::ranges::fill(runner.weights().matrices[i].codes.bytes(), std::byte{0});
      }
    }
    const std::vector<GoldenPrompt> expected = Expected(name);
    EXPECT_GT(Compare(runner, expected).max_abs_logit, 10 * kTolerance) << name;
    runner.ClearCache();
    runner.Run(expected[0].ids);
    const std::span<const int32_t> routed = runner.model().RoutedExperts();
    EXPECT_NE(std::vector<int32_t>(routed.begin(), routed.end()), expected[0].experts) << name;
  }
}

// What says which layers have experts: as it is, the table has the checkpoint's tensors; turned, it
// names some that are not there.
TEST(TinyModelOptions, WhichLayersHaveExpertsIsLookedAt) {
  struct Case {
    const char* name;
    const char* option;
    void (*change)(HfMoeConfig& moe);
    std::vector<bool> is_sparse;
  };
  const Case cases[] = {
      {"qwen3moe-listed", "", [](HfMoeConfig&) {}, {true, false}},
      {"qwen3moe-listed",
       "mlp_only_layers",
       [](HfMoeConfig& moe) { moe.mlp_only_layers.clear(); },
       {true, true}},
      {"qwen3moe-listed",
       "mlp_only_layers",
       [](HfMoeConfig& moe) { moe.mlp_only_layers = {0}; },
       {false, true}},
      {"qwen3moe-step2", "", [](HfMoeConfig&) {}, {false, true}},
      {"qwen3moe-step2",
       "decoder_sparse_step",
       [](HfMoeConfig& moe) { moe.decoder_sparse_step = 1; },
       {true, true}},
      {"qwen3moe-step2",
       "decoder_sparse_step",
       [](HfMoeConfig& moe) { moe.decoder_sparse_step = 3; },
       {false, false}},
      {"deepseek-freq", "", [](HfMoeConfig&) {}, {false, false, true}},
      {"deepseek-freq",
       "moe_layer_freq",
       [](HfMoeConfig& moe) { moe.moe_layer_freq = 1; },
       {false, true, true}},
      {"deepseek-freq",
       "first_k_dense_replace",
       [](HfMoeConfig& moe) { moe.first_k_dense_replace = 0; },
       {true, false, true}},
  };
  for (const Case& c : cases) {
    Result<Checkpoint> checkpoint = Checkpoint::Open(Folder(c.name));
    ASSERT_TRUE(checkpoint.has_value()) << checkpoint.error().message();
    HfConfig config = checkpoint->config();
    c.change(config.moe);
    const Result<ModelSpec> spec = MakeModelSpec(config);
    ASSERT_TRUE(spec.has_value()) << spec.error().message();
    EXPECT_EQ(spec->moe.is_sparse, c.is_sparse) << c.name << ": " << c.option;
    const bool has_all = std::ranges::all_of(spec->weights, [&](const WeightSpec& row) {
      return checkpoint->Find(row.name) != nullptr;
    });
    EXPECT_EQ(has_all, std::string_view(c.option).empty()) << c.name << ": " << c.option;
  }
}

}  // namespace
}  // namespace octavo
