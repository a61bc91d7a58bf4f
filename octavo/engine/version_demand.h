#pragma once
// VersionDemand: which version of the weights a request insists on (docs/api.md).

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace octavo {

// The number that a version counts as: decimal digits and nothing else, below 2^64. Absent for any
// other label.
std::optional<uint64_t> VersionNumber(std::string_view version);

struct VersionDemand {
  enum class Kind {
    kNone,
    kExact,    // This label, compared as text.
    kMinimum,  // This number or a higher one; a label that is no number never meets it.
  };
  Kind kind = Kind::kNone;
  std::string version = {};

  bool any() const { return kind != Kind::kNone; }
  // Whether weights of version `live` will do.
  bool IsMet(std::string_view live) const;
  // "weight version: demanded exactly 7, 8 is live".
  std::string Conflict(std::string_view live) const;
};

}  // namespace octavo
