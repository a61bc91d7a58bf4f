#include "octavo/base/version.h"

#include <string_view>

namespace octavo {

std::string_view Version() { return OCTAVO_VERSION; }

}  // namespace octavo
