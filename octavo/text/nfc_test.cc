// Method: cases from Unicode Standard Annex 15, worked out by hand; HF's older tables by the code
// points that part them (the parity test holds the rest).

#include "octavo/text/nfc.h"

#include <gtest/gtest.h>

#include <string>

namespace octavo {
namespace {

TEST(NormalizeNfc, ComposesAndReorders) {
  EXPECT_EQ(NormalizeNfc("e\u0301"), "\u00E9");
  EXPECT_EQ(NormalizeNfc("\u212B"), "\u00C5");               // A singleton decomposition.
  EXPECT_EQ(NormalizeNfc("a\u0301\u0323"), "\u1EA1\u0301");  // 220 goes before 230.
  EXPECT_EQ(NormalizeNfc("\u1112\u1161\u11AB"), "\uD55C");   // Hangul.
  EXPECT_EQ(NormalizeNfc("\u0958"), "\u0915\u093C");         // Excluded from composition.
  EXPECT_EQ(NormalizeNfc("\u0344"), "\u0308\u0301");
}

TEST(NormalizeNfc, LeavesComposedAndCompatibleTextAlone) {
  for (const std::string text : {"", "plain", "\u00E9", "\uFB01\u00BD\uFF21", "\u0301", "\u11AB"}) {
    EXPECT_EQ(NormalizeNfc(text), text);
  }
  EXPECT_EQ(NormalizeNfc(std::string("a\0b", 3)), std::string("a\0b", 3));
}

TEST(NormalizeNfc, StopsAtMarksThatHfDoesNotKnow) {
  // U+1DF6 (class 232) is of Unicode 10: HF neither moves it nor looks across it.
  EXPECT_EQ(NormalizeNfc("a\u1DF6\u0323"), "a\u1DF6\u0323");
  EXPECT_EQ(NormalizeNfc("a\u1DF6\u0301"), "a\u1DF6\u0301");
  // U+11938 is of Unicode 13; its parts stay apart.
  EXPECT_EQ(NormalizeNfc("\U00011935\U00011930"), "\U00011935\U00011930");
  EXPECT_EQ(NormalizeNfc("\U00011938"), "\U00011938");
  // The neighbours U+1DF5 (class 230) and U+0323 are known and do change places.
  EXPECT_EQ(NormalizeNfc("x\u1DF5\u0323"), "x\u0323\u1DF5");
}

TEST(NormalizeNfc, SortsALongRunOfMarks) {
  std::string marks;
  std::string sorted;
  for (int i = 0; i < 200000; ++i) marks += "\u0301\u0323";
  for (int i = 0; i < 200000; ++i) sorted += "\u0323";
  for (int i = 0; i < 200000; ++i) sorted += "\u0301";
  EXPECT_EQ(NormalizeNfc("q" + marks), "q" + sorted);
}

TEST(MayChangeUnderNfc, IsFalseOnlyBelowTheFirstMark) {
  EXPECT_FALSE(MayChangeUnderNfc("na\u00EFve \u02FF"));
  EXPECT_TRUE(MayChangeUnderNfc("\u0300"));
  EXPECT_TRUE(MayChangeUnderNfc("\u212B"));
  EXPECT_TRUE(MayChangeUnderNfc("\U0001D15E"));
}

}  // namespace
}  // namespace octavo
