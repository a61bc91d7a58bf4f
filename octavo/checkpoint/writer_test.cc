// Method: files compared byte for byte with texts worked out by hand, and read back by our own
// reader over shapes that misalign what follows them; each error once.

#include "octavo/checkpoint/writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/file.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/checkpoint/safetensors.h"
#include "octavo/checkpoint/shard_index.h"
#include "octavo/checkpoint/test_folder.h"

namespace octavo {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

using WriterTest = FolderTest;

ConstTensorView ViewOf(const TensorHeader& header, const std::vector<std::byte>& bytes) {
  return {header.dtype, header.shape, bytes.data()};
}

// Bytes that differ from tensor to tensor and from place to place.
std::vector<std::byte> PatternFor(const TensorHeader& header, size_t seed) {
  std::vector<std::byte> bytes(
      static_cast<size_t>(NumElements(header.shape) * DTypeBytes(header.dtype)));
  for (size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] = static_cast<std::byte>(seed * 31 + i * 7 + 1);
  }
  return bytes;
}

TEST_F(WriterTest, WritesTheseBytes) {
  const TensorHeader a{"a", DType::kBf16, {1, 2, 2}};
  const std::vector<std::byte> bytes = {std::byte{1}, std::byte{2}, std::byte{3}, std::byte{4},
                                        std::byte{5}, std::byte{6}, std::byte{7}, std::byte{8}};
  auto writer = ShardWriter::Create(Path("m.safetensors"), {a});
  ASSERT_TRUE(writer.has_value()) << writer.error().message();
  ASSERT_TRUE(writer->Append(ViewOf(a, bytes)).ok());
  ASSERT_TRUE(writer->Commit().ok());
  // 90 characters of JSON, padded to 96 = 0x60.
  std::string expected(8, '\0');
  expected[0] = 0x60;
  expected +=
      R"({"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[1,2,2],"data_offsets":[0,8]}})";
  expected.resize(8 + 96, ' ');
  expected += "\x01\x02\x03\x04\x05\x06\x07\x08";
  EXPECT_EQ(ReadTextFile(Path("m.safetensors")).value(), expected);
  EXPECT_THAT(Names(), ElementsAre("m.safetensors"));
}

TEST_F(WriterTest, ReadsBackOddShapesAligned) {
  const std::vector<TensorHeader> headers = {
      {"codes", DType::kF8E4m3, {3, 5}},        // 15 bytes: would misalign all that follows.
      {"scale", DType::kF32, {1, 1}},           //
      {"scalar", DType::kBf16, {}},             //
      {"empty", DType::kF32, {0, 7}},           //
      {"cube", DType::kI64, {2, 3, 5}},         //
      {"flag", DType::kBool, {1}},              //
      {"exact", DType::kU8, {8}},               //
      {"empty.too", DType::kU8, {3, 0}},        //
      {"half \"quoted\" é", DType::kF16, {3}},  //
      {"double", DType::kF64, {1}},
  };
  std::vector<std::vector<std::byte>> bytes;
  auto writer = ShardWriter::Create(Path("m.safetensors"), headers);
  ASSERT_TRUE(writer.has_value()) << writer.error().message();
  int64_t total = 0;
  for (size_t i = 0; i < headers.size(); ++i) {
    bytes.push_back(PatternFor(headers[i], i));
    total += static_cast<int64_t>(bytes[i].size());
    ASSERT_TRUE(writer->Append(ViewOf(headers[i], bytes[i])).ok());
  }
  EXPECT_EQ(writer->tensor_bytes(), total);
  ASSERT_TRUE(writer->Commit().ok());

  const auto file = SafetensorsFile::Open(Path("m.safetensors"));
  ASSERT_TRUE(file.has_value()) << file.error().message();
  EXPECT_EQ(file->header().buffer_offset_bytes % 8, 0);
  EXPECT_THAT(file->header().metadata,
              ElementsAre(std::pair<std::string, std::string>{"format", "pt"}));
  ASSERT_EQ(file->header().entries.size(), headers.size());
  std::map<std::string, const SafetensorsEntry*> entries;
  for (const SafetensorsEntry& entry : file->header().entries) {
    entries[entry.name] = &entry;
    EXPECT_EQ(entry.begin_bytes % DTypeBytes(entry.dtype), 0) << entry.name;
  }
  for (size_t i = 0; i < headers.size(); ++i) {
    ASSERT_TRUE(entries.contains(headers[i].name)) << headers[i].name;
    const ConstTensorView view = file->View(*entries[headers[i].name]);
    EXPECT_EQ(view.dtype, headers[i].dtype) << headers[i].name;
    EXPECT_EQ(view.shape, headers[i].shape) << headers[i].name;
    EXPECT_THAT(view.Bytes(), ::testing::ElementsAreArray(bytes[i])) << headers[i].name;
  }
}

