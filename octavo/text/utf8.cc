#include "octavo/text/utf8.h"

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

#include "octavo/base/check.h"

namespace octavo {
namespace {

uint8_t ByteAt(std::string_view text, size_t pos) { return static_cast<uint8_t>(text[pos]); }

// What follows a lead byte: Unicode 15, table 3-7. Only the second byte has lead-dependent bounds.
struct LeadInfo {
  size_t num_bytes;  // 0: not a lead byte.
  uint8_t second_min;
  uint8_t second_max;
};

LeadInfo InfoOfLead(uint8_t lead) {
  if (lead < 0x80) return {1, 0, 0};
  if (lead < 0xC2) return {0, 0, 0};
  if (lead < 0xE0) return {2, 0x80, 0xBF};
  if (lead == 0xE0) return {3, 0xA0, 0xBF};
  if (lead == 0xED) return {3, 0x80, 0x9F};
  if (lead < 0xF0) return {3, 0x80, 0xBF};
  if (lead == 0xF0) return {4, 0x90, 0xBF};
  if (lead < 0xF4) return {4, 0x80, 0xBF};
  if (lead == 0xF4) return {4, 0x80, 0x8F};
  return {0, 0, 0};
}

// First position at or after `pos` whose byte is not ASCII.
size_t SkipAscii(std::string_view text, size_t pos) {
  while (pos + sizeof(uint64_t) <= text.size()) {
    uint64_t word;
    std::memcpy(&word, text.data() + pos, sizeof(word));
    if ((word & 0x8080808080808080u) != 0) break;
    pos += sizeof(word);
  }
  while (pos < text.size() && ByteAt(text, pos) < 0x80) ++pos;
  return pos;
}

}  // namespace

Utf8Step ReadUtf8(std::string_view text, size_t pos) {
  DCHECK(pos < text.size());
  const uint8_t lead = ByteAt(text, pos);
  const LeadInfo info = InfoOfLead(lead);
  if (info.num_bytes == 1) return {Utf8Kind::kValid, lead, 1};
  if (info.num_bytes == 0) return {Utf8Kind::kInvalid, kReplacementCodePoint, 1};

  char32_t code_point = lead & (0x7Fu >> info.num_bytes);
  for (size_t i = 1; i < info.num_bytes; ++i) {
    if (pos + i == text.size()) return {Utf8Kind::kIncomplete, kReplacementCodePoint, i};
    const uint8_t byte = ByteAt(text, pos + i);
    const uint8_t min = i == 1 ? info.second_min : uint8_t{0x80};
    const uint8_t max = i == 1 ? info.second_max : uint8_t{0xBF};
    if (byte < min || byte > max) return {Utf8Kind::kInvalid, kReplacementCodePoint, i};
    code_point = (code_point << 6) | (byte & 0x3Fu);
  }
  return {Utf8Kind::kValid, code_point, info.num_bytes};
}

void AppendUtf8(char32_t code_point, std::string* text) {
  const auto put = [text](char32_t byte) { text->push_back(static_cast<char>(byte)); };
  if (code_point < 0x80) {
    put(code_point);
  } else if (code_point < 0x800) {
    put(0xC0 | (code_point >> 6));
    put(0x80 | (code_point & 0x3F));
  } else if (code_point < 0x10000) {
    put(0xE0 | (code_point >> 12));
    put(0x80 | ((code_point >> 6) & 0x3F));
    put(0x80 | (code_point & 0x3F));
  } else {
    put(0xF0 | (code_point >> 18));
    put(0x80 | ((code_point >> 12) & 0x3F));
    put(0x80 | ((code_point >> 6) & 0x3F));
    put(0x80 | (code_point & 0x3F));
  }
}

bool IsValidUtf8(std::string_view text) {
  for (size_t pos = SkipAscii(text, 0); pos < text.size(); pos = SkipAscii(text, pos)) {
    const Utf8Step step = ReadUtf8(text, pos);
    if (step.kind != Utf8Kind::kValid) return false;
    pos += step.num_bytes;
  }
  return true;
}

std::string ReplaceInvalidUtf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t pos = 0; pos < text.size();) {
    const size_t end = SkipAscii(text, pos);
    out.append(text.substr(pos, end - pos));
    if (end == text.size()) break;
    const Utf8Step step = ReadUtf8(text, end);
    out.append(step.kind == Utf8Kind::kValid ? text.substr(end, step.num_bytes) : kReplacementUtf8);
    pos = end + step.num_bytes;
  }
  return out;
}

}  // namespace octavo
