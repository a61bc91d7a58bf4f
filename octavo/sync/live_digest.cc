#include "octavo/sync/live_digest.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
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

// Bytes unpacked at a time, in whole panels of 16 rows: they are hashed while they are in the
// L1 cache (17 % faster than with 128 KiB; AMD EPYC, family 26).
constexpr int64_t kBandBytes = int64_t{1} << 15;
constexpr int64_t kBandRows = 16;
constexpr auto kChunkBytes = static_cast<int64_t>(TensorHasher::kChunkBytes);
// A thread takes at most this at a time (4 MiB): a piece that begins within a panel unpacks it once
// more. And at most this part of its even share, so that all end together.
constexpr int64_t kMaxPieceChunks = 64;
constexpr int64_t kPiecesPerWorker = 16;

// The codes or the scales of one weight, in chunks of the digest. Chunks of all tensors are counted
// through, so that threads take equal shares of them wherever tensors begin and end.
struct HashJob {
  const PackedMatrix* packed = nullptr;
  bool is_scales = false;
  int64_t num_bytes = 0;
  int64_t first_chunk = 0;

  int64_t NumChunks() const { return (num_bytes + kChunkBytes - 1) / kChunkBytes; }
};

// What is to be hashed of all weights, and the values as they come.
struct HashPlan {
  std::vector<HashJob> jobs;  // Two a weight: codes, scales; none of a vector.
  std::vector<Hash128> chunks;

  Hash128 DigestOf(size_t row_idx, bool is_scales) const {
    const HashJob& job = jobs[2 * row_idx + (is_scales ? 1 : 0)];
    return TensorDigestOfChunks(std::span(chunks).subspan(static_cast<size_t>(job.first_chunk),
                                                          static_cast<size_t>(job.NumChunks())));
  }
};

int64_t CodeRowBytes(const PackedMatrix& packed) {
  return packed.format == WeightFormat::kBf16 ? packed.cols * DTypeBytes(DType::kBf16)
                                              : CodeBytes(packed.format, 1, packed.cols);
}

HashPlan PlanHashes(const PrecisionTable& table, const ModelWeights& weights) {
  HashPlan plan;
  int64_t num_chunks = 0;
  for (size_t i = 0; i < weights.matrices.size(); ++i) {
    const PackedMatrix& packed = weights.matrices[i];
    for (const bool is_scales : {false, true}) {
      HashJob job{.packed = &packed, .is_scales = is_scales, .first_chunk = num_chunks};
      if (!packed.codes.empty() && !IsVector(table.rows[i])) {
        const bool has_scales = packed.format != WeightFormat::kBf16;
        job.num_bytes = !is_scales   ? packed.rows * CodeRowBytes(packed)
                        : has_scales ? ScaleBytes(packed.format, packed.rows, packed.cols)
                                     : 0;
      }
      num_chunks += job.NumChunks();
      plan.jobs.push_back(job);
    }
  }
  plan.chunks.resize(static_cast<size_t>(num_chunks));
  return plan;
}

// Where the panels of the rows from `row` on begin, about, in the packed codes.
size_t PackedOffset(const PackedMatrix& packed, int64_t row) {
  return static_cast<size_t>(packed.codes.num_bytes() / packed.rows * std::min(row, packed.rows));
}

// Hashes a band that lies in the L1 cache while two thirds of `next`, what is unpacked after it,
// come from memory, which would rest meanwhile. The other lines come while it is unpacked: that
// fetches a little ahead by itself (layout_simd.cc), and would else find all of them there.
void HashAndFetch(std::span<const std::byte> band, std::span<const std::byte> next,
                  TensorHasher* hasher) {
  constexpr size_t kPieceBytes = 1024;  // More fetches at once than the core keeps under way wait.
  constexpr size_t kLineBytes = 64;
  for (size_t at = 0; at < band.size(); at += kPieceBytes) {
    const size_t end = std::min(at + kPieceBytes, next.size());
    for (size_t line = at; line < end; line += kLineBytes) {
      if (line / kLineBytes % 3 != 2) {
        __builtin_prefetch(next.data() + line, 0, 2);
      }
    }
    hasher->Update(band.subspan(at, std::min(kPieceBytes, band.size() - at)));
  }
}

