#pragma once
// E4M3: the 8-bit float of FP8 weights (the "FN" variant: no infinity).
//
//   S EEEE MMM, bias 7
//   E > 0:  value = (-1)^S * 2^(E - 7) * (1 + M / 8)
//   E = 0:  value = (-1)^S * 2^-6 * (M / 8)            quantum 2^-9
//   0x7F and 0xFF are NaN; the largest finite value is 448 = 0x7E.
//
// Source: OCP 8-bit Floating Point Specification (OFP8) 1.0, table 1; docs/formats.md.

#include <bit>
#include <cstdint>
#include <limits>
#include <span>

namespace octavo {

inline constexpr float kE4m3Max = 448.0F;
inline constexpr uint8_t kE4m3NaN = 0x7F;

// Nearest, ties to even; magnitudes above 448, infinities too, saturate to +-448. The sign of a
// zero is kept. A NaN gives 0x7F. Holds in every subnormal mode of the thread: what a mode would
// flush is below half a quantum and rounds to zero anyway.
inline constexpr uint8_t FloatToE4m3(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t magnitude = bits & 0x7FFFFFFFU;
  const uint32_t sign = (bits >> 24) & 0x80U;
  if (magnitude > 0x7F800000U) {
    return kE4m3NaN;
  }
  if (magnitude >= std::bit_cast<uint32_t>(kE4m3Max)) {
    return static_cast<uint8_t>(sign | 0x7EU);
  }
  if (magnitude < std::bit_cast<uint32_t>(0x1p-6F)) {
    // An FP32 in [2^14, 2^15) has the quantum 2^-9, so this sum rounds to a whole number of them.
    constexpr float kRounder = 0x1p14F;
    const float sum = std::bit_cast<float>(magnitude) + kRounder;
    const uint32_t quanta = std::bit_cast<uint32_t>(sum) - std::bit_cast<uint32_t>(kRounder);
    return static_cast<uint8_t>(sign | quanta);
  }
  // Drops 20 of the 23 mantissa bits, and moves the exponent bias from 127 to 7.
  const uint32_t rounded = magnitude + 0x7FFFFU + ((magnitude >> 20) & 1U);
  return static_cast<uint8_t>(sign | ((rounded >> 20) - ((127U - 7U) << 3)));
}

// Exact. NaN for 0x7F and 0xFF.
inline constexpr float E4m3ToFloat(uint8_t code) {
  const uint32_t sign = uint32_t{code & 0x80U} << 24;
  const uint32_t magnitude = code & 0x7FU;
  if (magnitude == 0x7FU) {
    return std::numeric_limits<float>::quiet_NaN();
  }
  if (magnitude < 8) {
    const float value = static_cast<float>(magnitude) * 0x1p-9F;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | sign);
  }
  return std::bit_cast<float>(sign | ((magnitude << 20) + ((127U - 7U) << 23)));
}

inline constexpr bool IsE4m3NaN(uint8_t code) { return (code & 0x7FU) == 0x7FU; }

// True when one of the codes is NaN, which no encode writes for finite input.
bool HasNaNCode(std::span<const uint8_t> codes);

static_assert(FloatToE4m3(464.0F) == 0x7E && E4m3ToFloat(0x7E) == kE4m3Max);
static_assert(FloatToE4m3(-0.0F) == 0x80);

}  // namespace octavo
