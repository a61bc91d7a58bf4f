#include "octavo/sync/checksum.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "octavo/base/hash.h"
#include "octavo/sync/blake3.h"

namespace octavo {
namespace {

std::string Blake3Hex(std::span<const std::byte> bytes) {
  std::string hex;
  for (const std::byte byte : Blake3(bytes)) {
    hex += fmt::format("{:02x}", std::to_integer<unsigned>(byte));
  }
  return hex;
}

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
  constexpr std::pair<std::string_view, ChecksumKind> kKinds[] = {
      {"xxh3-128", ChecksumKind::kXxh3},
      {"blake3", ChecksumKind::kBlake3},
      {"adler32", ChecksumKind::kAdler32},
  };
  for (const auto& [known, kind] : kKinds) {
    if (known == name) {
      return kind;
    }
  }
  return std::nullopt;
}

std::string ChecksumHex(ChecksumKind kind, std::span<const std::byte> bytes) {
  switch (kind) {
    case ChecksumKind::kXxh3:
      return HashHex(HashBytes(bytes));
    case ChecksumKind::kBlake3:
      return Blake3Hex(bytes);
    case ChecksumKind::kAdler32:
      return fmt::format("{:08x}", Adler32(bytes));
  }
  return "";
}

}  // namespace octavo
