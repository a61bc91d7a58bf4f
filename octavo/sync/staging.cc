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
#include "octavo/sync/weight_plan.h"

namespace octavo {
namespace {

// Missing tensors that an error names before it only counts.
constexpr int kMaxNamed = 5;

bool IsSourceDType(DType dtype) {
  return dtype == DType::kBf16 || dtype == DType::kF16 || dtype == DType::kF32;
}

Status AnotherValue(std::string_view name) {
  return InvalidArgument("{}: already staged with another value", name);
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

// Up to kMaxNamed names, and how many more there are.
class NameList {
 public:
  void Add(const std::string& name) {
    if (++count_ <= kMaxNamed) {
      text_ += (text_.empty() ? "" : ", ") + name;
    }
  }
  bool empty() const { return count_ == 0; }
  std::string Text() const {
    return text_ + (count_ > kMaxNamed ? fmt::format(" and {} more", count_ - kMaxNamed) : "");
  }

 private:
  int count_ = 0;
  std::string text_;
};

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
  const auto found = plan_.targets.find(std::string(name));
  if (found == plan_.targets.end()) {
    if (const auto stacked = plan_.stacked.find(std::string(name));
        stacked != plan_.stacked.end()) {
      return PutStacked(stacked->second, tensor);
    }
    if (!plan_.tied_head.empty() && name == plan_.tied_head) {
      return PutTiedHead(tensor);
    }
    return InvalidArgument("{}: the served model has no such tensor", name);
  }
  const PutTarget& target = found->second;
  const PrecisionRow& row = plan_.table->rows[target.row_idx];
  const bool has_part = target.part_idx != PutTarget::kNoPart;
  if (has_part && IsInputScale(plan_.parts[target.row_idx][target.part_idx].part)) {
    RETURN_IF_ERROR(PutInputScale(target, tensor));
  } else if (target.is_weight &&
             (IsSourceDType(tensor.dtype) || !has_part || row.format == WeightFormat::kBf16)) {
    RETURN_IF_ERROR(PutSource(target.row_idx, tensor));
  } else {
    RETURN_IF_ERROR(PutPart(target, tensor));
  }
  bytes_in_ += tensor.NumBytes();
  return OkStatus();
}

// --- Weights in BF16, F16 or F32 -----------------------------------------------------------------

Status Staging::PutSource(size_t row_idx, const ConstTensorView& tensor) {
  Entry& entry = ledger_[row_idx];
  const PrecisionRow& row = plan_.table->rows[row_idx];
  if (tensor.shape != row.shape || !IsSourceDType(tensor.dtype)) {
    return InvalidArgument("{}: expected {} BF16, F16 or F32, got {} {}", row.name,
                           ShapeString(row.shape), ShapeString(tensor.shape),
                           DTypeName(tensor.dtype));
  }
  const Hash128 hash = HashBytes(tensor.Bytes());
  if (entry.source_hash.has_value()) {
    return *entry.source_hash == hash ? OkStatus() : AnotherValue(row.name);
  }
  if (!entry.part_hash.empty()) {
    return InvalidArgument("{}: already staged in its stored form", row.name);
  }
  if (plan_.scale_set_of[row_idx] >= 0) {
    RETURN_IF_ERROR(PutMember(row_idx, tensor));
  } else {
    ASSIGN_OR_RETURN(PackedMatrix packed, Encode(row_idx, tensor, {}));
    Keep(row_idx, std::move(packed));
  }
  entry.source_hash = hash;
  return OkStatus();
}

// The experts of a layer in one tensor: rows of one expert are consecutive.
Status Staging::PutStacked(const StackedSource& stacked, const ConstTensorView& tensor) {
  RETURN_IF_ERROR(CheckStackedShape(stacked, tensor.shape));
  if (!IsSourceDType(tensor.dtype)) {
    return Unsupported("{}: stacked experts are read in BF16, F16 and F32, got {}", stacked.name,
                       DTypeName(tensor.dtype));
  }
  const int64_t row_bytes = stacked.shape[2] * DTypeBytes(tensor.dtype);
  for (const StackedSlice& slice : stacked.slices) {
    const int64_t first_row = slice.expert * stacked.shape[1] + slice.row_begin;
    const Status status = PutSource(
        static_cast<size_t>(slice.weight),
        {tensor.dtype, {slice.num_rows, stacked.shape[2]}, tensor.data + first_row * row_bytes});
    if (!status.ok()) {
      return status.WithContext(stacked.name);
    }
  }
  bytes_in_ += tensor.NumBytes();
  return OkStatus();
}

Status Staging::PutTiedHead(const ConstTensorView& tensor) {
  const Hash128 hash = HashBytes(tensor.Bytes());
  if (head_hash_.has_value() && *head_hash_ != hash) {
    return AnotherValue(plan_.tied_head);
  }
  head_hash_ = hash;
  bytes_in_ += tensor.NumBytes();
  return CheckTiedHead();
}

// The head of a tied model and its embedding, whichever comes first.
Status Staging::CheckTiedHead() const {
  const std::optional<Hash128>& embedding = ledger_[plan_.embedding_idx].source_hash;
  if (head_hash_.has_value() && embedding.has_value() && *head_hash_ != *embedding) {
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
    if (!other.part_hash.empty()) {
      return TwoForms(row.name, plan_.table->rows[member_idx].name);
    }
    is_last = is_last && other.source_hash.has_value();
    shared_amax = std::max(shared_amax, other.amax);
  }
  return is_last ? EncodeSet(row_idx, tensor, shared_amax) : Wait(row_idx, tensor, amax);
}

// The bytes of a sender are its own after the call, so what waits is a copy.
Status Staging::Wait(size_t row_idx, const ConstTensorView& tensor, float amax) {
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
  ledger_[row_idx].waiting = std::move(bf16.front().bytes);
  ledger_[row_idx].amax = amax;
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
               : AnotherValue(spec.name);
  }
  known = value;
  return OkStatus();
}

Status Staging::PutPart(const PutTarget& target, const ConstTensorView& tensor) {
  Entry& entry = ledger_[target.row_idx];
  const PrecisionRow& row = plan_.table->rows[target.row_idx];
  const std::vector<StoredTensorSpec>& specs = plan_.parts[target.row_idx];
  const StoredTensorSpec& spec = specs[target.part_idx];
  RETURN_IF_ERROR(CheckStoredType(row, spec, tensor));
  if (entry.source_hash.has_value()) {
    return InvalidArgument("{}: its weight is already staged as BF16", spec.name);
  }
  if (const int set = plan_.scale_set_of[target.row_idx]; set >= 0) {
    for (const int member : plan_.scale_sets[static_cast<size_t>(set)]) {
      if (ledger_[static_cast<size_t>(member)].source_hash.has_value()) {
        return TwoForms(spec.name, plan_.table->rows[static_cast<size_t>(member)].name);
      }
    }
  }
  const Hash128 hash = HashBytes(tensor.Bytes());
  if (!entry.part_hash.empty() && entry.part_hash[target.part_idx].has_value()) {
    return *entry.part_hash[target.part_idx] == hash ? OkStatus() : AnotherValue(spec.name);
  }
  if (spec.part == StoredPart::kCodes) {
    const auto* codes = reinterpret_cast<const uint8_t*>(tensor.data);
    RETURN_IF_ERROR(CheckStoredCodes(row, {codes, static_cast<size_t>(tensor.NumBytes())}));
  } else {
    RETURN_IF_ERROR(CheckStoredScales(row, spec, tensor));
  }
  ASSIGN_OR_RETURN(Buffer copy, Buffer::AllocateHost(tensor.NumBytes()));
  std::ranges::copy(tensor.Bytes(), copy.data());
  entry.part_hash.resize(specs.size());
  entry.parts.resize(specs.size());
  entry.parts[target.part_idx] = {spec.name, tensor.dtype, tensor.shape, std::move(copy)};
  entry.part_hash[target.part_idx] = hash;
  for (size_t i = 0; i < specs.size(); ++i) {
    if (!IsInputScale(specs[i].part) && !entry.part_hash[i].has_value()) {
      return OkStatus();
    }
  }
  const Status status = Adopt(target.row_idx);
  if (!status.ok()) {
    entry.part_hash[target.part_idx].reset();  // The part that just came is the one to send again.
  }
  return status;
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

// --- The ledger ----------------------------------------------------------------------------------

bool Staging::MayBeAbsent(size_t row_idx) const {
  return plan_.spec->weights[row_idx].is_mtp && ledger_[row_idx].IsUntouched() &&
         !(options_.base.has_value() && options_.base->is_held[row_idx]);
}

Status Staging::CheckComplete() const {
  NameList missing;
  NameList waiting;
  int64_t num_expected = 0;
  for (size_t i = 0; i < ledger_.size(); ++i) {
    const Entry& entry = ledger_[i];
    num_expected += MayBeAbsent(i) ? 0 : 1;
    if (entry.is_packed || MayBeAbsent(i)) {
      continue;
    }
    if (entry.source_hash.has_value()) {  // Of its set another one is missing, and named.
      waiting.Add(plan_.table->rows[i].name);
      continue;
    }
    if (entry.part_hash.empty()) {  // Nothing of this weight came: its name alone says so.
      missing.Add(plan_.parts[i].front().name);
      continue;
    }
    for (size_t part = 0; part < plan_.parts[i].size(); ++part) {
      if (!entry.part_hash[part].has_value() && !IsInputScale(plan_.parts[i][part].part)) {
        missing.Add(plan_.parts[i][part].name);
      }
    }
  }
  if (missing.empty()) {
    return OkStatus();
  }
  return InvalidArgument("the update is incomplete: expected {} weights, got {}; missing {}{}",
                         num_expected, num_staged_, missing.Text(),
                         waiting.empty()
                             ? std::string()
                             : fmt::format("; of sets that share a scale wait {}", waiting.Text()));
}

std::optional<float> Staging::GivenInputScale(size_t row_idx) const {
  if (ledger_[row_idx].input_scale.has_value()) {
    return ledger_[row_idx].input_scale;
  }
  if (options_.base.has_value() && options_.base->input_scales[row_idx] != 0.0F) {
    return options_.base->input_scales[row_idx];
  }
  return std::nullopt;
}

Status Staging::SetInputScales() {
  for (size_t i = 0; i < ledger_.size(); ++i) {
    const PrecisionRow& row = plan_.table->rows[i];
    const bool is_encoded = ledger_[i].source_hash.has_value() && !options_.base.has_value();
    const bool writes_one = is_encoded && row.format == WeightFormat::kNvfp4;
    weights_->stored_input_scales[i] = GivenInputScale(i).value_or(writes_one ? 1.0F : 0.0F);
  }
  NameList missing;
  for (const std::vector<int>& set : plan_.static_input_sets) {
    float largest = 0.0F;
    for (const int member : set) {
      const auto row_idx = static_cast<size_t>(member);
      const std::vector<StoredTensorSpec>& parts = plan_.parts[row_idx];
      const auto spec = std::ranges::find_if(
          parts, [](const StoredTensorSpec& part) { return IsInputScale(part.part); });
      const std::optional<float> given = GivenInputScale(row_idx);
      // MTP rows are held and never computed with.
      if (!given.has_value() && !plan_.spec->weights[row_idx].is_mtp) {
        missing.Add(spec->name);
      }
      const float scale = given.value_or(0.0F);
      const bool divides = spec->part == StoredPart::kInputDivisor && scale != 0.0F;
      largest = std::max(largest, divides ? 1.0F / scale : scale);
    }
    for (const int member : set) {
      weights_->matrices[static_cast<size_t>(member)].input_scale = largest;
    }
  }
  return missing.empty()
             ? OkStatus()
             : InvalidArgument("static input scales: expected them in the checkpoint, missing {}",
                               missing.Text());
}

Status Staging::Seal() {
  if (is_sealed_) {
    return OkStatus();
  }
  RETURN_IF_ERROR(CheckComplete());
  RETURN_IF_ERROR(CheckTiedHead());
  RETURN_IF_ERROR(SetInputScales());
  RETURN_IF_ERROR(DeriveWeights(*plan_.spec, *options_.backend, weights_.get()));
  is_sealed_ = true;
  return OkStatus();
}

const ModelWeights& Staging::sealed() const {
  CHECK(is_sealed_);
  return *weights_;
}

std::unique_ptr<ModelWeights> Staging::Take() {
  CHECK(is_sealed_);
  return std::move(weights_);
}

std::unique_ptr<ModelWeights> Staging::TakeUntouched() {
  return num_staged_ == 0 ? std::move(weights_) : nullptr;
}

}  // namespace octavo
