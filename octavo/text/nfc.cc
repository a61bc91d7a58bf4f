#include "octavo/text/nfc.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/check.h"
#include "octavo/text/utf8.h"

namespace octavo {
namespace {

struct CodePointRange {
  char32_t first;
  char32_t last;
};

// Code points with a combining class or a composition that Unicode 9 did not have: HF leaves them
// where they stand. Found by comparing HF tokenizers 0.23.3 with utf8proc 2.8 over every code point
// next to marks of 19 combining classes, and over every canonical decomposition.
constexpr CodePointRange kUnknownToHf[] = {
    {0x7FD, 0x7FD},     {0x898, 0x89F},     {0x8CA, 0x8D3},     {0x9FE, 0x9FE},
    {0xC3C, 0xC3C},     {0xD3B, 0xD3C},     {0xEBA, 0xEBA},     {0x1715, 0x1715},
    {0x1ABF, 0x1ACE},   {0x1DF6, 0x1DFA},   {0xA82C, 0xA82C},   {0x10D24, 0x10D27},
    {0x10EAB, 0x10EAC}, {0x10EFD, 0x10EFF}, {0x10F46, 0x10F50}, {0x10F82, 0x10F85},
    {0x11070, 0x11070}, {0x1133B, 0x1133B}, {0x1145E, 0x1145E}, {0x11839, 0x1183A},
    {0x11930, 0x11930}, {0x11935, 0x11935}, {0x11938, 0x11938}, {0x1193D, 0x1193E},
    {0x11943, 0x11943}, {0x119E0, 0x119E0}, {0x11A34, 0x11A34}, {0x11A47, 0x11A47},
    {0x11A99, 0x11A99}, {0x11D42, 0x11D42}, {0x11D44, 0x11D45}, {0x11D97, 0x11D97},
    {0x11F41, 0x11F42}, {0x16FF0, 0x16FF1}, {0x1E08F, 0x1E08F}, {0x1E130, 0x1E136},
    {0x1E2AE, 0x1E2AE}, {0x1E2EC, 0x1E2EF}, {0x1E4EC, 0x1E4EF}};

bool IsUnknownToHf(char32_t code_point) {
  const auto* range =
      std::lower_bound(std::begin(kUnknownToHf), std::end(kUnknownToHf), code_point,
                       [](const CodePointRange& r, char32_t value) { return r.last < value; });
  return range != std::end(kUnknownToHf) && range->first <= code_point;
}

struct Mark {
  utf8proc_int32_t code_point;
  utf8proc_propval_t combining_class;
};

// Collects one segment, a stretch without the code points above, and writes its NFC form.
class Segment {
 public:
  void Add(char32_t code_point) {
    std::array<utf8proc_int32_t, 8> parts;  // The longest canonical decomposition has 4.
    int boundary_class = UTF8PROC_BOUNDCLASS_START;
    const utf8proc_ssize_t num_parts = utf8proc_decompose_char(
        static_cast<utf8proc_int32_t>(code_point), parts.data(), parts.size(),
        static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE), &boundary_class);
    CHECK(num_parts > 0);
    CHECK(num_parts <= std::ssize(parts));
    for (utf8proc_ssize_t i = 0; i < num_parts; ++i) AddDecomposed(parts[static_cast<size_t>(i)]);
  }

  void Flush(std::string* out) {
    FlushMarks();
    const utf8proc_ssize_t num_composed = utf8proc_normalize_utf32(
        ordered_.data(), std::ssize(ordered_),
        static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
    CHECK(num_composed >= 0);
    for (utf8proc_ssize_t i = 0; i < num_composed; ++i) {
      AppendUtf8(static_cast<char32_t>(ordered_[static_cast<size_t>(i)]), out);
    }
    ordered_.clear();
  }

 private:
  // Marks wait for the next starter, then enter in the order of their classes. utf8proc's own
  // reordering is quadratic in a run of marks.
  void AddDecomposed(utf8proc_int32_t code_point) {
    const utf8proc_propval_t combining_class = utf8proc_get_property(code_point)->combining_class;
    if (combining_class != 0) {
      marks_.push_back({code_point, combining_class});
      return;
    }
    FlushMarks();
    ordered_.push_back(code_point);
  }

  void FlushMarks() {
    std::stable_sort(marks_.begin(), marks_.end(), [](const Mark& a, const Mark& b) {
      return a.combining_class < b.combining_class;
    });
    for (const Mark& mark : marks_) ordered_.push_back(mark.code_point);
    marks_.clear();
  }

  std::vector<utf8proc_int32_t> ordered_;
  std::vector<Mark> marks_;
};

}  // namespace

std::string NormalizeNfc(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  Segment segment;
  for (size_t pos = 0; pos < text.size();) {
    const Utf8Step step = ReadUtf8(text, pos);
    DCHECK(step.kind == Utf8Kind::kValid);
    pos += step.num_bytes;
    if (IsUnknownToHf(step.code_point)) {
      segment.Flush(&out);
      AppendUtf8(step.code_point, &out);
    } else {
      segment.Add(step.code_point);
    }
  }
  segment.Flush(&out);
  return out;
}

bool MayChangeUnderNfc(std::string_view text) {
  // The bytes of U+0300 and above start with 0xCC or more; continuation bytes stay below 0xC0.
  return std::any_of(text.begin(), text.end(),
                     [](char byte) { return static_cast<uint8_t>(byte) >= 0xCC; });
}

}  // namespace octavo
