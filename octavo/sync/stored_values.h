#pragma once
// The numbers of a live tensor, as a person would look at them.

#include <cstdint>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/kernels/backend.h"
#include "octavo/model/model.h"
#include "octavo/sync/weight_plan.h"

namespace octavo {

struct StoredValues {
  Shape shape;                // Of the rows that are here.
  std::vector<float> values;  // Row-major.
};

// The first `num_rows` rows, or all if there are fewer, of the tensor that a checkpoint of the
// served table stores under `name`: each element's own value, scales not applied; U8 codes as their
// number. A scalar is one value of shape []. A tied model's head is its embedding. Errors:
// kNotFound for a name that the served model does not store (of a quantized weight the message
// tells the names); kExhausted for more than 2^24 elements; those of Backend::Unpack.
Result<StoredValues> ReadStoredValues(const WeightPlan& plan, const ModelWeights& weights,
                                      const Backend& backend, std::string_view name,
                                      int64_t num_rows);

}  // namespace octavo
