#include "octavo/sync/stored_values.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
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
#include "octavo/model/model.h"
#include "octavo/sync/stored_bytes.h"
#include "octavo/sync/weight_plan.h"

namespace octavo {
namespace {

constexpr int64_t kElementsMax = int64_t{1} << 24;

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
  ASSIGN_OR_RETURN(const StoredView stored, FindStored(plan, weights, name));
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
  const int64_t num_bytes =
      stored.shape.empty() ? stored.num_bytes() : stored.num_bytes() / stored.shape[0] * rows_read;
  ASSIGN_OR_RETURN(Buffer bytes, Buffer::AllocateHost(num_bytes));
  RETURN_IF_ERROR(ReadStoredBytes(stored, backend, 0, bytes.bytes()));
  result.values.reserve(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    ASSIGN_OR_RETURN(const float value,
                     ValueOf(stored.dtype, bytes.data() + i * DTypeBytes(stored.dtype)));
    result.values.push_back(value);
  }
  return result;
}

}  // namespace octavo
