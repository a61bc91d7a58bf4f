#include "octavo/sync/checksum.h"

#include <fmt/format.h>
#include <zconf.h>
#include <zlib.h>

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
      return fmt::format("{:08x}",
                         adler32_z(1, reinterpret_cast<const Bytef*>(bytes.data()), bytes.size()));
  }
  return "";
}

}  // namespace octavo
