// Method: one config of transformers 4 and one of transformers 5 that say the same, parsed to the
// same; then one member changed at a time, each refusal with its whole message and each bound from
// both sides.

#include "octavo/checkpoint/hf_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/checkpoint/hf_config_for_test.h"

namespace octavo {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;

using Json = nlohmann::ordered_json;

// The error that follows from setting `key` of `json` to `value`.
std::pair<StatusCode, std::string> ErrorWith(Json json, const std::string& key, const Json& value) {
  json[key] = value;
  return ErrorOf(json.dump());
}

std::pair<StatusCode, std::string> ErrorWithout(Json json, const std::string& key) {
  json.erase(key);
  return ErrorOf(json.dump());
}

// Qwen3-0.6B's dimensions.
Json Transformers4() {
  return Json::parse(R"({
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
    "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu",
    "hidden_size": 1024, "intermediate_size": 3072, "max_position_embeddings": 40960,
    "max_window_layers": 28, "model_type": "qwen3", "num_attention_heads": 16,
    "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
    "rope_scaling": null, "rope_theta": 1000000, "sliding_window": null,
    "tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version": "4.51.0",
    "use_cache": true, "use_sliding_window": false, "vocab_size": 151936})");
}

Json Transformers5() {
  Json json = Transformers4();
  json.erase("torch_dtype");
  json.erase("rope_theta");
  json.erase("rope_scaling");
  json["dtype"] = "bfloat16";
  json["layer_types"] = std::vector<std::string>(28, "full_attention");
  json["rope_parameters"] = {{"rope_theta", 1000000.0}, {"rope_type", "default"}};
  return json;
}

void ExpectQwen(const HfConfig& config) {
  EXPECT_EQ(config.architecture, "Qwen3ForCausalLM");
  EXPECT_EQ(config.model_type, "qwen3");
  EXPECT_EQ(config.hidden_size, 1024);
  EXPECT_EQ(config.num_layers, 28);
  EXPECT_EQ(config.num_heads, 16);
  EXPECT_EQ(config.num_kv_heads, 8);
  EXPECT_EQ(config.head_dim, 128);
  EXPECT_EQ(config.intermediate_size, 3072);
  EXPECT_EQ(config.vocab_size, 151936);
  EXPECT_EQ(config.max_position_embeddings, 40960);
  EXPECT_EQ(config.rms_norm_eps, 1e-6);
  EXPECT_EQ(config.rope_theta, 1e6);
  EXPECT_TRUE(config.tie_word_embeddings);
  EXPECT_FALSE(config.attention_bias);
  EXPECT_EQ(config.dtype, "bfloat16");
  EXPECT_THAT(config.eos_token_ids, ElementsAre(151645));
  EXPECT_THAT(config.quantization_config, IsEmpty());
}

TEST(HfConfig, ReadsTransformers4) {
  const Json json = Transformers4();
  const HfConfig config = ParseOk(json.dump());
  ExpectQwen(config);
  EXPECT_EQ(config.config_json, json.dump());
}

TEST(HfConfig, ReadsTransformers5) { ExpectQwen(ParseOk(Transformers5().dump())); }

// Qwen2 writes neither head_dim nor attention_bias, and a window that its flag turns off.
TEST(HfConfig, FillsInWhatOlderFamiliesLeaveOut) {
  Json json = Transformers4();
  json["architectures"] = {"Qwen2ForCausalLM"};
  json["sliding_window"] = 32768;
  for (const char* key : {"head_dim", "attention_bias", "num_key_value_heads", "torch_dtype",
                          "eos_token_id", "tie_word_embeddings", "model_type", "hidden_act"}) {
    json.erase(key);
  }
  const HfConfig config = ParseOk(json.dump());
  EXPECT_EQ(config.head_dim, 64);  // 1024 / 16
  EXPECT_EQ(config.num_kv_heads, 16);
  EXPECT_FALSE(config.tie_word_embeddings);
  EXPECT_EQ(config.dtype, "");
  EXPECT_THAT(config.eos_token_ids, IsEmpty());
}

TEST(HfConfig, TreatsNullAsAbsent) {
  Json json = Transformers5();
  for (const char* key : {"head_dim", "eos_token_id", "quantization_config", "layer_types"}) {
    json[key] = nullptr;
  }
  EXPECT_EQ(ParseOk(json.dump()).head_dim, 128);
}

