// Method: the trained models of the tree open whole; then folders of tiny hand-made files, one for
// each layout that is read and one for each that is refused, with the whole message.

#include "octavo/checkpoint/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/file.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/checkpoint/test_folder.h"
#include "octavo/checkpoint/writer.h"

namespace octavo {
namespace {

namespace fs = std::filesystem;

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr std::string_view kConfig = R"({
  "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 8,
  "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 8,
  "max_position_embeddings": 8, "rms_norm_eps": 1e-6, "rope_theta": 10000.0
})";

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
    EXPECT_THAT(checkpoint->warnings(), IsEmpty()) << model.name;
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

class CheckpointFolderTest : public FolderTest {
 protected:
  void SetUp() override {
    FolderTest::SetUp();
    Put("config.json", kConfig);
  }

  // A file that holds one U8 tensor of two bytes for each name.
  void PutShard(std::string_view file, const std::vector<std::string>& names) const {
    std::string header = "{";
    size_t begin = 0;
    for (const std::string& name : names) {
      header += fmt::format(R"({}"{}":{{"dtype":"U8","shape":[2],"data_offsets":[{},{}]}})",
                            begin == 0 ? "" : ",", name, begin, begin + 2);
      begin += 2;
    }
    Put(file, SafetensorsText(header + "}", begin));
  }

  // An index from pairs of tensor and file.
  void PutIndex(const std::vector<std::pair<std::string, std::string>>& weight_map,
                int64_t total_bytes) const {
    std::string map;
    for (const auto& [tensor, file] : weight_map) {
      map += fmt::format(R"({}"{}":"{}")", map.empty() ? "" : ",", tensor, file);
    }
    Put("model.safetensors.index.json",
        fmt::format(R"({{"metadata":{{"total_size":{}}},"weight_map":{{{}}}}})", total_bytes, map));
  }

  // The message behind the folder's path, or "opened".
  std::string Error() const {
    const auto checkpoint = Checkpoint::Open(dir());
    if (checkpoint.has_value()) {
      return "opened";
    }
    code_ = checkpoint.error().code();
    const std::string& message = checkpoint.error().message();
    EXPECT_TRUE(message.starts_with(dir())) << message;
    return message.substr(std::min(message.size(), dir().size()));
  }

  mutable StatusCode code_ = StatusCode::kOk;  // Of the last Error().
};

TEST_F(CheckpointFolderTest, ReadsASingleFile) {
  PutShard("model.safetensors", {"b", "a"});
  const auto checkpoint = Checkpoint::Open(dir());
  ASSERT_TRUE(checkpoint.has_value()) << checkpoint.error().message();
  EXPECT_EQ(checkpoint->dir(), dir());
  EXPECT_EQ(checkpoint->config().hidden_size, 8);
  EXPECT_THAT(checkpoint->shard_files(), ElementsAre("model.safetensors"));
  ASSERT_EQ(checkpoint->tensors().size(), 2U);
  EXPECT_EQ(checkpoint->tensors()[0].name, "a");
  EXPECT_THAT(checkpoint->tensors()[0].view.Bytes(), ElementsAre(std::byte{2}, std::byte{3}));
  EXPECT_EQ(checkpoint->Find("b"), &checkpoint->tensors()[1]);
  EXPECT_EQ(checkpoint->Find("c"), nullptr);
}

TEST_F(CheckpointFolderTest, ReadsShardsByTheirIndex) {
  PutShard("model-00001-of-00002.safetensors", {"b"});
  PutShard("model-00002-of-00002.safetensors", {"a", "c"});
  PutShard("extra.safetensors", {"a"});
  PutIndex({{"b", "model-00001-of-00002.safetensors"},
            {"a", "model-00002-of-00002.safetensors"},
            {"c", "model-00002-of-00002.safetensors"}},
           6);
  auto opened = Checkpoint::Open(dir());
  ASSERT_TRUE(opened.has_value()) << opened.error().message();
  const Checkpoint checkpoint = *std::move(opened);
  EXPECT_THAT(checkpoint.shard_files(),
              ElementsAre("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"));
  EXPECT_EQ(checkpoint.Find("a")->shard_idx, 1);
  EXPECT_EQ(checkpoint.Find("b")->shard_idx, 0);
  EXPECT_THAT(checkpoint.warnings(),
              ElementsAre("extra.safetensors: ignored, for model.safetensors.index.json does not "
                          "name it"));
}

