#pragma once
// UTF-8 in and out, with the replacement rule of the Unicode standard (section 3.9, "U+FFFD
// substitution of maximal subparts"): Rust's from_utf8_lossy and Python's decode(errors="replace")
// follow the same rule.

#include <cstddef>
#include <string>
#include <string_view>

namespace octavo {

inline constexpr char32_t kReplacementCodePoint = 0xFFFD;
inline constexpr std::string_view kReplacementUtf8 = "\xEF\xBF\xBD";

enum class Utf8Kind {
  kValid,
  kInvalid,     // `num_bytes` bytes that no continuation can make valid.
  kIncomplete,  // The text ended inside a sequence that may still become valid.
};

struct Utf8Step {
  Utf8Kind kind;
  char32_t code_point;  // U+FFFD unless kValid.
  size_t num_bytes;     // 1 to 4 when valid; the maximal invalid or incomplete part otherwise.
};

// Reads the sequence that starts at `pos` < text.size(). Thread-safe.
Utf8Step ReadUtf8(std::string_view text, size_t pos);

// Appends the 1 to 4 bytes of a scalar value.
void AppendUtf8(char32_t code_point, std::string* text);

// Thread-safe; linear.
bool IsValidUtf8(std::string_view text);

// `text` with one U+FFFD for each maximal invalid part. Thread-safe; linear.
std::string ReplaceInvalidUtf8(std::string_view text);

}  // namespace octavo
