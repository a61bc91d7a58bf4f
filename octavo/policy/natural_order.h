#pragma once
// Natural order: runs of digits compare as numbers, so layer 9 stands before layer 10.

#include <string_view>

namespace octavo {

// A strict weak order; texts that differ only in leading zeros fall back to their bytes.
bool NaturalLess(std::string_view a, std::string_view b);

}  // namespace octavo
