#pragma once
// The alphabet of byte-level BPE: each byte has a printable character that stands for it in
// vocabularies and merges (GPT-2, encoder.py, bytes_to_unicode).

#include <cstdint>
#include <string>
#include <string_view>

namespace octavo {

// U+0021..7E, U+00A1..AC and U+00AE..FF stand for themselves; the 68 other bytes, in order, are
// U+0100 to U+0143.
char32_t SymbolOfByte(uint8_t byte);

// The bytes that `symbols` (UTF-8) stand for. False, with `bytes` unspecified, when a character
// stands for none. Thread-safe.
bool BytesOfSymbols(std::string_view symbols, std::string* bytes);

}  // namespace octavo