// Chunks [begin, end) of a matrix of codes to `hashes`.
Status HashCodes(const HashJob& job, int64_t begin, int64_t end, const Backend& backend,
                 std::span<Hash128> hashes) {
  const PackedMatrix& packed = *job.packed;
  const int64_t row_bytes = CodeRowBytes(packed);
  const int64_t first_byte = begin * kChunkBytes;
  const int64_t last_byte = std::min(end * kChunkBytes, job.num_bytes);
  const int64_t band_rows = std::max(kBandRows, kBandBytes / row_bytes / kBandRows * kBandRows);
  ASSIGN_OR_RETURN(Buffer band, Buffer::AllocateHost(std::min(band_rows, packed.rows) * row_bytes));
  TensorHasher hasher;
  for (int64_t byte = first_byte; byte < last_byte;) {
    const int64_t row = byte / row_bytes;
    const int64_t row_end = std::min((row / band_rows + 1) * band_rows, packed.rows);
    const int64_t num_rows = std::min(row_end, (last_byte + row_bytes - 1) / row_bytes) - row;
    const std::span<std::byte> bytes =
        band.bytes().first(static_cast<size_t>(num_rows * row_bytes));
    RETURN_IF_ERROR(backend.UnpackCodes(packed, row, num_rows, bytes));
    const int64_t skipped = byte - row * row_bytes;
    const int64_t size = std::min(last_byte - byte, num_rows * row_bytes - skipped);
    HashAndFetch(bytes.subspan(static_cast<size_t>(skipped), static_cast<size_t>(size)),
                 packed.codes.bytes().subspan(PackedOffset(packed, row + num_rows)), &hasher);
    byte += size;
  }
  std::ranges::copy(hasher.FinishChunks(), hashes.begin());
  return OkStatus();
}

// All chunks of a tensor of scales.
Status HashScales(const HashJob& job, const Backend& backend, std::span<Hash128> hashes) {
  ASSIGN_OR_RETURN(Buffer scales, Buffer::AllocateHost(job.num_bytes));
  RETURN_IF_ERROR(backend.UnpackScales(*job.packed, scales.bytes()));
  TensorHasher hasher;
  hasher.Update(scales.bytes());
  std::ranges::copy(hasher.FinishChunks(), hashes.begin());
  return OkStatus();
}

// Chunks [begin, end) of the plan; scales, which are small, go to whom their first falls.
Status HashRange(int64_t begin, int64_t end, const Backend& backend, HashPlan* plan) {
  // The last job that begins at `begin` or before it holds that chunk; those behind it have more.
  const auto behind = std::ranges::upper_bound(plan->jobs, begin, {}, &HashJob::first_chunk);
  for (auto job = behind == plan->jobs.begin() ? behind : behind - 1;
       job != plan->jobs.end() && job->first_chunk < end; ++job) {
    const int64_t first = std::max(begin, job->first_chunk);
    const int64_t last = std::min(end, job->first_chunk + job->NumChunks());
    const auto hashes = std::span(plan->chunks).subspan(static_cast<size_t>(job->first_chunk));
    if (first >= last) {
      continue;
    }
    if (!job->is_scales) {
      RETURN_IF_ERROR(HashCodes(*job, first - job->first_chunk, last - job->first_chunk, backend,
                                hashes.subspan(static_cast<size_t>(first - job->first_chunk))));
    } else if (first == job->first_chunk) {
      RETURN_IF_ERROR(HashScales(*job, backend, hashes));
    }
  }
  return OkStatus();
}

