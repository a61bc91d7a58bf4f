#include "octavo/policy/pattern_syntax.h"

#include <fmt/core.h>

#include <cctype>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/status.h"

namespace octavo {
namespace {

// Far above any entry of a list.
constexpr size_t kPatternBytesMax = 2048;
// PCRE2's bound on a repetition.
constexpr int64_t kRepeatMax = 65535;

bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsAlpha(char c) { return std::isalpha(static_cast<unsigned char>(c)) != 0; }
bool IsPunctuation(char c) { return std::ispunct(static_cast<unsigned char>(c)) != 0; }

// Reads left to right and writes the PCRE2 form piece by piece. One thread.
class Translator {
 public:
  explicit Translator(std::string_view text) : text_(text) {}

  Result<PatternSyntax> Run() {
    if (text_.size() > kPatternBytesMax) {
      return Unsupported("expression of {} bytes: expected at most {}", text_.size(),
                         kPatternBytesMax);
    }
    while (pos_ < text_.size()) {
      RETURN_IF_ERROR(ReadItem());
    }
    if (num_open_ != 0) {
      return Invalid("a group is not closed");
    }
    if (!out_.is_simple) {
      out_.literal.clear();
    }
    return std::move(out_);
  }

 private:
  // What stands before a quantifier.
  enum class Last {
    kNothing,   // The start of the expression, a group or a branch; or an anchor.
    kItem,      // Something that may be repeated.
    kRepeated,  // Already repeated.
  };

  Status Invalid(std::string_view what) const {
    return InvalidArgument("expression \"{}\": {} (at {})", text_, what, pos_);
  }
  Status Refused(std::string_view construct) const {
    return Unsupported("expression \"{}\": {} (at {}) is not read here", text_, construct, pos_);
  }

  bool StartsWith(std::string_view prefix) const { return text_.substr(pos_).starts_with(prefix); }

  void Emit(std::string_view piece, size_t num_read, Last last) {
    out_.pcre += piece;
    out_.is_simple = false;
    pos_ += num_read;
    last_ = last;
  }

  void EmitLiteral(char c, size_t num_read) {
    const bool was_simple = out_.is_simple;
    std::string piece(1, c);
    if (IsPunctuation(c)) {
      piece.insert(piece.begin(), '\\');
    } else if (std::iscntrl(static_cast<unsigned char>(c)) != 0) {
      piece = fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    }
    Emit(piece, num_read, Last::kItem);
    out_.is_simple = was_simple && c != '\0' && static_cast<unsigned char>(c) < 0x80;
    out_.literal += c;
  }

  Status ReadItem() {
    switch (text_[pos_]) {
      case '\\':
        return ReadEscape();
      case '[':
        return ReadClass();
      case '(':
        return ReadGroup();
      case ')':
        return CloseGroup();
      case '|':
        Emit("|", 1, Last::kNothing);
        return OkStatus();
      case '^':
      case '$':
        Emit(text_.substr(pos_, 1), 1, Last::kNothing);
        return OkStatus();
      case '*':
      case '+':
      case '?':
        return EmitQuantifier(text_.substr(pos_, 1), 1);
      case '{':
        return ReadBraces();
      case '.': {
        const bool was_simple = out_.is_simple;
        Emit(".", 1, Last::kItem);
        out_.is_simple = was_simple;
        out_.literal += '\0';
        return OkStatus();
      }
      default:
        EmitLiteral(text_[pos_], 1);
        return OkStatus();
    }
  }

  Status EmitQuantifier(std::string_view quantifier, size_t num_read) {
    if (last_ == Last::kNothing) {
      return Invalid("nothing to repeat");
    }
    if (last_ == Last::kRepeated) {
      return Invalid("multiple repeat");
    }
    Emit(quantifier, num_read, Last::kRepeated);
    if (StartsWith("?")) {
      ++pos_;  // Lazy: another match may be found, but whether there is one is the same.
    } else if (StartsWith("+")) {
      return Refused("a possessive quantifier");
    }
    return OkStatus();
  }

  // Digits at *pos, nullopt when there are none. Too many of them stay above kRepeatMax.
  std::optional<int64_t> ReadCount(size_t* pos) const {
    std::optional<int64_t> count;
    for (; *pos < text_.size() && IsDigit(text_[*pos]); ++*pos) {
      if (count.value_or(0) <= kRepeatMax) {
        count = count.value_or(0) * 10 + (text_[*pos] - '0');
      }
    }
    return count;
  }

