// Method: files made byte by byte; what a good one holds, each way to be a bad one once with its
// whole message, and each bound from both sides.

#include "octavo/checkpoint/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/checkpoint/test_folder.h"

namespace octavo {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;

std::span<const std::byte> BytesOf(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

Result<SafetensorsHeader> Parse(std::string_view header, size_t num_buffer_bytes) {
  return ParseSafetensorsHeader(BytesOf(SafetensorsText(header, num_buffer_bytes)));
}

// The error's code and message.
std::pair<StatusCode, std::string> ErrorOf(std::string_view header, size_t num_buffer_bytes) {
  const auto result = Parse(header, num_buffer_bytes);
  return {result.error().code(), result.has_value() ? "accepted" : result.error().message()};
}

TEST(SafetensorsHeader, ListsTensorsInTheOrderOfTheBuffer) {
  const auto header = Parse(R"({"b":{"shape":[3],"dtype":"U8","data_offsets":[8,11]},)"
                            R"("__metadata__":{"format":"pt","note":"x"},)"
                            R"("a":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}}   )",
                            11);
  ASSERT_TRUE(header.has_value()) << header.error().message();
  EXPECT_THAT(header->metadata, ElementsAre(Pair("format", "pt"), Pair("note", "x")));
  ASSERT_EQ(header->entries.size(), 2U);
  const SafetensorsEntry& a = header->entries[0];
  EXPECT_EQ(a.name, "a");
  EXPECT_EQ(a.dtype, DType::kF32);
  EXPECT_EQ(a.shape, (Shape{1, 2}));
  EXPECT_EQ(a.begin_bytes, 0);
  EXPECT_EQ(a.end_bytes, 8);
  EXPECT_EQ(header->entries[1].name, "b");
}

TEST(SafetensorsHeader, TakesScalarsAndEmptyTensorsAtAnyBorder) {
  const auto header =
      Parse(R"({"scalar":{"dtype":"BF16","shape":[],"data_offsets":[0,2]},)"
            R"("first":{"dtype":"F64","shape":[0],"data_offsets":[0,0]},)"
            R"("between":{"dtype":"U8","shape":[4,0,9223372036854775807],"data_offsets":[2,2]},)"
            R"("odd":{"dtype":"F32","shape":[1,1,1],"data_offsets":[2,6]},)"
            R"("last":{"dtype":"I64","shape":[2,0],"data_offsets":[6,6]}})",
            6);
  ASSERT_TRUE(header.has_value()) << header.error().message();
  EXPECT_EQ(header->entries.size(), 5U);
}

TEST(SafetensorsHeader, TakesAFileWithoutTensors) {
  const auto header = Parse("{}", 0);
  ASSERT_TRUE(header.has_value()) << header.error().message();
  EXPECT_THAT(header->entries, IsEmpty());
  EXPECT_EQ(header->buffer_offset_bytes, 10);
}

TEST(SafetensorsHeader, KnowsEveryDtypeOfOurs) {
  for (int i = 0; i <= static_cast<int>(DType::kF64); ++i) {
    const auto dtype = static_cast<DType>(i);
    const auto num_bytes = static_cast<size_t>(DTypeBytes(dtype));
    const auto header =
        Parse(fmt::format(R"({{"a":{{"dtype":"{}","shape":[],"data_offsets":[0,{}]}}}})",
                          DTypeName(dtype), num_bytes),
              num_bytes);
    ASSERT_TRUE(header.has_value()) << header.error().message();
    EXPECT_EQ(header->entries[0].dtype, dtype);
  }
}

struct BadHeader {
  std::string_view header;
  size_t num_buffer_bytes;
  std::string_view message;
};

TEST(SafetensorsHeader, NamesWhatIsWrongWithAnEntry) {
  const BadHeader cases[] = {
      {R"({"a":7})", 0, "tensor a: expected an object"},
      {R"({"a":{"dtype":"U8","shape":[1]}})", 1,
       "tensor a: expected the keys dtype, shape and data_offsets, got 2 of them"},
      {R"({"a":{"dtype":"U8","shape":[1],"strides":[1]}})", 1,
       "tensor a: expected the keys dtype, shape and data_offsets, got \"strides\""},
      {R"({"a":{"dtype":8,"shape":[1],"data_offsets":[0,1]}})", 1,
       "tensor a: dtype: expected a string"},
      {R"({"a":{"dtype":"U8","shape":1,"data_offsets":[0,1]}})", 1,
       "tensor a: shape: expected a list of at most 64 integers >= 0"},
      {R"({"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}})", 1,
       "tensor a: shape: expected a list of at most 64 integers >= 0"},
      {R"({"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}})", 1,
       "tensor a: shape: expected a list of at most 64 integers >= 0"},
      {R"({"a":{"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,1]}})", 1,
       "tensor a: shape: expected a list of at most 64 integers >= 0"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0]}})", 1,
       "tensor a: data_offsets: expected two integers >= 0"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,"1"]}})", 1,
       "tensor a: data_offsets: expected two integers >= 0"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1,0]}})", 1,
       "tensor a: data_offsets: expected begin <= end <= 1, got [1, 0]"},
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})", 1,
       "tensor a: data_offsets: expected begin <= end <= 1, got [0, 2]"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,7]}})", 7,
       "tensor a: expected 8 bytes for [2] F32, got data_offsets [0, 7]"},
      {R"({"":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1,
       "a tensor name of 0 bytes: expected 1 to 1024 bytes of UTF-8 without control characters, "
       "other than __metadata__"},
      {R"({"a\n":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1,
       "a tensor name of 2 bytes: expected 1 to 1024 bytes of UTF-8 without control characters, "
       "other than __metadata__"},
  };
  for (const BadHeader& bad : cases) {
    EXPECT_THAT(ErrorOf(bad.header, bad.num_buffer_bytes), Pair(StatusCode::kCorrupt, bad.message))
        << bad.header;
  }
}

