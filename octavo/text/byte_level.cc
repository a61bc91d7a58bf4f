#include "octavo/text/byte_level.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "octavo/text/utf8.h"

namespace octavo {
namespace {

constexpr bool StandsForItself(int byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

constexpr std::array<char32_t, 256> kSymbols = [] {
  std::array<char32_t, 256> symbols{};
  char32_t next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    symbols[static_cast<size_t>(byte)] =
        StandsForItself(byte) ? static_cast<char32_t>(byte) : next++;
  }
  return symbols;
}();

constexpr char32_t kNumSymbolCodePoints = 0x144;
constexpr int kNoByte = -1;

constexpr std::array<int, kNumSymbolCodePoints> kBytes = [] {
  std::array<int, kNumSymbolCodePoints> bytes{};
  for (int& byte : bytes) byte = kNoByte;
  for (int byte = 0; byte < 256; ++byte) bytes[kSymbols[static_cast<size_t>(byte)]] = byte;
  return bytes;
}();

}  // namespace

char32_t SymbolOfByte(uint8_t byte) { return kSymbols[byte]; }

bool BytesOfSymbols(std::string_view symbols, std::string* bytes) {
  bytes->clear();
  for (size_t pos = 0; pos < symbols.size();) {
    const Utf8Step step = ReadUtf8(symbols, pos);
    if (step.code_point >= kNumSymbolCodePoints || kBytes[step.code_point] == kNoByte) return false;
    bytes->push_back(static_cast<char>(kBytes[step.code_point]));
    pos += step.num_bytes;
  }
  return true;
}

}  // namespace octavo
