// Method: tables against what exists. The trained checkpoints under models/: every tensor has a row
// of its shape and every row a tensor. Published models, by their config.json
// (tests/data/model_spec): the rows' elements must add up to the parameter counts that the hub
// shows for their files.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <string>

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
  const auto spec = MakeModelSpec(checkpoint->config());
  ASSERT_TRUE(spec.has_value()) << spec.error().message();
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
                                    /*generation=*/"");
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

}  // namespace
}  // namespace octavo