// 2^62 * 4 = 2^64 and 2^60 * 8 = 2^63 leave int64_t; a zero extent behind them does not excuse it,
// for the product is formed from the left.
TEST(SafetensorsHeader, RefusesSizesThatOverflow) {
  for (const std::string_view tensor :
       {R"("U8","shape":[4611686018427387904,4])", R"("F64","shape":[1152921504606846976])",
        R"("U8","shape":[4611686018427387904,4,0])"}) {
    const std::string header =
        fmt::format(R"({{"a":{{"dtype":{},"data_offsets":[0,0]}}}})", tensor);
    EXPECT_THAT(ErrorOf(header, 0).second, HasSubstr("expected fewer than 2^63 bytes")) << tensor;
  }
}

TEST(SafetensorsHeader, RefusesOverlapGapAndRest) {
  constexpr std::string_view kTwo = R"({{"a":{{"dtype":"U8","shape":[4],"data_offsets":[0,4]}},)"
                                    R"("b":{{"dtype":"U8","shape":[4],"data_offsets":[{},{}]}}}})";
  EXPECT_EQ(ErrorOf(fmt::format(kTwo, 4, 8), 8).second, "accepted");
  EXPECT_EQ(ErrorOf(fmt::format(kTwo, 3, 7), 7).second,
            "tensor b: bytes [3, 7] overlap tensor a, which ends at 4");
  EXPECT_EQ(ErrorOf(fmt::format(kTwo, 0, 4), 4).second,
            "tensor b: bytes [0, 4] overlap tensor a, which ends at 4");
  EXPECT_EQ(ErrorOf(fmt::format(kTwo, 5, 9), 9).second,
            "tensor b: expected to begin at byte 4, got 5: a gap");
  EXPECT_EQ(ErrorOf(fmt::format(kTwo, 4, 8), 9).second,
            "expected 8 bytes of tensors after the header, got 9");
  EXPECT_EQ(ErrorOf("{}", 1).second, "expected 0 bytes of tensors after the header, got 1");
}

TEST(SafetensorsHeader, RefusesADtypeThatNoViewCarriesByName) {
  for (const std::string_view dtype : {"F4", "F6_E2M3", "F8_E4M3FNUZ", "bf16"}) {
    const std::string header =
        fmt::format(R"({{"w":{{"dtype":"{}","shape":[2],"data_offsets":[0,1]}}}})", dtype);
    EXPECT_THAT(ErrorOf(header, 1),
                Pair(StatusCode::kUnsupported,
                     fmt::format("tensor w: dtype: expected one of BOOL, U8 to F64, BF16, F8_*; "
                                 "got \"{}\"",
                                 dtype)));
  }
}

TEST(SafetensorsHeader, RefusesDuplicateKeysAtEveryLevel) {
  EXPECT_EQ(ErrorOf(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                    R"("\u0061":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
                    2)
                .second,
            "header: key \"a\" occurs more than once");
  EXPECT_EQ(
      ErrorOf(R"({"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}})", 1).second,
      "tensor a: key \"dtype\" occurs more than once");
  EXPECT_EQ(ErrorOf(R"({"__metadata__":{"k":"1","k":"2"}})", 0).second,
            "__metadata__: key \"k\" occurs more than once");
}

TEST(SafetensorsHeader, RefusesMetadataThatIsNotText) {
  EXPECT_EQ(ErrorOf(R"({"__metadata__":[]})", 0).second,
            "__metadata__: expected an object of strings");
  EXPECT_EQ(ErrorOf(R"({"__metadata__":{"k":1}})", 0).second,
            "__metadata__: key \"k\": expected a string");
}

TEST(SafetensorsHeader, RefusesTextThatIsNoJsonObject) {
  EXPECT_EQ(ErrorOf(" {}", 0).second, "header: expected JSON that starts with {");
  EXPECT_EQ(ErrorOf("", 0).second, "header: expected JSON that starts with {");
  EXPECT_EQ(ErrorOf("[]", 0).second, "header: expected JSON that starts with {");
  for (const std::string_view text : {"{", "{} x", "{\"a\":}", "{\"\xFF\":1}"}) {
    EXPECT_THAT(ErrorOf(text, 0), Pair(StatusCode::kCorrupt, HasSubstr("header: expected JSON: ")))
        << text;
  }
}

