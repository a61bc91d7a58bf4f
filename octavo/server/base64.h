#pragma once
// Base64 with padding (RFC 4648, section 4).

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include "octavo/base/status.h"

namespace octavo {

std::string Base64(std::span<const std::byte> bytes);

// The bytes of a text. Errors: kCorrupt for another character than a digit, and where it stands; a
// length or padding that no bytes have.
Result<std::string> DecodeBase64(std::string_view text);

}  // namespace octavo
