#pragma once
// The checksums that trainers write beside weights.

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace octavo {

enum class ChecksumKind {
  kXxh3,     // "xxh3-128": XXH3, 128 bits, seed 0.
  kBlake3,   // "blake3": 32 bytes.
  kAdler32,  // "adler32": RFC 1950, section 8.
};

std::optional<ChecksumKind> ParseChecksumKind(std::string_view name);

// Lower-case hexadecimal digits, the most significant first.
std::string ChecksumHex(ChecksumKind kind, std::span<const std::byte> bytes);

}  // namespace octavo
