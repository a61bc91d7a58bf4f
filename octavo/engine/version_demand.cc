#include "octavo/engine/version_demand.h"

#include <fmt/format.h>

#include <charconv>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>

namespace octavo {

std::optional<uint64_t> VersionNumber(std::string_view version) {
  uint64_t number = 0;
  const char* end = version.data() + version.size();
  const auto [stop, error] = std::from_chars(version.data(), end, number);
  return error == std::errc() && stop == end ? std::optional(number) : std::nullopt;
}

bool VersionDemand::IsMet(std::string_view live) const {
  switch (kind) {
    case Kind::kNone:
      return true;
    case Kind::kExact:
      return version == live;
    case Kind::kMinimum: {
      const std::optional<uint64_t> least = VersionNumber(version);
      const std::optional<uint64_t> number = VersionNumber(live);
      return least.has_value() && number.has_value() && *number >= *least;
    }
  }
  return false;
}

std::string VersionDemand::Conflict(std::string_view live) const {
  return fmt::format("weight version: demanded {} {}, {} is live",
                     kind == Kind::kExact ? "exactly" : "at least", version, live);
}

}  // namespace octavo
