#pragma once
// SHA-256, for the one checksum that clients expect in that form.

#include <string>
#include <string_view>

namespace octavo {

// 64 lower-case hexadecimal digits. Source: FIPS 180-4. Thread-safe.
std::string Sha256Hex(std::string_view text);

}  // namespace octavo
