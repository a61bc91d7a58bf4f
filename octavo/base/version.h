#pragma once
// The program's version, from the project() line of CMakeLists.txt.

#include <string_view>

namespace octavo {

// Such as "0.1.0".
std::string_view Version();

}  // namespace octavo
