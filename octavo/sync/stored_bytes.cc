#include "octavo/sync/stored_bytes.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "octavo/base/buffer.h"
#include "octavo/base/check.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/matrix.h"
#include "octavo/model/model.h"
#include "octavo/policy/precision_table.h"
#include "octavo/sync/pack_row.h"
#include "octavo/sync/weight_plan.h"

namespace octavo {
namespace {

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

// A part of bytes that are there as a whole.
void CopyPart(std::span<const std::byte> whole, int64_t begin_bytes, std::span<std::byte> out) {
  const auto part = whole.subspan(static_cast<size_t>(begin_bytes), out.size());
  std::ranges::copy(part, out.begin());
}

Status ReadCodes(const StoredView& stored, const Backend& backend, int64_t begin_bytes,
                 std::span<std::byte> out) {
  const int64_t row_bytes = stored.num_bytes() / stored.packed->rows;
  const int64_t end_bytes = begin_bytes + static_cast<int64_t>(out.size());
  const int64_t first_row = begin_bytes / row_bytes;
  const int64_t num_rows = (end_bytes + row_bytes - 1) / row_bytes - first_row;
  const bool is_whole_rows =
      begin_bytes % row_bytes == 0 && std::cmp_equal(out.size(), num_rows * row_bytes);
  if (is_whole_rows) {
    return backend.UnpackCodes(*stored.packed, first_row, num_rows, out);
  }
  ASSIGN_OR_RETURN(Buffer rows, Buffer::AllocateHost(num_rows * row_bytes));
  RETURN_IF_ERROR(backend.UnpackCodes(*stored.packed, first_row, num_rows, rows.bytes()));
  CopyPart(rows.bytes(), begin_bytes - first_row * row_bytes, out);
  return OkStatus();
}

}  // namespace

Result<StoredView> FindStored(const WeightPlan& plan, const ModelWeights& weights,
                              std::string_view name) {
  ASSIGN_OR_RETURN(const size_t row_idx, RowOf(plan, name));
  const PrecisionRow& row = plan.table->rows[row_idx];
  StoredView stored = {.packed = &weights.matrices[row_idx], .shape = row.shape};
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

Status ReadStoredBytes(const StoredView& stored, const Backend& backend, int64_t begin_bytes,
                       std::span<std::byte> out) {
  const PackedMatrix& packed = *stored.packed;
  CHECK(begin_bytes >= 0);
  CHECK(begin_bytes + static_cast<int64_t>(out.size()) <= stored.num_bytes());
  if (out.empty()) {
    return OkStatus();
  }
  if (stored.is_vector) {
    CopyPart(packed.codes.bytes(), begin_bytes, out);
    return OkStatus();
  }
  if (stored.part == StoredPart::kCodes) {
    return ReadCodes(stored, backend, begin_bytes, out);
  }
  if (stored.part == StoredPart::kScales) {
    ASSIGN_OR_RETURN(Buffer scales, Buffer::AllocateHost(stored.num_bytes()));
    RETURN_IF_ERROR(backend.UnpackScales(packed, scales.bytes()));
    CopyPart(scales.bytes(), begin_bytes, out);
    return OkStatus();
  }
  const float value = IsInputScale(stored.part) ? stored.input_scale : packed.tensor_scale;
  CopyPart(std::as_bytes(std::span(&value, 1)), begin_bytes, out);
  return OkStatus();
}

}  // namespace octavo
