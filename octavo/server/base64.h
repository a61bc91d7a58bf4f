#pragma once
// Base64 with padding (RFC 4648, section 4).

#include <cstddef>
#include <span>
#include <string>

namespace octavo {

std::string Base64(std::span<const std::byte> bytes);

}  // namespace octavo