  // {m}, {m,}, {,n}, {m,n}; anything else in braces is plain text.
  Status ReadBraces() {
    size_t end = pos_ + 1;
    const std::optional<int64_t> low = ReadCount(&end);
    std::optional<int64_t> high = low;
    const bool has_comma = end < text_.size() && text_[end] == ',';
    if (has_comma) {
      ++end;
      high = ReadCount(&end);
    }
    if (end >= text_.size() || text_[end] != '}' || (!has_comma && !low)) {
      EmitLiteral('{', 1);
      return OkStatus();
    }
    if (low.value_or(0) > kRepeatMax || high.value_or(0) > kRepeatMax) {
      return Refused(fmt::format("a repetition of more than {}", kRepeatMax));
    }
    if (high && low.value_or(0) > *high) {
      return Invalid("the least number of repeats is above the greatest");
    }
    const std::string bound = high ? fmt::format("{}", *high) : std::string();
    return EmitQuantifier(fmt::format("{{{},{}}}", low.value_or(0), bound), end + 1 - pos_);
  }

  // An escape inside or outside a class, as PCRE2 writes it.
  Result<std::string> EscapeOf(char c, bool in_class) const {
    constexpr std::string_view kClasses = "dDsSwW";
    constexpr std::string_view kControls = "tnrfva";
    constexpr std::string_view kControlBytes = "\t\n\r\f\v\a";
    if (kClasses.find(c) != std::string_view::npos) {
      return std::string{'\\', c};
    }
    if (const size_t i = kControls.find(c); i != std::string_view::npos) {
      return fmt::format("\\x{:02x}", static_cast<unsigned char>(kControlBytes[i]));
    }
    if (in_class && c == 'b') {
      return std::string("\\x08");
    }
    if (IsDigit(c)) {
      return c == '0' || in_class ? Refused("an octal escape") : Refused("a back-reference");
    }
    if (c == 'x' || c == 'u' || c == 'U' || c == 'N') {
      return Refused(fmt::format("the escape \\{}", c));
    }
    if (IsAlpha(c)) {
      return Invalid(fmt::format("bad escape \\{}", c));
    }
    return std::string();  // Punctuation, and whatever else stands for itself.
  }

  Status ReadEscape() {
    if (pos_ + 1 >= text_.size()) {
      return Invalid("bad escape at the end");
    }
    const char c = text_[pos_ + 1];
    constexpr std::string_view kAnchors = "AbB";
    if (kAnchors.find(c) != std::string_view::npos || c == 'Z') {
      // Python's \Z is the very end, PCRE2's \z.
      Emit(c == 'Z' ? std::string("\\z") : std::string{'\\', c}, 2, Last::kNothing);
      return OkStatus();
    }
    ASSIGN_OR_RETURN(const std::string piece, EscapeOf(c, /*in_class=*/false));
    if (piece.empty()) {
      EmitLiteral(c, 2);
    } else {
      Emit(piece, 2, Last::kItem);
    }
    return OkStatus();
  }

  // One member of a class at *pos, written for PCRE2. `*is_set`: it stands for several characters.
  Result<std::string> ClassMember(size_t* pos, bool* is_set) const {
    const char c = text_[*pos];
    *is_set = false;
    if (c == '\\') {
      if (*pos + 1 >= text_.size()) {
        return Invalid("bad escape at the end");
      }
      const char escaped = text_[*pos + 1];
      ASSIGN_OR_RETURN(const std::string piece, EscapeOf(escaped, /*in_class=*/true));
      *is_set = std::string_view("dDsSwW").find(escaped) != std::string_view::npos;
      *pos += 2;
      return piece.empty() ? std::string{'\\', escaped} : piece;
    }
    ++*pos;
    if (IsPunctuation(c)) {
      return std::string{'\\', c};  // "[[:alpha:]]" is plain text to Python.
    }
    return std::string(1, c);
  }

  Status ReadClass() {
    size_t pos = pos_ + 1;
    std::string piece = "[";
    if (pos < text_.size() && text_[pos] == '^') {
      piece += '^';
      ++pos;
    }
    const size_t first = pos;  // A ']' here is a member.
    while (pos < text_.size() && (text_[pos] != ']' || pos == first)) {
      RETURN_IF_ERROR(ReadRange(&pos, &piece));
    }
    if (pos >= text_.size()) {
      return Invalid("a class is not closed");
    }
    Emit(piece + "]", pos + 1 - pos_, Last::kItem);
    return OkStatus();
  }

