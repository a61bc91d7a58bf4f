#include "octavo/formats/bf16_span.h"

#include <bit>
#include <cstdint>
#include <span>

#include "octavo/base/check.h"
#include "octavo/base/float_env.h"
#include "octavo/formats/bf16_span_simd.h"

namespace octavo {

float F16ToFloat(uint16_t bits) {
  const uint32_t sign = uint32_t{bits & 0x8000U} << 16;
  const uint32_t magnitude = uint32_t{bits & 0x7FFFU} << 13;  // Exponent and mantissa, bias 15.
  if ((bits & 0x7C00U) == 0x7C00U) {
    const uint32_t quiet = (bits & 0x03FFU) != 0 ? 0x00400000U : 0U;
    return std::bit_cast<float>(sign | magnitude | 0x7F800000U | quiet);
  }
  if ((bits & 0x7C00U) != 0) {
    return std::bit_cast<float>(sign | (magnitude + ((127U - 15U) << 23)));
  }
  const float value = static_cast<float>(bits & 0x03FFU) * 0x1p-24F;
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(value));
}

void RoundF32ToBf16(std::span<const float> in, std::span<uint16_t> out) {
  CHECK(in.size() == out.size());
  const ScopedIeeeSubnormals guard;
  simd::RoundF32ToBf16(in, out);
}

void RoundF16ToBf16(std::span<const uint16_t> in, std::span<uint16_t> out) {
  CHECK(in.size() == out.size());
  const ScopedIeeeSubnormals guard;
  simd::RoundF16ToBf16(in, out);
}

}  // namespace octavo
