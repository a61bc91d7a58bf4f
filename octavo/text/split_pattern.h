#pragma once
// The expression of a HF `Split` pre-tokenizer: Oniguruma syntax, matched by PCRE2.

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"

struct pcre2_real_code_8;

namespace octavo {

// Rewrites an Oniguruma expression (its Ruby-like default syntax, as crate onig compiles it) into a
// PCRE2 one with the same meaning. What the two read differently is either spelled out (`\s` has no
// U+180E, `\v` is one character, `\p{Han}` is the script alone) or refused.
//
// Repeated groups are refused as well. So no backtracking state grows with the text, and a match
// needs a stack whose size follows from the expression alone.
//
// Errors: kUnsupported names the construct and its byte offset.
Result<std::string> TranslateOnigurumaPattern(std::string_view pattern);

// A compiled expression. Move-only; const is thread-safe.
class SplitPattern {
 public:
  // Errors: kUnsupported, as above; kCorrupt when the expression does not compile.
  static Result<SplitPattern> Compile(std::string_view pattern);

  // HF's "Isolated": each piece, valid UTF-8, is cut into its matches and what lies between them;
  // empty parts vanish. Appends views into `pieces` to `parts`. Linear in the text for expressions
  // in use: no limit on matching is set, and the text is not checked again at each match.
  void Split(std::span<const std::string_view> pieces, std::vector<std::string_view>* parts) const;

 private:
  struct FreeCode {
    void operator()(pcre2_real_code_8* code) const;
  };
  using Code = std::unique_ptr<pcre2_real_code_8, FreeCode>;

  explicit SplitPattern(Code code) : code_(std::move(code)) {}

  Code code_;
};

}  // namespace octavo
