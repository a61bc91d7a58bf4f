// Method: small digests against XXH3 applied by hand to the text of the definition; the trained
// model against the value that scripts/digest.py, which shares no code with this, computed.

#include "octavo/convert/digest.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "octavo/base/hash.h"
#include "octavo/base/tensor.h"
#include "octavo/base/thread_pool.h"
#include "octavo/checkpoint/checkpoint.h"

namespace octavo {
namespace {

using ::testing::HasSubstr;

constexpr char kHex[] = "00112233445566778899aabbccddeeff";

TEST(ModelDigest, IsTheHashOfItsLines) {
  const ModelDigest digest = ModelDigestOf({{"b", DType::kF32, {}, kHex},
                                            {"a.weight", DType::kF8E4m3, {3, 128}, kHex},
                                            {"a", DType::kBf16, {7}, kHex},
                                            {"a-", DType::kBf16, {0, 2}, kHex}});
  const std::string hex = kHex;
  // "a" < "a-" < "a.weight" < "b" as bytes; a scalar leaves its extents empty.
  EXPECT_EQ(digest.hex,
            HashHex(HashText("a BF16 7 " + hex + "\n" + "a- BF16 0,2 " + hex + "\n" +
                             "a.weight F8_E4M3 3,128 " + hex + "\n" + "b F32  " + hex + "\n")));
  EXPECT_EQ(digest.tensors.front().name, "a");
  EXPECT_EQ(digest.tensors.back().name, "b");
}

TEST(ModelDigest, OfNothingIsThatOfAnEmptyText) {
  EXPECT_EQ(ModelDigestOf({}).hex, "99aa06d3014798d86001c324468d497f");
}

TEST(ModelDigest, ChangesWithEveryPartOfALine) {
  const TensorDigestLine line = {"a", DType::kBf16, {2, 3}, kHex};
  const std::string expected = ModelDigestOf({line}).hex;
  TensorDigestLine other = line;
  other.name = "b";
  EXPECT_NE(ModelDigestOf({other}).hex, expected);
  other = line;
  other.dtype = DType::kF16;
  EXPECT_NE(ModelDigestOf({other}).hex, expected);
  other = line;
  other.shape = {3, 2};
  EXPECT_NE(ModelDigestOf({other}).hex, expected);
  other = line;
  other.hex[31] = 'e';
  EXPECT_NE(ModelDigestOf({other}).hex, expected);
}

TEST(ModelDigest, OfTheTrainedModelIsWhatThePythonScriptComputes) {
  const auto checkpoint = Checkpoint::Open("models/abacus-dense");
  ASSERT_TRUE(checkpoint.has_value()) << checkpoint.error().message();
  ThreadPool pool(3);
  const ModelDigest digest = DigestCheckpoint(*checkpoint, &pool);
  EXPECT_EQ(digest.hex, "1a2349bef48e3bcb8fe6f1df2c812a8a");
  EXPECT_EQ(DigestCheckpoint(*checkpoint, nullptr).hex, digest.hex);
  EXPECT_EQ(digest.tensors.size(), checkpoint->tensors().size());
  EXPECT_THAT(ModelDigestJson(digest), HasSubstr("\"digest\": \"" + digest.hex + "\""));
}

}  // namespace
}  // namespace octavo
