#pragma once
// Sources whose FP8 scales are stored inverted: divisors under the names of multipliers. Never
// guessed; who converts says so (convert --source-scales inverse).

#include <vector>

#include "octavo/base/status.h"
#include "octavo/checkpoint/checkpoint.h"

namespace octavo {

// What stands in the place of a tensor of divisors. Must not move while it is in use.
struct InvertedScales {
  std::vector<float> values;
  StoredTensor tensor;  // F32, of the same name, shape and file; looks into `values`.
};

// 1 / s for every scale: exact for powers of two, else rounded once in FP32. `scales` is F32, BF16
// or F16.
void InvertScales(const StoredTensor& scales, InvertedScales* out);

// Whether the usual scale is that of a divisor: multipliers like it would make weights whose usual
// magnitude is in the thousands.
bool SeemInverse(const ConstTensorView& scales);

}  // namespace octavo