// Qwen3Config of transformers 4.51 and 5 says 128; Qwen3MoeConfig has none, and its class divides.
TEST(HfConfig, GivesQwen3TheHeadDimOfItsClass) {
  Json json = Transformers4();
  json.erase("head_dim");
  EXPECT_EQ(ParseOk(json.dump()).head_dim, 128);
  for (const char* architecture : {"Qwen3MoeForCausalLM", "LlamaForCausalLM", "Qwen2ForCausalLM"}) {
    json["architectures"] = {architecture};
    EXPECT_EQ(ParseOk(json.dump()).head_dim, 64) << architecture;  // 1024 / 16
  }
}

TEST(HfConfig, UnitesEndOfSequenceIds) {
  Json json = Transformers4();
  json["eos_token_id"] = {7, 3};
  EXPECT_THAT(ParseOk(json.dump(), R"({"eos_token_id":[9,3]})").eos_token_ids,
              ElementsAre(3, 7, 9));
  EXPECT_THAT(ParseOk(json.dump(), R"({"eos_token_id":0})").eos_token_ids, ElementsAre(0, 3, 7));
  EXPECT_THAT(ParseOk(json.dump(), R"({"temperature":0.6})").eos_token_ids, ElementsAre(3, 7));
}

TEST(HfConfig, RefusesIdsThatAreNone) {
  EXPECT_THAT(ErrorWith(Transformers4(), "eos_token_id", {1, "2"}),
              Pair(StatusCode::kInvalidArgument,
                   "config.json: eos_token_id: expected an integer from 0 to 2147483647 or a list "
                   "of them, got [1,\"2\"]"));
  EXPECT_THAT(ErrorWith(Transformers4(), "eos_token_id", -1).second, HasSubstr("got -1"));
  EXPECT_THAT(ErrorWith(Transformers4(), "eos_token_id", 2147483648).second,
              HasSubstr("got 2147483648"));
  EXPECT_EQ(ErrorWith(Transformers4(), "eos_token_id", 2147483647).second, "accepted");
  EXPECT_EQ(ParseHfConfig(Transformers4().dump(), R"({"eos_token_id":1.5})").error().message(),
            "generation_config.json: eos_token_id: expected an integer from 0 to 2147483647 or a "
            "list of them, got 1.5");
}

TEST(HfConfig, KeepsTheTextOfTheQuantizationConfig) {
  Json json = Transformers4();
  json["quantization_config"] = Json::parse(R"({"quant_method": "fp8", "b": [128, 128]})");
  EXPECT_EQ(ParseOk(json.dump()).quantization_config, R"({"quant_method":"fp8","b":[128,128]})");
  EXPECT_EQ(ErrorWith(Transformers4(), "quantization_config", "fp8").second,
            "config.json: quantization_config: expected an object or null, got \"fp8\"");
}

TEST(HfConfig, TakesModelOptsFileWhereConfigJsonDeclaresNothing) {
  const std::string file = R"({"producer":{},"quantization":{"quant_algo":"NVFP4"}})";
  const auto config_of = [](const Json& json, std::string_view hf_quant) {
    return ParseHfConfig(json.dump(), {.hf_quant_config_json = hf_quant}).value();
  };
  Json json = Transformers4();
  EXPECT_EQ(config_of(json, file).quantization_config, file);
  EXPECT_EQ(config_of(json, "").quantization_config, "");
  EXPECT_EQ(config_of(json, R"({"quantization":{"quant_algo":null}})").quantization_config, "");
  EXPECT_EQ(config_of(json, R"({"producer":{}})").quantization_config, "");
  EXPECT_EQ(config_of(json, "[").quantization_config, "");
  EXPECT_EQ(config_of(json, R"({"quantization":1})").quantization_config, "");
  json["quantization_config"] = {{"quant_method", "fp8"}};
  EXPECT_EQ(config_of(json, file).quantization_config, R"({"quant_method":"fp8"})");
  EXPECT_EQ(config_of(json, "[").quantization_config, R"({"quant_method":"fp8"})");
}

// Older compressed-tensors checkpoints name the same object otherwise; it must not be overlooked.
TEST(HfConfig, FallsBackToTheCompressionConfig) {
  Json json = Transformers4();
  json["compression_config"] = {{"quant_method", "compressed-tensors"}};
  EXPECT_EQ(ParseOk(json.dump()).quantization_config, R"({"quant_method":"compressed-tensors"})");
}