TEST_F(WriterTest, PiecesInAnyOrderGiveTheSameFile) {
  const std::vector<TensorHeader> headers = {{"codes", DType::kF8E4m3, {3, 5}},
                                             {"weight", DType::kBf16, {4, 16}},
                                             {"none", DType::kU8, {0}}};
  auto in_order = ShardWriter::Create(Path("a.safetensors"), headers);
  auto in_pieces = ShardWriter::Create(Path("b.safetensors"), headers);
  ASSERT_TRUE(in_order.has_value() && in_pieces.has_value());
  for (size_t i = headers.size(); i-- > 0;) {
    const std::vector<std::byte> bytes = PatternFor(headers[i], i);
    const std::span<const std::byte> whole(bytes);
    const size_t middle = bytes.size() / 2;
    ASSERT_TRUE(in_pieces->WriteAt(i, static_cast<int64_t>(middle), whole.subspan(middle)).ok());
    ASSERT_TRUE(in_pieces->WriteAt(i, 0, whole.first(middle)).ok());
  }
  for (size_t i = 0; i < headers.size(); ++i) {
    ASSERT_TRUE(in_order->Append(ViewOf(headers[i], PatternFor(headers[i], i))).ok());
  }
  ASSERT_TRUE(in_order->Commit().ok());
  ASSERT_TRUE(in_pieces->Commit().ok());
  EXPECT_EQ(ReadTextFile(Path("a.safetensors")).value(),
            ReadTextFile(Path("b.safetensors")).value());
}

TEST_F(WriterTest, RefusesToCommitWhatIsNotWhole) {
  const TensorHeader a{"a", DType::kU8, {8}};
  auto writer = ShardWriter::Create(Path("m.safetensors"), {a});
  ASSERT_TRUE(writer.has_value());
  const std::vector<std::byte> bytes(7);
  ASSERT_TRUE(writer->WriteAt(0, 1, bytes).ok());
  const Status status = writer->Commit();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(),
              HasSubstr("tensor a: expected its bytes before the end, got 7 of 8"));
}

TEST_F(WriterTest, LeavesNothingBehindWithoutCommit) {
  const TensorHeader a{"a", DType::kU8, {1}};
  {
    auto writer = ShardWriter::Create(Path("m.safetensors"), {a});
    ASSERT_TRUE(writer.has_value());
    EXPECT_EQ(Names().size(), 1U);
  }
  EXPECT_THAT(Names(), ElementsAre());
}

TEST_F(WriterTest, RefusesTensorsOutOfTurn) {
  const TensorHeader a{"a", DType::kU8, {2}};
  const TensorHeader b{"b", DType::kU8, {3}};
  auto writer = ShardWriter::Create(Path("m.safetensors"), {a, b});
  ASSERT_TRUE(writer.has_value());
  const std::vector<std::byte> bytes(3);
  EXPECT_THAT(writer->Append(ViewOf(b, bytes)).message(),
              HasSubstr("tensor a: expected [2] U8, got [3] U8"));
  EXPECT_TRUE(writer->Append(ViewOf(a, bytes)).ok());
  EXPECT_THAT(writer->Commit().message(), HasSubstr("tensor b: expected its bytes"));
  EXPECT_TRUE(writer->Append(ViewOf(b, bytes)).ok());
  EXPECT_THAT(writer->Append(ViewOf(b, bytes)).message(),
              HasSubstr("expected 2 tensors, got more"));
  EXPECT_TRUE(writer->Commit().ok());
}

