#pragma once
// Added tokens of tokenizer.json, found in text before anything else happens to it.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace octavo {

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool lstrip = false;      // The match takes the white space before it along.
  bool rstrip = false;      // And that behind it.
  bool normalized = false;  // Matches the normalized text, with its content normalized.
  bool special = false;
};

// Finds tokens in text, the leftmost first and of those the longest. Move-only by use; const is
// thread-safe.
class AddedTokenMatcher {
 public:
  struct Part {
    std::string_view text;
    int32_t id;  // -1: text between tokens.
  };

  AddedTokenMatcher() = default;
  // Contents are distinct and not empty.
  explicit AddedTokenMatcher(std::span<const AddedToken> tokens);

  bool empty() const { return tokens_.empty(); }

  // Appends the parts of `text`, valid UTF-8, in order; no part of text is empty. At most the
  // length of the longest token is looked at per byte.
  void Split(std::string_view text, std::vector<Part>* parts) const;

 private:
  struct Leaf {
    int32_t id;
    bool lstrip;
    bool rstrip;
  };
  struct Node {
    int32_t token = -1;                                 // Index into tokens_.
    std::vector<std::pair<uint8_t, int32_t>> children;  // By byte, ascending.
  };

  int32_t Child(int32_t node, uint8_t byte) const;
  // The longest token that starts at `begin`; its end goes to `end`. -1 when there is none.
  int32_t LongestAt(std::string_view text, size_t begin, size_t* end) const;

  std::vector<Leaf> tokens_;
  std::vector<Node> nodes_;
};

}  // namespace octavo
