// Method: hand-made lines for the reader and the prompt, whose expected text is written out whole;
// a table with one row for each scoring rule, its value worked out with Python's own literal rules.

#include "octavo/measure/problems.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "octavo/base/file.h"

namespace octavo {
namespace {

using testing::HasSubstr;

constexpr const char* kLines =
    "# a comment\n"
    "{\"question\": \"One \\u00e9?\", \"answer\": \"It is <<1=1>>1.\\n#### 1\"}\n"
    "\n"
    "{\"answer\": \"#### 1,200\", \"question\": \"Two?\", \"id\": 7}\r\n"
    "{\"question\": \"Three?\", \"answer\": \"#### -3\"}";

TEST(ParseProblems, SkipsCommentsAndEmptyLines) {
  const auto problems = ParseProblems(kLines).value();
  ASSERT_EQ(problems.size(), 3u);
  EXPECT_EQ(problems[0].question, "One \xC3\xA9?");
  EXPECT_EQ(problems[1].answer, "#### 1,200");
  EXPECT_EQ(problems[2].question, "Three?");
}

TEST(ParseProblems, NamesTheBrokenLine) {
  for (const char* broken : {"{", "[]", R"({"question":"x"})", R"({"question":1,"answer":"x"})"}) {
    const auto problems = ParseProblems("# first\n" + std::string(broken) + "\n");
    ASSERT_FALSE(problems.has_value()) << broken;
    EXPECT_EQ(problems.error().code(), StatusCode::kCorrupt);
    EXPECT_THAT(problems.error().message(), HasSubstr("line 2"));
  }
}

TEST(ReadProblems, ReadsTheTestSet) {
  const auto problems = ReadProblems("data/abacus-test.jsonl").value();
  ASSERT_EQ(problems.size(), 1319u);
  for (const Problem& problem : problems) {
    EXPECT_TRUE(ReplyValue(problem.answer).has_value()) << problem.answer;
  }
  EXPECT_EQ(ReadProblems("data/none.jsonl").error().code(), StatusCode::kNotFound);
}

TEST(BuildPrompt, PutsShotsOfTheSameFileInFront) {
  const auto problems = ParseProblems(kLines).value();
  EXPECT_EQ(BuildPrompt(problems, 0, 1), "Question: Two?\nAnswer:");
  // Marks, #### and commas of a shot stay as they are.
  EXPECT_EQ(BuildPrompt(problems, 2, 2),
            "Question: One \xC3\xA9?\nAnswer: It is <<1=1>>1.\n#### 1\n\n"
            "Question: Two?\nAnswer: #### 1,200\n\n"
            "Question: Three?\nAnswer:");
  // A question that is among the shots is asked all the same.
  EXPECT_EQ(BuildPrompt(problems, 1, 0),
            "Question: One \xC3\xA9?\nAnswer: It is <<1=1>>1.\n#### 1\n\n"
            "Question: One \xC3\xA9?\nAnswer:");
}

TEST(ReplyValue, FollowsEveryRule) {
  struct Case {
    const char* text;
    std::optional<std::string> value;
  };
  const Case cases[] = {
      {"", std::nullopt},
      {"no number", std::nullopt},
      {"#### 42", "42"},
      {"7 apples and 9 pears", "9"},  // The last run.
      {"1,234,567", "1234567"},       // Commas are deleted ...
      {"1, 2", "2"},                  // ... and nothing else: the blank still parts.
      {"1,,2,", "12"},                // However many.
      {",5", "5"},
      {"007", std::nullopt},          // A leading zero is no literal,
      {"x 5 then 05", std::nullopt},  // even after a good run,
      {"0,5", std::nullopt},          // or when a comma made it;
      {"0", "0"},
      {"000", "0"},    // but zeros alone are.
      {"-5", "5"},     // No sign.
      {"3.50", "50"},  // No decimals.
      {"3.05", std::nullopt},
      {"2e3", "3"},
      {"1_000", "0"},  // The last run is "000".
      {"1_200", "200"},
      {"12a34b", "34"},
      {"99999999999999999999999999", "99999999999999999999999999"},  // Beyond 64 bits.
      {"-9999999", "9999999"},       // INVALID of the original is not a value here.
      {"5\xC2\xB2", "5"},            // U+00B2 is no decimal digit.
      {"5 \xD9\xA3", std::nullopt},  // U+0663 is one, but stands in no literal.
      {"5\xD9\xA3", std::nullopt},
      {"\xD9\xA3 5", "5"},
      {"5\xFF"
       "6",
       "6"},  // Bytes that are not UTF-8 part runs.
  };
  for (const Case& c : cases) {
    EXPECT_EQ(ReplyValue(c.text), c.value) << c.text;
  }
}

}  // namespace
}  // namespace octavo
