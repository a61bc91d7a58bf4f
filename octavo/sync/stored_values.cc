#include "octavo/sync/stored_values.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "octavo/base/buffer.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/formats/bf16.h"
#include "octavo/formats/e4m3.h"
#include "octavo/formats/e8m0.h"
#include "octavo/formats/format.h"
#include "octavo/formats/quantize.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/matrix.h"
#include "octavo/model/model.h"
#include "octavo/policy/precision_table.h"
#include "octavo/sync/pack_row.h"
#include "octavo/sync/weight_plan.h"

namespace octavo {
namespace {

constexpr int64_t kElementsMax = int64_t{1} << 24;

// One stored tensor of a live weight.
struct Stored {
  const PackedMatrix* packed = nullptr;
  StoredPart part = StoredPart::kCodes;
  float input_scale = 0.0F;
  bool is_vector = false;
  DType dtype = DType::kBf16;
  Shape shape;
};

Result<size_t> RowOf(const WeightPlan& plan, std::string_view name) {
  if (!plan.tied_head.empty() && name == plan.tied_head) {
    return plan.embedding_idx;
  }
  const auto found = plan.targets.find(std::string(name));
  if (found == plan.targets.end()) {
    return NotFound("{}: the served model has no such tensor", name);
  }
  return found->second.row_idx;
}

Result<Stored> FindStored(const WeightPlan& plan, const ModelWeights& weights,
                          std::string_view name) {
  ASSIGN_OR_RETURN(const size_t row_idx, RowOf(plan, name));
  const PrecisionRow& row = plan.table->rows[row_idx];
  Stored stored = {.packed = &weights.matrices[row_idx], .shape = row.shape};
  if (stored.packed->codes.empty()) {
    return NotFound("{}: the served checkpoint left it out", name);
  }
  if (!weights.stored_input_scales.empty()) {
    stored.input_scale = weights.stored_input_scales[row_idx];
  }
  if (IsVector(row)) {
    stored.is_vector = true;
    stored.dtype = stored.packed->vector_dtype;
    return stored;
  }
  std::string names;
  for (const StoredTensorSpec& spec : plan.parts[row_idx]) {
    const bool is_tied_head = name == plan.tied_head && spec.part == StoredPart::kCodes;
    if (spec.name == name || is_tied_head) {
      if (IsInputScale(spec.part) && stored.input_scale == 0.0F) {
        break;
      }
      stored.part = spec.part;
      stored.dtype = spec.dtype;
      stored.shape = spec.shape;
      return stored;
    }
    names += (names.empty() ? "" : ", ") + spec.name;
  }
  return NotFound("{}: this model stores {}", name, names);
}

Result<Buffer> ReadBytes(const Stored& stored, int64_t num_rows, const Backend& backend) {
  const PackedMatrix& packed = *stored.packed;
  const int64_t num_bytes = NumElements(stored.shape) * DTypeBytes(stored.dtype);
  if (stored.part == StoredPart::kCodes && !stored.is_vector) {
    ASSIGN_OR_RETURN(Buffer codes, Buffer::AllocateHost(num_bytes / stored.shape[0] * num_rows));
    RETURN_IF_ERROR(backend.UnpackCodes(packed, 0, num_rows, codes.bytes()));
    return codes;
  }
  if (stored.part == StoredPart::kCodes) {
    return packed.codes.Clone();
  }
  ASSIGN_OR_RETURN(Buffer bytes, Buffer::AllocateHost(num_bytes));
  if (stored.part == StoredPart::kScales) {
    RETURN_IF_ERROR(backend.UnpackScales(packed, bytes.bytes()));
    return bytes;
  }
  const float value = IsInputScale(stored.part) ? stored.input_scale : packed.tensor_scale;
  std::memcpy(bytes.data(), &value, sizeof(value));
  return bytes;
}

Result<float> ValueOf(DType dtype, const std::byte* bytes) {
  uint16_t half = 0;
  float value = 0.0F;
  const auto byte = std::to_integer<uint8_t>(*bytes);
  switch (dtype) {
    case DType::kBf16:
      std::memcpy(&half, bytes, sizeof(half));
      return Bf16ToFloat(half);
    case DType::kF32:
      std::memcpy(&value, bytes, sizeof(value));
      return value;
    case DType::kF8E4m3:
      return E4m3ToFloat(byte);
    case DType::kF8E8m0:
      return E8m0ToFloat(byte);
    case DType::kU8:
      return static_cast<float>(byte);
    default:
      return Unsupported("values of a tensor of {}", DTypeName(dtype));
  }
}

}  // namespace

Result<StoredValues> ReadStoredValues(const WeightPlan& plan, const ModelWeights& weights,
                                      const Backend& backend, std::string_view name,
                                      int64_t num_rows) {
  ASSIGN_OR_RETURN(const Stored stored, FindStored(plan, weights, name));
  StoredValues result = {.shape = stored.shape, .values = {}};
  if (!result.shape.empty()) {
    result.shape[0] = std::clamp<int64_t>(num_rows, 0, result.shape[0]);
  }
  const int64_t count = NumElements(result.shape);
  if (count > kElementsMax) {
    return Exhausted("{}: {} values were asked for, and one answer has at most {}", name, count,
                     kElementsMax);
  }
  if (count == 0) {
    return result;
  }
  const int64_t rows_read = result.shape.empty() ? 1 : result.shape[0];
  ASSIGN_OR_RETURN(const Buffer bytes, ReadBytes(stored, rows_read, backend));
  result.values.reserve(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    ASSIGN_OR_RETURN(const float value,
                     ValueOf(stored.dtype, bytes.data() + i * DTypeBytes(stored.dtype)));
    result.values.push_back(value);
  }
  return result;
}

}  // namespace octavo