TEST_F(CheckpointFolderTest, ReadsSeveralFilesWithoutIndex) {
  PutShard("model-00001-of-00002.safetensors", {"a"});
  PutShard("model-00002-of-00002.safetensors", {"b"});
  PutShard("mtp.safetensors", {"c"});
  PutShard("consolidated.safetensors", {"a"});
  const auto checkpoint = Checkpoint::Open(dir());
  ASSERT_TRUE(checkpoint.has_value()) << checkpoint.error().message();
  EXPECT_EQ(checkpoint->tensors().size(), 3U);
  EXPECT_THAT(checkpoint->warnings(),
              ElementsAre("consolidated.safetensors: ignored beside model*.safetensors"));
}

TEST_F(CheckpointFolderTest, ReadsConsolidatedFilesWhenThereIsNothingElse) {
  PutShard("consolidated.safetensors", {"a"});
  EXPECT_EQ(Error(), "opened");
}

TEST_F(CheckpointFolderTest, WarnsOfATotalThatDoesNotAddUp) {
  PutShard("model.safetensors", {"a"});
  PutIndex({{"a", "model.safetensors"}}, 3);
  const auto checkpoint = Checkpoint::Open(dir());
  ASSERT_TRUE(checkpoint.has_value()) << checkpoint.error().message();
  EXPECT_THAT(checkpoint->warnings(),
              ElementsAre("model.safetensors.index.json: total_size: expected the 2 bytes of the "
                          "tensors, got 3"));
}

// The HF cache keeps each file as a link to a blob.
TEST_F(CheckpointFolderTest, FollowsLinksToFiles) {
  PutShard("blobs/0123", {"a"});
  fs::create_symlink("blobs/0123", Path("model.safetensors"));
  EXPECT_EQ(Error(), "opened");
}

