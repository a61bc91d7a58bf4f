// Method: the vectors of RFC 4648, section 10, and every value of a digit.

#include "octavo/server/base64.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace octavo {
namespace {

TEST(Base64, HasTheVectorsOfTheRfc) {
  const std::vector<std::pair<std::string_view, std::string_view>> vectors = {
      {"", ""},
      {"f", "Zg=="},
      {"fo", "Zm8="},
      {"foo", "Zm9v"},
      {"foob", "Zm9vYg=="},
      {"fooba", "Zm9vYmE="},
      {"foobar", "Zm9vYmFy"}};
  for (const auto& [plain, encoded] : vectors) {
    EXPECT_EQ(Base64(std::as_bytes(std::span(plain))), encoded);
  }
}

TEST(Base64, UsesAllDigits) {
  // 00 10 83 10 51 87 ... : the digits in order, 6 bits each.
  std::vector<std::byte> bytes;
  for (uint32_t digit = 0; digit < 64; digit += 4) {
    const uint32_t word = digit << 18 | (digit + 1) << 12 | (digit + 2) << 6 | (digit + 3);
    for (const int shift : {16, 8, 0}) {
      bytes.push_back(static_cast<std::byte>(word >> shift & 0xFFU));
    }
  }
  EXPECT_EQ(Base64(bytes), "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/");
}

}  // namespace
}  // namespace octavo