TEST_F(WriterTest, RefusesHeadersThatNoReaderWouldTake) {
  const auto message = [this](std::vector<TensorHeader> headers) {
    const auto writer = ShardWriter::Create(Path("m.safetensors"), std::move(headers));
    return writer.has_value() ? "accepted" : writer.error().message();
  };
  EXPECT_THAT(message({{"a", DType::kU8, {1}}, {"a", DType::kU8, {1}}}),
              HasSubstr("tensor a: expected once"));
  EXPECT_THAT(message({{"", DType::kU8, {1}}}), HasSubstr("a tensor name of 0 bytes"));
  EXPECT_THAT(message({{"__metadata__", DType::kU8, {1}}}), HasSubstr("a tensor name of 12 bytes"));
  EXPECT_THAT(message({{"a\n", DType::kU8, {1}}}), HasSubstr("a tensor name of 2 bytes"));
  EXPECT_THAT(message({{"\xFF", DType::kU8, {1}}}), HasSubstr("a tensor name of 1 bytes"));
  EXPECT_THAT(message({{"a", DType::kU8, {-1}}}), HasSubstr("shape [-1]: expected extents >= 0"));
  const int64_t huge = int64_t{1} << 62;
  EXPECT_THAT(message({{"a", DType::kBf16, {huge}}}), HasSubstr("fewer than 2^63 bytes"));
  EXPECT_THAT(message({{"a", DType::kU8, {huge}}, {"b", DType::kU8, {huge}}}),
              HasSubstr("tensor b: shape"));
  EXPECT_THAT(Names(), ElementsAre());
}

TEST(IndexJson, SumsBytesAndSortsNames) {
  const std::vector<ShardContents> shards = {
      {"model-00001-of-00002.safetensors", {{"b", DType::kBf16, {3, 2}}, {"a", DType::kF32, {}}}},
      {"model-00002-of-00002.safetensors", {{"B", DType::kU8, {0}}}}};
  const auto text = IndexJson(shards);
  ASSERT_TRUE(text.has_value()) << text.error().message();
  EXPECT_EQ(*text, R"({
  "metadata": {
    "total_size": 16
  },
  "weight_map": {
    "B": "model-00002-of-00002.safetensors",
    "a": "model-00001-of-00002.safetensors",
    "b": "model-00001-of-00002.safetensors"
  }
}
)");
  const auto index = ParseShardIndex(*text);
  ASSERT_TRUE(index.has_value()) << index.error().message();
  EXPECT_EQ(index->total_bytes, 16);
  EXPECT_EQ(*index->FileOf("B"), "model-00002-of-00002.safetensors");
  EXPECT_EQ(index->FileOf("C"), nullptr);
}

TEST(IndexJson, OfNoTensorsHasAnEmptyMap) {
  EXPECT_THAT(IndexJson({}).value(), HasSubstr(R"("weight_map": {})"));
}

TEST(IndexJson, RefusesATensorInTwoFilesAndPaths) {
  const TensorHeader a{"a", DType::kU8, {1}};
  const std::vector<ShardContents> twice = {{"x.safetensors", {a}}, {"y.safetensors", {a}}};
  EXPECT_EQ(IndexJson(twice).error().message(),
            "tensor a: expected in one file, got x.safetensors and y.safetensors");
  const std::vector<ShardContents> path = {{"../x.safetensors", {a}}};
  EXPECT_THAT(IndexJson(path).error().message(), HasSubstr("got \"../x.safetensors\""));
}

