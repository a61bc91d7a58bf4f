#include "octavo/policy/toml_text.h"

#include <simdjson.h>

#include <algorithm>
#include <cstddef>
#include <string_view>

#include "octavo/base/status.h"

namespace octavo {
namespace {

constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
constexpr std::string_view kBlanks = " \t\r\n";

bool IsAscii(char c) { return static_cast<unsigned char>(c) < 0x80; }

// Where what starts at `pos` ends: a comment, a string of any of the four kinds, or one byte. What
// is not closed ends with its line, or with the text where it may have several lines.
size_t EndOfToken(std::string_view text, size_t pos) {
  const char quote = text[pos];
  if (quote == '#') {
    return std::min(text.find('\n', pos), text.size());
  }
  if (quote != '"' && quote != '\'') {
    return pos + 1;
  }
  const std::string_view triple = quote == '"' ? R"(""")" : "'''";
  const std::string_view mark = text.substr(pos).starts_with(triple) ? triple : triple.substr(0, 1);
  for (size_t i = pos + mark.size(); i < text.size(); ++i) {
    if (text[i] == '\\' && quote == '"') {
      // What follows is looked at as if it were outside of the string, and so is what follows the
      // blanks behind an escaped end of line.
      const size_t next = text.find_first_not_of(kBlanks, i + 1);
      if (next != std::string_view::npos && !IsAscii(text[next])) {
        return next;
      }
      ++i;
    } else if (text.substr(i).starts_with(mark)) {
      return i + mark.size();
    } else if (text[i] == '\n' && mark.size() == 1) {
      return i;
    }
  }
  return text.size();
}

}  // namespace

Status CheckTomlText(std::string_view text, std::string_view file_name) {
  if (!simdjson::validate_utf8(text.data(), text.size())) {
    return Corrupt("{}: expected UTF-8", file_name);
  }
  size_t pos = text.starts_with(kByteOrderMark) ? kByteOrderMark.size() : 0;
  while (pos < text.size()) {
    if (!IsAscii(text[pos])) {
      const auto line = 1 + std::count(text.data(), text.data() + pos, '\n');
      return Corrupt("{}:{}: a character beyond ASCII outside of strings and comments", file_name,
                     line);
    }
    pos = EndOfToken(text, pos);
  }
  return OkStatus();
}

}  // namespace octavo
