#pragma once
// Files that may be compressed.

#include <string>

#include "octavo/base/status.h"

namespace octavo {

// What a file holds: uncompressed where it is gzip (RFC 1952), else as it is. Into memory, whole.
// Errors: kNotFound when it cannot be opened; kCorrupt when its gzip is damaged or cut off.
Result<std::string> ReadTextOrGzip(const std::string& path);

}  // namespace octavo
