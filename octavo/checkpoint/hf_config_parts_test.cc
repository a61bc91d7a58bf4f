// Method: experts, latent attention and nested text models: published and trained configs parsed,
// then one member changed at a time, each refusal with its whole message.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>

#include "octavo/base/file.h"
#include "octavo/base/status.h"
#include "octavo/checkpoint/hf_config.h"
#include "octavo/checkpoint/hf_config_for_test.h"

namespace octavo {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Pair;

using Json = nlohmann::ordered_json;

Json PublishedJson(const std::string& name) { return Json::parse(PublishedConfig(name)); }

// The error that follows from setting `key` of `json` to `value`.
std::pair<StatusCode, std::string> ErrorWith(Json json, const std::string& key, const Json& value) {
  json[key] = value;
  return ErrorOf(json.dump());
}

std::pair<StatusCode, std::string> ErrorWithout(Json json, const std::string& key) {
  json.erase(key);
  return ErrorOf(json.dump());
}

const char* const kMoe = "qwen3-30b-a3b";
const char* const kDeepseek = "deepseek-v3";

TEST(HfMoeConfig, ReadsQwen3Moe) {
  const HfConfig config = ParseOk(PublishedJson(kMoe).dump());
  EXPECT_EQ(config.architecture, "Qwen3MoeForCausalLM");
  EXPECT_EQ(config.moe.num_experts, 128);
  EXPECT_EQ(config.moe.num_experts_per_tok, 8);
  EXPECT_EQ(config.moe.moe_intermediate_size, 768);
  EXPECT_EQ(config.moe.norm_topk_prob, true);
  EXPECT_EQ(config.moe.decoder_sparse_step, 1);
  EXPECT_THAT(config.moe.mlp_only_layers, IsEmpty());
  EXPECT_EQ(config.moe.n_group, std::nullopt);
  EXPECT_EQ(config.mla, HfMlaConfig());
  EXPECT_EQ(config.num_mtp_layers, 0);
}

// transformers 5 calls the experts num_local_experts.
TEST(HfMoeConfig, ReadsTheTrainedModels) {
  const auto parse = [](const std::string& dir) {
    return ParseOk(ReadTextFile("models/" + dir + "/config.json").value(),
                   ReadTextFile("models/" + dir + "/generation_config.json").value());
  };
  const HfConfig moe = parse("abacus-moe");
  EXPECT_EQ(moe.moe.num_experts, 8);
  EXPECT_EQ(moe.moe.moe_intermediate_size, 160);
  const HfConfig mla = parse("abacus-mla");
  EXPECT_EQ(mla.architecture, "DeepseekV3ForCausalLM");
  EXPECT_EQ(mla.moe.num_experts, 8);
  EXPECT_EQ(mla.head_dim, 32);
  EXPECT_EQ(mla.mla.rope_interleave, true);
  EXPECT_EQ(mla.num_mtp_layers, 1);
}

TEST(HfMoeConfig, ReadsDeepseek) {
  const HfConfig config = ParseOk(PublishedJson(kDeepseek).dump());
  EXPECT_EQ(config.moe, (HfMoeConfig{.num_experts = 256,
                                     .num_experts_per_tok = 8,
                                     .moe_intermediate_size = 2048,
                                     .norm_topk_prob = true,
                                     .mlp_only_layers = {},
                                     .first_k_dense_replace = 3,
                                     .n_group = 8,
                                     .topk_group = 4,
                                     .n_shared_experts = 1,
                                     .routed_scaling_factor = 2.5,
                                     .scoring_func = "sigmoid",
                                     .topk_method = "noaux_tc"}));
  EXPECT_EQ(config.mla, (HfMlaConfig{.q_lora_rank = 1536,
                                     .kv_lora_rank = 512,
                                     .qk_nope_head_dim = 128,
                                     .qk_rope_head_dim = 64,
                                     .v_head_dim = 128,
                                     .rope_interleave = {}}));
  EXPECT_EQ(config.num_mtp_layers, 1);
  EXPECT_EQ(config.num_kv_heads, 128);
  EXPECT_EQ(config.head_dim, 64);
}

TEST(HfMoeConfig, SortsTheLayersWithoutExperts) {
  Json json = PublishedJson(kMoe);
  json["mlp_only_layers"] = {47, 0, 3, 0};
  EXPECT_THAT(ParseOk(json.dump()).moe.mlp_only_layers, ElementsAre(0, 3, 47));
}

TEST(HfMoeConfig, TakesOneNumberUnderThreeNames) {
  Json json = PublishedJson(kMoe);
  json["num_local_experts"] = 128;
  json["n_routed_experts"] = 128;
  EXPECT_EQ(ParseOk(json.dump()).moe.num_experts, 128);
  json["n_routed_experts"] = 64;
  EXPECT_EQ(ErrorOf(json.dump()).second,
            "config.json: n_routed_experts: expected 128 as elsewhere in the file, got 64");
}

struct Change {
  const char* model;
  const char* key;
  Json value;
  const char* message;
};

TEST(HfMoeConfig, RefusesMembersThatAreWrong) {
  const Change changes[] = {
      {kMoe, "num_experts", 0, "num_experts: expected an integer from 1 to 4096, got 0"},
      {kMoe, "num_experts", 4097, "num_experts: expected an integer from 1 to 4096, got 4097"},
      {kMoe, "num_experts_per_tok", nullptr,
       "num_experts_per_tok: expected an integer from 1 to 4096, got nothing"},
      {kMoe, "moe_intermediate_size", nullptr,
       "moe_intermediate_size: expected an integer from 1 to 16777216, got nothing"},
      {kMoe, "norm_topk_prob", 1, "norm_topk_prob: expected true or false, got 1"},
      {kMoe, "decoder_sparse_step", 0,
       "decoder_sparse_step: expected an integer from 1 to 4096, got 0"},
      {kMoe,
       "mlp_only_layers",
       {48},
       "mlp_only_layers: expected a list of layers from 0 to 47, got [48]"},
      {kMoe,
       "mlp_only_layers",
       {-1},
       "mlp_only_layers: expected a list of layers from 0 to 47, got [-1]"},
      {kMoe, "mlp_only_layers", 3,
       "mlp_only_layers: expected a list of layers from 0 to 47, got 3"},
      {kMoe,
       "mlp_only_layers",
       {"3"},
       "mlp_only_layers: expected a list of layers from 0 to 47, got [\"3\"]"},
      {kDeepseek, "first_k_dense_replace", -1,
       "first_k_dense_replace: expected an integer from 0 to 4096, got -1"},
      {kDeepseek, "moe_layer_freq", 0, "moe_layer_freq: expected an integer from 1 to 4096, got 0"},
      {kDeepseek, "n_group", 0, "n_group: expected an integer from 1 to 4096, got 0"},
      {kDeepseek, "topk_group", 1.5, "topk_group: expected an integer from 1 to 4096, got 1.5"},
      {kDeepseek, "n_shared_experts", -1,
       "n_shared_experts: expected an integer from 0 to 4096, got -1"},
      {kDeepseek, "routed_scaling_factor", 0,
       "routed_scaling_factor: expected a number above 0 and at most 1e+06, got 0"},
      {kDeepseek, "scoring_func", 1, "scoring_func: expected a string, got 1"},
      {kDeepseek, "topk_method", false, "topk_method: expected a string, got false"},
      {kDeepseek, "num_nextn_predict_layers", 65,
       "num_nextn_predict_layers: expected an integer from 0 to 64, got 65"},
  };
  for (const Change& c : changes) {
    EXPECT_THAT(ErrorWith(PublishedJson(c.model), c.key, c.value),
                Pair(StatusCode::kInvalidArgument, std::string("config.json: ") + c.message));
  }
}

TEST(HfMlaConfig, RefusesMembersThatAreWrong) {
  const std::pair<const char*, std::pair<Json, const char*>> changes[] = {
      {"kv_lora_rank", {0, "kv_lora_rank: expected an integer from 1 to 1048576, got 0"}},
      {"q_lora_rank", {0, "q_lora_rank: expected an integer from 1 to 1048576, got 0"}},
      {"qk_nope_head_dim",
       {nullptr, "qk_nope_head_dim: expected an integer from 1 to 4096, got nothing"}},
      {"qk_rope_head_dim",
       {nullptr, "qk_rope_head_dim: expected an integer from 1 to 4096, got nothing"}},
      {"qk_rope_head_dim", {63, "qk_rope_head_dim: expected an even number up to 4096, got 63"}},
      {"v_head_dim", {4097, "v_head_dim: expected an integer from 1 to 4096, got 4097"}},
      {"qk_head_dim",
       {128, "qk_head_dim: expected qk_nope_head_dim + qk_rope_head_dim = 192, got 128"}},
      {"rope_interleave", {"yes", "rope_interleave: expected true or false, got \"yes\""}},
  };
  for (const auto& [key, change] : changes) {
    EXPECT_THAT(ErrorWith(PublishedJson(kDeepseek), key, change.first),
                Pair(StatusCode::kInvalidArgument, std::string("config.json: ") + change.second));
  }
  EXPECT_EQ(ErrorWith(PublishedJson(kDeepseek), "qk_head_dim", 192).second, "accepted");
}

// Neither 7168 / 56 heads nor a head_dim of another meaning matters to latent attention.
TEST(HfMlaConfig, NeedsNoHeadDimAndNoLatentOfQueries) {
  Json json = PublishedJson(kDeepseek);
  json["q_lora_rank"] = nullptr;
  json["num_attention_heads"] = 60;  // 7168 is no multiple.
  json["num_key_value_heads"] = 60;
  EXPECT_EQ(ParseOk(json.dump()).mla.q_lora_rank, 0);
  EXPECT_EQ(ParseOk(json.dump()).head_dim, 64);
  json["head_dim"] = 56;
  EXPECT_EQ(ParseOk(json.dump()).head_dim, 64);
}

TEST(HfConfig, RefusesByNameWhatOtherFamiliesAdd) {
  const Change changes[] = {
      {kDeepseek,
       "moe_layer_freq",
       {0, 1},
       "moe_layer_freq: expected one number for all layers, got [0,1]"},
      {kDeepseek, "index_topk", 2048, "index_topk: expected null, got 2048"},
      {kDeepseek, "use_qk_norm", true, "use_qk_norm: expected false, got true"},
      {kDeepseek, "qk_layernorm", true, "qk_layernorm: expected false, got true"},
      {"qwen2.5-7b", "use_mrope", true, "use_mrope: expected false, got true"},
      {"llama-3.1-8b", "attention_chunk_size", 8192,
       "attention_chunk_size: expected null, got 8192"},
      {"llama-3.1-8b", "no_rope_layers", {1, 0}, "no_rope_layers: expected null, got [1,0]"},
      {kMoe, "attn_logit_softcapping", 50.0, "attn_logit_softcapping: expected null, got 50.0"},
      {kMoe, "final_logit_softcapping", 30.0, "final_logit_softcapping: expected null, got 30.0"},
  };
  for (const Change& c : changes) {
    EXPECT_THAT(ErrorWith(PublishedJson(c.model), c.key, c.value),
                Pair(StatusCode::kUnsupported, std::string("config.json: ") + c.message));
    EXPECT_EQ(ErrorWith(PublishedJson(c.model), c.key, nullptr).second, "accepted") << c.key;
  }
}

// --- A text model inside a wrapper ---------------------------------------------------------------

// `text` as a vision model wraps it: what the whole model has stays outside.
Json Wrapped(Json text) {
  Json root = {{"architectures", {"LlavaForConditionalGeneration"}},
               {"model_type", "llava"},
               {"torch_dtype", text["torch_dtype"]},
               {"tie_word_embeddings", text["tie_word_embeddings"]},
               {"vision_config", {{"hidden_size", 1024}, {"num_hidden_layers", 24}}}};
  for (const char* key : {"torch_dtype", "tie_word_embeddings", "architectures"}) {
    text.erase(key);
  }
  root["text_config"] = std::move(text);
  return root;
}

TEST(HfConfig, ReadsANestedTextModel) {
  const std::pair<const char*, const char*> models[] = {{kMoe, "Qwen3MoeForCausalLM"},
                                                        {kDeepseek, "DeepseekV3ForCausalLM"},
                                                        {"llama-3.1-8b", "LlamaForCausalLM"},
                                                        {"qwen2.5-7b", "Qwen2ForCausalLM"}};
  for (const auto& [model, architecture] : models) {
    const HfConfig plain = ParseOk(PublishedJson(model).dump());
    const HfConfig nested = ParseOk(Wrapped(PublishedJson(model)).dump());
    EXPECT_EQ(nested.architecture, architecture);
    EXPECT_EQ(nested.wrapper_architecture, "LlavaForConditionalGeneration");
    EXPECT_THAT(plain.wrapper_architecture, IsEmpty());
    EXPECT_EQ(nested.model_type, plain.model_type);
    EXPECT_EQ(nested.hidden_size, plain.hidden_size);
    EXPECT_EQ(nested.num_layers, plain.num_layers);
    EXPECT_EQ(nested.moe, plain.moe);
    EXPECT_EQ(nested.mla, plain.mla);
    EXPECT_EQ(nested.rope_scaling, plain.rope_scaling);
    EXPECT_EQ(nested.eos_token_ids, plain.eos_token_ids);
    EXPECT_EQ(nested.quantization_config, plain.quantization_config);
    EXPECT_EQ(nested.dtype, "bfloat16");
    EXPECT_FALSE(nested.tie_word_embeddings);
  }
}

TEST(HfConfig, TakesANestedModelsClassFromItsOwnConfigFirst) {
  Json json = Wrapped(PublishedJson(kDeepseek));
  json["text_config"]["model_type"] = "kimi_k2";
  EXPECT_EQ(ParseOk(json.dump()).architecture, "DeepseekV3ForCausalLM");
  json["text_config"]["model_type"] = "some_text";
  EXPECT_EQ(ParseOk(json.dump()).architecture, "LlavaForConditionalGeneration");
  json["text_config"]["architectures"] = {"SomeForCausalLM"};
  EXPECT_EQ(ParseOk(json.dump()).architecture, "SomeForCausalLM");
  json["text_config"]["architectures"] = Json::array();
  EXPECT_EQ(ErrorOf(json.dump()).second,
            "config.json: text_config: architectures: expected a list that begins with a class "
            "name, got []");
}

TEST(HfConfig, LooksInBothPlacesForWhatWrappersRepeat) {
  Json json = Wrapped(PublishedJson("qwen2.5-7b"));
  json["tie_word_embeddings"] = true;
  json["eos_token_id"] = 7;
  EXPECT_TRUE(ParseOk(json.dump()).tie_word_embeddings);
  EXPECT_THAT(ParseOk(json.dump()).eos_token_ids, ElementsAre(7, 151643));
  json["text_config"]["tie_word_embeddings"] = false;
  json["text_config"]["dtype"] = "float32";
  EXPECT_FALSE(ParseOk(json.dump()).tie_word_embeddings);
  EXPECT_EQ(ParseOk(json.dump()).dtype, "float32");
  json["text_config"]["quantization_config"] = {{"quant_method", "fp8"}};
  json["compression_config"] = {{"quant_method", "other"}};
  EXPECT_EQ(ParseOk(json.dump()).quantization_config, R"({"quant_method":"fp8"})");
  json["quantization_config"] = {{"quant_method", "mxfp8"}};
  EXPECT_EQ(ParseOk(json.dump()).quantization_config, R"({"quant_method":"mxfp8"})");
}

// A config that has its sizes at the top is plain, whatever else it carries.
TEST(HfConfig, ReadsTheTopWhereTheSizesAreThere) {
  Json json = PublishedJson("qwen2.5-7b");
  json["text_config"] = {{"hidden_size", 8}};
  EXPECT_EQ(ParseOk(json.dump()).hidden_size, 3584);
  EXPECT_THAT(ParseOk(json.dump()).wrapper_architecture, IsEmpty());
}

TEST(HfConfig, NamesThePlaceInsideANestedModel) {
  Json json = Wrapped(PublishedJson("qwen2.5-7b"));
  json["text_config"].erase("vocab_size");
  EXPECT_EQ(ErrorOf(json.dump()).second,
            "config.json: text_config: vocab_size: expected an integer from 1 to 16777216, got "
            "nothing");
  EXPECT_EQ(ErrorWith(json, "text_config", 3).second,
            "config.json: text_config: expected an object or null, got 3");
  EXPECT_EQ(ErrorWithout(json, "text_config").second,
            "config.json: hidden_size: expected an integer from 1 to 1048576, got nothing");
  const auto twin = ParseHfConfig(
      R"({"architectures":["A"],"text_config":{"hidden_size":1,"hidden_size":2}})", "");
  EXPECT_EQ(twin.error().code(), StatusCode::kCorrupt);
  EXPECT_EQ(twin.error().message(),
            "config.json: text_config: key \"hidden_size\" occurs more than once");
}

}  // namespace
}  // namespace octavo
