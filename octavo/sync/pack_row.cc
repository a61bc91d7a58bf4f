#include "octavo/sync/pack_row.h"

#include <cstddef>
#include <cstring>
#include <utility>
#include <vector>

#include "octavo/base/buffer.h"
#include "octavo/base/check.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/base/thread_pool.h"
#include "octavo/convert/transform.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/matrix.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"

namespace octavo {

bool IsVector(const PrecisionRow& row) { return row.shape.size() == 1; }

Result<PackedMatrix> PackRow(const PrecisionRow& row, StoredLayout layout, InputForm input,
                             const std::vector<OwnedTensor>& stored, const Backend& backend) {
  const std::vector<StoredTensorSpec> specs = StoredTensorsOf(row, layout);
  CHECK(row.shape.size() == 2U);
  CHECK(stored.size() == specs.size());
  CanonicalMatrix canonical{.format = row.format,
                            .rows = row.shape[0],
                            .cols = row.shape[1],
                            .codes = {},
                            .scales = {},
                            .input = input};
  for (size_t i = 0; i < specs.size(); ++i) {
    const Buffer& bytes = stored[i].bytes;
    switch (specs[i].part) {
      case StoredPart::kCodes:
        canonical.codes = bytes.bytes();
        break;
      case StoredPart::kScales:
        canonical.scales = bytes.bytes();
        break;
      case StoredPart::kTensorScale:
      case StoredPart::kTensorDivisor:
        canonical.tensor_scale = bytes.As<float>()[0];
        canonical.tensor_scale_divides = specs[i].part == StoredPart::kTensorDivisor;
        break;
      case StoredPart::kInputScale:
      case StoredPart::kInputDivisor:
        break;
    }
  }
  PackedMatrix packed;
  const Status status = backend.Pack(canonical, &packed);
  if (!status.ok()) {
    return status.WithContext(row.name);
  }
  return packed;
}

Result<PackedMatrix> PackVector(const PrecisionRow& row, const ConstTensorView& source,
                                ThreadPool* pool) {
  PackedMatrix packed;
  packed.rows = 1;
  packed.cols = NumElements(row.shape);
  if (row.role == Role::kRouterBias && source.dtype == DType::kF32) {
    RETURN_IF_ERROR(CheckWeight(row, source, pool));
    packed.vector_dtype = DType::kF32;
    ASSIGN_OR_RETURN(packed.codes, Buffer::AllocateHost(source.NumBytes()));
    std::memcpy(packed.codes.data(), source.data, static_cast<size_t>(source.NumBytes()));
    return packed;
  }
  ASSIGN_OR_RETURN(std::vector<OwnedTensor> stored, TransformWeight(row, source, {.pool = pool}));
  packed.codes = std::move(stored.front().bytes);
  return packed;
}

PackedMatrix FormOf(const PackedMatrix& matrix) {
  PackedMatrix form;
  form.format = matrix.format;
  form.rows = matrix.rows;
  form.cols = matrix.cols;
  form.tensor_scale = matrix.tensor_scale;
  form.tensor_scale_divides = matrix.tensor_scale_divides;
  form.input = matrix.input;
  form.input_scale = matrix.input_scale;
  form.vector_dtype = matrix.vector_dtype;
  return form;
}

Result<PackedMatrix> Clone(const PackedMatrix& matrix) {
  PackedMatrix copy = FormOf(matrix);
  ASSIGN_OR_RETURN(copy.codes, matrix.codes.Clone());
  ASSIGN_OR_RETURN(copy.scales, matrix.scales.Clone());
  return copy;
}

}  // namespace octavo
