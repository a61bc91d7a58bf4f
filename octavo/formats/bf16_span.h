#pragma once
// Whole spans rounded to BF16. The SIMD paths equal the scalar functions of bf16.h bit for bit.

#include <cstdint>
#include <span>

namespace octavo {

// Exact: F16 is 1-5-10 bits, bias 15. NaN payloads are kept, their quiet bit is set.
float F16ToFloat(uint16_t bits);

// out[i] = BF16(in[i]), nearest even (FloatToBf16). The spans have one length and do not overlap.
// An F32 beyond the largest BF16 becomes infinite. Thread-safe, in any subnormal mode.
void RoundF32ToBf16(std::span<const float> in, std::span<uint16_t> out);
// The same from F16 bits: exact up to the rounding from 11 to 8 significant bits.
void RoundF16ToBf16(std::span<const uint16_t> in, std::span<uint16_t> out);

}  // namespace octavo
