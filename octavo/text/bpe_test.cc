// Method: small merge tables worked out by hand; the search for long words against the one for
// short words through a plain third implementation, on random words and merges.

#include "octavo/text/bpe.h"

#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace octavo {
namespace {

std::array<int32_t, 256> IdentityBytes() {
  std::array<int32_t, 256> ids;
  for (int32_t i = 0; i < 256; ++i) ids[static_cast<size_t>(i)] = i;
  return ids;
}

std::vector<int32_t> Encode(const Bpe& bpe, std::string_view word) {
  std::vector<int32_t> ids;
  bpe.Encode(word, &ids);
  return ids;
}

// The definition, word by word: join the leftmost pair of the lowest rank until there is none.
std::vector<int32_t> EncodeByDefinition(const std::vector<BpeMerge>& merges,
                                        std::string_view word) {
  std::vector<int32_t> ids;
  for (const char c : word) ids.push_back(static_cast<uint8_t>(c));
  for (;;) {
    size_t best_rank = merges.size();
    size_t best = 0;
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      // From the back: of equal pairs the later rank counts.
      for (size_t rank = merges.size(); rank-- > 0;) {
        if (merges[rank].left != ids[i] || merges[rank].right != ids[i + 1]) continue;
        if (rank < best_rank) {
          best_rank = rank;
          best = i;
        }
        break;
      }
    }
    if (best_rank == merges.size()) return ids;
    ids[best] = merges[best_rank].merged;
    ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
}

TEST(Bpe, JoinsTheLowestRankFirst) {
  const Bpe bpe(IdentityBytes(), {{'b', 'c', 300}, {'a', 'b', 301}, {'a', 300, 302}});
  EXPECT_EQ(Encode(bpe, "abc"), (std::vector<int32_t>{302}));
  EXPECT_EQ(Encode(bpe, "ab"), (std::vector<int32_t>{301}));
  EXPECT_EQ(Encode(bpe, "abab"), (std::vector<int32_t>{301, 301}));
  EXPECT_EQ(Encode(bpe, "cab"), (std::vector<int32_t>{'c', 301}));
}

TEST(Bpe, JoinsTheLeftmostOfEquals) {
  const Bpe bpe(IdentityBytes(), {{'a', 'a', 300}});
  EXPECT_EQ(Encode(bpe, "aaa"), (std::vector<int32_t>{300, 'a'}));
  EXPECT_EQ(Encode(bpe, "aaaa"), (std::vector<int32_t>{300, 300}));
  std::vector<int32_t> long_expected(50, 300);
  long_expected.push_back('a');
  EXPECT_EQ(Encode(bpe, std::string(101, 'a')), long_expected);
}

TEST(Bpe, TakesTheLaterRankOfAPairGivenTwice) {
  const Bpe bpe(IdentityBytes(), {{'a', 'b', 300}, {'b', 'c', 301}, {'a', 'b', 300}});
  EXPECT_EQ(Encode(bpe, "abc"), (std::vector<int32_t>{'a', 301}));
}

TEST(Bpe, DropsBytesWithoutAnId) {
  auto byte_ids = IdentityBytes();
  byte_ids['x'] = -1;
  const Bpe bpe(byte_ids, {{'a', 'b', 300}});
  EXPECT_EQ(Encode(bpe, "axb"), (std::vector<int32_t>{300}));
  EXPECT_EQ(Encode(bpe, "x"), (std::vector<int32_t>{}));
  EXPECT_EQ(Encode(bpe, std::string(100, 'x') + "ab"), (std::vector<int32_t>{300}));
}

TEST(Bpe, GivesNothingForNothing) {
  const Bpe bpe(IdentityBytes(), {});
  EXPECT_EQ(Encode(bpe, ""), (std::vector<int32_t>{}));
  EXPECT_EQ(Encode(bpe, "a"), (std::vector<int32_t>{'a'}));
}

TEST(Bpe, EqualsTheDefinitionOnShortAndLongWords) {
  uint64_t state = 42;
  const auto next = [&state](uint64_t bound) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (state >> 33) % bound;
  };
  for (int round = 0; round < 60; ++round) {
    std::vector<BpeMerge> merges;
    std::vector<int32_t> symbols = {'a', 'b', 'c'};
    for (int32_t id = 300; id < 340; ++id) {
      const int32_t left = symbols[next(symbols.size())];
      const int32_t right = symbols[next(symbols.size())];
      merges.push_back({left, right, id});
      symbols.push_back(id);
    }
    const Bpe bpe(IdentityBytes(), merges);
    for (size_t length = 1; length <= 90; length += 1 + next(3)) {
      std::string word;
      for (size_t i = 0; i < length; ++i) word += static_cast<char>('a' + next(3));
      ASSERT_EQ(Encode(bpe, word), EncodeByDefinition(merges, word)) << round << " " << word;
    }
  }
}

}  // namespace
}  // namespace octavo