TEST_F(CheckpointFolderTest, SaysWhatIsNoCheckpointFolder) {
  fs::remove(Path("config.json"));
  EXPECT_EQ(Error(), ": expected *.safetensors, got none");
  EXPECT_EQ(code_, StatusCode::kNotFound);
  const Status missing = Checkpoint::Open(Path("nowhere")).error();
  EXPECT_EQ(missing.code(), StatusCode::kNotFound);
  EXPECT_EQ(missing.message(), Path("nowhere") + ": no such folder");
  Put("file", "x");
  const Status file = Checkpoint::Open(Path("file")).error();
  EXPECT_EQ(file.code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(file.message(), Path("file") + ": expected a checkpoint folder, got a file");
}

TEST_F(CheckpointFolderTest, RefusesPicklesAndGguf) {
  for (const char* file : {"pytorch_model.bin", "model.gguf", "model.pt"}) {
    Put(file, "x");
    EXPECT_EQ(Error(), fmt::format(": expected *.safetensors, got {}: convert it to safetensors "
                                   "first",
                                   file));
    EXPECT_EQ(code_, StatusCode::kUnsupported);
    fs::remove(Path(file));
  }
}

TEST_F(CheckpointFolderTest, NamesAMissingOrBadConfig) {
  PutShard("model.safetensors", {"a"});
  Put("config.json", R"({"architectures":["X"]})");
  EXPECT_EQ(Error(),
            ": config.json: hidden_size: expected an integer from 1 to 1048576, got nothing");
  fs::remove(Path("config.json"));
  EXPECT_EQ(Error(), ": expected config.json, got none");
  EXPECT_EQ(code_, StatusCode::kNotFound);
}

TEST_F(CheckpointFolderTest, NamesTheFileThatIsCutShort) {
  PutShard("model.safetensors", {"a"});
  fs::resize_file(Path("model.safetensors"), fs::file_size(Path("model.safetensors")) - 1);
  EXPECT_EQ(Error(),
            "/model.safetensors: tensor a: data_offsets: expected begin <= end <= 1, got [0, 2]");
  EXPECT_EQ(code_, StatusCode::kCorrupt);
}

TEST_F(CheckpointFolderTest, NamesTheIndexThatIsBad) {
  PutShard("model.safetensors", {"a"});
  PutIndex({{"a", "../model.safetensors"}}, 2);
  EXPECT_EQ(Error(),
            "/model.safetensors.index.json: weight_map: a: expected the plain name of a "
            "*.safetensors file, got \"../model.safetensors\"");
}

TEST_F(CheckpointFolderTest, RefusesAnIndexThatNamesAMissingFile) {
  PutShard("model-00001-of-00002.safetensors", {"a"});
  PutIndex({{"a", "model-00001-of-00002.safetensors"}, {"b", "model-00002-of-00002.safetensors"}},
           4);
  EXPECT_EQ(Error(),
            ": model.safetensors.index.json names model-00002-of-00002.safetensors, which is not "
            "there");
  EXPECT_EQ(code_, StatusCode::kNotFound);
}

TEST_F(CheckpointFolderTest, RefusesAnIndexAloneInItsFolder) {
  PutIndex({{"a", "model.safetensors"}}, 2);
  EXPECT_EQ(Error(), ": model.safetensors.index.json names model.safetensors, which is not there");
}

TEST_F(CheckpointFolderTest, RefusesShardsThatContradictTheIndex) {
  PutShard("x.safetensors", {"a", "b"});
  PutShard("y.safetensors", {"c"});
  PutIndex({{"a", "x.safetensors"}, {"b", "y.safetensors"}, {"c", "y.safetensors"}}, 6);
  EXPECT_EQ(Error(),
            ": tensor b: model.safetensors.index.json puts it into y.safetensors, but it stands in "
            "x.safetensors");
  PutIndex({{"a", "x.safetensors"}, {"c", "y.safetensors"}}, 6);
  EXPECT_EQ(Error(),
            ": tensor b stands in x.safetensors, but model.safetensors.index.json does not name "
            "it");
  PutIndex({{"a", "x.safetensors"},
            {"b", "x.safetensors"},
            {"c", "y.safetensors"},
            {"d", "y.safetensors"}},
           6);
  EXPECT_EQ(Error(),
            ": tensor d: model.safetensors.index.json puts it into y.safetensors, which does not "
            "hold it");
  EXPECT_EQ(code_, StatusCode::kCorrupt);
}

TEST_F(CheckpointFolderTest, RefusesATensorInTwoFiles) {
  PutShard("model.safetensors", {"a"});
  PutShard("mtp.safetensors", {"b", "a"});
  EXPECT_EQ(Error(), ": tensor a stands in both model.safetensors and mtp.safetensors");
  EXPECT_EQ(code_, StatusCode::kCorrupt);
}

TEST_F(CheckpointFolderTest, MissesAShardThatItsSiblingsPromise) {
  PutShard("model-00001-of-00003.safetensors", {"a"});
  PutShard("model-00003-of-00003.safetensors", {"c"});
  EXPECT_EQ(Error(),
            ": expected model-00002-of-00003.safetensors beside model-00001-of-00003.safetensors, "
            "got none");
  PutShard("model-00002-of-00003.safetensors", {"b"});
  EXPECT_EQ(Error(), "opened");
}

// A pipe under a weight's name would block the one who opens it.
TEST_F(CheckpointFolderTest, NeverOpensAPipe) {
  PutShard("model.safetensors", {"a"});
  ASSERT_EQ(mkfifo(Path("other.safetensors").c_str(), 0600), 0);
  fs::create_symlink("nowhere", Path("dangling.txt"));
  const auto checkpoint = Checkpoint::Open(dir());
  ASSERT_TRUE(checkpoint.has_value()) << checkpoint.error().message();
  EXPECT_THAT(checkpoint->warnings(), ElementsAre(HasSubstr("dangling.txt: left alone"),
                                                  HasSubstr("other.safetensors: left alone")));
}

TEST_F(CheckpointFolderTest, ListsWhatGoesAlong) {
  PutShard("model.safetensors", {"a"});
  for (const char* file :
       {"LICENSE", "tokenizer.json", "modeling.py", "assets/deep/logo.txt", ".gitattributes",
        // None of these:
        "training_args.bin", "optimizer.pt", "old.gguf", "hf_quant_config.json",
        "pytorch_model.bin.index.json", "model.safetensors.tmp-7", "onnx/model.onnx",
        "original/consolidated.00.pth", ".git/objects/ab"}) {
    Put(file, "x");
  }
  fs::create_directory_symlink("assets", Path("linked"));
  const auto checkpoint = Checkpoint::Open(dir());
  ASSERT_TRUE(checkpoint.has_value()) << checkpoint.error().message();
  EXPECT_THAT(checkpoint->extra_files(),
              ElementsAre(".gitattributes", "LICENSE", "assets", "modeling.py", "tokenizer.json"));
}

TEST_F(CheckpointFolderTest, CopiesWhatGoesAlong) {
  PutShard("model.safetensors", {"a"});
  Put("tokenizer.json", "tokens");
  Put("assets/deep/logo.txt", "logo");
  fs::create_directories(Path("assets/empty"));
  const std::string out = Path("out");
  const auto checkpoint = Checkpoint::Open(dir());
  ASSERT_TRUE(checkpoint.has_value()) << checkpoint.error().message();
  fs::create_directories(out);
  ASSERT_TRUE(CopyExtraFiles(*checkpoint, out).ok());
  EXPECT_EQ(ReadTextFile(out + "/tokenizer.json").value(), "tokens");
  EXPECT_EQ(ReadTextFile(out + "/assets/deep/logo.txt").value(), "logo");
  EXPECT_TRUE(fs::is_directory(out + "/assets/empty"));
  EXPECT_FALSE(fs::exists(out + "/model.safetensors"));
  EXPECT_FALSE(fs::exists(out + "/config.json"));
}

TEST_F(CheckpointFolderTest, RefusesToCopyAFolderIntoItself) {
  PutShard("model.safetensors", {"a"});
  Put("assets/deep/logo.txt", "logo");
  const auto checkpoint = Checkpoint::Open(dir());
  ASSERT_TRUE(checkpoint.has_value()) << checkpoint.error().message();
  const Status status = CopyExtraFiles(*checkpoint, Path("assets/deep"));
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("which is to be copied into it"));
  EXPECT_EQ(CopyExtraFiles(*checkpoint, Path("nowhere")).code(), StatusCode::kNotFound);
}

