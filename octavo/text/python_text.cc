#include "octavo/text/python_text.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/text/utf8.h"

namespace octavo {
namespace {

// str.isspace() of one character: bidirectional type WS, B or S, or category Zs.
bool IsPythonSpace(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
         c == 0x205F || c == 0x3000;
}

bool IsStripped(std::string_view text, size_t pos, size_t num_bytes,
                std::optional<std::string_view> chars) {
  if (!chars.has_value()) return IsPythonSpace(ReadUtf8(text, pos).code_point);
  // Whole characters of UTF-8 match at their own starts only.
  return chars->find(text.substr(pos, num_bytes)) != std::string_view::npos;
}

// The start of the character that ends at `end` > 0.
size_t StartBefore(std::string_view text, size_t end) {
  size_t begin = end - 1;
  while (begin > 0 && (static_cast<uint8_t>(text[begin]) & 0xC0) == 0x80) --begin;
  return begin;
}

std::vector<std::string_view> SplitAtSpaces(std::string_view text, int64_t max_splits) {
  std::vector<std::string_view> parts;
  text = PythonStrip(text, std::nullopt, {.left = true, .right = false});
  while (!text.empty()) {
    size_t end = 0;
    if (max_splits >= 0 && static_cast<int64_t>(parts.size()) == max_splits) {
      parts.push_back(text);
      return parts;
    }
    while (end < text.size()) {
      const Utf8Step step = ReadUtf8(text, end);
      if (IsPythonSpace(step.code_point)) break;
      end += step.num_bytes;
    }
    parts.push_back(text.substr(0, end));
    text = PythonStrip(text.substr(end), std::nullopt, {.left = true, .right = false});
  }
  return parts;
}

}  // namespace

std::string_view PythonStrip(std::string_view text, std::optional<std::string_view> chars,
                             StripSides sides) {
  size_t begin = 0;
  while (sides.left && begin < text.size()) {
    const size_t num_bytes = ReadUtf8(text, begin).num_bytes;
    if (!IsStripped(text, begin, num_bytes, chars)) break;
    begin += num_bytes;
  }
  size_t end = text.size();
  while (sides.right && end > begin) {
    const size_t start = StartBefore(text, end);
    if (!IsStripped(text, start, end - start, chars)) break;
    end = start;
  }
  return text.substr(begin, end - begin);
}

std::vector<std::string_view> PythonSplit(std::string_view text,
                                          std::optional<std::string_view> separator,
                                          int64_t max_splits) {
  if (!separator.has_value()) return SplitAtSpaces(text, max_splits);
  std::vector<std::string_view> parts;
  size_t begin = 0;
  while (max_splits < 0 || static_cast<int64_t>(parts.size()) < max_splits) {
    const size_t end = text.find(*separator, begin);
    if (end == text.npos) break;
    parts.push_back(text.substr(begin, end - begin));
    begin = end + separator->size();
  }
  parts.push_back(text.substr(begin));
  return parts;
}

std::string PythonReplace(std::string_view text, std::string_view from, std::string_view to) {
  std::string replaced;
  for (const std::string_view part : PythonSplit(text, from, -1)) {
    if (part.data() != text.data()) replaced += to;
    replaced += part;
  }
  return replaced;
}

int64_t NumCodePoints(std::string_view text) {
  return std::count_if(text.begin(), text.end(),
                       [](char c) { return (static_cast<uint8_t>(c) & 0xC0) != 0x80; });
}

std::vector<std::string_view> CodePoints(std::string_view text) {
  std::vector<std::string_view> points;
  for (size_t pos = 0; pos < text.size();) {
    const size_t num_bytes = ReadUtf8(text, pos).num_bytes;
    points.push_back(text.substr(pos, num_bytes));
    pos += num_bytes;
  }
  return points;
}

}  // namespace octavo
