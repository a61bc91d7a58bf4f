#pragma once
// Expressions in lists of names: the part of Python's `re` that such lists need.
//
// Known: literals, '.', classes, groups, '|', greedy and lazy quantifiers, anchors, \d \D \s \S \w
// \W \b \B \A \Z and escaped punctuation, (?i) (?s) (?m), comments. Only start-anchored and full
// matches are asked, and only whether there is one, so the search is linear in the text.

#include <memory>
#include <string>
#include <string_view>

#include "octavo/base/status.h"

namespace octavo {

// Move-only; const is thread-safe.
class NamePattern {
 public:
  // Errors: kInvalidArgument for text that Python refuses to compile; kUnsupported, naming the
  // construct, for what a linear search cannot do (look-ahead, look-behind, back-references,
  // conditionals, atomic groups, possessive quantifiers) and for what no list needs.
  static Result<NamePattern> Compile(std::string_view expression);

  NamePattern(NamePattern&&) noexcept;
  NamePattern& operator=(NamePattern&&) noexcept;
  ~NamePattern();

  // re.match: a match begins at the start of `text` and may end anywhere.
  bool MatchesStart(std::string_view text) const;
  // re.fullmatch.
  bool MatchesFully(std::string_view text) const;

 private:
  struct Impl;
  explicit NamePattern(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// fnmatch.fnmatchcase of Python: '*', '?', "[seq]", "[!seq]" against the whole text.
bool ShellGlobMatches(std::string_view glob, std::string_view text);

}  // namespace octavo
