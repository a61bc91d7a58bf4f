#pragma once
// BF16: the upper half of an FP32. 1-8-7 bits, bias 127.

#include <bit>
#include <cstdint>

namespace octavo {

inline constexpr float Bf16ToFloat(uint16_t bits) {
  return std::bit_cast<float>(uint32_t{bits} << 16);
}

// Nearest, ties to even. A NaN stays a NaN: its quiet bit is set, so that no payload rounds to Inf.
inline constexpr uint16_t FloatToBf16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7FFFFFFFU) > 0x7F800000U) {
    return static_cast<uint16_t>((bits >> 16) | 0x0040U);
  }
  return static_cast<uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);
}

}  // namespace octavo
