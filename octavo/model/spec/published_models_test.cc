// Method: tables against what exists. The trained checkpoints under models/: every tensor has a row
// of its shape and every row a tensor. Published models, by their config.json
// (tests/data/model_spec): the rows' elements must add up to the parameter counts that the hub
// shows for their files.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/file.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/checkpoint/hf_config.h"
#include "octavo/model/spec/model_spec.h"

namespace octavo {
namespace {

class TrainedModel : public ::testing::TestWithParam<const char*> {};

INSTANTIATE_TEST_SUITE_P(Models, TrainedModel,
                         ::testing::Values("abacus-dense", "abacus-dense-base", "abacus-moe",
                                           "abacus-mla"));

TEST_P(TrainedModel, HasExactlyTheRowsOfItsTable) {
  const auto checkpoint = Checkpoint::Open(std::string("models/") + GetParam());
  ASSERT_TRUE(checkpoint.has_value()) << checkpoint.error().message();
  const auto spec = MakeCheckpointSpec(*checkpoint);
  ASSERT_TRUE(spec.has_value()) << spec.error().message();
  EXPECT_EQ(spec->prefix, "model.");
  for (const StoredTensor& tensor : checkpoint->tensors()) {
    const int row = FindWeight(*spec, tensor.name);
    ASSERT_GE(row, 0) << tensor.name;
    EXPECT_EQ(spec->weights[static_cast<size_t>(row)].shape, tensor.view.shape) << tensor.name;
  }
  size_t num_mtp = 0;
  for (const WeightSpec& weight : spec->weights) {
    num_mtp += weight.is_mtp ? 1 : 0;
    // abacus-mla declares one MTP layer and, as transformers writes it, stores none.
    EXPECT_EQ(checkpoint->Find(weight.name) != nullptr, !weight.is_mtp) << weight.name;
  }
  EXPECT_EQ(spec->weights.size(), checkpoint->tensors().size() + num_mtp);
  EXPECT_EQ(num_mtp > 0, std::string(GetParam()) == "abacus-mla");
}

struct Published {
  const char* name;
  int64_t num_parameters;
};

ModelSpec SpecOf(const std::string& name) {
  const auto config = ParseHfConfig(ReadTextFile("tests/data/model_spec/" + name + ".json").value(),
                                    /*generation_config_json=*/"");
  EXPECT_TRUE(config.has_value()) << config.error().message();
  auto spec = MakeModelSpec(*config);
  EXPECT_TRUE(spec.has_value()) << spec.error().message();
  return *std::move(spec);
}

TEST(PublishedModels, HaveTheirKnownNumberOfParameters) {
  const Published models[] = {
      {"qwen3-30b-a3b", 30'532'122'624},
      {"llama-3.1-8b", 8'030'261'248},
      {"qwen2.5-7b", 7'615'616'512},
      // The files' BF16 and FP8 tensors and the F32 router biases; scales are no rows.
      {"deepseek-v3", 684'489'845'504},
  };
  for (const Published& model : models) {
    const ModelSpec spec = SpecOf(model.name);
    int64_t total = 0;
    for (const WeightSpec& weight : spec.weights) {
      total += NumElements(weight.shape);
    }
    EXPECT_EQ(total, model.num_parameters) << model.name;
  }
}

TEST(PublishedModels, HaveTheirKnownLayers) {
  const ModelSpec moe = SpecOf("qwen3-30b-a3b");
  EXPECT_EQ(moe.moe.is_sparse, std::vector<bool>(48, true));
  EXPECT_EQ(moe.moe.top_k, 8);
  EXPECT_TRUE(moe.moe.norm_topk_prob);
  const ModelSpec deepseek = SpecOf("deepseek-v3");
  std::vector<bool> sparse(62, true);
  std::fill_n(sparse.begin(), 3, false);
  EXPECT_EQ(deepseek.moe.is_sparse, sparse);
  EXPECT_EQ(deepseek.head_dim, 192);
  EXPECT_EQ(deepseek.moe.shared_intermediate_size, 2048);
  // Without MTP: the 671 billion of the model's name.
  int64_t main_model = 0;
  for (const WeightSpec& weight : deepseek.weights) {
    main_model += weight.is_mtp ? 0 : NumElements(weight.shape);
  }
  EXPECT_EQ(main_model, 671'026'419'200);
  EXPECT_EQ(FindWeight(deepseek, "model.layers.61.shared_head.head.weight"),
            static_cast<int>(deepseek.weights.size()) - 1);
}

TEST(FindWeight, FindsEveryRowOfALargeTable) {
  ModelSpec spec = SpecOf("deepseek-v3");
  ASSERT_EQ(spec.by_name.size(), spec.weights.size());
  EXPECT_GT(spec.weights.size(), 45'000U);
  for (size_t i = 0; i < spec.weights.size(); ++i) {
    ASSERT_EQ(FindWeight(spec, spec.weights[i].name), static_cast<int>(i));
  }
  const std::string_view absent[] = {"", "a", "zzz",
                                     "model.layers.3.mlp.experts.256.up_proj.weight",
                                     "model.layers.3.mlp.experts.25.up_proj.weigh"};
  for (const std::string_view name : absent) {
    EXPECT_EQ(FindWeight(spec, name), -1) << name;
  }
  // A row added by hand is found without the index, and with a new one.
  spec.weights.push_back({.name = "zzz", .role = Role::kNorm, .shape = {1}});
  EXPECT_EQ(FindWeight(spec, "zzz"), static_cast<int>(spec.weights.size()) - 1);
  EXPECT_EQ(FindWeight(spec, "model.embed_tokens.weight"), 0);
  IndexWeights(&spec);
  EXPECT_EQ(FindWeight(spec, "zzz"), static_cast<int>(spec.weights.size()) - 1);
}

}  // namespace
}  // namespace octavo
