#include "octavo/text/template_lexer.h"

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
#include "octavo/text/utf8.h"

namespace octavo {
namespace {

using Kind = TemplateToken::Kind;

constexpr std::string_view kSpaces = " \t\n\r\f\v";

bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsNameStart(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }

// "\n" for every line break, without the last one.
std::string NormalizeLines(std::string_view source) {
  std::string normalized;
  normalized.reserve(source.size());
  for (size_t pos = 0; pos < source.size(); ++pos) {
    if (source[pos] != '\r') {
      normalized += source[pos];
    } else if (pos + 1 == source.size() || source[pos + 1] != '\n') {
      normalized += '\n';
    }
  }
  if (normalized.ends_with('\n')) normalized.pop_back();
  return normalized;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(source) {}

  Result<std::vector<TemplateToken>> Run() {
    while (pos_ < source_.size()) RETURN_IF_ERROR(LexTextAndTag());
    Add(Kind::kEnd, {});
    return std::move(tokens_);
  }

 private:
  bool At(std::string_view text) const { return source_.substr(pos_).starts_with(text); }

  void Add(Kind kind, std::string text) {
    tokens_.push_back({.kind = kind, .text = std::move(text), .line = line_});
  }

  void Advance(size_t num_bytes) {
    const std::string_view passed = source_.substr(pos_, num_bytes);
    line_ += static_cast<int>(std::count(passed.begin(), passed.end(), '\n'));
    pos_ += passed.size();
  }

  void SkipSpaces() {
    Advance(std::min(source_.find_first_not_of(kSpaces, pos_), source_.size()) - pos_);
  }

  // Up to the next tag, and the tag.
  Status LexTextAndTag() {
    size_t tag = pos_;
    const auto is_tag = [this](size_t pos) {
      return source_[pos] == '{' && std::string_view("{%#").find(source_[pos + 1]) != source_.npos;
    };
    while (tag + 1 < source_.size() && !is_tag(tag)) ++tag;
    if (tag + 1 >= source_.size()) tag = source_.size();
    std::string_view text = source_.substr(pos_, tag - pos_);
    if (tag == source_.size()) {
      AddText(text);
      Advance(text.size());
      return Status();
    }
    const char type = source_[tag + 1];
    const char sign = tag + 2 < source_.size() ? source_[tag + 2] : '\0';
    if (sign == '-') {
      text = text.substr(0, text.find_last_not_of(kSpaces) + 1);
    } else if (sign != '+' && type != '{') {
      text = WithoutIndent(text);
    }
    AddText(text);
    Advance(tag - pos_ + (sign == '-' || sign == '+' ? 3 : 2));
    if (type == '#') return LexComment();
    return type == '{' ? LexTag(Kind::kOutputBegin, Kind::kOutputEnd, "}}")
                       : LexTag(Kind::kBlockBegin, Kind::kBlockEnd, "%}");
  }

  void AddText(std::string_view text) {
    if (!text.empty()) Add(Kind::kText, std::string(text));
  }

  // lstrip_blocks: without the spaces of the tag's own line, when there is nothing else on it.
  std::string_view WithoutIndent(std::string_view text) const {
    const size_t line = text.rfind('\n') + 1;
    const bool starts_line = line > 0 || at_line_start_;
    const bool is_blank = text.find_first_not_of(kSpaces, line) == text.npos;
    return starts_line && is_blank ? text.substr(0, line) : text;
  }

  Status LexComment() {
    const size_t end = source_.find("#}", pos_);
    if (end == source_.npos) return Corrupt("line {}: a comment that does not end", line_);
    const char sign = end > pos_ ? source_[end - 1] : '\0';
    Advance(end + 2 - pos_);
    SkipBehindTag(sign, /*trims_newline=*/true);
    return Status();
  }

  // What the end of a tag takes along.
  void SkipBehindTag(char sign, bool trims_newline) {
    const size_t begin = pos_;
    if (sign == '-') {
      SkipSpaces();
    } else if (sign != '+' && trims_newline && At("\n")) {
      Advance(1);
    }
    at_line_start_ = pos_ > begin && source_[pos_ - 1] == '\n';
  }

  Status LexTag(Kind begin, Kind end, std::string_view close) {
    const int first_line = line_;
    const bool is_block = begin == Kind::kBlockBegin;
    Add(begin, {});
    int num_open = 0;
    for (;;) {
      SkipSpaces();
      if (pos_ == source_.size()) return Corrupt("line {}: a tag that does not end", first_line);
      const char sign = At("-") || (is_block && At("+")) ? source_[pos_] : '\0';
      const size_t close_at = sign == '\0' ? 0 : 1;
      if (num_open == 0 && source_.substr(pos_ + close_at).starts_with(close)) {
        Add(end, {});
        Advance(close_at + close.size());
        SkipBehindTag(sign, is_block);
        return Status();
      }
      RETURN_IF_ERROR(LexInTag(&num_open));
    }
  }

  Status LexInTag(int* num_open) {
    const char c = source_[pos_];
    if (c == '"' || c == '\'') return LexString(c);
    if (IsDigit(c)) return LexNumber();
    if (IsNameStart(c)) {
      size_t end = pos_;
      while (end < source_.size() && (IsNameStart(source_[end]) || IsDigit(source_[end]))) ++end;
      Add(Kind::kName, std::string(source_.substr(pos_, end - pos_)));
      Advance(end - pos_);
      return Status();
    }
    static constexpr std::array<std::string_view, 25> kOperators = {
        "**", "//", "==", "!=", ">=", "<=", "+", "-", "*", "/", "%", "~", "(",
        ")",  "[",  "]",  "{",  "}",  ">",  "<", "=", ".", ":", "|", ","};
    for (const std::string_view op : kOperators) {
      if (!At(op)) continue;
      if (op == "(" || op == "[" || op == "{") ++*num_open;
      if (op == ")" || op == "]" || op == "}") --*num_open;
      if (*num_open < 0) return Corrupt("line {}: unexpected \"{}\"", line_, op);
      Add(Kind::kOperator, std::string(op));
      Advance(op.size());
      return Status();
    }
    return Corrupt("line {}: unexpected \"{}\"", line_, c);
  }

  Status LexNumber() {
    size_t end = pos_;
    while (end < source_.size() && IsDigit(source_[end])) ++end;
    if (end + 1 < source_.size() && source_[end] == '.' && IsDigit(source_[end + 1])) {
      return Unsupported("line {}: a number with a point is not built", line_);
    }
    int64_t value = 0;
    const auto [stop, error] = std::from_chars(source_.data() + pos_, source_.data() + end, value);
    if (error != std::errc() || (end < source_.size() && IsNameStart(source_[end]))) {
      return Unsupported("line {}: this number is not built", line_);
    }
    Add(Kind::kInteger, {});
    tokens_.back().integer = value;
    Advance(end - pos_);
    return Status();
  }

  Status LexString(char quote) {
    const int first_line = line_;
    std::string text;
    size_t pos = pos_ + 1;
    for (; pos < source_.size() && source_[pos] != quote; ++pos) {
      if (source_[pos] != '\\' || pos + 1 == source_.size()) {
        text += source_[pos];
      } else {
        RETURN_IF_ERROR(Unescape(++pos, &pos, &text));
      }
    }
    if (pos >= source_.size()) return Corrupt("line {}: a string that does not end", first_line);
    Add(Kind::kString, std::move(text));
    Advance(pos + 1 - pos_);
    return Status();
  }

  // Python's escapes. `pos` is behind the backslash, `last` the escape's last byte.
  Status Unescape(size_t pos, size_t* last, std::string* text) const {
    static constexpr std::string_view kLetters = "ntrbfva\\'\"";
    static constexpr std::string_view kMeanings = "\n\t\r\b\f\v\a\\'\"";
    const char c = source_[pos];
    *last = pos;
    if (c == '\n') return Status();  // A line that goes on.
    if (const size_t idx = kLetters.find(c); idx != kLetters.npos) {
      *text += kMeanings[idx];
      return Status();
    }
    const size_t num_digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    const std::string_view digits = source_.substr(pos + 1, num_digits);
    uint32_t value = 0;
    const auto [stop, error] =
        std::from_chars(digits.data(), digits.data() + digits.size(), value, 16);
    if (num_digits > 0 && error == std::errc() && digits.size() == num_digits &&
        stop == digits.data() + num_digits && value < 0x110000 &&
        (value < 0xD800 || value > 0xDFFF)) {
      AppendUtf8(value, text);
      *last = pos + num_digits;
      return Status();
    }
    if (num_digits > 0 || IsDigit(c) || c == 'N') {
      return Unsupported("line {}: the escape \\{} is not built", line_, c);
    }
    *text += '\\';  // As Python has it, an unknown escape stands for itself.
    *text += c;
    return Status();
  }

  std::string_view source_;
  size_t pos_ = 0;
  int line_ = 1;
  bool at_line_start_ = true;
  std::vector<TemplateToken> tokens_;
};

}  // namespace

Result<std::vector<TemplateToken>> LexTemplate(std::string_view source) {
  const std::string normalized = NormalizeLines(source);
  return Lexer(normalized).Run();
}

}  // namespace octavo
