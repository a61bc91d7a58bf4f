#include "octavo/text/added_tokens.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/check.h"
#include "octavo/text/utf8.h"

namespace octavo {
namespace {

// White_Space of Unicode, unchanged since 6.3.
bool IsSpace(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

// Start of the white space that ends at `end`, not before `limit`.
size_t SpaceBefore(std::string_view text, size_t limit, size_t end) {
  while (end > limit) {
    size_t begin = end - 1;
    while (begin > 0 && (static_cast<uint8_t>(text[begin]) & 0xC0) == 0x80) --begin;
    if (begin < limit || !IsSpace(ReadUtf8(text, begin).code_point)) break;
    end = begin;
  }
  return end;
}

size_t SpaceBehind(std::string_view text, size_t begin) {
  while (begin < text.size()) {
    const Utf8Step step = ReadUtf8(text, begin);
    if (!IsSpace(step.code_point)) break;
    begin += step.num_bytes;
  }
  return begin;
}

}  // namespace

AddedTokenMatcher::AddedTokenMatcher(std::span<const AddedToken> tokens) {
  if (tokens.empty()) return;
  nodes_.emplace_back();
  for (const AddedToken& token : tokens) {
    int32_t node = 0;
    for (const char c : token.content) {
      const auto byte = static_cast<uint8_t>(c);
      int32_t child = Child(node, byte);
      if (child < 0) {
        child = static_cast<int32_t>(nodes_.size());
        nodes_.emplace_back();
        auto& children = nodes_[static_cast<size_t>(node)].children;
        const std::pair<uint8_t, int32_t> entry(byte, child);
        children.insert(std::lower_bound(children.begin(), children.end(), entry), entry);
      }
      node = child;
    }
    CHECK(node != 0);
    nodes_[static_cast<size_t>(node)].token = static_cast<int32_t>(tokens_.size());
    tokens_.push_back({token.id, token.lstrip, token.rstrip});
  }
}

int32_t AddedTokenMatcher::Child(int32_t node, uint8_t byte) const {
  const auto& children = nodes_[static_cast<size_t>(node)].children;
  const auto child =
      std::lower_bound(children.begin(), children.end(), std::pair<uint8_t, int32_t>(byte, 0));
  return child != children.end() && child->first == byte ? child->second : -1;
}

int32_t AddedTokenMatcher::LongestAt(std::string_view text, size_t begin, size_t* end) const {
  int32_t best = -1;
  int32_t node = 0;
  for (size_t pos = begin; pos < text.size(); ++pos) {
    node = Child(node, static_cast<uint8_t>(text[pos]));
    if (node < 0) break;
    const int32_t token = nodes_[static_cast<size_t>(node)].token;
    if (token >= 0) {
      best = token;
      *end = pos + 1;
    }
  }
  return best;
}

void AddedTokenMatcher::Split(std::string_view text, std::vector<Part>* parts) const {
  // HF searches on behind the token itself, even where rstrip has taken more, and may then step
  // back over that white space; `done` and `search` are apart for this.
  size_t done = 0;
  for (size_t search = 0; !tokens_.empty() && search < text.size();) {
    size_t end = 0;
    const int32_t found = LongestAt(text, search, &end);
    if (found < 0) {
      ++search;
      continue;
    }
    const Leaf& token = tokens_[static_cast<size_t>(found)];
    const size_t begin = token.lstrip ? SpaceBefore(text, std::min(done, search), search) : search;
    const size_t start = token.lstrip ? std::max(begin, done) : begin;
    const size_t stop = token.rstrip ? SpaceBehind(text, end) : end;
    if (done < start) parts->push_back({text.substr(done, start - done), -1});
    parts->push_back({text.substr(search, end - search), token.id});
    done = stop;
    search = end;
  }
  if (done < text.size()) parts->push_back({text.substr(done), -1});
}

}  // namespace octavo
