// Method: configs as the models publish them, cut down to the fields that are read, then one edit
// for each error. What HF transformers 4.57.6 and 5.23.0 do with the same fields is in the comments
// of tokenizer_config.h; the ids that follow are compared in hf_parity_test.cc.

#include "octavo/text/tokenizer_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <string>
#include <utility>

#include "octavo/base/file.h"
#include "octavo/base/status.h"

namespace octavo {
namespace {

using testing::HasSubstr;

TokenizerConfig ParseOrDie(const std::string& json) {
  Result<TokenizerConfig> config = ParseTokenizerConfig(json);
  EXPECT_TRUE(config.has_value()) << config.error().message();
  return *std::move(config);
}

void ExpectError(const std::string& json, StatusCode code, const std::string& message) {
  const Result<TokenizerConfig> config = ParseTokenizerConfig(json);
  ASSERT_FALSE(config.has_value()) << json;
  EXPECT_EQ(config.error().code(), code) << config.error().message();
  EXPECT_THAT(config.error().message(), HasSubstr(message));
}

TEST(TokenizerConfig, LeavesThePostProcessorToMostClasses) {
  for (const std::string name :
       {"PreTrainedTokenizerFast", "Qwen2Tokenizer", "Qwen2TokenizerFast", "TokenizersBackend"}) {
    const TokenizerConfig config =
        ParseOrDie(R"({"add_bos_token":true,"bos_token":"<b>","tokenizer_class":")" + name + "\"}");
    EXPECT_FALSE(config.around.has_value()) << name;
    EXPECT_EQ(config.special_tokens.at("bos_token"), "<b>");
  }
  EXPECT_FALSE(ParseOrDie("{}").around.has_value());
  EXPECT_FALSE(ParseOrDie(R"({"tokenizer_class":null})").around.has_value());
}

TEST(TokenizerConfig, PutsTheTokensOfLlamaClassesAround) {
  TokenizerConfig config = ParseOrDie(
      R"({"add_bos_token":true,"add_eos_token":false,"tokenizer_class":"LlamaTokenizerFast",)"
      R"("bos_token":{"__type":"AddedToken","content":"<b>","lstrip":false},"eos_token":"<e>"})");
  ASSERT_TRUE(config.around.has_value());
  EXPECT_EQ(config.around->before, "<b>");
  EXPECT_EQ(config.around->behind, "");
  EXPECT_EQ(config.special_tokens.at("eos_token"), "<e>");

  config = ParseOrDie(
      R"({"add_bos_token":false,"add_eos_token":true,"tokenizer_class":"LlamaTokenizer",)"
      R"("bos_token":"<b>","eos_token":"<e>"})");
  EXPECT_EQ(config.around->before, "");
  EXPECT_EQ(config.around->behind, "<e>");
}

TEST(TokenizerConfig, TakesTheDefaultsOfLlamaClasses) {
  const TokenizerConfig config =
      ParseOrDie(R"({"add_bos_token":null,"tokenizer_class":"LlamaTokenizerFast"})");
  EXPECT_EQ(config.around->before, "<s>");
  EXPECT_EQ(config.around->behind, "");
  ExpectError(R"({"tokenizer_class":"LlamaTokenizer","bos_token":null})", StatusCode::kCorrupt,
              "add_bos_token: true, but bos_token is null or empty");
}

// HF writes int(1e30) where a model has no longest length.
TEST(TokenizerConfig, ReadsOverNumbersBeyond64Bits) {
  const TokenizerConfig config =
      ParseOrDie(R"({"model_max_length":1000000000000000019884624838656,"eos_token":"<e>",)"
                 R"("added_tokens_decoder":{"0":{"content":"<e>"}},"pad_token":null})");
  EXPECT_EQ(config.special_tokens.at("eos_token"), "<e>");
  EXPECT_EQ(config.special_tokens.size(), 1u);
}

TEST(TokenizerConfig, LoadsThoseOfOurModels) {
  for (const std::string name : {"abacus-dense", "abacus-dense-base", "abacus-mla", "abacus-moe"}) {
    const Result<TokenizerConfig> config = LoadTokenizerConfig("models/" + name);
    ASSERT_TRUE(config.has_value()) << config.error().message();
    EXPECT_EQ(config->special_tokens.at("eos_token"), "<|im_end|>");
    EXPECT_FALSE(config->chat_template.empty());
  }
}

TEST(TokenizerConfig, FindsTheChatTemplate) {
  EXPECT_EQ(ParseOrDie("{}").chat_template, "");
  EXPECT_EQ(ParseOrDie(R"({"chat_template":"{{x}}"})").chat_template, "{{x}}");
  EXPECT_EQ(ParseOrDie(R"({"chat_template":[{"name":"rag","template":"r"},)"
                       R"({"name":"default","template":"d"}]})")
                .chat_template,
            "d");
}

TEST(TokenizerConfig, RefusesWhatItDoesNotKnow) {
  constexpr StatusCode kCorrupt = StatusCode::kCorrupt;
  constexpr StatusCode kUnsupported = StatusCode::kUnsupported;
  ExpectError("{", kCorrupt, "tokenizer_config.json: ");
  ExpectError("[]", kCorrupt, "expected an object");
  ExpectError(R"({"tokenizer_class":"GemmaTokenizerFast"})", kUnsupported,
              "tokenizer_class: GemmaTokenizerFast is not built");
  ExpectError(R"({"tokenizer_class":7})", kCorrupt, "tokenizer_class: expected a string");
  ExpectError(R"({"add_prefix_space":true})", kUnsupported, "add_prefix_space: true");
  ExpectError(R"({"split_special_tokens":true})", kUnsupported, "split_special_tokens: true");
  ExpectError(R"({"split_special_tokens":1})", kCorrupt, "expected true or false");
  ExpectError(R"({"tokenizer_class":"LlamaTokenizer","add_bos_token":"yes"})", kCorrupt,
              "add_bos_token: expected true or false");
  ExpectError(R"({"bos_token":5})", kCorrupt, "bos_token: expected a string or an object");
  ExpectError(R"({"eos_token":{}})", kCorrupt, "eos_token: expected a string or an object");
  ExpectError(R"({"chat_template":5})", kCorrupt, "chat_template: expected a string or an array");
  ExpectError(R"({"chat_template":[{"name":"rag"}]})", kCorrupt, "a name and a template");
  ExpectError(R"({"chat_template":[{"name":"rag","template":"r"}]})", kUnsupported,
              "none of 1 is named default");
}

class Folder {
 public:
  Folder() { std::filesystem::create_directories(path_); }
  ~Folder() { std::filesystem::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  void Write(const std::string& name, const std::string& text) const {
    ASSERT_TRUE(WriteTextFile(path_ + "/" + name, text).ok());
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_ = testing::TempDir() + "octavo_tokenizer_config_" + std::to_string(getpid());
};

TEST(TokenizerConfig, PrefersTheTemplateBesideIt) {
  const Folder folder;
  EXPECT_EQ(LoadTokenizerConfig(folder.path())->chat_template, "");
  folder.Write("tokenizer_config.json", R"({"chat_template":"inside","bos_token":"<b>"})");
  EXPECT_EQ(LoadTokenizerConfig(folder.path())->chat_template, "inside");
  folder.Write("chat_template.jinja", "beside");
  EXPECT_EQ(LoadTokenizerConfig(folder.path())->chat_template, "beside");
  EXPECT_EQ(LoadTokenizerConfig(folder.path())->special_tokens.at("bos_token"), "<b>");
  folder.Write("tokenizer_config.json", "7");
  const Result<TokenizerConfig> damaged = LoadTokenizerConfig(folder.path());
  ASSERT_FALSE(damaged.has_value());
  EXPECT_THAT(damaged.error().message(), HasSubstr(folder.path() + "/tokenizer_config.json: "));
}

}  // namespace
}  // namespace octavo