TEST(HfConfig, NamesEveryKeyThatIsMissing) {
  for (const char* key : {"hidden_size", "num_hidden_layers", "num_attention_heads",
                          "intermediate_size", "vocab_size", "max_position_embeddings"}) {
    const auto [code, message] = ErrorWithout(Transformers5(), key);
    EXPECT_EQ(code, StatusCode::kInvalidArgument);
    EXPECT_THAT(message,
                HasSubstr(fmt::format("config.json: {}: expected an integer from 1 to ", key)));
    EXPECT_THAT(message, HasSubstr(", got nothing"));
  }
  EXPECT_EQ(ErrorWithout(Transformers5(), "rms_norm_eps").second,
            "config.json: rms_norm_eps: expected a number above 0 and at most 1, got nothing");
  EXPECT_EQ(ErrorWithout(Transformers5(), "architectures").second,
            "config.json: architectures: expected a list that begins with a class name, got "
            "nothing");
  EXPECT_EQ(ErrorWithout(Transformers4(), "rope_theta").second,
            "config.json: rope_theta: expected a number above 0 here or in rope_parameters, got "
            "nothing");
}

TEST(HfConfig, BoundsEveryDimension) {
  const std::pair<const char*, int64_t> bounds[] = {{"hidden_size", 1 << 20},
                                                    {"num_hidden_layers", 4096},
                                                    {"intermediate_size", 1 << 24},
                                                    {"vocab_size", 1 << 24},
                                                    {"max_position_embeddings", 1 << 30}};
  for (const auto& [key, max] : bounds) {
    EXPECT_EQ(ErrorWith(Transformers4(), key, max).second, "accepted") << key;
    for (const Json& value : {Json(0), Json(-1), Json(max + 1), Json(1.5), Json("8"), Json(true),
                              Json(uint64_t{1} << 63)}) {
      EXPECT_THAT(ErrorWith(Transformers4(), key, value),
                  Pair(StatusCode::kInvalidArgument,
                       fmt::format("config.json: {}: expected an integer from 1 to {}, got {}", key,
                                   max, value.dump())));
    }
  }
}

TEST(HfConfig, RefusesHeadsThatDoNotDivide) {
  EXPECT_EQ(ErrorWith(Transformers4(), "num_key_value_heads", 3).second,
            "config.json: num_key_value_heads: expected a divisor of num_attention_heads 16, got "
            "3");
  EXPECT_EQ(ErrorWith(Transformers4(), "num_key_value_heads", 32).second,
            "config.json: num_key_value_heads: expected a divisor of num_attention_heads 16, got "
            "32");
  EXPECT_EQ(ErrorWith(Transformers4(), "head_dim", 127).second,
            "config.json: head_dim: expected an even number up to 4096, got 127");
  Json json = Transformers4();
  json["architectures"] = {"LlamaForCausalLM"};
  json.erase("head_dim");
  EXPECT_EQ(ErrorWith(json, "hidden_size", 1023).second,
            "config.json: head_dim: absent, and hidden_size 1023 is no multiple of "
            "num_attention_heads 16");
}

TEST(HfConfig, RefusesNumbersOutOfRange) {
  EXPECT_THAT(ErrorWith(Transformers4(), "rms_norm_eps", 0.0).second,
              HasSubstr("rms_norm_eps: expected a number above 0 and at most 1, got 0"));
  EXPECT_THAT(ErrorWith(Transformers4(), "rms_norm_eps", 2).second, HasSubstr("got 2"));
  EXPECT_THAT(ErrorWith(Transformers4(), "rms_norm_eps", "1e-6").second, HasSubstr("got \"1e-6\""));
  EXPECT_THAT(ErrorWith(Transformers4(), "rope_theta", -1.0).second,
              HasSubstr("rope_theta: expected a number above 0"));
  EXPECT_EQ(ErrorWith(Transformers4(), "tie_word_embeddings", 1).second,
            "config.json: tie_word_embeddings: expected true or false, got 1");
  EXPECT_EQ(ErrorWith(Transformers4(), "model_type", 1).second,
            "config.json: model_type: expected a string, got 1");
  EXPECT_EQ(ErrorWith(Transformers4(), "architectures", Json::array()).second,
            "config.json: architectures: expected a list that begins with a class name, got []");
}

struct NotBuilt {
  const char* key;
  Json value;
  const char* message;
};

