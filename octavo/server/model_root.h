#pragma once
// Paths that come in requests: which folder they may lead into.

#include <string>

#include "octavo/base/status.h"

namespace octavo {

// The folder without links and relative parts. Errors: kInvalidArgument when it is no folder.
Result<std::string> CanonicalFolder(const std::string& folder);

// `path` without links and relative parts, after having made sure that it, and every file in it,
// lies below `root`; with an empty root, `path` as it is. `root` is canonical.
// Errors: kInvalidArgument for a path that leads elsewhere or to nothing, naming it; what is
// outside is not told from what does not exist.
Result<std::string> ResolveBelow(const std::string& root, const std::string& path);

}  // namespace octavo
