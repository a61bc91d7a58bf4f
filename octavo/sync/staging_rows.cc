// Weights whose rows come apart, in any order. Where a format encodes 128 rows by themselves, each
// slice is encoded when it comes and lies in the stored form of its weight; where one scale depends
// on all rows, they wait in BF16. Either way the bytes are those of the weight put whole.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "octavo/base/buffer.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/convert/transform.h"
#include "octavo/formats/format.h"
#include "octavo/kernels/matrix.h"
#include "octavo/policy/precision_table.h"
#include "octavo/sync/pack_row.h"
#include "octavo/sync/row_slices.h"
#include "octavo/sync/staging.h"
#include "octavo/sync/weight_plan.h"

namespace octavo {
namespace {

int64_t BytesOf(const StoredTensorSpec& spec) {
  return NumElements(spec.shape) * DTypeBytes(spec.dtype);
}

int64_t BytesOf(const std::vector<OwnedTensor>& tensors) {
  int64_t bytes = 0;
  for (const OwnedTensor& tensor : tensors) {
    bytes += tensor.bytes.num_bytes();
  }
  return bytes;
}

}  // namespace

// The form in which the rows of a weight are brought together.
PrecisionRow Staging::AssembledRow(size_t row_idx) const {
  PrecisionRow row = plan_.table->rows[row_idx];
  if (SharesScale(row.format)) {
    row.format = WeightFormat::kBf16;
  }
  return row;
}

Status Staging::StartAssembly(size_t row_idx, const PrecisionRow& assembled) {
  const std::vector<StoredTensorSpec> specs = StoredTensorsOf(assembled, plan_.table->layout);
  int64_t num_bytes = 0;
  for (const StoredTensorSpec& spec : specs) {
    num_bytes += BytesOf(spec);
  }
  if (waiting_bytes_ + num_bytes > options_.waiting_bytes_max) {
    return Exhausted(
        "{}: {} bytes of weights wait for the rest of their rows or their set, and {} more would: "
        "at "
        "most {} may; send the rows of a weight one after the other",
        assembled.name, waiting_bytes_, num_bytes, options_.waiting_bytes_max);
  }
  std::vector<OwnedTensor> tensors;
  for (const StoredTensorSpec& spec : specs) {
    ASSIGN_OR_RETURN(Buffer bytes, Buffer::AllocateHost(BytesOf(spec)));
    tensors.push_back({spec.name, spec.dtype, spec.shape, std::move(bytes)});
  }
  ledger_[row_idx].assembly = std::move(tensors);
  waiting_bytes_ += num_bytes;
  return OkStatus();
}

Status Staging::PutRows(size_t row_idx, const RowSlice& slice, const ConstTensorView& tensor) {
  Entry& entry = ledger_[row_idx];
  const StoredLayout layout = plan_.table->layout;
  const PrecisionRow assembled = AssembledRow(row_idx);
  PrecisionRow rows = assembled;
  rows.name = NameOfSlice(rows.name, slice);
  rows.shape[0] = slice.NumRows();
  ASSIGN_OR_RETURN(const std::vector<OwnedTensor> stored,
                   TransformWeight(rows, tensor, {.layout = layout, .pool = options_.pool}));
  if (entry.assembly.empty()) {
    RETURN_IF_ERROR(StartAssembly(row_idx, assembled));
  }
  rows.shape[0] = slice.begin;
  const std::vector<StoredTensorSpec> before = StoredTensorsOf(rows, layout);
  for (size_t i = 0; i < stored.size(); ++i) {
    std::memcpy(entry.assembly[i].bytes.data() + BytesOf(before[i]), stored[i].bytes.data(),
                static_cast<size_t>(stored[i].bytes.num_bytes()));
  }
  return OkStatus();
}

// All rows are there.
Status Staging::FinishRows(size_t row_idx) {
  Entry& entry = ledger_[row_idx];
  const PrecisionRow& row = plan_.table->rows[row_idx];
  if (SharesScale(row.format)) {
    RETURN_IF_ERROR(PutWhole(row_idx, entry.assembly.front().View()));
  } else {
    ASSIGN_OR_RETURN(PackedMatrix packed, PackRow(row, plan_.table->layout, plan_.inputs[row_idx],
                                                  entry.assembly, *options_.backend));
    Keep(row_idx, std::move(packed));
  }
  waiting_bytes_ -= BytesOf(entry.assembly);  // None when it waits for its set.
  entry.assembly.clear();
  return OkStatus();
}

}  // namespace octavo
