#include "octavo/sync/staging.h"

#include <fmt/core.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/buffer.h"
#include "octavo/base/check.h"
#include "octavo/base/hash.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/convert/stored_check.h"
#include "octavo/convert/transform.h"
#include "octavo/formats/format.h"
#include "octavo/kernels/matrix.h"
#include "octavo/model/model.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/model/spec/stacked_experts.h"
#include "octavo/policy/precision_table.h"
#include "octavo/sync/pack_row.h"
#include "octavo/sync/row_slices.h"
#include "octavo/sync/weight_plan.h"

namespace octavo {
namespace {

bool IsSourceDType(DType dtype) {
  return dtype == DType::kBf16 || dtype == DType::kF16 || dtype == DType::kF32;
}

Status TwoForms(std::string_view name, std::string_view other) {
  return InvalidArgument(
      "{}: expected all weights that share a scale in one form, but {} came in the other (BF16, or "
      "codes and scales)",
      name, other);
}

// Bytes of the weight's stored form, input scales aside.
int64_t PackedBytes(const PrecisionRow& row, const PackedMatrix& packed,
                    const std::vector<StoredTensorSpec>& parts) {
  if (IsVector(row)) {
    return packed.codes.num_bytes();
  }
  int64_t bytes = 0;
  for (const StoredTensorSpec& part : parts) {
    bytes += IsInputScale(part.part) ? 0 : NumElements(part.shape) * DTypeBytes(part.dtype);
  }
  return bytes;
}

}  // namespace

LiveBase LiveBaseOf(const ModelWeights& live) {
  LiveBase base;
  for (const PackedMatrix& matrix : live.matrices) {
    base.is_held.push_back(!matrix.codes.empty());
  }
  base.input_scales = live.stored_input_scales;
  base.input_scales.resize(live.matrices.size(), 0.0F);
  for (const std::vector<PackedMatrix>* held : {&live.matrices, &live.derived}) {
    for (const PackedMatrix& matrix : *held) {
      base.packed_bytes += matrix.codes.num_bytes() + matrix.scales.num_bytes();
    }
  }
  return base;
}

LiveBase EmptyBase(const WeightPlan& plan) {
  LiveBase base{.is_held = std::vector<bool>(plan.parts.size(), false),
                .input_scales = std::vector<float>(plan.parts.size(), 0.0F)};
  for (size_t i = 0; i < plan.parts.size(); ++i) {
    for (const StoredTensorSpec& part : plan.parts[i]) {
      const bool must_come = !plan.spec->weights[i].is_mtp && !IsInputScale(part.part);
      base.packed_bytes += must_come ? NumElements(part.shape) * DTypeBytes(part.dtype) : 0;
    }
  }
  return base;
}

Staging::Staging(StagingOptions options)
    : Staging(std::move(options), std::make_unique<ModelWeights>()) {}

Staging::Staging(StagingOptions options, std::unique_ptr<ModelWeights> weights)
    : options_(std::move(options)),
      plan_(*options_.plan),
      ledger_(plan_.table->rows.size()),
      weights_(std::move(weights)) {
  weights_->matrices.resize(plan_.table->rows.size());
  weights_->stored_input_scales.resize(plan_.table->rows.size(), 0.0F);
}

Status Staging::Put(std::string_view name, const ConstTensorView& tensor) {
  CHECK(!is_sealed_);
  ASSIGN_OR_RETURN(const SlicedName sliced, ParseSlicedName(name));
  const std::string base(sliced.name);
  const Slice& slice = sliced.slice;
  const auto found = plan_.targets.find(base);
  if (found == plan_.targets.end()) {
    if (const auto stacked = plan_.stacked.find(base); stacked != plan_.stacked.end()) {
      return PutStacked(stacked->second, slice, tensor);
    }
    if (!plan_.tied_head.empty() && base == plan_.tied_head) {
      return PutTiedHead(slice, tensor);
    }
    return InvalidArgument("{}: the served model has no such tensor", name);
  }
  const PutTarget& target = found->second;
  const PrecisionRow& row = plan_.table->rows[target.row_idx];
  const bool has_part = target.part_idx != PutTarget::kNoPart;
  if (has_part && IsInputScale(plan_.parts[target.row_idx][target.part_idx].part)) {
    RETURN_IF_ERROR(slice.has_value()
                        ? InvalidArgument("{}: expected the whole tensor, one value", name)
                        : PutInputScale(target, tensor));
  } else if (target.is_weight &&
             (IsSourceDType(tensor.dtype) || !has_part || row.format == WeightFormat::kBf16)) {
    RETURN_IF_ERROR(PutSource(target.row_idx, slice, tensor));
  } else {
    RETURN_IF_ERROR(PutPart(target, slice, tensor));
  }
  bytes_in_ += tensor.NumBytes();
  return OkStatus();
}

// --- Weights in BF16, F16 or F32 -----------------------------------------------------------------

Status Staging::PutSource(size_t row_idx, const Slice& slice, const ConstTensorView& tensor) {
  Entry& entry = ledger_[row_idx];
  const PrecisionRow& row = plan_.table->rows[row_idx];
  const std::string name = slice.has_value() ? NameOfSlice(row.name, *slice) : row.name;
  if (slice.has_value()) {
    RETURN_IF_ERROR(CheckRowSlice({.name = name, .slice = *slice}, row.shape, tensor.shape));
  }
  if ((!slice.has_value() && tensor.shape != row.shape) || !IsSourceDType(tensor.dtype)) {
    return InvalidArgument("{}: expected {} BF16, F16 or F32, got {} {}", name,
                           ShapeString(row.shape), ShapeString(tensor.shape),
                           DTypeName(tensor.dtype));
  }
  const int64_t first_row = slice.has_value() ? slice->begin : 0;
  const std::vector<Hash128> hashes = HashRowBlocks(tensor);
  ASSIGN_OR_RETURN(const RowLedger::Finding finding, entry.source.Check(name, first_row, hashes));
  if (finding == RowLedger::Finding::kRepeated) {
    return OkStatus();
  }
  if (!entry.part_rows.empty()) {
    return InvalidArgument("{}: already staged in its stored form", name);
  }
  if (slice.has_value() && slice->NumRows() < row.shape[0]) {
    RETURN_IF_ERROR(PutRows(row_idx, *slice, tensor));
  } else {
    RETURN_IF_ERROR(PutWhole(row_idx, tensor));
  }
  entry.source.Add(first_row, IsVector(row) ? 1 : row.shape[0], hashes);
  if (!entry.source.IsComplete() || entry.assembly.empty()) {
    return OkStatus();
  }
  const Status status = FinishRows(row_idx);
  if (!status.ok()) {
    entry.source.Remove(first_row, hashes.size());  // The rows that just came are to come again.
  }
  return status;
}

Status Staging::PutWhole(size_t row_idx, const ConstTensorView& tensor) {
  if (plan_.scale_set_of[row_idx] >= 0) {
    return PutMember(row_idx, tensor);
  }
  ASSIGN_OR_RETURN(PackedMatrix packed, Encode(row_idx, tensor, {}));
  Keep(row_idx, std::move(packed));
  return OkStatus();
}

// The experts of a layer in one tensor, or some of them: rows of one expert are consecutive.
Status Staging::PutStacked(const StackedSource& stacked, const Slice& slice,
                           const ConstTensorView& tensor) {
  if (slice.has_value()) {
    RETURN_IF_ERROR(
        CheckRowSlice({.name = NameOfSlice(stacked.name, *slice), .slice = *slice, .granule = 1},
                      stacked.shape, tensor.shape));
  } else {
    RETURN_IF_ERROR(CheckStackedShape(stacked, tensor.shape));
  }
  if (!IsSourceDType(tensor.dtype)) {
    return Unsupported("{}: stacked experts are read in BF16, F16 and F32, got {}", stacked.name,
                       DTypeName(tensor.dtype));
  }
  const RowSlice experts = slice.value_or(RowSlice{0, stacked.shape[0]});
  const int64_t row_bytes = stacked.shape[2] * DTypeBytes(tensor.dtype);
  for (const StackedSlice& part : stacked.slices) {
    if (part.expert < experts.begin || part.expert >= experts.end) {
      continue;
    }
    const int64_t first_row = (part.expert - experts.begin) * stacked.shape[1] + part.row_begin;
    const Status status = PutSource(
        static_cast<size_t>(part.weight), {},
        {tensor.dtype, {part.num_rows, stacked.shape[2]}, tensor.data + first_row * row_bytes});
    if (!status.ok()) {
      return status.WithContext(stacked.name);
    }
  }
  bytes_in_ += tensor.NumBytes();
  return OkStatus();
}

Status Staging::PutTiedHead(const Slice& slice, const ConstTensorView& tensor) {
  const Shape& whole = plan_.table->rows[plan_.embedding_idx].shape;
  const RowSlice rows = slice.value_or(RowSlice{0, whole[0]});
  const std::string name = slice.has_value() ? NameOfSlice(plan_.tied_head, rows) : plan_.tied_head;
  RETURN_IF_ERROR(CheckRowSlice({.name = name, .slice = rows}, whole, tensor.shape));
  const std::vector<Hash128> hashes = HashRowBlocks(tensor);
  RETURN_IF_ERROR(head_.Check(name, rows.begin, hashes).error());
  head_.Add(rows.begin, whole[0], hashes);
  bytes_in_ += tensor.NumBytes();
  return CheckTiedHead();
}

// The head of a tied model and its embedding, whichever comes first.
Status Staging::CheckTiedHead() const {
  if (!head_.AgreesWith(ledger_[plan_.embedding_idx].source)) {
    return InvalidArgument(
        "{}: config.json says tie_word_embeddings, but this tensor differs from {}",
        plan_.tied_head, plan_.table->rows[plan_.embedding_idx].name);
  }
  return OkStatus();
}

Result<PackedMatrix> Staging::Encode(size_t row_idx, const ConstTensorView& source,
                                     std::optional<float> shared_amax) const {
  const PrecisionRow& row = plan_.table->rows[row_idx];
  if (IsVector(row)) {
    return PackVector(row, source, options_.pool);
  }
  const TransformOptions transform = {
      .shared_amax = shared_amax, .layout = plan_.table->layout, .pool = options_.pool};
  ASSIGN_OR_RETURN(const std::vector<OwnedTensor> stored, TransformWeight(row, source, transform));
  return PackRow(row, plan_.table->layout, plan_.inputs[row_idx], stored, *options_.backend);
}

// A member of a set that shares a scale: the last one encodes them all.
Status Staging::PutMember(size_t row_idx, const ConstTensorView& tensor) {
  const PrecisionRow& row = plan_.table->rows[row_idx];
  ASSIGN_OR_RETURN(const float amax, WeightAmax(row, tensor, {.pool = options_.pool}));
  float shared_amax = amax;
  bool is_last = true;
  for (const int member : plan_.scale_sets[static_cast<size_t>(plan_.scale_set_of[row_idx])]) {
    const auto member_idx = static_cast<size_t>(member);
    const Entry& other = ledger_[member_idx];
    if (member_idx == row_idx) {
      continue;
    }
    if (!other.part_rows.empty()) {
      return TwoForms(row.name, plan_.table->rows[member_idx].name);
    }
    is_last = is_last && other.source.IsComplete();
    shared_amax = std::max(shared_amax, other.amax);
  }
  return is_last ? EncodeSet(row_idx, tensor, shared_amax) : Wait(row_idx, tensor, amax);
}

// The bytes of a sender are its own after the call, so what waits is a copy.
Status Staging::Wait(size_t row_idx, const ConstTensorView& tensor, float amax) {
  Entry& entry = ledger_[row_idx];
  if (!entry.assembly.empty()) {  // It is one already.
    entry.waiting = std::move(entry.assembly.front().bytes);
    entry.amax = amax;
    entry.assembly.clear();
    return OkStatus();
  }
  PrecisionRow kept = plan_.table->rows[row_idx];
  kept.format = WeightFormat::kBf16;
  const int64_t num_bytes = NumElements(kept.shape) * DTypeBytes(DType::kBf16);
  if (waiting_bytes_ + num_bytes > options_.waiting_bytes_max) {
    return Exhausted(
        "{}: {} bytes of weights wait for others that share their scale, and at most {} may: send "
        "q/k/v, q_a/kv_a and gate/up of a layer or an expert one after the other",
        kept.name, waiting_bytes_, options_.waiting_bytes_max);
  }
  ASSIGN_OR_RETURN(std::vector<OwnedTensor> bf16,
                   TransformWeight(kept, tensor, {.pool = options_.pool}));
  entry.waiting = std::move(bf16.front().bytes);
  entry.amax = amax;
  waiting_bytes_ += num_bytes;
  return OkStatus();
}

Status Staging::EncodeSet(size_t last_row_idx, const ConstTensorView& last, float amax) {
  const std::vector<int>& members =
      plan_.scale_sets[static_cast<size_t>(plan_.scale_set_of[last_row_idx])];
  std::vector<PackedMatrix> packed;
  for (const int member : members) {
    const auto row_idx = static_cast<size_t>(member);
    const ConstTensorView source =
        row_idx == last_row_idx ? last
                                : ConstTensorView{DType::kBf16, plan_.table->rows[row_idx].shape,
                                                  ledger_[row_idx].waiting.data()};
    ASSIGN_OR_RETURN(packed.emplace_back(), Encode(row_idx, source, amax));
  }
  for (size_t i = 0; i < members.size(); ++i) {  // All or none: nothing fails from here on.
    const auto row_idx = static_cast<size_t>(members[i]);
    waiting_bytes_ -= ledger_[row_idx].waiting.num_bytes();
    ledger_[row_idx].waiting = Buffer();
    Keep(row_idx, std::move(packed[i]));
  }
  return OkStatus();
}

// --- Stored parts --------------------------------------------------------------------------------

Status Staging::PutInputScale(const PutTarget& target, const ConstTensorView& tensor) {
  const PrecisionRow& row = plan_.table->rows[target.row_idx];
  const StoredTensorSpec& spec = plan_.parts[target.row_idx][target.part_idx];
  RETURN_IF_ERROR(CheckStoredType(row, spec, tensor));
  RETURN_IF_ERROR(CheckStoredScales(row, spec, tensor));
  float value = 0.0F;
  CopyStored(spec, tensor, std::as_writable_bytes(std::span(&value, 1)));
  std::optional<float>& known = ledger_[target.row_idx].input_scale;
  if (known.has_value()) {
    return std::bit_cast<uint32_t>(*known) == std::bit_cast<uint32_t>(value)
               ? OkStatus()
               : InvalidArgument("{}: already staged with another value", spec.name);
  }
  known = value;
  return OkStatus();
}

Status Staging::CheckPartForms(const PutTarget& target, std::string_view name) const {
  if (!ledger_[target.row_idx].source.empty()) {
    return InvalidArgument("{}: its weight is already staged as BF16", name);
  }
  if (const int set = plan_.scale_set_of[target.row_idx]; set >= 0) {
    for (const int member : plan_.scale_sets[static_cast<size_t>(set)]) {
      if (!ledger_[static_cast<size_t>(member)].source.empty()) {
        return TwoForms(name, plan_.table->rows[static_cast<size_t>(member)].name);
      }
    }
  }
  return OkStatus();
}

Status Staging::PutPart(const PutTarget& target, const Slice& slice,
                        const ConstTensorView& tensor) {
  Entry& entry = ledger_[target.row_idx];
  const PrecisionRow& row = plan_.table->rows[target.row_idx];
  const std::vector<StoredTensorSpec>& specs = plan_.parts[target.row_idx];
  const Shape& whole = specs[target.part_idx].shape;
  StoredTensorSpec spec = specs[target.part_idx];  // Of what came.
  if (slice.has_value()) {
    spec.name = NameOfSlice(spec.name, *slice);
    RETURN_IF_ERROR(CheckRowSlice({.name = spec.name, .slice = *slice}, whole, tensor.shape));
    spec.shape[0] = slice->NumRows();
  }
  RETURN_IF_ERROR(CheckStoredType(row, spec, tensor));
  RETURN_IF_ERROR(CheckPartForms(target, spec.name));
  const int64_t first_row = slice.has_value() ? slice->begin : 0;
  const std::vector<Hash128> hashes = HashRowBlocks(tensor);
  if (!entry.part_rows.empty()) {
    ASSIGN_OR_RETURN(const RowLedger::Finding finding,
                     entry.part_rows[target.part_idx].Check(spec.name, first_row, hashes));
    if (finding == RowLedger::Finding::kRepeated) {
      return OkStatus();
    }
  }
  if (spec.part == StoredPart::kCodes) {
    const auto* codes = reinterpret_cast<const uint8_t*>(tensor.data);
    RETURN_IF_ERROR(CheckStoredCodes(row, {codes, static_cast<size_t>(tensor.NumBytes())}));
  } else {
    RETURN_IF_ERROR(CheckStoredScales(row, spec, tensor));
  }
  RETURN_IF_ERROR(KeepPart(target, slice, tensor));
  const bool has_rows = tensor.shape.size() >= 2;
  entry.part_rows[target.part_idx].Add(first_row, has_rows ? whole[0] : 1, hashes);
  for (size_t i = 0; i < specs.size(); ++i) {
    if (!IsInputScale(specs[i].part) && !entry.part_rows[i].IsComplete()) {
      return OkStatus();
    }
  }
  const Status status = Adopt(target.row_idx);
  if (!status.ok()) {  // What just came is to come again.
    entry.part_rows[target.part_idx].Remove(first_row, hashes.size());
  }
  return status;
}

// A copy, of all rows or among those that came before.
Status Staging::KeepPart(const PutTarget& target, const Slice& slice,
                         const ConstTensorView& tensor) {
  Entry& entry = ledger_[target.row_idx];
  const std::vector<StoredTensorSpec>& specs = plan_.parts[target.row_idx];
  const StoredTensorSpec& spec = specs[target.part_idx];
  if (entry.part_rows.empty() || entry.part_rows[target.part_idx].empty()) {
    Shape shape = tensor.shape;
    if (slice.has_value()) {
      shape[0] = spec.shape[0];
    }
    const int64_t num_bytes = NumElements(shape) * DTypeBytes(tensor.dtype);
    ASSIGN_OR_RETURN(Buffer bytes, Buffer::AllocateHost(num_bytes));
    entry.part_rows.resize(specs.size());
    entry.parts.resize(specs.size());
    entry.parts[target.part_idx] = {spec.name, tensor.dtype, std::move(shape), std::move(bytes)};
  }
  OwnedTensor& part = entry.parts[target.part_idx];
  if (part.dtype != tensor.dtype) {
    return InvalidArgument("{}: expected {} in all of its rows, got {}", spec.name,
                           DTypeName(part.dtype), DTypeName(tensor.dtype));
  }
  const int64_t offset =
      slice.has_value() ? tensor.NumBytes() / slice->NumRows() * slice->begin : 0;
  std::ranges::copy(tensor.Bytes(), part.bytes.data() + offset);
  return OkStatus();
}

Status Staging::Adopt(size_t row_idx) {
  static constexpr float kNoInputScale = 1.0F;  // It is kept apart from the weight (PutInputScale).
  Entry& entry = ledger_[row_idx];
  const PrecisionRow& row = plan_.table->rows[row_idx];
  const StoredLayout layout = plan_.table->layout;
  std::vector<ConstTensorView> views;
  for (size_t i = 0; i < StoredTensorsOf(row, layout).size(); ++i) {
    const StoredTensorSpec& spec = plan_.parts[row_idx][i];
    views.push_back(IsInputScale(spec.part)
                        ? ConstTensorView{DType::kF32, spec.shape,
                                          reinterpret_cast<const std::byte*>(&kNoInputScale)}
                        : entry.parts[i].View());
  }
  ASSIGN_OR_RETURN(const std::vector<OwnedTensor> stored, AdoptStored(row, views, layout));
  ASSIGN_OR_RETURN(PackedMatrix packed,
                   PackRow(row, layout, plan_.inputs[row_idx], stored, *options_.backend));
  entry.parts.clear();
  Keep(row_idx, std::move(packed));
  return OkStatus();
}

void Staging::Keep(size_t row_idx, PackedMatrix packed) {
  bytes_staged_ += PackedBytes(plan_.table->rows[row_idx], packed, plan_.parts[row_idx]);
  weights_->matrices[row_idx] = std::move(packed);
  ledger_[row_idx].is_packed = true;
  ++num_staged_;
}

}  // namespace octavo
