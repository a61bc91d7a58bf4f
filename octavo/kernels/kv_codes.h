#pragma once
// What KvShape of ops.h says about a token's K or V of one kv head, shared by all backends.

#include <algorithm>
#include <cstdint>

#include "octavo/formats/e8m0.h"
#include "octavo/formats/mxfp8.h"

namespace octavo {

// kF8E4m3: the least and the usual end of scale codes. Codes are multiples of 2^-9, so from 2^-117
// on every decoded value is 0 or a normal BF16; below 2^127 no decoded value overflows.
inline constexpr uint8_t kKvScaleCodeMin = 127 - 117;
inline constexpr float kKvF8MagnitudeEnd = 0x1p127F;

// The E8M0 scale code of values whose largest magnitude is `amax` < kKvF8MagnitudeEnd.
inline uint8_t KvScaleCode(float amax) { return std::max(kKvScaleCodeMin, Mxfp8ScaleCode(amax)); }

}  // namespace octavo