// A header whose JSON nests without end must not take the stack with it.
TEST(SafetensorsHeader, RefusesBottomlessNesting) {
  std::string text = "{\"a\":";
  text.append(1 << 20, '[');
  EXPECT_THAT(ErrorOf(text, 0).second, HasSubstr("header: expected JSON: "));
}

TEST(SafetensorsHeader, ChecksTheLengthFieldFromBothSides) {
  const auto with_length = [](uint64_t num_bytes, std::string_view rest) {
    std::string text(8, '\0');
    std::memcpy(text.data(), &num_bytes, sizeof(num_bytes));
    text += rest;
    const auto result = ParseSafetensorsHeader(BytesOf(text));
    return result.has_value() ? "accepted" : result.error().message();
  };
  EXPECT_EQ(with_length(2, "{}"), "accepted");
  EXPECT_EQ(with_length(3, "{}"), "header length: expected at most the 2 bytes that follow, got 3");
  EXPECT_EQ(with_length(100'000'000, "{}"),
            "header length: expected at most the 2 bytes that follow, got 100000000");
  EXPECT_EQ(with_length(100'000'001, "{}"),
            "header length: expected at most 100000000, got 100000001");
  EXPECT_EQ(with_length(~uint64_t{0}, "{}"),
            "header length: expected at most 100000000, got 18446744073709551615");
  EXPECT_EQ(ParseSafetensorsHeader(BytesOf("1234567")).error().message(),
            "expected a safetensors file, got 7 bytes");
  EXPECT_EQ(ParseSafetensorsHeader({}).error().message(),
            "expected a safetensors file, got 0 bytes");
}

using SafetensorsFileTest = FolderTest;

TEST_F(SafetensorsFileTest, ViewsTheBytesOfEachTensor) {
  Put("m.safetensors", SafetensorsText(R"({"b":{"dtype":"BF16","shape":[2],"data_offsets":[1,5]},)"
                                       R"("a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
                                       5));
  auto opened = SafetensorsFile::Open(Path("m.safetensors"));
  ASSERT_TRUE(opened.has_value()) << opened.error().message();
  // The views stay good when the file object moves.
  const SafetensorsFile file = *std::move(opened);
  const ConstTensorView b = file.View(file.header().entries[1]);
  EXPECT_EQ(b.shape, Shape{2});
  EXPECT_THAT(b.Bytes(), ElementsAre(std::byte{1}, std::byte{2}, std::byte{3}, std::byte{4}));
}

TEST_F(SafetensorsFileTest, NamesThePathInItsErrors) {
  const std::string path = Path("m.safetensors");
  EXPECT_EQ(SafetensorsFile::Open(path).error().code(), StatusCode::kNotFound);
  EXPECT_THAT(SafetensorsFile::Open(path).error().message(), HasSubstr(path));
  EXPECT_EQ(SafetensorsFile::Open(dir()).error().message(), dir() + ": expected a regular file");
  Put("m.safetensors", "");
  EXPECT_EQ(SafetensorsFile::Open(path).error().message(),
            path + ": expected a safetensors file, got 0 bytes");
}

// Every proper prefix of a file is refused: none is taken for a shorter whole one.
TEST_F(SafetensorsFileTest, RefusesEveryTruncation) {
  const std::string whole =
      SafetensorsText(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8);
  ASSERT_TRUE(ParseSafetensorsHeader(BytesOf(whole)).has_value());
  for (size_t num_bytes = 0; num_bytes < whole.size(); ++num_bytes) {
    const auto result = ParseSafetensorsHeader(BytesOf(whole.substr(0, num_bytes)));
    ASSERT_FALSE(result.has_value()) << num_bytes;
    EXPECT_EQ(result.error().code(), StatusCode::kCorrupt) << num_bytes;
  }
}

TEST(CheckedTensorBytes, StopsAtTheEndOfInt64) {
  constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
  EXPECT_EQ(CheckedTensorBytes(DType::kU8, {kMax}), kMax);
  EXPECT_EQ(CheckedTensorBytes(DType::kU16, {kMax}), std::nullopt);
  EXPECT_EQ(CheckedTensorBytes(DType::kU8, {kMax, 2}), std::nullopt);
  EXPECT_EQ(CheckedTensorBytes(DType::kU8, {-1}), std::nullopt);
  EXPECT_EQ(CheckedTensorBytes(DType::kF64, {}), 8);
}

TEST(CheckTensorName, BoundsTheLength) {
  EXPECT_TRUE(CheckTensorName(std::string(1024, 'a')).ok());
  EXPECT_FALSE(CheckTensorName(std::string(1025, 'a')).ok());
}

}  // namespace
}  // namespace octavo
