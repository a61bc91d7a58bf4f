#pragma once
// Byte-pair encoding of one word.

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace octavo {

struct BpeMerge {
  int32_t left;
  int32_t right;
  int32_t merged;
};

// Merges in order of rank; the same pair twice has the later rank, as in HF. const is thread-safe.
class Bpe {
 public:
  // `byte_ids`: the id of each byte, -1 for a byte without one; such bytes give nothing, as in HF
  // without an unknown token. `merges`: by rank, ids at least 0.
  Bpe(const std::array<int32_t, 256>& byte_ids, const std::vector<BpeMerge>& merges);

  // Appends the ids of `word`: of all pairs that have a merge, the one with the lowest rank is
  // joined first, the leftmost of equals, until none is left. n log n in the word's length (n^2 up
  // to kShortWord, which is faster there).
  void Encode(std::string_view word, std::vector<int32_t>* ids) const;

 private:
  // An open-addressing slot; `rank` is kNoRank when it is free.
  struct Slot {
    uint64_t pair = 0;
    uint32_t rank = kNoRank;
    int32_t merged = 0;
  };
  struct Found {
    uint32_t rank = kNoRank;
    int32_t merged = 0;
  };

  static constexpr uint32_t kNoRank = 0xFFFFFFFF;
  static constexpr size_t kShortWord = 40;

  Found Find(int32_t left, int32_t right) const;
  void Insert(const BpeMerge& merge, uint32_t rank);
  void EncodeShort(int32_t* symbols, size_t num_symbols, std::vector<int32_t>* ids) const;
  void EncodeLong(std::vector<int32_t> symbols, std::vector<int32_t>* ids) const;

  std::array<int32_t, 256> byte_ids_;
  std::vector<Slot> slots_;  // A power of two, at most half full.
};

}  // namespace octavo
