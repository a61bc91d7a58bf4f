#pragma once
// Duplicate keys of a JSON object. JSON leaves their meaning open and parsers differ (first, last,
// both), so a file that has them is refused rather than guessed at.

#include <optional>
#include <string_view>
#include <vector>

namespace octavo {

// Some key that occurs more than once, unescaped; nullopt when all differ.
std::optional<std::string_view> FirstDuplicate(std::vector<std::string_view> keys);

}  // namespace octavo
