#pragma once
// MXFP8: groups of 32 E4M3 codes along a row that share one power of two, stored as E8M0.
//
//   scale code b = RoundUp(fl(amax(group) * fl(1 / 448)))      2^(b - 127) >= amax / 448
//   code         = E4M3(x * 2^(127 - b))                       nearest even, saturating
//   value        = code * 2^(b - 127)
//
// The scale is the smallest power of two under which nothing exceeds 448 ("RCEIL"). A group of
// zeros gets scale code 0 (2^-127). Source: docs/formats.md; TransformerEngine's MXFP8 kernels.

#include <cstdint>

#include "octavo/formats/e8m0.h"

namespace octavo {

inline constexpr int64_t kMxGroupElems = 32;

// The scale code of a group whose largest magnitude is `amax` (finite). The product has the same
// result as a division by 448: the tests compare them.
inline constexpr uint8_t Mxfp8ScaleCode(float amax) {
  return FloatToE8m0RoundUp(amax * (1.0F / 448.0F));
}

}  // namespace octavo
