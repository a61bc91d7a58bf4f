#pragma once
// The vector half of bf16_span.cc, which checks the arguments and holds IEEE subnormals.

#include <cstdint>
#include <span>

namespace octavo::simd {

void RoundF32ToBf16(std::span<const float> in, std::span<uint16_t> out);
void RoundF16ToBf16(std::span<const uint16_t> in, std::span<uint16_t> out);

}  // namespace octavo::simd
