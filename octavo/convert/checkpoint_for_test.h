#pragma once
// A small Qwen3 checkpoint for tests, in any number of files, and ways to spoil it.

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/file.h"
#include "octavo/base/hash.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/checkpoint/writer.h"
#include "octavo/formats/bf16.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"

namespace octavo {

inline constexpr char kTestConfig[] = R"({
  "architectures": ["Qwen3ForCausalLM"],
  "model_type": "qwen3",
  "hidden_size": 160,
  "num_hidden_layers": 3,
  "num_attention_heads": 2,
  "num_key_value_heads": 1,
  "head_dim": 66,
  "intermediate_size": 260,
  "vocab_size": 40,
  "max_position_embeddings": 64,
  "rms_norm_eps": 1e-06,
  "rope_theta": 10000.0,
  "hidden_act": "silu",
  "tie_word_embeddings": false,
  "torch_dtype": "bfloat16"
})";

// A tensor to be written.
struct TestTensor {
  DType dtype = DType::kBf16;
  Shape shape;
  std::vector<std::byte> bytes;
};
using TestTensors = std::map<std::string, TestTensor>;

inline TestTensor RandomBf16(const Shape& shape, unsigned seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0.0F, 0.02F);
  TestTensor tensor = {.dtype = DType::kBf16, .shape = shape, .bytes = {}};
  for (int64_t i = 0; i < NumElements(shape); ++i) {
    const uint16_t bits = FloatToBf16(normal(rng));
    tensor.bytes.push_back(static_cast<std::byte>(bits & 0xFFU));
    tensor.bytes.push_back(static_cast<std::byte>(bits >> 8));
  }
  return tensor;
}

// Random weights for every row of `spec`, by name.
inline TestTensors RandomWeights(const ModelSpec& spec) {
  TestTensors tensors;
  unsigned seed = 1;
  for (const WeightSpec& weight : spec.weights) {
    tensors[weight.name] = RandomBf16(weight.shape, seed++);
  }
  return tensors;
}

inline ModelSpec TestSpec() {
  const auto config = ParseHfConfig(kTestConfig, "");
  EXPECT_TRUE(config.has_value()) << config.error().message();
  const auto spec = MakeModelSpec(*config);
  EXPECT_TRUE(spec.has_value()) << spec.error().message();
  return *spec;
}

inline std::string TestShardName(size_t shard_idx, size_t num_shards) {
  return num_shards == 1
             ? "model.safetensors"
             : fmt::format("model-{:05}-of-{:05}.safetensors", shard_idx + 1, num_shards);
}

// Writes `tensors`, dealt out over `num_shards` files by name, with config, index (for several
// files) and two files beside them.
inline void WriteTestCheckpoint(const std::string& dir, const TestTensors& tensors,
                                size_t num_shards = 1, std::string_view config = kTestConfig) {
  std::filesystem::create_directories(dir + "/extra");
  std::vector<ShardContents> contents(num_shards);
  for (size_t shard_idx = 0; shard_idx < num_shards; ++shard_idx) {
    ShardContents& shard = contents[shard_idx];
    shard.file = TestShardName(shard_idx, num_shards);
    size_t position = 0;
    for (const auto& [name, tensor] : tensors) {
      if (position++ * num_shards / tensors.size() == shard_idx) {
        shard.tensors.push_back({name, tensor.dtype, tensor.shape});
      }
    }
    auto writer = ShardWriter::Create(dir + "/" + shard.file, shard.tensors);
    ASSERT_TRUE(writer.has_value()) << writer.error().message();
    for (const TensorHeader& header : shard.tensors) {
      const TestTensor& tensor = tensors.at(header.name);
      ASSERT_TRUE(writer->Append({tensor.dtype, tensor.shape, tensor.bytes.data()}).ok());
    }
    ASSERT_TRUE(writer->Commit().ok());
  }
  if (num_shards > 1) {
    ASSERT_TRUE(WriteIndex(dir, contents).ok());
  }
  ASSERT_TRUE(WriteTextFile(dir + "/tokenizer.json", "{}").ok());
  ASSERT_TRUE(WriteTextFile(dir + "/extra/notes.txt", "kept").ok());
  ASSERT_TRUE(WriteTextFile(dir + "/config.json", config).ok());
}

// Path below the folder -> hash of its bytes, of every file there.
inline std::map<std::string, std::string> FolderHashes(const std::string& dir) {
  std::map<std::string, std::string> hashes;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(dir)) {
    if (entry.is_regular_file()) {
      const auto file = MappedFile::Open(entry.path().string());
      hashes[entry.path().lexically_relative(dir).string()] = HashHex(HashBytes(file->bytes()));
    }
  }
  return hashes;
}

// A folder of the running test's own, removed with it.
class TestFolder {
 public:
  TestFolder() {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    dir_ = ::testing::TempDir() + "/octavo_convert_" + info->test_suite_name() + "_" + info->name();
    std::filesystem::remove_all(dir_);
    std::filesystem::create_directories(dir_);
  }
  ~TestFolder() { std::filesystem::remove_all(dir_); }
  TestFolder(const TestFolder&) = delete;
  TestFolder& operator=(const TestFolder&) = delete;

  std::string Path(const std::string& name) const { return dir_ + "/" + name; }

 private:
  std::string dir_;
};

}  // namespace octavo
