#pragma once
// The bytes of one stored tensor of live weights, as a checkpoint of the served table holds them.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/matrix.h"
#include "octavo/model/model.h"
#include "octavo/policy/precision_table.h"
#include "octavo/sync/weight_plan.h"

namespace octavo {

// One stored tensor of a live weight. `packed` is the weight's, and must outlive this.
struct StoredView {
  const PackedMatrix* packed = nullptr;
  StoredPart part = StoredPart::kCodes;
  float input_scale = 0.0F;
  bool is_vector = false;
  DType dtype = DType::kBf16;
  Shape shape;

  int64_t num_bytes() const { return NumElements(shape) * DTypeBytes(dtype); }
};

// A tied model's head is its embedding. Errors: kNotFound for a name that the served model does not
// store; of a quantized weight the message tells the names.
Result<StoredView> FindStored(const WeightPlan& plan, const ModelWeights& weights,
                              std::string_view name);

// Fills `out` with the tensor's canonical bytes from `begin_bytes` on; what lies in a row beside
// them is unpacked, too. Errors: kExhausted; those of Backend::Unpack.
Status ReadStoredBytes(const StoredView& stored, const Backend& backend, int64_t begin_bytes,
                       std::span<std::byte> out);

}  // namespace octavo
