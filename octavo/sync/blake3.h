#pragma once
// BLAKE3, the plain hash: 32 bytes of any input, in scalar code (Debian 12 has no C library of it).
// Source: BLAKE3 specification (O'Connor, Aumasson, Neves, Wilcox-O'Hearn, 2020), section 2.

#include <array>
#include <cstddef>
#include <span>

namespace octavo {

std::array<std::byte, 32> Blake3(std::span<const std::byte> bytes);

}  // namespace octavo
