#include "octavo/base/hash.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/hash_kernels-inl.h"

namespace octavo {
namespace {

// The widest vectors of this processor: without them hashing, not reading, would bound a digest.
const internal::HashKernels& Kernels() {
  static const internal::HashKernels& kernels =
      __builtin_cpu_supports("avx512f") ? internal::HashKernelsAvx512()
      : __builtin_cpu_supports("avx2")  ? internal::HashKernelsAvx2()
                                        : internal::kHashKernels;
  return kernels;
}

Hash128 Canonical(XXH128_hash_t hash) {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, hash);
  Hash128 out;
  static_assert(sizeof(canonical.digest) == sizeof(out));
  std::memcpy(out.data(), canonical.digest, out.size());
  return out;
}

}  // namespace

struct TensorHasher::State {
  State() { XXH3_128bits_reset(&chunk); }
  XXH3_state_t chunk;
  size_t chunk_bytes = 0;  // In `chunk`; less than a whole one.
  std::vector<Hash128> done;
};

Hash128 HashBytes(std::span<const std::byte> bytes) {
  return Canonical(Kernels().hash(bytes.data(), bytes.size()));
}

Hash128 HashText(std::string_view text) {
  return HashBytes(std::as_bytes(std::span(text.data(), text.size())));
}

std::string HashHex(const Hash128& hash) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string text;
  text.reserve(2 * hash.size());
  for (const std::byte byte : hash) {
    text += kDigits[std::to_integer<size_t>(byte >> 4)];
    text += kDigits[std::to_integer<size_t>(byte & std::byte{15})];
  }
  return text;
}

TensorHasher::TensorHasher() : state_(std::make_unique<State>()) {}
TensorHasher::~TensorHasher() = default;
TensorHasher::TensorHasher(TensorHasher&&) noexcept = default;
TensorHasher& TensorHasher::operator=(TensorHasher&&) noexcept = default;

void TensorHasher::Update(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    if (state_->chunk_bytes == 0 && bytes.size() >= kChunkBytes) {
      state_->done.push_back(HashBytes(bytes.first(kChunkBytes)));
      bytes = bytes.subspan(kChunkBytes);
      continue;
    }
    const size_t take = std::min(bytes.size(), kChunkBytes - state_->chunk_bytes);
    Kernels().update(&state_->chunk, bytes.data(), take);
    state_->chunk_bytes += take;
    bytes = bytes.subspan(take);
    if (state_->chunk_bytes == kChunkBytes) {
      EndChunk();
    }
  }
}

void TensorHasher::EndChunk() {
  state_->done.push_back(Canonical(Kernels().digest(&state_->chunk)));
  XXH3_128bits_reset(&state_->chunk);
  state_->chunk_bytes = 0;
}

std::vector<Hash128> TensorHasher::FinishChunks() {
  if (state_->chunk_bytes > 0) {
    EndChunk();
  }
  return std::exchange(state_->done, {});
}

Hash128 TensorHasher::Finish() { return TensorDigestOfChunks(FinishChunks()); }

Hash128 TensorDigestOfChunks(std::span<const Hash128> chunks) {
  return HashBytes(std::as_bytes(chunks));
}

Hash128 TensorDigest(std::span<const std::byte> bytes) {
  TensorHasher hasher;
  hasher.Update(bytes);
  return hasher.Finish();
}

}  // namespace octavo
