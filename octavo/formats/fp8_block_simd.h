#pragma once
// The vector half of fp8_block.cc and bf16_span.cc. Arguments are checked by the callers there,
// who also hold IEEE subnormals.

#include <cstdint>
#include <span>

#include "octavo/formats/fp8_block.h"

namespace octavo::simd {

// False when a value is NaN or infinite; the outputs are then unspecified.
bool EncodeFp8Block(const Fp8BlockEncodeArgs& args);
void DecodeFp8Block(const Fp8BlockDecodeArgs& args);
void RoundF32ToBf16(std::span<const float> in, std::span<uint16_t> out);
void RoundF16ToBf16(std::span<const uint16_t> in, std::span<uint16_t> out);
// Largest of the values' bits without their sign; 0 for none. NaN and infinity are >= 0x7F80.
uint16_t MaxMagnitudeBits(std::span<const uint16_t> values);

}  // namespace octavo::simd
