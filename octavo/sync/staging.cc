#include "octavo/sync/staging.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/buffer.h"
#include "octavo/base/check.h"
#include "octavo/base/hash.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/base/thread_pool.h"
#include "octavo/convert/transform.h"
#include "octavo/formats/bf16.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/matrix.h"
#include "octavo/model/model.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"

namespace octavo {
namespace {

// Missing tensors that an error names before it only counts.
constexpr int kMaxNamed = 5;

bool IsSourceDType(DType dtype) {
  return dtype == DType::kBf16 || dtype == DType::kF16 || dtype == DType::kF32;
}

// A scale tensor in BF16 or F16, as some published checkpoints have it, becomes F32 exactly.
Result<OwnedTensor> CopyPart(const StoredTensorSpec& spec, const ConstTensorView& tensor) {
  OwnedTensor part{spec.name, spec.dtype, spec.shape, {}};
  const int64_t count = NumElements(spec.shape);
  ASSIGN_OR_RETURN(part.bytes, Buffer::AllocateHost(count * DTypeBytes(spec.dtype)));
  if (spec.dtype == DType::kF32 && tensor.dtype == DType::kBf16) {
    const auto* from = reinterpret_cast<const std::byte*>(tensor.data);
    for (int64_t i = 0; i < count; ++i) {
      uint16_t bits = 0;
      std::memcpy(&bits, from + 2 * i, sizeof(bits));
      part.bytes.As<float>()[static_cast<size_t>(i)] = Bf16ToFloat(bits);
    }
    return part;
  }
  if (count > 0) {
    std::memcpy(part.bytes.data(), tensor.data, static_cast<size_t>(part.bytes.num_bytes()));
  }
  return part;
}

Status CheckPart(const StoredTensorSpec& spec, const ConstTensorView& tensor) {
  const bool widened = spec.dtype == DType::kF32 && tensor.dtype == DType::kBf16;
  if ((tensor.dtype != spec.dtype && !widened) || tensor.shape != spec.shape) {
    return InvalidArgument("{}: expected {} {}, got {} {}", spec.name, ShapeString(spec.shape),
                           DTypeName(spec.dtype), ShapeString(tensor.shape),
                           DTypeName(tensor.dtype));
  }
  return OkStatus();
}

// Norm weights stay one canonical row (kernels/matrix.h).
Result<PackedMatrix> PackVector(const OwnedTensor& tensor) {
  PackedMatrix packed;
  packed.rows = 1;
  packed.cols = NumElements(tensor.shape);
  ASSIGN_OR_RETURN(packed.codes, tensor.bytes.Clone());
  return packed;
}

}  // namespace

Staging::Staging(const PrecisionTable* table, const Backend* backend, ThreadPool* pool)
    : table_(table),
      backend_(backend),
      pool_(pool),
      ledger_(table->rows.size()),
      weights_(std::make_unique<ModelWeights>()) {
  weights_->matrices.resize(table->rows.size());
  for (size_t row_idx = 0; row_idx < table->rows.size(); ++row_idx) {
    const std::vector<StoredTensorSpec> parts = StoredTensorsOf(table->rows[row_idx]);
    for (size_t part_idx = 0; part_idx < parts.size(); ++part_idx) {
      targets_.emplace(parts[part_idx].name, Target{row_idx, part_idx});
    }
  }
}

Status Staging::Put(std::string_view name, const ConstTensorView& tensor) {
  const auto found = targets_.find(std::string(name));
  if (found == targets_.end()) {
    return InvalidArgument("{}: the served model has no such tensor", name);
  }
  const Target target = found->second;
  const bool is_source = target.part_idx == 0 && IsSourceDType(tensor.dtype);
  RETURN_IF_ERROR(is_source ? PutSource(target.row_idx, tensor) : PutPart(target, tensor));
  bytes_in_ += tensor.NumBytes();
  return OkStatus();
}

Status Staging::PutSource(size_t row_idx, const ConstTensorView& tensor) {
  Entry& entry = ledger_[row_idx];
  const PrecisionRow& row = table_->rows[row_idx];
  if (tensor.shape != row.shape) {
    return InvalidArgument("{}: expected {} BF16, F16 or F32, got {} {}", row.name,
                           ShapeString(row.shape), ShapeString(tensor.shape),
                           DTypeName(tensor.dtype));
  }
  const Hash128 hash = HashBytes(tensor.Bytes());
  if (entry.source_hash.has_value()) {
    return *entry.source_hash == hash
               ? OkStatus()
               : InvalidArgument("{}: already staged with another value", row.name);
  }
  if (entry.staged || !entry.part_hash.empty()) {
    return InvalidArgument("{}: already staged in its stored form", row.name);
  }
  ASSIGN_OR_RETURN(const std::vector<OwnedTensor> stored,
                   TransformWeight(row, tensor, {.pool = pool_}));
  RETURN_IF_ERROR(Pack(row_idx, stored));
  entry.source_hash = hash;
  return OkStatus();
}

Status Staging::PutPart(const Target& target, const ConstTensorView& tensor) {
  Entry& entry = ledger_[target.row_idx];
  const PrecisionRow& row = table_->rows[target.row_idx];
  const std::vector<StoredTensorSpec> specs = StoredTensorsOf(row);
  const StoredTensorSpec& spec = specs[target.part_idx];
  RETURN_IF_ERROR(CheckPart(spec, tensor));
  if (entry.source_hash.has_value()) {
    return InvalidArgument("{}: its weight is already staged as BF16", spec.name);
  }
  entry.part_hash.resize(specs.size());
  entry.parts.resize(specs.size());
  std::optional<Hash128>& known = entry.part_hash[target.part_idx];
  const Hash128 hash = HashBytes(tensor.Bytes());
  if (known.has_value()) {
    return *known == hash ? OkStatus()
                          : InvalidArgument("{}: already staged with another value", spec.name);
  }
  ASSIGN_OR_RETURN(entry.parts[target.part_idx], CopyPart(spec, tensor));
  known = hash;
  const auto has_value = [](const std::optional<Hash128>& part) { return part.has_value(); };
  if (!std::ranges::all_of(entry.part_hash, has_value)) {
    return OkStatus();
  }
  std::vector<ConstTensorView> views;
  views.reserve(entry.parts.size());
  for (const OwnedTensor& part : entry.parts) {
    views.push_back(part.View());
  }
  Result<std::vector<OwnedTensor>> adopted = AdoptStored(row, views);
  Status status = adopted ? Pack(target.row_idx, *adopted) : adopted.error();
  if (!status.ok()) {
    known.reset();  // The part that just came is the one to send again.
    return status;
  }
  entry.parts.clear();
  return OkStatus();
}

Status Staging::Pack(size_t row_idx, const std::vector<OwnedTensor>& stored) {
  const PrecisionRow& row = table_->rows[row_idx];
  PackedMatrix& packed = weights_->matrices[row_idx];
  if (row.role == Role::kNorm) {
    ASSIGN_OR_RETURN(packed, PackVector(stored.front()));
  } else {
    CanonicalMatrix canonical{.format = row.format,
                              .rows = row.shape.at(0),
                              .cols = row.shape.at(1),
                              .codes = stored.front().bytes.bytes(),
                              .scales = {}};
    if (stored.size() > 1) {
      canonical.scales = stored[1].bytes.bytes();
      canonical.input = InputForm::kFp8Group;
    }
    const Status status = backend_->Pack(canonical, &packed);
    if (!status.ok()) {
      return status.WithContext(row.name);
    }
  }
  for (const OwnedTensor& tensor : stored) {
    bytes_staged_ += tensor.bytes.num_bytes();
  }
  ledger_[row_idx].staged = true;
  ++num_staged_;
  return OkStatus();
}

Status Staging::CheckComplete() const {
  std::string missing;
  int64_t num_missing = 0;
  for (size_t i = 0; i < ledger_.size(); ++i) {
    if (ledger_[i].staged) {
      continue;
    }
    const std::vector<StoredTensorSpec> specs = StoredTensorsOf(table_->rows[i]);
    for (size_t part = 0; part < specs.size(); ++part) {
      const std::vector<std::optional<Hash128>>& have = ledger_[i].part_hash;
      if (part < have.size() && have[part].has_value()) {
        continue;
      }
      if (have.empty() && part > 0) {
        continue;  // Nothing of this weight came: its name alone says so.
      }
      if (++num_missing <= kMaxNamed) {
        missing += (missing.empty() ? "" : ", ") + specs[part].name;
      }
    }
  }
  if (num_missing == 0) {
    return OkStatus();
  }
  return InvalidArgument(
      "the update is incomplete: expected {} weights, got {}; missing {}{}", ledger_.size(),
      num_staged_, missing,
      num_missing > kMaxNamed ? fmt::format(" and {} more", num_missing - kMaxNamed) : "");
}

std::unique_ptr<ModelWeights> Staging::Take() {
  CHECK(CheckComplete().ok());
  return std::move(weights_);
}

}  // namespace octavo
