#pragma once
// E8M0 ("UE8M0"): a byte that stands for a power of two.
//
//   value = 2^(code - 127); 0 is 2^-127 (a subnormal FP32), 254 is 2^127, 255 is NaN.
//
// There is no zero, no infinity and no sign. Source: OCP Microscaling Formats (MX) v1.0, 5.4.1;
// docs/formats.md.

#include <bit>
#include <cstdint>
#include <limits>

namespace octavo {

inline constexpr uint8_t kE8m0NaN = 0xFF;

// Exact.
inline constexpr float E8m0ToFloat(uint8_t code) {
  if (code == kE8m0NaN) {
    return std::numeric_limits<float>::quiet_NaN();
  }
  // The exponent field of an FP32; 2^-127 has none and is the upper bit of a subnormal's fraction.
  return std::bit_cast<float>(code == 0 ? 0x00400000U : uint32_t{code} << 23);
}

// 2^(127 - code): what a division by the scale multiplies with. Exact; NaN for 255.
inline constexpr float E8m0Reciprocal(uint8_t code) {
  return code == kE8m0NaN ? E8m0ToFloat(code) : E8m0ToFloat(static_cast<uint8_t>(254U - code));
}

// The smallest power of two that is not below `value` >= 0, saturating at 2^127; infinity too. 0
// gives code 0, NaN gives 255.
inline constexpr uint8_t FloatToE8m0RoundUp(float value) {
  const auto bits = std::bit_cast<uint32_t>(value) & 0x7FFFFFFFU;
  if (bits > 0x7F800000U) {
    return kE8m0NaN;
  }
  if (bits < 0x00800000U) {
    return bits > 0x00400000U ? 1 : 0;
  }
  const uint32_t rounded_up = (bits + 0x007FFFFFU) >> 23;
  return static_cast<uint8_t>(rounded_up < 254U ? rounded_up : 254U);
}

static_assert(E8m0ToFloat(0) == 0x1p-127F && E8m0ToFloat(254) == 0x1p127F);
static_assert(E8m0Reciprocal(0) == 0x1p127F && E8m0Reciprocal(254) == 0x1p-127F);

}  // namespace octavo
