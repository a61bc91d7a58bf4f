#pragma once
// E2M1: the 4-bit float of FP4 weights. Bit 3 is the sign; no NaN, no infinity.
//
//   code & 7    0  1    2  3    4  5  6  7
//   magnitude   0  0.5  1  1.5  2  3  4  6
//
// Two codes share a byte: the element of even index is in the low nibble. Source: OCP Microscaling
// Formats (MX) v1.0, 5.3.3; docs/formats.md.

#include <array>
#include <bit>
#include <cstdint>

namespace octavo {

inline constexpr float kE2m1Max = 6.0F;

// Nearest, ties to the even code; magnitudes above 6, infinities too, saturate to +-6. The sign of
// a zero is kept, so small negative values give 8. A NaN gives 7 (+6).
inline constexpr uint8_t FloatToE2m1(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t magnitude_bits = bits & 0x7FFFFFFFU;
  if (magnitude_bits > 0x7F800000U) {
    return 7;
  }
  const auto sign = static_cast<uint8_t>((bits >> 28) & 8U);
  const float magnitude = std::bit_cast<float>(magnitude_bits);
  // The midpoints between neighbours; one that belongs to the upper code is reached by >=.
  const int code = (magnitude > 0.25F ? 1 : 0) + (magnitude >= 0.75F ? 1 : 0) +
                   (magnitude > 1.25F ? 1 : 0) + (magnitude >= 1.75F ? 1 : 0) +
                   (magnitude > 2.5F ? 1 : 0) + (magnitude >= 3.5F ? 1 : 0) +
                   (magnitude > 5.0F ? 1 : 0);
  return static_cast<uint8_t>(sign | static_cast<uint8_t>(code));
}

// Of the low four bits. Exact.
inline constexpr float E2m1ToFloat(uint8_t code) {
  constexpr std::array<float, 16> kValues = {0.0F,  0.5F,  1.0F,  1.5F,  2.0F,  3.0F,
                                             4.0F,  6.0F,  -0.0F, -0.5F, -1.0F, -1.5F,
                                             -2.0F, -3.0F, -4.0F, -6.0F};
  return kValues[code & 0x0FU];
}

// The byte of elements 2i (low nibble) and 2i + 1 (high nibble).
inline constexpr uint8_t PackE2m1(uint8_t low, uint8_t high) {
  return static_cast<uint8_t>((low & 0x0FU) | (uint32_t{high} << 4));
}

static_assert(PackE2m1(FloatToE2m1(0.5F), FloatToE2m1(6.0F)) == 0x71);

}  // namespace octavo