// Takes pieces of the plan until `num_taken`, chunks that all workers took so far, is all of them:
// threads of a shared machine do not run at one speed.
Status HashPieces(int num_workers, const Backend& backend, std::atomic<int64_t>* num_taken,
                  HashPlan* plan) {
  const auto num_chunks = static_cast<int64_t>(plan->chunks.size());
  const int64_t piece =
      std::clamp(num_chunks / (num_workers * kPiecesPerWorker), int64_t{1}, kMaxPieceChunks);
  while (true) {
    const int64_t begin = num_taken->fetch_add(piece, std::memory_order_relaxed);
    if (begin >= num_chunks) {
      return OkStatus();
    }
    RETURN_IF_ERROR(HashRange(begin, std::min(begin + piece, num_chunks), backend, plan));
  }
}

Hash128 DigestFloat(const float& value) {
  return TensorDigest(std::as_bytes(std::span(&value, 1)));
}

// One weight as it is held.
struct LiveRow {
  size_t row_idx = 0;
  const PrecisionRow* row = nullptr;
  const PackedMatrix* packed = nullptr;
  float stored_input_scale = 0.0F;  // 0: none is held.
};

Result<Hash128> DigestPart(const LiveRow& live, StoredPart part, const HashPlan& plan) {
  switch (part) {
    case StoredPart::kCodes:
      return plan.DigestOf(live.row_idx, /*is_scales=*/false);
    case StoredPart::kScales:
      return plan.DigestOf(live.row_idx, /*is_scales=*/true);
    case StoredPart::kTensorScale:
    case StoredPart::kTensorDivisor:
      return DigestFloat(live.packed->tensor_scale);
    case StoredPart::kInputScale:
    case StoredPart::kInputDivisor:
      return DigestFloat(live.stored_input_scale);
  }
  return Internal("{}: an unknown part", live.row->name);
}

Status AddLines(const LiveRow& live, StoredLayout layout, const HashPlan& plan,
                std::vector<TensorDigestLine>* lines) {
  if (live.packed->codes.empty()) {
    return OkStatus();
  }
  if (IsVector(*live.row)) {
    lines->push_back({live.row->name, live.packed->vector_dtype, live.row->shape,
                      HashHex(TensorDigest(live.packed->codes.bytes()))});
    return OkStatus();
  }
  for (const StoredTensorSpec& spec : AcceptedTensorsOf(*live.row, layout)) {
    if (IsInputScale(spec.part) && live.stored_input_scale == 0.0F) {
      continue;
    }
    ASSIGN_OR_RETURN(const Hash128 hash, DigestPart(live, spec.part, plan));
    lines->push_back({spec.name, spec.dtype, spec.shape, HashHex(hash)});
  }
  return OkStatus();
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
      ASSIGN_OR_RETURN(again.matrices[i], Clone(weights.matrices[i]));
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
  HashPlan plan = PlanHashes(table, weights);
  const int num_workers = pool == nullptr ? 1 : pool->num_threads();
  std::vector<Status> statuses(static_cast<size_t>(num_workers), OkStatus());
  std::atomic<int64_t> num_taken = 0;
  const auto work = [&](int worker_idx) {
    statuses[static_cast<size_t>(worker_idx)] = HashPieces(num_workers, backend, &num_taken, &plan);
  };
  if (pool == nullptr) {
    work(0);
  } else {
    pool->Run(work);
  }
  for (const Status& status : statuses) {
    RETURN_IF_ERROR(status);
  }
  std::vector<TensorDigestLine> lines;
  for (size_t i = 0; i < table.rows.size(); ++i) {
    const float input_scale =
        weights.stored_input_scales.empty() ? 0.0F : weights.stored_input_scales[i];
    RETURN_IF_ERROR(AddLines({.row_idx = i,
                              .row = &table.rows[i],
                              .packed = &weights.matrices[i],
                              .stored_input_scale = input_scale},
                             table.layout, plan, &lines));
  }
  return ModelDigestOf(std::move(lines));
}

}  // namespace octavo
