#include "octavo/sync/checksum.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "octavo/base/hash.h"

namespace octavo {
namespace {

uint32_t Adler32(std::span<const std::byte> bytes) {
  constexpr uint32_t kModulus = 65521;
  // So many additions of 255 do not overflow 32 bits between two divisions.
  constexpr size_t kRunBytes = 5552;
  uint32_t low = 1;
  uint32_t high = 0;
  while (!bytes.empty()) {
    const size_t run = std::min(bytes.size(), kRunBytes);
    for (const std::byte byte : bytes.first(run)) {
      low += std::to_integer<uint32_t>(byte);
      high += low;
    }
    low %= kModulus;
    high %= kModulus;
    bytes = bytes.subspan(run);
  }
  return (high << 16) | low;
}

}  // namespace

std::optional<ChecksumKind> ParseChecksumKind(std::string_view name) {
  if (name == "xxh3-128") {
    return ChecksumKind::kXxh3;
  }
  return name == "adler32" ? std::optional(ChecksumKind::kAdler32) : std::nullopt;
}

std::string ChecksumHex(ChecksumKind kind, std::span<const std::byte> bytes) {
  return kind == ChecksumKind::kXxh3 ? HashHex(HashBytes(bytes))
                                     : fmt::format("{:08x}", Adler32(bytes));
}

}  // namespace octavo
