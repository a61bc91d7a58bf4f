// Method: the trained models of the tree open whole, with the counts that their headers list.

#include "octavo/checkpoint/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace octavo {
namespace {

using ::testing::ElementsAre;

struct ModelCase {
  std::string name;
  size_t num_tensors;
  size_t num_shards;
};

TEST(Checkpoint, OpensTheModelsOfTheTree) {
  for (const ModelCase& model :
       {ModelCase{"abacus-dense", 90, 1}, ModelCase{"abacus-dense-base", 90, 1},
        ModelCase{"abacus-moe", 134, 2}, ModelCase{"abacus-mla", 128, 1}}) {
    const auto checkpoint = Checkpoint::Open("models/" + model.name);
    ASSERT_TRUE(checkpoint.has_value()) << checkpoint.error().message();
    EXPECT_EQ(checkpoint->tensors().size(), model.num_tensors) << model.name;
    EXPECT_EQ(checkpoint->shard_files().size(), model.num_shards) << model.name;
    EXPECT_THAT(checkpoint->warnings(), ElementsAre()) << model.name;
    EXPECT_THAT(checkpoint->extra_files(),
                ElementsAre("chat_template.jinja", "generation_config.json", "tokenizer.json",
                            "tokenizer_config.json"));
    const StoredTensor* norm = checkpoint->Find("model.norm.weight");
    ASSERT_NE(norm, nullptr) << model.name;
    EXPECT_EQ(norm->view.dtype, DType::kBf16);
    EXPECT_EQ(norm->view.shape, Shape{256});
    EXPECT_EQ(checkpoint->Find("model.norm.weigh"), nullptr);
    EXPECT_THAT(checkpoint->config().eos_token_ids, ElementsAre(0, 2));
    EXPECT_EQ(checkpoint->config().rope_theta, 10000.0);
  }
}

}  // namespace
}  // namespace octavo
