// Method: one case for each construct that Oniguruma and PCRE2 read differently, with the meaning
// that HF tokenizers 0.23.3 was seen to give it, and one for each construct that is refused.

#include "octavo/text/split_pattern.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/text/stand_in.h"
#include "octavo/text/utf8.h"

namespace octavo {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::vector<std::string> Split(std::string_view pattern, const std::string& text) {
  const Result<SplitPattern> compiled = SplitPattern::Compile(pattern);
  if (!compiled.has_value()) return {"error: " + compiled.error().message()};
  const std::vector<std::string_view> pieces = {text};
  std::vector<std::string_view> parts;
  compiled->Split(pieces, &parts);
  return {parts.begin(), parts.end()};
}

std::string Utf8(char32_t code_point) {
  std::string text;
  AppendUtf8(code_point, &text);
  return text;
}

TEST(SplitPattern, KeepsMatchesAndWhatLiesBetween) {
  EXPECT_THAT(Split("b+", "abbcb"), ElementsAre("a", "bb", "c", "b"));
  EXPECT_THAT(Split("x", "abc"), ElementsAre("abc"));
  EXPECT_THAT(Split("abc", "abc"), ElementsAre("abc"));
  EXPECT_THAT(Split("b", ""), ElementsAre());
}

TEST(SplitPattern, CutsAtEmptyMatchesAsOnigDoes) {
  EXPECT_THAT(Split("b*", "abba"), ElementsAre("a", "bb", "a"));
  EXPECT_THAT(Split("(?=\\p{Lu})", "aBcD"), ElementsAre("a", "Bc", "D"));
  EXPECT_THAT(Split("x*", "\u00E9\u00E9"), ElementsAre("\u00E9", "\u00E9"));
}

TEST(SplitPattern, SplitsEachPieceOnItsOwn) {
  const Result<SplitPattern> compiled = SplitPattern::Compile("\\s+(?!\\S)|\\s+");
  ASSERT_TRUE(compiled.has_value());
  const std::vector<std::string_view> pieces = {"a  ", "b  c"};
  std::vector<std::string_view> parts;
  compiled->Split(pieces, &parts);
  // The spaces at the end of the first piece see no letter behind them.
  EXPECT_THAT(parts, ElementsAre("a", "  ", "b", " ", " ", "c"));
}

TEST(SplitPattern, TakesWhiteSpaceAsUnicodeDoes) {
  for (const char32_t c :
       std::initializer_list<char32_t>{0x09, 0x0A, 0x0B, 0x0C, 0x0D, 0x20, 0x85, 0xA0, 0x1680,
                                       0x2000, 0x200A, 0x2028, 0x2029, 0x202F, 0x205F, 0x3000}) {
    EXPECT_THAT(Split("\\s", "a" + Utf8(c)), ElementsAre("a", Utf8(c)));
    EXPECT_THAT(Split("[^\\S]", "a" + Utf8(c)), ElementsAre("a", Utf8(c)));
    EXPECT_THAT(Split("\\S", Utf8(c)), ElementsAre(Utf8(c)));
  }
  for (const char32_t c :
       std::initializer_list<char32_t>{0x08, 0x1C, 0x1F, 0x180E, 0x200B, 0x2060, 0xFEFF}) {
    EXPECT_THAT(Split("\\s", "a" + Utf8(c)), ElementsAre("a" + Utf8(c)));
    EXPECT_THAT(Split("[\\S]", "a" + Utf8(c)), ElementsAre("a", Utf8(c)));
  }
}

// Ids of HF tokenizers 0.23.3, by pre_tokenizers.Split(Regex(...), "isolated").
TEST(SplitPattern, EndsLinesBeforeLineFeedsOnly) {
  EXPECT_THAT(Split("\\s+$", "a  \nb  "), ElementsAre("a", "  ", "\nb", "  "));
  EXPECT_THAT(Split("\\s+$", "a \r\nb \r"), ElementsAre("a", " \r", "\nb", " \r"));
  EXPECT_THAT(Split("\\s+$", "a \n \n"), ElementsAre("a", " \n \n"));
  EXPECT_THAT(Split("\\s+$", "x \u2028y"), ElementsAre("x \u2028y"));
  EXPECT_THAT(Split("b?$", "a  \nb  "), ElementsAre("a  ", "\nb  "));
  EXPECT_THAT(Split("b?$", "a\n\n"), ElementsAre("a", "\n", "\n"));
  EXPECT_THAT(Split("(?:a|b$)", "b\nba"), ElementsAre("b", "\nb", "a"));
}

TEST(SplitPattern, FoldsCaseBeyondAscii) {
  EXPECT_THAT(Split("(?i:'s|'t)", "a'\u017Fb'Tc"), ElementsAre("a", "'\u017F", "b", "'T", "c"));
  EXPECT_THAT(Split("(?i:[k])", "a\u212A"), ElementsAre("a", "\u212A"));
  EXPECT_THAT(Split("(?i:s)s", "SS"), ElementsAre("SS"));
}

TEST(SplitPattern, ReadsEscapesAsOnigurumaDoes) {
  EXPECT_THAT(Split("\\v", "a\x0B\n"), ElementsAre("a", "\x0B", "\n"));
  EXPECT_THAT(Split("\\u4e00|\\x{1F600}", "a\u4E00\U0001F600"),
              ElementsAre("a", "\u4E00", "\U0001F600"));
  EXPECT_THAT(Split("[\\u3040-\\u30ff]+", "a\u3041\u30A2b"), ElementsAre("a", "\u3041\u30A2", "b"));
  EXPECT_THAT(Split("[\\-\\]^-]+", "a-]^b"), ElementsAre("a", "-]^", "b"));
  EXPECT_THAT(Split("\\d+", "a1\u0663b"), ElementsAre("a", "1\u0663", "b"));
  EXPECT_THAT(Split("\\D+", "a1\u0663b"), ElementsAre("a", "1\u0663", "b"));
  EXPECT_THAT(Split("\\p{N}{1,3}", "12345"), ElementsAre("123", "45"));
  EXPECT_THAT(Split("(a)", "ba"), ElementsAre("b", "a"));
  // Of the script alone; PCRE2's bare \p{Han} takes U+3001 too.
  EXPECT_THAT(Split("\\p{Han}", "\u3001\u6F22"), ElementsAre("\u3001", "\u6F22"));
}

TEST(SplitPattern, KnowsCodePointsThatPcre2DoesNot) {
  const std::string letter = Utf8(0x10D4A);  // Garay, Unicode 16.
  const std::string digit = Utf8(0x11F50);   // Kawi, Unicode 15.
  const std::string han = Utf8(0x31350);     // Extension H, Unicode 15.
  EXPECT_THAT(Split("\\p{L}+", "!" + letter + "a!"), ElementsAre("!", letter + "a", "!"));
  EXPECT_THAT(Split("\\p{N}", letter + digit), ElementsAre(letter, digit));
  EXPECT_THAT(Split("\\p{Han}", letter + han), ElementsAre(letter, han));
  EXPECT_THAT(Split("\\p{Cn}", "a" + letter), ElementsAre("a" + letter));
}

TEST(StandIns, KeepOffsets) {
  for (char32_t c = 0x80; c < 0x110000; ++c) {
    if (c >= 0xD800 && c <= 0xDFFF) continue;
    const char32_t stand_in = StandInOf(c);
    ASSERT_EQ(Utf8(stand_in).size(), Utf8(c).size());
    ASSERT_EQ(StandInOf(stand_in), stand_in);
  }
  std::string replaced = "untouched";
  EXPECT_FALSE(ReplaceByStandIns("plain \u6F22 \U00020000", &replaced));
  EXPECT_EQ(replaced, "untouched");
  EXPECT_TRUE(ReplaceByStandIns("a\U00031350b", &replaced));
  EXPECT_EQ(replaced, "a\U00020000b");
}

// Backtracking over one character at a time must neither meet a limit nor nest.
TEST(SplitPattern, MatchesLongRuns) {
  const std::string spaces(8 << 20, ' ');
  EXPECT_THAT(Split("\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+", spaces + "x"),
              ElementsAre(spaces.substr(1), " ", "x"));
  EXPECT_THAT(Split("\\s+$", spaces + "x"), ElementsAre(spaces + "x"));
  EXPECT_THAT(Split("\\s+$", spaces + "x" + spaces + "\ny"),
              ElementsAre(spaces + "x", spaces, "\ny"));
  EXPECT_THAT(Split("a*b|a+", std::string(8 << 20, 'a')), ElementsAre(std::string(8 << 20, 'a')));
  std::string wide;
  for (int i = 0; i < 1 << 20; ++i) wide += "\u6F22";
  EXPECT_THAT(Split("\\p{L}*x|[\\p{L}]*y|\\p{L}+", wide), ElementsAre(wide));
}

// Each optional group leaves a way back: 3,000 of them need more than the 32 KiB of stack that JIT
// code starts with (PCRE2_ERROR_JIT_STACKLIMIT), and the interpreter takes over.
TEST(SplitPattern, MatchesBeyondTheStackOfJitCode) {
  std::string pattern;
  for (int i = 0; i < 3000; ++i) pattern += "(?:a|b)?";
  const std::string run(3000, 'a');
  EXPECT_THAT(Split(pattern, "x" + run + "ab"), ElementsAre("x", run, "ab"));
}

struct Refused {
  const char* pattern;
  const char* construct;
};

TEST(TranslateOnigurumaPattern, RefusesByName) {
  const Refused k_refused[] = {
      {"^a", "the anchor ^ at offset 0"},
      {"a$?", "a quantifier of an anchor at offset 2"},
      {"\\w+", "the escape \\w"},
      {"\\W", "the escape \\W"},
      {"a\\b", "the escape \\b"},
      {"\\h", "the escape \\h"},
      {"(a)\\1", "the escape \\1"},
      {"\\<", "the escape \\<"},
      {"\\X", "the escape \\X"},
      {"\\", "a backslash at the end"},
      {"\\\u00E9", "an escaped character beyond ASCII"},
      {"\\p{Greek}", "the property \\p{Greek}"},
      {"\\p{^L}", "the property \\p{^L}"},
      {"\\pL", "a property without its name"},
      {"\\p{L", "a property without its name"},
      {"(?i:\\p{Lu})", "a case-insensitive property"},
      {"(?i:\u00E9)", "a case-insensitive character beyond ASCII"},
      {"(?i:[a-\u00E9])", "a case-insensitive character beyond ASCII"},
      {"(?i:[^a])", "a case-insensitive negated set"},
      {"(?i:'ss)", "a case-insensitive ligature"},
      {"(?i:Fi)", "a case-insensitive ligature"},
      {"(?i:(?:a))", "a group inside a case-insensitive group"},
      {"(?i)a", "this kind of group"},
      {"(?<name>a)", "this kind of group"},
      {"(?#c)", "this kind of group"},
      {"(?:ab)*", "a repeated group"},
      {"(?:ab){2}", "a repeated group"},
      {"(?=a)?", "a quantifier of a lookaround"},
      {"(a", "a group that is not closed"},
      {"a)", "a closing parenthesis"},
      {"*a", "a quantifier of nothing"},
      {"a**", "a quantifier of nothing or of a quantifier"},
      {"a{2}+", "a quantifier of a quantifier"},
      {"a{2}?", "a quantifier of a quantifier"},
      {"a{,2}", "a brace that is no quantifier"},
      {"a{x}", "a brace that is no quantifier"},
      {"a{1", "a brace that is no quantifier"},
      {"a}", "an unescaped bracket"},
      {"a]", "an unescaped bracket"},
      {"[]", "an empty set"},
      {"[a", "a set that is not closed"},
      {"[a[b]]", "a set inside a set"},
      {"[[:alpha:]]", "a set inside a set"},
      {"[a&&b]", "an intersection of sets"},
      {"[\\s-a]", "a hyphen behind a set"},
      {"[a-\\s]", "this range"},
      {"[z-a]", "this range"},
      {"[a-", "a range without its end"},
      {"\\x41", "this hexadecimal escape"},
      {"\\x{}", "this hexadecimal escape"},
      {"\\x{110000}", "this hexadecimal escape"},
      {"\\x{D800}", "this hexadecimal escape"},
      {"\\u12", "this hexadecimal escape"},
      {"\xFF", "a byte that is not UTF-8"},
      {"\U00031350", "a code point newer than PCRE2"},
      {"[\U00031340-\U00031360]", "a range newer than PCRE2"},
  };
  for (const Refused& refused : k_refused) {
    const Result<std::string> result = TranslateOnigurumaPattern(refused.pattern);
    ASSERT_FALSE(result.has_value()) << refused.pattern << " became " << *result;
    EXPECT_EQ(result.error().code(), StatusCode::kUnsupported);
    EXPECT_THAT(result.error().message(), HasSubstr(refused.construct)) << refused.pattern;
  }
}

TEST(SplitPattern, SaysWhatDoesNotCompile) {
  const Result<SplitPattern> result = SplitPattern::Compile("(?<=a+)b");
  ASSERT_FALSE(result.has_value());
  EXPECT_EQ(result.error().code(), StatusCode::kCorrupt);
  EXPECT_THAT(result.error().message(), HasSubstr("(?<=a+)b"));
}

}  // namespace
}  // namespace octavo