// Each of these changes what the model computes and no shape: nothing else would notice.
TEST(HfConfig, RefusesByNameWhatChangesTheForwardPass) {
  Json types = std::vector<std::string>(28, "full_attention");
  types[5] = "sliding_attention";
  const NotBuilt cases[] = {
      {"rope_scaling",
       {{"rope_type", "longrope"}, {"factor", 4.0}},
       "config.json: rope_scaling: rope_type: expected \"default\", \"llama3\" or \"yarn\", got "
       "\"longrope\""},
      {"rope_scaling",
       {{"type", "linear"}, {"factor", 2.0}},
       "config.json: rope_scaling: type: expected \"default\", \"llama3\" or \"yarn\", got "
       "\"linear\""},
      {"rope_parameters",
       {{"full_attention", {{"rope_theta", 1e6}}}},
       "config.json: rope_parameters: full_attention: expected one plain rotary embedding for all "
       "layers, got {\"rope_theta\":1000000.0}"},
      {"rope_scaling",
       {{"rope_type", "default"}, {"mrope_section", {16, 24, 24}}},
       "config.json: rope_scaling: mrope_section: expected one plain rotary embedding for all "
       "layers, got [16,24,24]"},
      {"rope_parameters",
       {{"rope_theta", 1e6}, {"partial_rotary_factor", 0.5}},
       "config.json: rope_parameters: partial_rotary_factor: expected 1, got 0.5"},
      {"partial_rotary_factor", 0.25, "config.json: partial_rotary_factor: expected 1, got 0.25"},
      {"use_sliding_window", true, "config.json: use_sliding_window: expected false, got true"},
      {"layer_types", types,
       "config.json: layer_types[5]: expected \"full_attention\", got \"sliding_attention\""},
      {"hidden_act", "gelu", "config.json: hidden_act: expected \"silu\", got \"gelu\""},
      {"mlp_bias", true, "config.json: mlp_bias: expected false, got true"},
      {"dual_chunk_attention_config",
       {{"chunk_size", 8}},
       "config.json: dual_chunk_attention_config: expected null, got {\"chunk_size\":8}"},
  };
  for (const NotBuilt& c : cases) {
    EXPECT_THAT(ErrorWith(Transformers4(), c.key, c.value),
                Pair(StatusCode::kUnsupported, c.message));
  }
}

// Mistral has no flag: its window is on whenever it is given.
TEST(HfConfig, RefusesAWindowThatNoFlagTurnsOff) {
  Json json = Transformers4();
  json.erase("use_sliding_window");
  EXPECT_EQ(ErrorWith(json, "sliding_window", 4096).second,
            "config.json: sliding_window: expected null, or use_sliding_window false beside it, "
            "got 4096");
  EXPECT_EQ(ErrorWith(json, "sliding_window", nullptr).second, "accepted");
}

TEST(HfConfig, TakesSettingsThatSayTheDefault) {
  EXPECT_EQ(ErrorWith(Transformers4(), "rope_scaling", {{"rope_type", "default"}}).second,
            "accepted");
  EXPECT_EQ(ErrorWith(Transformers4(), "rope_parameters", {{"rope_theta", 1e6}}).second,
            "accepted");
  EXPECT_EQ(ErrorWith(Transformers4(), "partial_rotary_factor", 1).second, "accepted");
  EXPECT_EQ(ErrorWith(Transformers4(), "dtype", "torch.bfloat16").second, "accepted");
}

TEST(HfConfig, RefusesWhatContradictsItself) {
  EXPECT_EQ(ErrorWith(Transformers4(), "rope_parameters", {{"rope_theta", 1e4}}).second,
            "config.json: rope_parameters: rope_theta: expected 1000000 as elsewhere in the file, "
            "got 10000");
  EXPECT_EQ(ErrorWith(Transformers4(), "dtype", "float16").second,
            "config.json: torch_dtype: expected \"float16\" as in dtype, got \"bfloat16\"");
  EXPECT_EQ(ErrorWith(Transformers5(), "num_hidden_layers", 27).second,
            "config.json: layer_types: expected num_hidden_layers 27 of them, got 28");
}

TEST(HfConfig, RefusesTextThatIsNoJsonObject) {
  EXPECT_THAT(ParseHfConfig("{", "").error().message(),
              HasSubstr("config.json: expected a JSON object: "));
  EXPECT_EQ(ParseHfConfig("[1]", "").error().message(),
            "config.json: expected a JSON object, got [1]");
  EXPECT_EQ(ParseHfConfig("", "").error().code(), StatusCode::kCorrupt);
  EXPECT_EQ(ParseHfConfig(R"({"hidden_size":1,"hidden_size":2})", "").error().message(),
            "config.json: key \"hidden_size\" occurs more than once");
  EXPECT_THAT(ParseHfConfig(Transformers4().dump(), "7").error().message(),
              HasSubstr("generation_config.json: expected a JSON object"));
}

TEST(HfConfig, QuotesLongValuesInPart) {
  const auto [code, message] = ErrorWith(Transformers4(), "hidden_size", std::string(1000, 'x'));
  EXPECT_LT(message.size(), 200U);
  EXPECT_THAT(message, HasSubstr("xxx..."));
}

}  // namespace
}  // namespace octavo