// A whole checkpoint through the writer and back, tensor by tensor.
TEST_F(CheckpointFolderTest, ReadsWhatTheWriterWrote) {
  const auto source = Checkpoint::Open("models/abacus-moe");
  ASSERT_TRUE(source.has_value()) << source.error().message();
  std::vector<ShardContents> shards;
  int64_t total_bytes = 0;
  for (size_t i = 0; i < source->shard_files().size(); ++i) {
    ShardContents contents{source->shard_files()[i], {}};
    for (const StoredTensor& tensor : source->tensors()) {
      if (tensor.shard_idx == static_cast<int>(i)) {
        contents.tensors.push_back({tensor.name, tensor.view.dtype, tensor.view.shape});
      }
    }
    auto writer = ShardWriter::Create(Path(contents.file), contents.tensors);
    ASSERT_TRUE(writer.has_value()) << writer.error().message();
    for (const TensorHeader& header : contents.tensors) {
      ASSERT_TRUE(writer->Append(source->Find(header.name)->view).ok());
    }
    ASSERT_TRUE(writer->Commit().ok());
    total_bytes += writer->tensor_bytes();
    shards.push_back(std::move(contents));
  }
  ASSERT_TRUE(WriteIndex(dir(), shards).ok());
  const auto copy = Checkpoint::Open(dir());
  ASSERT_TRUE(copy.has_value()) << copy.error().message();
  EXPECT_THAT(copy->warnings(), IsEmpty());  // So total_size is the sum of the bytes.
  ASSERT_EQ(copy->tensors().size(), source->tensors().size());
  for (const StoredTensor& tensor : source->tensors()) {
    const StoredTensor* other = copy->Find(tensor.name);
    ASSERT_NE(other, nullptr) << tensor.name;
    EXPECT_EQ(other->view.dtype, tensor.view.dtype) << tensor.name;
    EXPECT_EQ(other->view.shape, tensor.view.shape) << tensor.name;
    EXPECT_TRUE(std::ranges::equal(other->view.Bytes(), tensor.view.Bytes())) << tensor.name;
  }
  EXPECT_THAT(ReadTextFile(Path("model.safetensors.index.json")).value(),
              HasSubstr(fmt::format("\"total_size\": {}", total_bytes)));
}

}  // namespace
}  // namespace octavo
