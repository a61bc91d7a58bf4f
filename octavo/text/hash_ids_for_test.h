#pragma once
// For tests: a list of ids in eight bytes, where data files keep no more of it.

#include <cstdint>
#include <vector>

namespace octavo {

// FNV-1a, 64 bits, of the ids as little-endian int32.
inline uint64_t Fnv1a(const std::vector<int32_t>& ids) {
  uint64_t hash = 0xCBF29CE484222325u;
  for (const int32_t id : ids) {
    for (int shift = 0; shift < 32; shift += 8) {
      hash = (hash ^ ((static_cast<uint32_t>(id) >> shift) & 0xFF)) * 0x100000001B3u;
    }
  }
  return hash;
}

}  // namespace octavo
