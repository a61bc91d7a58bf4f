// Method: a table of expressions, texts and what Python's re.match and re.fullmatch answer; every
// refusal once; shell globs against fnmatch.fnmatchcase.

#include "octavo/policy/name_pattern.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "octavo/base/status.h"

namespace octavo {
namespace {

using ::testing::HasSubstr;

TEST(NamePattern, AnswersAsPython) {
  struct Case {
    const char* expression;
    const char* text;
    bool starts;
    bool fully;
  };
  const Case cases[] = {
      {"model.layers.3", "model.layers.34.mlp", true, false},
      {"model.layers.3.", "model.layers.34", true, true},
      {"model\\.layers\\.3\\.", "model.layers.34", false, false},
      {"layers", "model.layers", false, false},
      {"", "a", true, false},
      {"", "", true, true},
      {".*mlp\\.gate$", "model.mlp.gate", true, true},
      {".*mlp\\.gate$", "model.mlp.gate_up", false, false},
      {"(a|b)+c", "abac", true, true},
      {"(?:x|y)?z", "z", true, true},
      {"(?P<n>a)b", "ab", true, true},
      {"a{2}", "aaa", true, false},
      {"a{,2}b", "aab", true, true},
      {"a{,}b", "aaaab", true, true},
      {"a{2", "a{2", true, true},
      {"a{}", "a{}", true, true},
      {"a{x}", "a{x}", true, true},
      {"[0-3]x", "3x", true, true},
      {"[^0-3]x", "3x", false, false},
      {"[]a]", "]", true, true},
      {"[[:alpha:]]", "a]", true, true},  // A set of "[:alph", then a bracket.
      {"[[:alpha:]]", "z]", false, false},
      {"[!2]", "2", true, true},
      {"[a-]", "-", true, true},
      {"\\d+", "12", true, true},
      {"a\\Z", "a", true, true},
      {"a\\Z", "a\n", false, false},
      {"a$", "a\n", true, false},
      {"(?i)ABC", "abc", true, true},
      {"(?i:A)b", "aB", false, false},
      {"a(?#note)b", "ab", true, true},
      {"a+?", "aa", true, true},
      {"x\\-y", "x-y", true, true},
      {"a.c", "a\nc", false, false},
      {"(?s)a.c", "a\nc", true, true},
      {"ä.", "äö", true, true},
      {"..", "ä", false, false},
      {"#x", "#x", true, true},
  };
  for (const Case& c : cases) {
    const Result<NamePattern> pattern = NamePattern::Compile(c.expression);
    ASSERT_TRUE(pattern.has_value()) << c.expression << ": " << pattern.error().message();
    EXPECT_EQ(pattern->MatchesStart(c.text), c.starts) << c.expression << " on " << c.text;
    EXPECT_EQ(pattern->MatchesFully(c.text), c.fully) << c.expression << " on " << c.text;
  }
}

TEST(NamePattern, RefusesWhatPythonRefuses) {
  for (const char* expression : {"*a",
                                 "a**",
                                 "a|*",
                                 "(*a)",
                                 "^*",
                                 "(a",
                                 "a)",
                                 "[a",
                                 "[z-a]",
                                 "[\\d-x]",
                                 "a{3,2}",
                                 "\\y",
                                 "\\",
                                 "(?Zx)",
                                 "(?<n>a)",
                                 "(?P<1>a)",
                                 "(?P<n>a)(?P<n>b)",
                                 "a(?i)b",
                                 "(?#x",
                                 "(?i",
                                 "(?"}) {
    const Result<NamePattern> pattern = NamePattern::Compile(expression);
    ASSERT_FALSE(pattern.has_value()) << expression;
    EXPECT_EQ(pattern.error().code(), StatusCode::kInvalidArgument) << expression;
  }
}

TEST(NamePattern, RefusesByNameWhatALinearSearchLacks) {
  struct Case {
    const char* expression;
    const char* construct;
  };
  const Case cases[] = {
      {"(?=a)", "look-ahead"},
      {"(?!a)", "look-ahead"},
      {"(?<=a)b", "look-behind"},
      {"(?<!a)b", "look-behind"},
      {"(a)\\1", "back-reference"},
      {"(?P<n>a)(?P=n)", "back-reference"},
      {"(a)?(?(1)b|c)", "conditional"},
      {"(?>a)", "atomic"},
      {"a++", "possessive"},
      {"a{70000}", "repetition"},
      {"\\x41", "escape \\x"},
      {"(?x) a", "flag x"},
      {"[\\01]", "octal"},
  };
  for (const Case& c : cases) {
    const Result<NamePattern> pattern = NamePattern::Compile(c.expression);
    ASSERT_FALSE(pattern.has_value()) << c.expression;
    EXPECT_EQ(pattern.error().code(), StatusCode::kUnsupported) << c.expression;
    EXPECT_THAT(pattern.error().message(), HasSubstr(c.construct));
  }
  EXPECT_EQ(NamePattern::Compile(std::string(5000, 'a')).error().code(), StatusCode::kUnsupported);
}

TEST(NamePattern, NestedRepeatsStayLinear) {
  const Result<NamePattern> pattern = NamePattern::Compile("(a*)*(a|aa)+b");
  ASSERT_TRUE(pattern.has_value());
  // A backtracking search would not come back from this one.
  EXPECT_FALSE(pattern->MatchesStart(std::string(2000, 'a')));
  EXPECT_TRUE(pattern->MatchesFully(std::string(2000, 'a') + "b"));
}

TEST(ShellGlobMatches, AnswersAsFnmatch) {
  struct Case {
    const char* glob;
    const char* text;
    bool matches;
  };
  const Case cases[] = {
      {"model.layers.3*", "model.layers.34.mlp", true},
      {"*self_attn*", "model.self_attn.o", true},
      {"a?c", "abc", true},
      {"a?c", "ac", false},
      {"[!2]x", "3x", true},
      {"[!2]x", "2x", false},
      {"[0-3]", "2", true},
      {"[3-0]", "2", false},
      {"[]a]", "]", true},
      {"[a", "[a", true},
      {"[^a]", "^", true},
      {"[^a]", "b", false},
      {"*", "", true},
      {"", "a", false},
      {"a*b*c", "aXbYbZc", true},
      {"a*b*c", "aXbYbZ", false},
      {"a.b", "axb", false},
  };
  for (const Case& c : cases) {
    EXPECT_EQ(ShellGlobMatches(c.glob, c.text), c.matches) << c.glob << " on " << c.text;
  }
}

}  // namespace
}  // namespace octavo
