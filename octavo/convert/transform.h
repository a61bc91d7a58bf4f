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
#include "octavo/convert/source.h"
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

// The same two from a source in any form: a quantized one is decoded to F32 and never rounded to
// BF16 on the way, except for weights that are kept in it. `source` is of row.shape.
Result<std::vector<OwnedTensor>> TransformSource(const PrecisionRow& row,
                                                 const WeightSource& source,
                                                 const TransformOptions& options);
Result<float> SourceAmax(const PrecisionRow& row, const WeightSource& source,
                         const TransformOptions& options);

// What stands in a tensor of one element: the tensor scale or divisor for the largest magnitude of
// the sharing set, or the input scale, which is 1.
float SingleValue(WeightFormat format, StoredPart part, float amax);

// The error for a source that was found to hold NaN, infinity or what `amax` does not cover.
Status UnfitSourceError(const PrecisionRow& row, const WeightSource& source, bool direct);

// The checks of TransformWeight alone: for a weight whose bytes are copied as they are.
Status CheckWeight(const PrecisionRow& row, const ConstTensorView& source, ThreadPool* pool);

// For a source that already holds `row` in its stored form: checks dtypes, shapes, finite positive
// scales, no NaN codes, and copies. `stored` has the tensors of StoredTensorsOf(row, layout), in
// order; scales that are wider or narrower in another checkpoint of the format are taken where that
// is exact: BF16 and F16 for F32, U8 and F8_E8M0 for each other and for the F32 powers of two of
// fp8-ue8m0, [1] for [] and back, [n] for [n, 1].
Result<std::vector<OwnedTensor>> AdoptStored(const PrecisionRow& row,
                                             const std::vector<ConstTensorView>& stored,
                                             StoredLayout layout = StoredLayout::kDefault);

}  // namespace octavo
