#pragma once
// A weight in its stored form, packed for a backend: what an engine computes with.

#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/convert/transform.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/matrix.h"
#include "octavo/policy/precision_table.h"

namespace octavo {

// True for norms and biases, which stay one canonical row (kernels/matrix.h).
bool IsVector(const PrecisionRow& row);

// `stored` has the tensors of StoredTensorsOf(row, layout), in order. The input scale is not read:
// PackedMatrix::input_scale is left 1.
// Errors: kExhausted; those of Backend::Pack, naming the row.
Result<PackedMatrix> PackRow(const PrecisionRow& row, StoredLayout layout, InputForm input,
                             const std::vector<OwnedTensor>& stored, const Backend& backend);

// A vector in BF16, rounded from F16 and F32 as every kept weight, but for an F32 router bias,
// which stays F32: rounding it would change which experts are chosen.
// Errors: as TransformWeight.
Result<PackedMatrix> PackVector(const PrecisionRow& row, const ConstTensorView& source,
                                ThreadPool* pool);

// Everything of `matrix` but its bytes, and a deep copy. Errors of Clone: kExhausted.
PackedMatrix FormOf(const PackedMatrix& matrix);
Result<PackedMatrix> Clone(const PackedMatrix& matrix);

}  // namespace octavo
