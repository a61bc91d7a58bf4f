// Method: the config of the model that is served, one member changed at a time.

#include "octavo/sync/load_weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "octavo/base/status.h"
#include "octavo/checkpoint/hf_config.h"
#include "octavo/model/spec/model_spec.h"

namespace octavo {
namespace {

using ::testing::HasSubstr;

HfConfig Served() {
  HfConfig config;
  config.architecture = "Qwen3ForCausalLM";
  config.hidden_size = 8;
  config.num_layers = 1;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 6;
  config.intermediate_size = 10;
  config.vocab_size = 20;
  config.max_position_embeddings = 64;
  config.rms_norm_eps = 1e-6;
  config.rope_theta = 10000.0;
  return config;
}

// None of these but the sizes shows in a tensor's shape: nothing else would notice.
TEST(CheckSameModel, RefusesByNameWhatDiffersFromTheServedModel) {
  struct Case {
    const char* says;
    std::function<void(HfConfig&)> change;
  };
  const Case cases[] = {
      {"architectures", [](HfConfig& c) { c.architecture = "LlamaForCausalLM"; }},
      {"num_hidden_layers", [](HfConfig& c) { c.num_layers = 2; }},
      {"hidden_size", [](HfConfig& c) { c.hidden_size = 16; }},
      {"num_attention_heads", [](HfConfig& c) { c.num_heads = 8; }},
      {"num_key_value_heads", [](HfConfig& c) { c.num_kv_heads = 4; }},
      {"head_dim", [](HfConfig& c) { c.head_dim = 8; }},
      {"intermediate_size", [](HfConfig& c) { c.intermediate_size = 12; }},
      {"vocab_size", [](HfConfig& c) { c.vocab_size = 21; }},
      {"attention_bias: expected 0 as served, got 1", [](HfConfig& c) { c.attention_bias = true; }},
      {"tie_word_embeddings", [](HfConfig& c) { c.tie_word_embeddings = true; }},
      {"rope_theta", [](HfConfig& c) { c.rope_theta = 1e6; }},
      {"rms_norm_eps", [](HfConfig& c) { c.rms_norm_eps = 1e-5; }},
      {"rope_scaling: expected default as served, got yarn",
       [](HfConfig& c) { c.rope_scaling.type = RopeType::kYarn; }},
  };
  const ModelSpec spec = MakeModelSpec(Served()).value();
  EXPECT_TRUE(CheckSameModel(spec, Served()).ok());
  for (const Case& c : cases) {
    HfConfig config = Served();
    c.change(config);
    const Status status = CheckSameModel(spec, config);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << c.says;
    EXPECT_THAT(status.message(), HasSubstr(c.says));
  }
}

}  // namespace
}  // namespace octavo
