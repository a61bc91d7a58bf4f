#pragma once
// Python's expression syntax, read and written again for PCRE2 (name_pattern.h).

#include <string>
#include <string_view>

#include "octavo/base/status.h"

namespace octavo {

struct PatternSyntax {
  std::string pcre;        // The same expression, in syntax that means the same in both.
  bool is_simple = false;  // Only literals and dots: `literal` holds them, '\0' for a dot.
  std::string literal;
};

// Errors: as NamePattern::Compile.
Result<PatternSyntax> TranslatePattern(std::string_view expression);

}  // namespace octavo
