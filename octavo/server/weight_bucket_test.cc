// Method: safetensors buffers written out by hand, with checksums from the functions that have
// their own tests; each thing that a bucket may say of itself, once right and once wrong.

#include "octavo/server/weight_bucket.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "octavo/server/update_record.h"
#include "octavo/sync/checksum.h"

namespace octavo {
namespace {

using testing::HasSubstr;

constexpr std::string_view kBytes = "abcdXXef";  // Of a, of a filler, of b.

std::string WithMetadata(std::string_view metadata) {
  const std::string header =
      fmt::format(R"({{{}"a":{{"dtype":"U8","shape":[4],"data_offsets":[0,4]}},)"
                  R"("__pad__.1":{{"dtype":"U8","shape":[2],"data_offsets":[4,6]}},)"
                  R"("b":{{"dtype":"U8","shape":[2],"data_offsets":[6,8]}}}})",
                  metadata);
  std::string bucket(8, '\0');
  for (size_t i = 0; i < 8; ++i) {
    bucket[i] = static_cast<char>(header.size() >> (8 * i));
  }
  return bucket + header + std::string(kBytes);
}

std::string Sum(ChecksumKind kind, std::string_view bytes) {
  return ChecksumHex(kind, std::as_bytes(std::span(bytes)));
}

TEST(ParseBucket, LeavesFillersOutAndNeedsNoChecksums) {
  const std::string text = WithMetadata(R"("__metadata__":{"format":"pt","note":"a:b"},)");
  const auto bucket = ParseBucket(text);
  ASSERT_TRUE(bucket.has_value()) << bucket.error().message();
  ASSERT_EQ(bucket->tensors.size(), 2U);
  EXPECT_EQ(bucket->tensors[1].name, "b");
  EXPECT_EQ(std::to_integer<char>(bucket->tensors[1].view.data[0]), 'e');
  EXPECT_TRUE(bucket->damage.ok());
}

TEST(ParseBucket, HoldsEveryKindOfChecksumAgainstTheBytes) {
  for (const auto& [name, kind] :
       {std::pair("xxh3-128", ChecksumKind::kXxh3), std::pair("blake3", ChecksumKind::kBlake3),
        std::pair("adler32", ChecksumKind::kAdler32)}) {
    const std::string good = Sum(kind, "ef");
    const std::string whole =
        WithMetadata(fmt::format(R"("__metadata__":{{"{}:b":"{}"}},)", name, good));
    EXPECT_TRUE(ParseBucket(whole)->damage.ok()) << name;
    std::string damaged = whole;
    damaged.back() ^= 1;
    const auto bucket = ParseBucket(damaged);
    ASSERT_TRUE(bucket.has_value());
    EXPECT_THAT(bucket->damage.message(), HasSubstr("b: damaged on the way"));
    EXPECT_THAT(bucket->damage.message(), HasSubstr(good));
    damaged = whole;
    damaged[damaged.size() - 3] ^= 1;  // A filler's bytes are nobody's.
    EXPECT_TRUE(ParseBucket(damaged)->damage.ok());
  }
}

TEST(ParseBucket, RefusesAChecksumOfNoTensor) {
  const std::string text = WithMetadata(R"("__metadata__":{"adler32:c":"00000000"},)");
  EXPECT_THAT(ParseBucket(text).error().message(), HasSubstr("adler32:c"));
}

TEST(UpdateRecord, KnowsTheLast16) {
  UpdateRecord record;
  EXPECT_EQ(record.Find(""), nullptr);
  for (int i = 0; i < 17; ++i) {
    record.Keep(std::to_string(i), fmt::format("answer {}", i));
  }
  EXPECT_EQ(record.Find("0"), nullptr);
  ASSERT_NE(record.Find("1"), nullptr);
  EXPECT_EQ(*record.Find("16"), "answer 16");
}

}  // namespace
}  // namespace octavo
