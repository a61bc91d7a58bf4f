#pragma once
// Changes to a config.json that are not in the file.

#include <string>
#include <string_view>

#include "octavo/base/status.h"

namespace octavo {

// `config_json` with `overrides_json` merged into it as RFC 7396 says: objects member by member and
// in depth, every other value replaced, a null removes its key. What is not named stays.
// Errors: kCorrupt for a text that is not a JSON object or has a key twice, naming which of the
// two.
Result<std::string> MergeConfigJson(std::string_view config_json, std::string_view overrides_json);

}  // namespace octavo
