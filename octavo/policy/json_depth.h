#pragma once
// A bound on nesting, checked before JSON is parsed: printing and comparing a parsed value recurse.

#include <string_view>

namespace octavo {

// Far above any configuration, far below any stack.
inline constexpr int kJsonDepthMax = 64;

// True when brackets and braces of `json`, outside strings, never nest deeper than kJsonDepthMax.
bool IsShallowJson(std::string_view json);

}  // namespace octavo
