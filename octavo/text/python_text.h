#pragma once
// Methods of Python's str that chat templates use. Texts are valid UTF-8 and counted in code
// points, as Python counts them. Everything here is thread-safe.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace octavo {

struct StripSides {
  bool left = true;
  bool right = true;
};

// text.strip(chars), .lstrip or .rstrip; without `chars`, white space. A view into `text`.
std::string_view PythonStrip(std::string_view text, std::optional<std::string_view> chars,
                             StripSides sides);

// text.split(separator, max_splits); without a separator, at runs of white space; `max_splits` < 0
// is no limit. Views into `text`. `separator` is not empty.
std::vector<std::string_view> PythonSplit(std::string_view text,
                                          std::optional<std::string_view> separator,
                                          int64_t max_splits);

// text.replace(from, to). `from` is not empty.
std::string PythonReplace(std::string_view text, std::string_view from, std::string_view to);

int64_t NumCodePoints(std::string_view text);
// One view each.
std::vector<std::string_view> CodePoints(std::string_view text);

}  // namespace octavo
