#pragma once
// XXH3-128 as this file's includer is compiled: hash.cc for any x86-64, hash_avx2.cc and
// hash_avx512.cc (octavo/CMakeLists.txt) with wider vectors. Everything of xxHash is static here,
// so that no build's functions can stand in for another's.

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <cstddef>

namespace octavo::internal {

// All builds give the same values.
struct HashKernels {
  XXH128_hash_t (*hash)(const void* bytes, size_t num_bytes);
  void (*update)(XXH3_state_t* state, const void* bytes, size_t num_bytes);
  XXH128_hash_t (*digest)(const XXH3_state_t* state);
};

// Only to be used on processors that have the instructions.
const HashKernels& HashKernelsAvx2();
const HashKernels& HashKernelsAvx512();

namespace {

constexpr HashKernels kHashKernels = {
    .hash = [](const void* bytes, size_t num_bytes) { return XXH3_128bits(bytes, num_bytes); },
    .update = [](XXH3_state_t* state, const void* bytes,
                 size_t num_bytes) { XXH3_128bits_update(state, bytes, num_bytes); },
    .digest = [](const XXH3_state_t* state) { return XXH3_128bits_digest(state); }};

}  // namespace
}  // namespace octavo::internal
