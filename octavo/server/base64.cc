#include "octavo/server/base64.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "octavo/base/status.h"

namespace octavo {
namespace {

constexpr std::string_view kDigits =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
constexpr uint8_t kNoDigit = 0xFF;

constexpr std::array<uint8_t, 256> MakeValues() {
  std::array<uint8_t, 256> values = {};
  values.fill(kNoDigit);
  for (size_t i = 0; i < kDigits.size(); ++i) {
    values[static_cast<unsigned char>(kDigits[i])] = static_cast<uint8_t>(i);
  }
  return values;
}

constexpr std::array<uint8_t, 256> kValues = MakeValues();

}  // namespace

std::string Base64(std::span<const std::byte> bytes) {
  std::string text;
  text.reserve((bytes.size() + 2) / 3 * 4);
  for (size_t i = 0; i < bytes.size(); i += 3) {
    const size_t count = std::min<size_t>(3, bytes.size() - i);
    uint32_t word = 0;
    for (size_t j = 0; j < 3; ++j) {
      word = word << 8 | (j < count ? std::to_integer<uint32_t>(bytes[i + j]) : 0U);
    }
    // count bytes fill count + 1 digits.
    for (size_t j = 0; j < 4; ++j) {
      text.push_back(j <= count ? kDigits[word >> (18 - 6 * j) & 63U] : '=');
    }
  }
  return text;
}

Result<std::string> DecodeBase64(std::string_view text) {
  const size_t num_padding = text.ends_with("==") ? 2 : text.ends_with('=') ? 1 : 0;
  if (text.size() % 4 != 0) {
    return Corrupt("base64: expected a multiple of 4 characters, got {}", text.size());
  }
  std::string bytes;
  bytes.reserve(text.size() / 4 * 3);
  for (size_t i = 0; i < text.size(); i += 4) {
    const size_t num_digits = i + 4 == text.size() ? 4 - num_padding : 4;
    uint32_t word = 0;
    for (size_t j = 0; j < 4; ++j) {
      const uint8_t value = j < num_digits ? kValues[static_cast<unsigned char>(text[i + j])] : 0;
      if (value == kNoDigit) {
        return Corrupt("base64: character {} is no digit of it", i + j);
      }
      word = word << 6 | value;
    }
    // num_digits digits hold num_digits - 1 bytes, and bits that must be 0.
    for (size_t j = 0; j + 1 < num_digits; ++j) {
      bytes.push_back(static_cast<char>(word >> (16 - 8 * j) & 0xFFU));
    }
    if (num_digits < 4 && (word & (num_digits == 3 ? 0xFFU : 0xFFFFU)) != 0) {
      return Corrupt("base64: bits behind the last byte");
    }
  }
  return bytes;
}

}  // namespace octavo