TEST(ConfigJsonWithQuantization, KeepsOrderAndSpellingOfTheRest) {
  const std::string config = R"({
  "zeta": 1e-06,
  "quantization_config": {"old": [1, {"}": "]"}]},
  "alpha": 0.10000000000000000001,
  "compression_config": {"x": 1},
  "text_config": {"a": 1.0, "quantization_config": {"b": 2}, "c": "\"}"},
  "last" : null
}
)";
  const auto text =
      ConfigJsonWithQuantization(config, R"({"quant_method":"fp8","weight_block_size":[128,128]})");
  ASSERT_TRUE(text.has_value()) << text.error().message();
  EXPECT_EQ(*text, R"({
  "zeta": 1e-06,
  "quantization_config": {
    "quant_method": "fp8",
    "weight_block_size": [
      128,
      128
    ]
  },
  "alpha": 0.10000000000000000001,
  "text_config": {"a": 1.0,"c": "\"}"},
  "last" : null
}
)");
}

TEST(ConfigJsonWithQuantization, AppendsWhereThereWasNone) {
  EXPECT_EQ(ConfigJsonWithQuantization("{\n \"a\": 1\n}\n", R"({"b":2})").value(),
            "{\n \"a\": 1,\n \"quantization_config\": {\n    \"b\": 2\n  }\n}\n");
  EXPECT_EQ(ConfigJsonWithQuantization(" { } ", R"({"b":2})").value(),
            " {\n  \"quantization_config\": {\n    \"b\": 2\n  }\n} ");
}

TEST(ConfigJsonWithQuantization, RemovesTheKeyForAnEmptyText) {
  EXPECT_EQ(ConfigJsonWithQuantization(R"({"a":1,"quantization_config":{},"b":2})", "").value(),
            R"({"a":1,"b":2})");
  EXPECT_EQ(ConfigJsonWithQuantization(R"({"quantization_config":{}})", "").value(), "{}");
  EXPECT_EQ(ConfigJsonWithQuantization("{}", "").value(), "{}");
}

// Found by the fuzzer: an edit that has nothing to do once changed the spaces of an empty object.
TEST(ConfigJsonWithQuantization, RepeatsWithoutAnotherChange) {
  const std::string once =
      ConfigJsonWithQuantization("{ \"quantization_config\" : 1}\n", "").value();
  EXPECT_EQ(once, "{ }\n");
  EXPECT_EQ(ConfigJsonWithQuantization(once, "").value(), once);
}

// A key may be spelled with escapes; what counts is what it says.
TEST(ConfigJsonWithQuantization, SeesThroughEscapes) {
  EXPECT_EQ(ConfigJsonWithQuantization(R"({"quantization_c\u006fnfig":{},"b\\":2})", "").value(),
            R"({"b\\":2})");
}

TEST(ConfigJsonWithQuantization, RefusesWhatIsNoObject) {
  EXPECT_THAT(ConfigJsonWithQuantization("[]", "").error().message(),
              HasSubstr("config.json: expected a JSON object"));
  EXPECT_THAT(ConfigJsonWithQuantization("{", "").error().message(),
              HasSubstr("config.json: expected a JSON object: "));
  EXPECT_THAT(ConfigJsonWithQuantization("{}", "7").error().message(),
              HasSubstr("quantization_config: expected a JSON object"));
  EXPECT_THAT(ConfigJsonWithQuantization(R"({"a":1,"a":2})", "").error().message(),
              HasSubstr("config.json: key \"a\" occurs more than once"));
}

// The trained model's config comes back byte for byte when nothing is to change.
TEST(ConfigJsonWithQuantization, ChangesNothingInAModelThatIsNotQuantized) {
  const std::string config = ReadTextFile("models/abacus-dense/config.json").value();
  EXPECT_EQ(ConfigJsonWithQuantization(config, "").value(), config);
}

}  // namespace
}  // namespace octavo
