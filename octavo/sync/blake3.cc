#include "octavo/sync/blake3.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

namespace octavo {
namespace {

constexpr size_t kChunkBytes = 1024;
constexpr size_t kBlockBytes = 64;

// Flags of the compression function.
constexpr uint32_t kChunkStart = 1;
constexpr uint32_t kChunkEnd = 2;
constexpr uint32_t kParent = 4;
constexpr uint32_t kRoot = 8;

using Words = std::array<uint32_t, 8>;
using Block = std::array<uint32_t, 16>;

constexpr Words kInitial = {0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A,
                            0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19};
constexpr std::array<size_t, 16> kPermutation = {2, 6,  3,  10, 7, 0,  4,  13,
                                                 1, 11, 12, 5,  9, 14, 15, 8};

struct Pair {
  uint32_t first;
  uint32_t second;
};

void Mix(Block& v, const std::array<size_t, 4>& at, Pair message) {
  const auto [a, b, c, d] = at;
  v[a] += v[b] + message.first;
  v[d] = std::rotr(v[d] ^ v[a], 16);
  v[c] += v[d];
  v[b] = std::rotr(v[b] ^ v[c], 12);
  v[a] += v[b] + message.second;
  v[d] = std::rotr(v[d] ^ v[a], 8);
  v[c] += v[d];
  v[b] = std::rotr(v[b] ^ v[c], 7);
}

// What a node of the tree is compressed from, last; the root's gets a flag of its own.
struct Node {
  Words chaining = {};
  Block message = {};
  uint64_t counter = 0;
  uint32_t num_bytes = 0;
  uint32_t flags = 0;
};

Words Compress(const Node& node) {
  constexpr int kRounds = 7;
  Block v = {};
  std::copy(node.chaining.begin(), node.chaining.end(), v.begin());
  std::copy_n(kInitial.begin(), 4, v.begin() + 8);
  v[12] = static_cast<uint32_t>(node.counter);
  v[13] = static_cast<uint32_t>(node.counter >> 32);
  v[14] = node.num_bytes;
  v[15] = node.flags;
  Block m = node.message;
  for (int round = 0; round < kRounds; ++round) {
    for (size_t i = 0; i < 4; ++i) {
      Mix(v, {i, i + 4, i + 8, i + 12}, {m[2 * i], m[2 * i + 1]});
    }
    for (size_t i = 0; i < 4; ++i) {
      Mix(v, {i, (i + 1) % 4 + 4, (i + 2) % 4 + 8, (i + 3) % 4 + 12}, {m[8 + 2 * i], m[9 + 2 * i]});
    }
    Block permuted = {};
    for (size_t i = 0; i < m.size(); ++i) {
      permuted[i] = m[kPermutation[i]];
    }
    m = permuted;
  }
  Words out = {};
  for (size_t i = 0; i < out.size(); ++i) {
    out[i] = v[i] ^ v[i + 8];
  }
  return out;
}

// The last block of a chunk of at most 1024 bytes; an empty input is a chunk too.
Node ChunkNode(std::span<const std::byte> chunk, uint64_t counter) {
  Node node{.chaining = kInitial, .counter = counter, .flags = kChunkStart};
  while (true) {
    const size_t num_bytes = std::min(chunk.size(), kBlockBytes);
    node.message = {};
    if (num_bytes > 0) {
      std::memcpy(node.message.data(), chunk.data(), num_bytes);
    }
    node.num_bytes = static_cast<uint32_t>(num_bytes);
    chunk = chunk.subspan(num_bytes);
    if (chunk.empty()) {
      node.flags |= kChunkEnd;
      return node;
    }
    node.chaining = Compress(node);
    node.flags = 0;
  }
}

Node ParentNode(const Words& left, const Words& right) {
  Node node{.chaining = kInitial, .num_bytes = kBlockBytes, .flags = kParent};
  std::copy(left.begin(), left.end(), node.message.begin());
  std::copy(right.begin(), right.end(), node.message.begin() + 8);
  return node;
}

}  // namespace

// Left subtrees are whole and as large as can be: the stack holds one for each bit of the number of
// chunks so far.
std::array<std::byte, 32> Blake3(std::span<const std::byte> bytes) {
  std::vector<Words> stack;
  uint64_t num_chunks = 0;
  while (bytes.size() > kChunkBytes) {
    Words words = Compress(ChunkNode(bytes.first(kChunkBytes), num_chunks));
    bytes = bytes.subspan(kChunkBytes);
    ++num_chunks;
    for (uint64_t rest = num_chunks; rest % 2 == 0; rest /= 2) {
      words = Compress(ParentNode(stack.back(), words));
      stack.pop_back();
    }
    stack.push_back(words);
  }
  Node node = ChunkNode(bytes, num_chunks);
  for (; !stack.empty(); stack.pop_back()) {
    node = ParentNode(stack.back(), Compress(node));
  }
  node.flags |= kRoot;
  const Words words = Compress(node);
  static_assert(std::endian::native == std::endian::little);
  return std::bit_cast<std::array<std::byte, 32>>(words);
}

}  // namespace octavo
