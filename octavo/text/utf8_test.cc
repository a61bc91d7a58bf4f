// Method: each row of table 3-7 of the Unicode standard at its borders, and maximal parts worked
// out by hand from section 3.9.

#include "octavo/text/utf8.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace octavo {
namespace {

using namespace std::string_literals;
using namespace std::string_view_literals;

constexpr std::string_view kR = kReplacementUtf8;

std::string Repeat(std::string_view text, int count) {
  std::string out;
  for (int i = 0; i < count; ++i) out += text;
  return out;
}

TEST(ReadUtf8, RoundTripsEveryScalarValue) {
  for (char32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xD800 && c <= 0xDFFF) continue;
    std::string text;
    AppendUtf8(c, &text);
    const Utf8Step step = ReadUtf8(text, 0);
    ASSERT_EQ(step.kind, Utf8Kind::kValid) << static_cast<uint32_t>(c);
    ASSERT_EQ(step.code_point, c);
    ASSERT_EQ(step.num_bytes, text.size());
    for (size_t n = 1; n < text.size(); ++n) {
      const Utf8Step cut = ReadUtf8(std::string_view(text).substr(0, n), 0);
      ASSERT_EQ(cut.kind, Utf8Kind::kIncomplete) << static_cast<uint32_t>(c);
      ASSERT_EQ(cut.num_bytes, n);
    }
  }
}

TEST(ReadUtf8, RefusesWhatIsNoScalarValue) {
  for (const std::string_view bad :
       {"\x80"sv, "\xBF"sv, "\xC0\x80"sv, "\xC1\xBF"sv, "\xE0\x9F\xBF"sv, "\xED\xA0\x80"sv,
        "\xED\xBF\xBF"sv, "\xF0\x8F\xBF\xBF"sv, "\xF4\x90\x80\x80"sv, "\xF5\x80\x80\x80"sv,
        "\xFF"sv}) {
    const Utf8Step step = ReadUtf8(bad, 0);
    EXPECT_EQ(step.kind, Utf8Kind::kInvalid) << testing::PrintToString(bad);
    EXPECT_EQ(step.num_bytes, 1u) << testing::PrintToString(bad);
    EXPECT_FALSE(IsValidUtf8(bad));
    // No byte of these starts a part longer than itself.
    EXPECT_EQ(ReplaceInvalidUtf8(bad), Repeat(kR, static_cast<int>(bad.size())));
  }
}

TEST(ReplaceInvalidUtf8, PutsOneMarkForEachMaximalPart) {
  EXPECT_EQ(ReplaceInvalidUtf8("\xF0\x9F\x98x"), Repeat(kR, 1) + "x");
  EXPECT_EQ(ReplaceInvalidUtf8("\xE2\x82"), Repeat(kR, 1));
  EXPECT_EQ(ReplaceInvalidUtf8("\xE2\x82\xE2\x82\xAC"), Repeat(kR, 1) + "\u20AC");
  EXPECT_EQ(ReplaceInvalidUtf8("\xC3\xC3\xA9"), Repeat(kR, 1) + "\u00E9");
  EXPECT_EQ(ReplaceInvalidUtf8("\xF4\x8F\xBF\x41"), Repeat(kR, 1) + "A");
  EXPECT_EQ(ReplaceInvalidUtf8("a\x80\x80z"), "a" + Repeat(kR, 2) + "z");
}

TEST(ReplaceInvalidUtf8, LeavesValidTextAlone) {
  const std::string text = "12345678\u00E9 long enough for the eight-byte step \U0001F600\0end"s;
  EXPECT_TRUE(IsValidUtf8(text));
  EXPECT_EQ(ReplaceInvalidUtf8(text), text);
  EXPECT_TRUE(IsValidUtf8(""));
  EXPECT_EQ(ReplaceInvalidUtf8(""), "");
}

TEST(IsValidUtf8, SeesABadByteAtEveryOffset) {
  for (size_t at = 0; at < 24; ++at) {
    std::string text(24, 'a');
    text[at] = '\x80';
    EXPECT_FALSE(IsValidUtf8(text)) << at;
  }
}

}  // namespace
}  // namespace octavo