  // One member of a class, or two with '-' between them.
  Status ReadRange(size_t* pos, std::string* piece) const {
    bool is_set = false;
    ASSIGN_OR_RETURN(const std::string low, ClassMember(pos, &is_set));
    *piece += low;
    if (*pos + 1 >= text_.size() || text_[*pos] != '-' || text_[*pos + 1] == ']') {
      return OkStatus();
    }
    ++*pos;
    bool is_high_set = false;
    ASSIGN_OR_RETURN(const std::string high, ClassMember(pos, &is_high_set));
    if (is_set || is_high_set) {
      return Invalid("bad range in a class");
    }
    *piece += "-" + high;
    return OkStatus();
  }

  Status CloseGroup() {
    if (num_open_ == 0) {
      return Invalid("unbalanced parenthesis");
    }
    --num_open_;
    Emit(")", 1, Last::kItem);
    return OkStatus();
  }

  // Groups are never referred to, so each becomes one that captures nothing.
  Status ReadGroup() {
    if (!StartsWith("(?")) {
      return OpenGroup("(?:", 1);
    }
    struct Construct {
      std::string_view prefix;
      std::string_view name;
    };
    constexpr Construct kRefused[] = {
        {"(?=", "look-ahead"},      {"(?!", "look-ahead"},        {"(?<=", "look-behind"},
        {"(?<!", "look-behind"},    {"(?P=", "a back-reference"}, {"(?(", "a conditional group"},
        {"(?>", "an atomic group"},
    };
    for (const Construct& construct : kRefused) {
      if (StartsWith(construct.prefix)) {
        return Refused(construct.name);
      }
    }
    if (StartsWith("(?#")) {
      const size_t end = text_.find(')', pos_);
      if (end == std::string_view::npos) {
        return Invalid("a comment is not closed");
      }
      pos_ = end + 1;
      return OkStatus();
    }
    return StartsWith("(?P<") ? ReadNamedGroup() : ReadFlags();
  }

  Status OpenGroup(std::string_view piece, size_t num_read) {
    ++num_open_;
    Emit(piece, num_read, Last::kNothing);
    return OkStatus();
  }

  Status ReadNamedGroup() {
    const size_t end = text_.find('>', pos_);
    const std::string_view name =
        end == std::string_view::npos ? "" : text_.substr(pos_ + 4, end - pos_ - 4);
    bool is_identifier = !name.empty() && !IsDigit(name[0]);
    for (const char c : name) {
      is_identifier = is_identifier && (IsAlpha(c) || IsDigit(c) || c == '_');
    }
    if (!is_identifier) {
      return Invalid("bad group name");
    }
    for (const std::string_view other : names_) {
      if (other == name) {
        return Invalid("a group name is used twice");
      }
    }
    names_.push_back(name);
    return OpenGroup("(?:", end + 1 - pos_);
  }

  // (?:...), (?i:...), (?-i:...) and, at the start of the expression, (?i).
  Status ReadFlags() {
    size_t end = pos_ + 2;
    while (end < text_.size() && (IsAlpha(text_[end]) || text_[end] == '-')) {
      ++end;
    }
    const std::string_view flags = text_.substr(pos_ + 2, end - pos_ - 2);
    const char closer = end < text_.size() ? text_[end] : '\0';
    if (closer != ':' && closer != ')') {
      return Invalid("unknown extension of a group");
    }
    for (const char flag : flags) {
      if (std::string_view("aiLmsux-").find(flag) == std::string_view::npos) {
        return Invalid(fmt::format("unknown flag {}", flag));
      }
      if (std::string_view("ism-").find(flag) == std::string_view::npos) {
        return Refused(fmt::format("the flag {}", flag));
      }
    }
    const bool is_global = closer == ')';
    if (flags.find('-') != flags.rfind('-') || flags.ends_with('-') ||
        (is_global && (flags.empty() || flags.find('-') != std::string_view::npos))) {
      return Invalid("bad flags of a group");
    }
    if (is_global && pos_ != 0) {
      return Invalid("global flags not at the start");
    }
    const std::string piece = fmt::format("(?{}{}", flags, closer);
    if (is_global) {
      Emit(piece, end + 1 - pos_, Last::kNothing);
      return OkStatus();
    }
    return OpenGroup(piece, end + 1 - pos_);
  }

  std::string_view text_;
  size_t pos_ = 0;
  int num_open_ = 0;
  Last last_ = Last::kNothing;
  std::vector<std::string_view> names_;
  PatternSyntax out_{.pcre = {}, .is_simple = true, .literal = {}};
};

}  // namespace

Result<PatternSyntax> TranslatePattern(std::string_view expression) {
  return Translator(expression).Run();
}

}  // namespace octavo
