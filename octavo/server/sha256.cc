#include "octavo/server/sha256.h"

#include <fmt/format.h>

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string>
#include <string_view>

namespace octavo {
namespace {

constexpr size_t kBlockBytes = 64;

// The first 32 bits of the fractional parts of the cube roots of the first 64 primes (4.2.2).
constexpr std::array<uint32_t, 64> kRound = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

using Words = std::array<uint32_t, 8>;

// The compression function (6.2.2) on one block.
void Compress(std::string_view block, Words& hash) {
  std::array<uint32_t, 64> schedule;
  for (size_t t = 0; t < 16; ++t) {
    schedule[t] = 0;
    for (size_t i = 0; i < 4; ++i) {
      schedule[t] = schedule[t] << 8 | static_cast<uint8_t>(block[4 * t + i]);
    }
  }
  for (size_t t = 16; t < 64; ++t) {
    const uint32_t x = schedule[t - 15];
    const uint32_t y = schedule[t - 2];
    schedule[t] = (std::rotr(y, 17) ^ std::rotr(y, 19) ^ y >> 10) + schedule[t - 7] +
                  (std::rotr(x, 7) ^ std::rotr(x, 18) ^ x >> 3) + schedule[t - 16];
  }
  auto [a, b, c, d, e, f, g, h] = hash;
  for (size_t t = 0; t < 64; ++t) {
    const uint32_t first = h + (std::rotr(e, 6) ^ std::rotr(e, 11) ^ std::rotr(e, 25)) +
                           ((e & f) ^ (~e & g)) + kRound[t] + schedule[t];
    const uint32_t second =
        (std::rotr(a, 2) ^ std::rotr(a, 13) ^ std::rotr(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
    h = g;
    g = f;
    f = e;
    e = d + first;
    d = c;
    c = b;
    b = a;
    a = first + second;
  }
  const Words added = {a, b, c, d, e, f, g, h};
  for (size_t i = 0; i < hash.size(); ++i) {
    hash[i] += added[i];
  }
}

}  // namespace

std::string Sha256Hex(std::string_view text) {
  // A one, zeros, and the length in bits, big-endian, at the end of a block (5.1.1).
  std::string padded(text);
  padded += '\x80';
  while (padded.size() % kBlockBytes != kBlockBytes - 8) {
    padded += '\0';
  }
  for (int shift = 56; shift >= 0; shift -= 8) {
    padded += static_cast<char>(8 * static_cast<uint64_t>(text.size()) >> shift & 255U);
  }
  // Of the square roots of the first 8 primes (5.3.3).
  Words hash = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  for (size_t i = 0; i < padded.size(); i += kBlockBytes) {
    Compress(std::string_view(padded).substr(i, kBlockBytes), hash);
  }
  std::string hex;
  for (const uint32_t word : hash) {
    fmt::format_to(std::back_inserter(hex), "{:08x}", word);
  }
  return hex;
}

}  // namespace octavo
