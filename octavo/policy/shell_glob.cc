#include <cstddef>
#include <optional>
#include <string_view>

#include "octavo/policy/name_pattern.h"

namespace octavo {
namespace {

// The end (past ']') of the set that opens at `open`, or nullopt when it is never closed: then '['
// is plain text. A ']' right after the opening (or its '!') is a member.
std::optional<size_t> SetEnd(std::string_view glob, size_t open) {
  size_t pos = open + 1;
  if (pos < glob.size() && glob[pos] == '!') {
    ++pos;
  }
  const size_t close = glob.find(']', pos + 1);
  return close == std::string_view::npos ? std::nullopt : std::optional(close + 1);
}

// `set` without its brackets.
bool SetHolds(std::string_view set, char c) {
  const bool negated = set.starts_with('!');
  if (negated) {
    set.remove_prefix(1);
  }
  bool holds = false;
  for (size_t i = 0; i < set.size(); ++i) {
    if (i + 2 < set.size() && set[i + 1] == '-') {
      holds = holds || (set[i] <= c && c <= set[i + 2]);
      i += 2;
    } else {
      holds = holds || set[i] == c;
    }
  }
  return holds != negated;
}

// How much of `glob` at `pos` the single character `c` uses up; 0 when it does not fit.
size_t FitsOne(std::string_view glob, size_t pos, char c) {
  if (glob[pos] == '?') {
    return 1;
  }
  if (glob[pos] == '[') {
    if (const std::optional<size_t> end = SetEnd(glob, pos)) {
      const std::string_view set = glob.substr(pos + 1, *end - pos - 2);
      return SetHolds(set, c) ? *end - pos : 0;
    }
  }
  return glob[pos] == c ? 1 : 0;
}

}  // namespace

bool ShellGlobMatches(std::string_view glob, std::string_view text) {
  size_t g = 0;
  size_t t = 0;
  size_t star = std::string_view::npos;  // The last '*' passed, and how far its run reached.
  size_t run_end = 0;
  while (t < text.size()) {
    if (g < glob.size() && glob[g] == '*') {
      star = g++;
      run_end = t;
      continue;
    }
    const size_t used = g < glob.size() ? FitsOne(glob, g, text[t]) : 0;
    if (used != 0) {
      g += used;
      ++t;
    } else if (star != std::string_view::npos) {
      g = star + 1;
      t = ++run_end;
    } else {
      return false;
    }
  }
  return glob.find_first_not_of('*', g) == std::string_view::npos;
}

}  // namespace octavo
