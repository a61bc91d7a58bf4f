#pragma once
// How often the group scales of NVFP4 inputs left the range in which E4M3 keeps its precision.
//
// A group of 16 wants the scale w = fl(amax * F) (linear_input.h), which E4M3 rounds. It counts as
//   above   when w rounds beyond 448: the scale saturates, and the group's largest values are
//   clipped; below   when 0 < amax and w rounds below 2^-6: a subnormal scale of fewer bits, or 0,
//   which makes
//           the group zeros.
// Of the modes only `pow2` and `static` can be above: `token` and `batch` take F from an amax that
// covers the group. Rows with NaN or infinities have no groups. Source: docs/numerics.md.

#include <cstdint>

namespace octavo {

// Counts since the backend was made. A row counts once a call, however many weights read it; where
// the experts of a layer have scales of their own, once for each expert and weight that does.
struct InputRanges {
  int64_t num_groups = 0;  // All that were quantized.
  int64_t num_above = 0;
  int64_t num_below = 0;

  InputRanges& operator+=(const InputRanges& other) {
    num_groups += other.num_groups;
    num_above += other.num_above;
    num_below += other.num_below;
    return *this;
  }
  bool operator==(const InputRanges&) const = default;
};

}  // namespace octavo
