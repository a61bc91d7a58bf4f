#pragma once
// What an update changes: the codes of new weights beside those that are live.

#include <cstdint>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/thread_pool.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/matrix.h"
#include "octavo/model/model.h"

namespace octavo {

// Of one weight, or of several added up. Vectors and BF16 weights count their values as codes, and
// have neither largest codes nor scales.
struct WeightChange {
  int64_t num_codes = 0;
  int64_t num_changed = 0;  // Codes that are others than before; all of a weight that was not held.
  // Codes of the largest magnitude, 448 in E4M3 and 6 in E2M1: of a fresh scale about one a block,
  // of a scale that has grown stale many more.
  int64_t num_saturated = 0;
  int64_t num_scales = 0;
  // As QuantizationError: nvfp4's E4M3 bytes up to 0x07, mxfp8's byte 0.
  int64_t num_subnormal_scales = 0;

  WeightChange& operator+=(const WeightChange& other);
};

// `before` and `after` are packed by `backend`. Without matrices `before` holds nothing. One entry
// a matrix; `pool` may be null.
// Errors: kExhausted.
Result<std::vector<WeightChange>> CompareWeights(const ModelWeights& before,
                                                 const ModelWeights& after, const Backend& backend,
                                                 ThreadPool* pool);

}  // namespace octavo
