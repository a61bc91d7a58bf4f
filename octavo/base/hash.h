#pragma once
// XXH3-128 (xxHash), seed 0, and the project's digest of a tensor.

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace octavo {

// 16 bytes in xxHash's canonical order (big-endian).
using Hash128 = std::array<std::byte, 16>;

Hash128 HashBytes(std::span<const std::byte> bytes);
Hash128 HashText(std::string_view text);
// 32 lower-case hexadecimal digits.
std::string HashHex(const Hash128& hash);

// The digest of one tensor's canonical bytes: XXH3-128 over the concatenated canonical XXH3-128
// values of its 64 KiB chunks; an empty tensor has no chunk. Source: DESIGN, promise 3
// (docs/formats.md). Bytes may arrive in pieces of any size, in order. One thread.
class TensorHasher {
 public:
  static constexpr size_t kChunkBytes = 65536;

  TensorHasher();
  ~TensorHasher();
  TensorHasher(TensorHasher&&) noexcept;
  TensorHasher& operator=(TensorHasher&&) noexcept;

  void Update(std::span<const std::byte> bytes);
  // Either of them once: the digest, or the values of the chunks that it is made of, from which
  // TensorDigestOfChunks makes it. Threads that each hash some whole chunks of a tensor put theirs
  // one after the other.
  Hash128 Finish();
  std::vector<Hash128> FinishChunks();

 private:
  void EndChunk();

  struct State;
  std::unique_ptr<State> state_;
};

Hash128 TensorDigestOfChunks(std::span<const Hash128> chunks);
// TensorHasher over one piece.
Hash128 TensorDigest(std::span<const std::byte> bytes);

}  // namespace octavo
