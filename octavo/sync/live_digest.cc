#include "octavo/sync/live_digest.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

#include "octavo/base/buffer.h"
#include "octavo/base/check.h"
#include "octavo/base/hash.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/base/thread_pool.h"
#include "octavo/convert/digest.h"
#include "octavo/formats/format.h"
#include "octavo/formats/quantize.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/matrix.h"
#include "octavo/model/model.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"
#include "octavo/sync/pack_row.h"
#include "octavo/sync/weight_plan.h"

namespace octavo {
namespace {

// Bytes unpacked at a time: they are hashed while they are in the cache.
constexpr int64_t kBandBytes = int64_t{1} << 18;

Result<Hash128> DigestCodes(const PackedMatrix& packed, const Backend& backend) {
  const int64_t row_bytes = packed.format == WeightFormat::kBf16
                                ? packed.cols * DTypeBytes(DType::kBf16)
                                : CodeBytes(packed.format, 1, packed.cols);
  const int64_t band_rows = std::clamp<int64_t>(kBandBytes / row_bytes, 1, packed.rows);
  ASSIGN_OR_RETURN(Buffer band, Buffer::AllocateHost(band_rows * row_bytes));
  TensorHasher hasher;
  for (int64_t row = 0; row < packed.rows; row += band_rows) {
    const int64_t num_rows = std::min(band_rows, packed.rows - row);
    const std::span<std::byte> bytes =
        band.bytes().first(static_cast<size_t>(num_rows * row_bytes));
    RETURN_IF_ERROR(backend.UnpackCodes(packed, row, num_rows, bytes));
    hasher.Update(bytes);
  }
  return hasher.Finish();
}

Result<Hash128> DigestScales(const PackedMatrix& packed, const Backend& backend) {
  ASSIGN_OR_RETURN(Buffer scales,
                   Buffer::AllocateHost(ScaleBytes(packed.format, packed.rows, packed.cols)));
  RETURN_IF_ERROR(backend.UnpackScales(packed, scales.bytes()));
  return TensorDigest(scales.bytes());
}

Hash128 DigestFloat(const float& value) {
  return TensorDigest(std::as_bytes(std::span(&value, 1)));
}

// One weight as it is held.
struct LiveRow {
  const PrecisionRow* row = nullptr;
  const PackedMatrix* packed = nullptr;
  float stored_input_scale = 0.0F;  // 0: none is held.
};

Result<Hash128> DigestPart(const LiveRow& live, StoredPart part, const Backend& backend) {
  switch (part) {
    case StoredPart::kCodes:
      return DigestCodes(*live.packed, backend);
    case StoredPart::kScales:
      return DigestScales(*live.packed, backend);
    case StoredPart::kTensorScale:
    case StoredPart::kTensorDivisor:
      return DigestFloat(live.packed->tensor_scale);
    case StoredPart::kInputScale:
    case StoredPart::kInputDivisor:
      return DigestFloat(live.stored_input_scale);
  }
  return Internal("{}: an unknown part", live.row->name);
}

Result<std::vector<TensorDigestLine>> LinesOf(const LiveRow& live, StoredLayout layout,
                                              const Backend& backend) {
  std::vector<TensorDigestLine> lines;
  if (live.packed->codes.empty()) {
    return lines;
  }
  if (IsVector(*live.row)) {
    lines.push_back({live.row->name, live.packed->vector_dtype, live.row->shape,
                     HashHex(TensorDigest(live.packed->codes.bytes()))});
    return lines;
  }
  for (const StoredTensorSpec& spec : AcceptedTensorsOf(*live.row, layout)) {
    if (IsInputScale(spec.part) && live.stored_input_scale == 0.0F) {
      continue;
    }
    ASSIGN_OR_RETURN(const Hash128 hash, DigestPart(live, spec.part, backend));
    lines.push_back({spec.name, spec.dtype, spec.shape, HashHex(hash)});
  }
  return lines;
}

// Large weights first, dealt out in turn: a static schedule that keeps all threads busy.
std::vector<size_t> BySize(const ModelWeights& weights) {
  std::vector<std::pair<int64_t, size_t>> sizes;
  for (size_t i = 0; i < weights.matrices.size(); ++i) {
    sizes.emplace_back(-weights.matrices[i].codes.num_bytes(), i);
  }
  std::ranges::sort(sizes);
  std::vector<size_t> order;
  order.reserve(sizes.size());
  for (const auto& [size, row_idx] : sizes) {
    order.push_back(row_idx);
  }
  return order;
}

Result<PackedMatrix> CloneMatrix(const PackedMatrix& matrix) {
  PackedMatrix copy;
  ASSIGN_OR_RETURN(copy.codes, matrix.codes.Clone());
  ASSIGN_OR_RETURN(copy.scales, matrix.scales.Clone());
  copy.format = matrix.format;
  copy.rows = matrix.rows;
  copy.cols = matrix.cols;
  copy.tensor_scale = matrix.tensor_scale;
  copy.tensor_scale_divides = matrix.tensor_scale_divides;
  copy.input = matrix.input;
  copy.input_scale = matrix.input_scale;
  copy.vector_dtype = matrix.vector_dtype;
  return copy;
}

}  // namespace

Status CheckDerivedWeights(const ModelSpec& spec, const ModelWeights& weights,
                           const Backend& backend) {
  if (weights.derived.empty()) {
    return OkStatus();
  }
  ModelWeights again;  // With the matrices that derived weights are made of.
  again.matrices.resize(weights.matrices.size());
  for (size_t i = 0; i < spec.weights.size(); ++i) {
    if (spec.weights[i].role == Role::kMlaKvB) {
      ASSIGN_OR_RETURN(again.matrices[i], CloneMatrix(weights.matrices[i]));
    }
  }
  RETURN_IF_ERROR(DeriveWeights(spec, backend, &again));
  CHECK(again.derived.size() == weights.derived.size());
  for (size_t i = 0; i < weights.derived.size(); ++i) {
    if (!std::ranges::equal(again.derived[i].codes.bytes(), weights.derived[i].codes.bytes())) {
      return Corrupt("derived weight {}: it is not what the live kv_b_proj gives", i);
    }
  }
  return OkStatus();
}

Result<ModelDigest> DigestLiveWeights(const PrecisionTable& table, const ModelWeights& weights,
                                      const Backend& backend, ThreadPool* pool) {
  CHECK(weights.matrices.size() == table.rows.size());
  const std::vector<size_t> order = BySize(weights);
  std::mutex mutex;
  std::vector<TensorDigestLine> lines;  // Guarded by mutex, and so is error.
  Status error = OkStatus();
  const int num_workers = pool == nullptr ? 1 : pool->num_threads();
  const auto work = [&](int worker_idx) {
    for (size_t i = static_cast<size_t>(worker_idx); i < order.size();
         i += static_cast<size_t>(num_workers)) {
      const size_t row_idx = order[i];
      const float input_scale =
          weights.stored_input_scales.empty() ? 0.0F : weights.stored_input_scales[row_idx];
      Result<std::vector<TensorDigestLine>> row_lines = LinesOf(
          {&table.rows[row_idx], &weights.matrices[row_idx], input_scale}, table.layout, backend);
      const std::lock_guard lock(mutex);
      if (!row_lines) {
        error = row_lines.error();
        return;
      }
      std::ranges::move(*row_lines, std::back_inserter(lines));
    }
  };
  if (pool == nullptr) {
    work(0);
  } else {
    pool->Run(work);
  }
  RETURN_IF_ERROR(error);
  return ModelDigestOf(std::move(lines));
}

}  // namespace octavo
