// Method: the vectors of RFC 4648, section 10, and every value of a digit.

#include "octavo/server/base64.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
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
    EXPECT_EQ(*DecodeBase64(encoded), plain);
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

TEST(Base64, EveryByteComesBack) {
  for (size_t size = 0; size < 40; ++size) {
    std::string bytes;
    for (size_t i = 0; i < size; ++i) {
      bytes.push_back(static_cast<char>(i * 37 + size));
    }
    EXPECT_EQ(*DecodeBase64(Base64(std::as_bytes(std::span(bytes)))), bytes);
  }
}

TEST(Base64, EveryFaultIsNamed) {
  const std::vector<std::pair<std::string_view, std::string_view>> faults = {
      {"Zg=", "base64: expected a multiple of 4 characters, got 3"},
      {"Zm9v\n", "base64: expected a multiple of 4 characters, got 5"},
      {"Zm9vZm-v", "base64: character 6 is no digit of it"},
      {"Zg==Zm9v", "base64: character 2 is no digit of it"},
      {"Z===", "base64: character 1 is no digit of it"},
      {"====", "base64: character 0 is no digit of it"},
      {"Zh==", "base64: bits behind the last byte"},
      {"Zm9=", "base64: bits behind the last byte"}};
  for (const auto& [text, message] : faults) {
    EXPECT_EQ(DecodeBase64(text).error().message(), message) << text;
  }
}

}  // namespace
}  // namespace octavo
