#pragma once
// Code points newer than PCRE2's Unicode tables, shown to it as older ones of the same kind.

#include <string>
#include <string_view>

namespace octavo {

// HF's Oniguruma (6.9.10) knows Unicode 16, Debian's PCRE2 (10.42) Unicode 14. A code point whose
// general category or Han script differs between them has a stand-in here: an older code point of
// the right category and the same length in UTF-8, so that offsets stay valid. Returns the code
// point itself when it has none. Thread-safe.
char32_t StandInOf(char32_t code_point);

// Writes `text`, valid UTF-8, with stand-ins to `replaced` and returns true; returns false and
// leaves `replaced` alone when `text` holds none, nearly always. Thread-safe; linear.
bool ReplaceByStandIns(std::string_view text, std::string* replaced);

// Whether an explicit range of an expression holds a code point but not its stand-in, or the other
// way round: such a range cannot be matched through stand-ins.
bool SeparatesStandIns(char32_t first, char32_t last);

}  // namespace octavo
