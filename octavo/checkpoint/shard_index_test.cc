// Method: each way in which an index can be bad once, with its message; names that could lead out
// of the folder in every disguise we know.

#include "octavo/checkpoint/shard_index.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <string_view>

#include "octavo/base/status.h"

namespace octavo {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string ErrorOf(std::string_view text) {
  const auto index = ParseShardIndex(text);
  if (index.has_value()) {
    return "accepted";
  }
  EXPECT_EQ(index.error().code(), StatusCode::kCorrupt);
  return index.error().message();
}

TEST(ShardIndex, FindsTheFileOfEachTensor) {
  const auto index = ParseShardIndex(
      R"({"metadata":{"total_size":20},"weight_map":{"z":"b.safetensors","a":"c.safetensors",)"
      R"("m":"b.safetensors"}})");
  ASSERT_TRUE(index.has_value()) << index.error().message();
  EXPECT_EQ(*index->FileOf("z"), "b.safetensors");
  EXPECT_EQ(*index->FileOf("a"), "c.safetensors");
  EXPECT_EQ(index->FileOf("b"), nullptr);
  EXPECT_THAT(index->Files(), ElementsAre("b.safetensors", "c.safetensors"));
  EXPECT_EQ(index->total_bytes, 20);
}

TEST(ShardIndex, TakesTheTotalOnlyWhenItIsAWholeNumber) {
  const auto total = [](std::string_view value) {
    return ParseShardIndex(
               fmt::format(R"({{"metadata":{{"total_size":{}}},"weight_map":{{}}}})", value))
        .value()
        .total_bytes;
  };
  EXPECT_EQ(total("7"), 7);
  EXPECT_EQ(total("7.0"), 7);
  EXPECT_EQ(total("7.5"), std::nullopt);
  EXPECT_EQ(total("-7"), std::nullopt);
  EXPECT_EQ(total("1e300"), std::nullopt);
  EXPECT_EQ(total("\"7\""), std::nullopt);
  EXPECT_EQ(ParseShardIndex(R"({"weight_map":{}})").value().total_bytes, std::nullopt);
}

TEST(ShardIndex, RefusesNamesThatLeadElsewhere) {
  for (const std::string_view file :
       {"../m.safetensors", "/m.safetensors", "a/m.safetensors", "..", "..safetensors",
        "a..safetensors", ".safetensors", "", "m.bin", "a\\\\m.safetensors", "a\\u0000.safetensors",
        "m.safetensors/", "m.safetensors\\n"}) {
    const std::string text = fmt::format(R"({{"weight_map":{{"w":"{}"}}}})", file);
    EXPECT_THAT(ErrorOf(text),
                HasSubstr("weight_map: w: expected the plain name of a *.safetensors file, got"))
        << file;
  }
}

TEST(ShardIndex, RefusesWhatIsNoIndex) {
  EXPECT_THAT(ErrorOf(""), HasSubstr("expected a JSON object: "));
  EXPECT_THAT(ErrorOf("{"), HasSubstr("expected a JSON object: "));
  EXPECT_EQ(ErrorOf("[]"), "expected an object with a weight_map");
  EXPECT_EQ(ErrorOf("{}"), "expected an object with a weight_map");
  EXPECT_EQ(ErrorOf(R"({"weight_map":[]})"), "expected an object with a weight_map");
  EXPECT_EQ(ErrorOf(R"({"weight_map":{"w":1}})"), "weight_map: w: expected a file name");
}

TEST(ShardIndex, RefusesDuplicateKeys) {
  EXPECT_EQ(ErrorOf(R"({"weight_map":{"w":"a.safetensors","w":"a.safetensors"}})"),
            "weight_map: key \"w\" occurs more than once");
  EXPECT_EQ(ErrorOf(R"({"weight_map":{},"weight_map":{}})"),
            "index: key \"weight_map\" occurs more than once");
}

}  // namespace
}  // namespace octavo
