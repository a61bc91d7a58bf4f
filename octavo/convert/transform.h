#pragma once
// The one transform: a weight as a trainer has it -> the tensors in which it is stored and served.
// Offline conversion, quantization at load and live updates all call this function, so the same
// source bits give the same bytes everywhere.

#include <optional>
#include <string>
#include <vector>

#include "octavo/base/buffer.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/base/thread_pool.h"
#include "octavo/policy/precision_table.h"

namespace octavo {

// A tensor that owns its bytes.
struct OwnedTensor {
  std::string name;
  DType dtype = DType::kU8;
  Shape shape;
  Buffer bytes;

  ConstTensorView View() const { return {dtype, shape, bytes.data()}; }
};

struct TransformOptions {
  // The largest magnitude over the sharing set of the row (policy's SharedScaleSets), from
  // WeightAmax of its members. Read for formats with SharesScale alone; without it the row is a set
  // of its own.
  std::optional<float> shared_amax = {};
  StoredLayout layout = StoredLayout::kDefault;
  // F32 and F16 sources are encoded as they are, not rounded to BF16 first (docs/formats.md).
  bool direct = false;
  ThreadPool* pool = nullptr;  // May be null; it changes nothing but time.
};

// `source` is BF16, F16 or F32 of row.shape; F16 and F32 are rounded to BF16 first (nearest even)
// unless options.direct, for that is the model the trainer runs. The result has the tensors of
// StoredTensorsOf(row, layout), in that order. A weight kept in BF16 is copied.
// Errors: kInvalidArgument, naming tensor, expected and actual, for another shape or dtype and for
// NaN or infinity (count and first index) in any weight. The source is never written.
Result<std::vector<OwnedTensor>> TransformWeight(const PrecisionRow& row,
                                                 const ConstTensorView& source,
                                                 const TransformOptions& options);

// The largest magnitude of what TransformWeight would encode. Errors: as TransformWeight.
Result<float> WeightAmax(const PrecisionRow& row, const ConstTensorView& source,
                         const TransformOptions& options);

// The checks of TransformWeight alone: for a weight whose bytes are copied as they are.
Status CheckWeight(const PrecisionRow& row, const ConstTensorView& source, ThreadPool* pool);

// For a source that already holds `row` in its stored form: checks dtypes, shapes, finite positive
// scales, no NaN codes, and copies. `stored` has the tensors of StoredTensorsOf(row, layout), in
// order.
Result<std::vector<OwnedTensor>> AdoptStored(const PrecisionRow& row,
                                             const std::vector<ConstTensorView>& stored,
                                             StoredLayout layout = StoredLayout::kDefault);

}  // namespace octavo
