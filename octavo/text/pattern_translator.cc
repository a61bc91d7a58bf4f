// Oniguruma to PCRE2. Compared over every code point with HF tokenizers 0.23.3 (Oniguruma 6.9.10)
// and PCRE2 10.42; scripts/make_tokenizer_data.py makes lines that show each difference.

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/text/split_pattern.h"
#include "octavo/text/stand_in.h"
#include "octavo/text/utf8.h"

namespace octavo {
namespace {

// White_Space of Unicode, which is Oniguruma's \s; PCRE2's has U+180E too.
constexpr std::string_view kSpaceRanges =
    R"(\x09-\x0d\x20\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";
constexpr std::string_view kNonSpaceRanges =
    R"(\x00-\x08\x0e-\x1f\x21-\x{84}\x{86}-\x{9f}\x{a1}-\x{167f}\x{1681}-\x{1fff}\x{200b}-\x{2027})"
    R"(\x{202a}-\x{202e}\x{2030}-\x{205e}\x{2060}-\x{2fff}\x{3001}-\x{10ffff})";

// The properties whose members were compared.
constexpr std::array<std::string_view, 37> kProperties = {
    "L",  "Lu", "Ll", "Lt", "Lm", "Lo", "M",  "Mn", "Mc", "Me", "N",  "Nd", "Nl",
    "No", "P",  "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "S",  "Sm", "Sc", "Sk",
    "So", "Z",  "Zs", "Zl", "Zp", "C",  "Cc", "Cf", "Co", "Cn", "Han"};

// Two ASCII letters that are the case folding of one ligature (U+00DF, U+FB00 to U+FB06): Oniguruma
// matches that ligature for them, PCRE2 does not.
constexpr std::array<std::string_view, 5> kFoldedPairs = {"ss", "ff", "fi", "fl", "st"};

enum class Quantifier { kNone, kOptional, kRepeat };

bool IsAsciiAlnum(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

char AsciiLower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

class Translator {
 public:
  explicit Translator(std::string_view pattern) : pattern_(pattern) {}

  Result<std::string> Run() {
    while (pos_ < pattern_.size()) RETURN_IF_ERROR(TranslateAtom());
    if (!groups_.empty()) return Refuse("a group that is not closed");
    return std::move(out_);
  }

 private:
  struct Group {
    bool ignores_case;
    bool is_lookaround;
  };

  // A backslash and what follows: one code point, or a set written for the inside of [].
  struct Escape {
    char32_t code_point;
    std::string set;  // Empty for a code point.
  };

  Status Refuse(std::string_view construct) const {
    return Unsupported("pattern {}: {} at offset {}", pattern_, construct, pos_);
  }

  bool At(std::string_view text) const { return pattern_.substr(pos_).starts_with(text); }
  bool IgnoresCase() const { return !groups_.empty() && groups_.back().ignores_case; }

  Status TranslateAtom() {
    const char c = pattern_[pos_];
    ++num_atoms_;
    switch (c) {
      case '(':
        return OpenGroup();
      case ')':
        return CloseGroup();
      case '|':
        ++pos_;
        out_ += '|';
        folded_tail_.clear();
        return Status();
      case '[':
        RETURN_IF_ERROR(TranslateClass());
        return TranslateQuantifier(/*may_repeat=*/true);
      case '.':
        ++pos_;
        out_ += '.';
        folded_tail_.clear();
        return TranslateQuantifier(/*may_repeat=*/true);
      case '\\': {
        ASSIGN_OR_RETURN(const Escape escape, ReadEscape());
        if (escape.set.empty()) return TranslateLiteral(escape.code_point);
        out_ += fmt::format("[{}]", escape.set);
        folded_tail_.clear();
        return TranslateQuantifier(/*may_repeat=*/true);
      }
      case '$':
        return TranslateLineEnd();
      case '^':
        return Refuse("the anchor ^");
      case '*':
      case '+':
      case '?':
      case '{':
        return Refuse("a quantifier of nothing or of a quantifier");
      case ']':
      case '}':
        return Refuse("an unescaped bracket");
      default:
        break;
    }
    ASSIGN_OR_RETURN(const char32_t code_point, ReadCodePoint());
    return TranslateLiteral(code_point);
  }

  Status TranslateLiteral(char32_t code_point) {
    if (SeparatesStandIns(code_point, code_point)) return Refuse("a code point newer than PCRE2");
    if (IgnoresCase()) {
      if (code_point >= 0x80) return Refuse("a case-insensitive character beyond ASCII");
      folded_tail_ += AsciiLower(static_cast<char>(code_point));
      for (const std::string_view pair : kFoldedPairs) {
        if (folded_tail_.ends_with(pair)) return Refuse("a case-insensitive ligature");
      }
    }
    out_ += fmt::format("\\x{{{:x}}}", static_cast<uint32_t>(code_point));
    return TranslateQuantifier(/*may_repeat=*/true);
  }

  // The end of any line, in Oniguruma's default syntax: before a \n or at the end.
  Status TranslateLineEnd() {
    constexpr std::string_view kLineEnd = "(?![^\\x0a])";
    ++pos_;
    folded_tail_.clear();
    if (PeekQuantifier() != Quantifier::kNone) return Refuse("a quantifier of an anchor");
    if (num_atoms_ == 2 && out_.ends_with('+') && pos_ == pattern_.size()) {
      // A run and a line end, nothing else: where a run meets none, no later start within it does,
      // and the search goes on behind it. Without this it would be quadratic in the run.
      out_ = fmt::format("{0}{1}|{0}(*SKIP)(*FAIL)", out_, kLineEnd);
    } else {
      out_ += kLineEnd;
    }
    return Status();
  }

  Status OpenGroup() {
    if (IgnoresCase()) return Refuse("a group inside a case-insensitive group");
    struct Opening {
      std::string_view onig;
      std::string_view pcre;
      Group group;
    };
    // A plain group captures, but Split looks at whole matches only. Longest first.
    static constexpr std::array<Opening, 9> kOpenings = {{
        {"(?<=", "(?<=", {false, true}},
        {"(?<!", "(?<!", {false, true}},
        {"(?i:", "(?i:", {true, false}},
        {"(?:", "(?:", {false, false}},
        {"(?=", "(?=", {false, true}},
        {"(?!", "(?!", {false, true}},
        {"(?>", "(?>", {false, false}},
        {"(?", "", {false, false}},
        {"(", "(?:", {false, false}},
    }};
    const auto* opening = std::find_if(kOpenings.begin(), kOpenings.end(),
                                       [this](const Opening& o) { return At(o.onig); });
    if (opening->pcre.empty()) return Refuse("this kind of group");
    groups_.push_back(opening->group);
    out_ += opening->pcre;
    pos_ += opening->onig.size();
    folded_tail_.clear();
    return Status();
  }

  Status CloseGroup() {
    if (groups_.empty()) return Refuse("a closing parenthesis without its group");
    const bool is_lookaround = groups_.back().is_lookaround;
    groups_.pop_back();
    ++pos_;
    out_ += ')';
    folded_tail_.clear();
    if (!is_lookaround) return TranslateQuantifier(/*may_repeat=*/false);
    if (PeekQuantifier() != Quantifier::kNone) return Refuse("a quantifier of a lookaround");
    return Status();
  }

  Quantifier PeekQuantifier() const {
    if (pos_ == pattern_.size()) return Quantifier::kNone;
    const char c = pattern_[pos_];
    if (c == '?') return Quantifier::kOptional;
    return c == '*' || c == '+' || c == '{' ? Quantifier::kRepeat : Quantifier::kNone;
  }

  Status TranslateQuantifier(bool may_repeat) {
    const Quantifier quantifier = PeekQuantifier();
    if (quantifier == Quantifier::kNone) return Status();
    if (quantifier == Quantifier::kRepeat && !may_repeat) return Refuse("a repeated group");
    folded_tail_.clear();
    if (pattern_[pos_] == '{') return TranslateInterval();
    out_ += pattern_[pos_++];
    // Lazy or possessive: the same in both, after a single character of quantifier.
    if (At("?") || At("+")) out_ += pattern_[pos_++];
    return Status();
  }

  // {n}, {n,} or {n,m}. Oniguruma reads a ? or + behind it as another quantifier.
  Status TranslateInterval() {
    const size_t close = pattern_.find('}', pos_);
    if (close == std::string_view::npos) return Refuse("a brace that is no quantifier");
    const std::string_view body = pattern_.substr(pos_ + 1, close - pos_ - 1);
    const size_t comma = std::min(body.find(','), body.size());
    const auto is_number = [](std::string_view text) {
      return !text.empty() && text.size() <= 4 &&
             std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
    };
    const std::string_view most = body.substr(std::min(comma + 1, body.size()));
    if (!is_number(body.substr(0, comma)) || (!most.empty() && !is_number(most))) {
      return Refuse("a brace that is no quantifier");
    }
    out_ += pattern_.substr(pos_, close + 1 - pos_);
    pos_ = close + 1;
    if (PeekQuantifier() != Quantifier::kNone) return Refuse("a quantifier of a quantifier");
    return Status();
  }

  Status TranslateClass() {
    ++pos_;
    out_ += '[';
    folded_tail_.clear();
    if (At("^")) {
      if (IgnoresCase()) return Refuse("a case-insensitive negated set");
      ++pos_;
      out_ += '^';
    }
    if (At("]")) return Refuse("an empty set");
    while (!At("]")) {
      if (pos_ == pattern_.size()) return Refuse("a set that is not closed");
      RETURN_IF_ERROR(TranslateClassItem());
    }
    ++pos_;
    out_ += ']';
    return Status();
  }

  Status TranslateClassItem() {
    if (At("[")) return Refuse("a set inside a set");
    if (At("&&")) return Refuse("an intersection of sets");
    ASSIGN_OR_RETURN(const Escape first, ReadClassAtom());
    const bool is_range = At("-") && pattern_.substr(pos_ + 1, 1) != "]";
    if (!first.set.empty()) {
      if (is_range) return Refuse("a hyphen behind a set");
      out_ += first.set;
      return Status();
    }
    char32_t last = first.code_point;
    if (is_range) {
      ++pos_;
      if (pos_ == pattern_.size() || At("[")) return Refuse("a range without its end");
      ASSIGN_OR_RETURN(const Escape end, ReadClassAtom());
      if (!end.set.empty() || end.code_point < first.code_point) return Refuse("this range");
      last = end.code_point;
    }
    if (IgnoresCase() && last >= 0x80) return Refuse("a case-insensitive character beyond ASCII");
    if (SeparatesStandIns(first.code_point, last)) return Refuse("a range newer than PCRE2");
    out_ += fmt::format("\\x{{{:x}}}-\\x{{{:x}}}", static_cast<uint32_t>(first.code_point),
                        static_cast<uint32_t>(last));
    return Status();
  }

  Result<Escape> ReadClassAtom() {
    if (At("\\")) return ReadEscape();
    ASSIGN_OR_RETURN(const char32_t code_point, ReadCodePoint());
    return Escape{code_point, {}};
  }

  Result<char32_t> ReadCodePoint() {
    const Utf8Step step = ReadUtf8(pattern_, pos_);
    if (step.kind != Utf8Kind::kValid) return Refuse("a byte that is not UTF-8");
    pos_ += step.num_bytes;
    return step.code_point;
  }

  Result<Escape> ReadEscape() {
    if (pos_ + 1 == pattern_.size()) return Refuse("a backslash at the end");
    const char c = pattern_[pos_ + 1];
    if (c == 'p' || c == 'P') return ReadProperty(c);
    if (c == 'u' || c == 'x') return ReadHex();
    if (static_cast<uint8_t>(c) >= 0x80) return Refuse("an escaped character beyond ASCII");
    // Digits are back-references; \< and \` are anchors to some of Oniguruma's syntaxes.
    constexpr std::string_view kKnown = "nrtfvsSdD";
    if ((IsAsciiAlnum(c) && kKnown.find(c) == kKnown.npos) || c == '<' || c == '>' || c == '`') {
      return Refuse(fmt::format("the escape \\{}", c));
    }
    pos_ += 2;
    switch (c) {
      case 'n':
        return Escape{'\n', {}};
      case 'r':
        return Escape{'\r', {}};
      case 't':
        return Escape{'\t', {}};
      case 'f':
        return Escape{'\f', {}};
      case 'v':
        return Escape{'\v', {}};
      case 's':
        return Escape{0, std::string(kSpaceRanges)};
      case 'S':
        return Escape{0, std::string(kNonSpaceRanges)};
      case 'd':
        return Escape{0, "\\p{Nd}"};
      case 'D':
        return Escape{0, "\\P{Nd}"};
      default:
        return Escape{static_cast<unsigned char>(c), {}};
    }
  }

  // \p{Name} or \P{Name}.
  Result<Escape> ReadProperty(char letter) {
    if (IgnoresCase()) return Refuse("a case-insensitive property");
    const size_t close = pattern_.find('}', pos_);
    if (pattern_.substr(pos_ + 2, 1) != "{" || close == std::string_view::npos) {
      return Refuse("a property without its name");
    }
    const std::string_view name = pattern_.substr(pos_ + 3, close - pos_ - 3);
    if (std::find(kProperties.begin(), kProperties.end(), name) == kProperties.end()) {
      return Refuse(fmt::format("the property \\{}{{{}}}", letter, name));
    }
    pos_ = close + 1;
    // Bare "Han" means script extensions to PCRE2.
    return Escape{0, fmt::format("\\{}{{{}}}", letter, name == "Han" ? "sc:Han" : name)};
  }

  // \uHHHH or \x{H...}.
  Result<Escape> ReadHex() {
    std::string_view digits;
    size_t end = pos_ + 6;
    if (At("\\x{")) {
      const size_t close = std::min(pattern_.find('}', pos_), pattern_.size());
      digits = pattern_.substr(pos_ + 3, close - pos_ - 3);
      end = close + 1;
    } else if (At("\\u")) {
      digits = pattern_.substr(pos_ + 2, 4);
    }
    uint32_t value = 0;
    const auto [stop, error] =
        std::from_chars(digits.data(), digits.data() + digits.size(), value, 16);
    const bool complete = error == std::errc() && stop == digits.data() + digits.size();
    const bool is_scalar = value < 0x110000 && (value < 0xD800 || value > 0xDFFF);
    if (!complete || end > pattern_.size() || digits.size() < 4 - 3 * size_t{At("\\x{")} ||
        !is_scalar) {
      return Refuse("this hexadecimal escape");
    }
    pos_ = end;
    return Escape{value, {}};
  }

  std::string_view pattern_;
  size_t pos_ = 0;
  std::string out_;
  int num_atoms_ = 0;  // Begun so far; a group counts, and so do its parts.
  std::vector<Group> groups_;
  std::string folded_tail_;  // Case-insensitive literals in a row, in lower case.
};

}  // namespace

Result<std::string> TranslateOnigurumaPattern(std::string_view pattern) {
  return Translator(pattern).Run();
}

}  // namespace octavo
