#include "octavo/text/bpe.h"

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <queue>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/check.h"

namespace octavo {
namespace {

uint64_t PairKey(int32_t left, int32_t right) {
  return (uint64_t{static_cast<uint32_t>(left)} << 32) | static_cast<uint32_t>(right);
}

// The finalizer of SplitMix64: every input bit reaches the low bits.
size_t HashPair(uint64_t pair) {
  pair = (pair ^ (pair >> 30)) * 0xBF58476D1CE4E5B9u;
  pair = (pair ^ (pair >> 27)) * 0x94D049BB133111EBu;
  return pair ^ (pair >> 31);
}

}  // namespace

Bpe::Bpe(const std::array<int32_t, 256>& byte_ids, const std::vector<BpeMerge>& merges)
    : byte_ids_(byte_ids), slots_(std::bit_ceil(2 * merges.size() + 1)) {
  CHECK(merges.size() < kNoRank);
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    Insert(merges[rank], static_cast<uint32_t>(rank));
  }
}

void Bpe::Insert(const BpeMerge& merge, uint32_t rank) {
  const uint64_t pair = PairKey(merge.left, merge.right);
  const size_t mask = slots_.size() - 1;
  size_t idx = HashPair(pair) & mask;
  while (slots_[idx].rank != kNoRank && slots_[idx].pair != pair) idx = (idx + 1) & mask;
  slots_[idx] = {pair, rank, merge.merged};
}

Bpe::Found Bpe::Find(int32_t left, int32_t right) const {
  const uint64_t pair = PairKey(left, right);
  const size_t mask = slots_.size() - 1;
  for (size_t idx = HashPair(pair) & mask;; idx = (idx + 1) & mask) {
    const Slot& slot = slots_[idx];
    if (slot.rank == kNoRank) return {};
    if (slot.pair == pair) return {slot.rank, slot.merged};
  }
}

void Bpe::Encode(std::string_view word, std::vector<int32_t>* ids) const {
  if (word.size() <= kShortWord) {
    std::array<int32_t, kShortWord> symbols;
    size_t num_symbols = 0;
    for (const char byte : word) {
      const int32_t id = byte_ids_[static_cast<uint8_t>(byte)];
      if (id >= 0) symbols[num_symbols++] = id;
    }
    EncodeShort(symbols.data(), num_symbols, ids);
    return;
  }
  std::vector<int32_t> symbols;
  symbols.reserve(word.size());
  for (const char byte : word) {
    const int32_t id = byte_ids_[static_cast<uint8_t>(byte)];
    if (id >= 0) symbols.push_back(id);
  }
  EncodeLong(std::move(symbols), ids);
}

void Bpe::EncodeShort(int32_t* symbols, size_t num_symbols, std::vector<int32_t>* ids) const {
  std::array<Found, kShortWord> pairs;  // pairs[i]: the merge of symbols[i] and symbols[i + 1].
  for (size_t i = 0; i + 1 < num_symbols; ++i) pairs[i] = Find(symbols[i], symbols[i + 1]);

  while (num_symbols > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < num_symbols; ++i) {
      if (pairs[i].rank < pairs[best].rank) best = i;
    }
    if (pairs[best].rank == kNoRank) break;
    symbols[best] = pairs[best].merged;
    --num_symbols;
    for (size_t i = best + 1; i < num_symbols; ++i) {
      symbols[i] = symbols[i + 1];
      pairs[i - 1] = pairs[i];
    }
    if (best > 0) pairs[best - 1] = Find(symbols[best - 1], symbols[best]);
    if (best + 1 < num_symbols) pairs[best] = Find(symbols[best], symbols[best + 1]);
  }
  ids->insert(ids->end(), symbols, symbols + num_symbols);
}

void Bpe::EncodeLong(std::vector<int32_t> symbols, std::vector<int32_t>* ids) const {
  CHECK(symbols.size() < std::numeric_limits<uint32_t>::max());
  const auto num_symbols = static_cast<uint32_t>(symbols.size());
  // A linked list over the symbols; a merged symbol stays at its left end, the other is -1.
  std::vector<uint32_t> previous(num_symbols);
  std::vector<uint32_t> next(num_symbols);
  for (uint32_t i = 0; i < num_symbols; ++i) {
    previous[i] = i - 1;  // Wraps at 0; nothing looks there.
    next[i] = i + 1;
  }

  // Rank and position in one key: the smallest is the merge to do. A key goes stale when one of its
  // symbols changes; then the pair at its position has another rank or none.
  std::priority_queue<uint64_t, std::vector<uint64_t>, std::greater<>> queue;
  const auto enqueue = [&](uint32_t left) {
    const Found found = Find(symbols[left], symbols[next[left]]);
    if (found.rank != kNoRank) queue.push((uint64_t{found.rank} << 32) | left);
  };
  for (uint32_t i = 0; i + 1 < num_symbols; ++i) enqueue(i);

  while (!queue.empty()) {
    const uint64_t key = queue.top();
    queue.pop();
    const auto left = static_cast<uint32_t>(key);
    if (symbols[left] < 0 || next[left] == num_symbols) continue;
    const uint32_t right = next[left];
    const Found found = Find(symbols[left], symbols[right]);
    if (found.rank != key >> 32) continue;
    symbols[left] = found.merged;
    symbols[right] = -1;
    next[left] = next[right];
    if (next[left] != num_symbols) {
      previous[next[left]] = left;
      enqueue(left);
    }
    if (left != 0) enqueue(previous[left]);
  }
  for (const int32_t symbol : symbols) {
    if (symbol >= 0) ids->push_back(symbol);
  }
}

}  // namespace octavo
