#include "octavo/base/hash.h"

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <cstring>

namespace octavo {
namespace {

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
  State() {
    XXH3_128bits_reset(&chunk);
    XXH3_128bits_reset(&total);
  }
  XXH3_state_t chunk;
  XXH3_state_t total;
  size_t chunk_bytes = 0;
};

Hash128 HashBytes(std::span<const std::byte> bytes) {
  return Canonical(XXH3_128bits(bytes.data(), bytes.size()));
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
    const size_t take = std::min(bytes.size(), kChunkBytes - state_->chunk_bytes);
    XXH3_128bits_update(&state_->chunk, bytes.data(), take);
    state_->chunk_bytes += take;
    bytes = bytes.subspan(take);
    if (state_->chunk_bytes == kChunkBytes) {
      const Hash128 hash = Canonical(XXH3_128bits_digest(&state_->chunk));
      XXH3_128bits_update(&state_->total, hash.data(), hash.size());
      XXH3_128bits_reset(&state_->chunk);
      state_->chunk_bytes = 0;
    }
  }
}

Hash128 TensorHasher::Finish() {
  if (state_->chunk_bytes > 0) {
    const Hash128 hash = Canonical(XXH3_128bits_digest(&state_->chunk));
    XXH3_128bits_update(&state_->total, hash.data(), hash.size());
    state_->chunk_bytes = 0;
  }
  return Canonical(XXH3_128bits_digest(&state_->total));
}

Hash128 TensorDigest(std::span<const std::byte> bytes) {
  TensorHasher hasher;
  hasher.Update(bytes);
  return hasher.Finish();
}

}  // namespace octavo
