#include "octavo/sync/weight_change.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

#include "octavo/base/buffer.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/base/thread_pool.h"
#include "octavo/formats/format.h"
#include "octavo/formats/quantize.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/matrix.h"
#include "octavo/model/model.h"

namespace octavo {
namespace {

// Elements whose counts fit a byte: loops of this length become vectors.
constexpr size_t kBlock = 64;

// The sum of count(before[i], after[i]), each at most 2.
template <typename T, typename Count>
int64_t SumOf(std::span<const T> before, std::span<const T> after, Count count) {
  int64_t total = 0;
  size_t at = 0;
  for (; at + kBlock <= after.size(); at += kBlock) {
    T sum = 0;
    for (size_t i = 0; i < kBlock; ++i) {
      sum = static_cast<T>(sum + static_cast<T>(count(before[at + i], after[at + i])));
    }
    total += sum;
  }
  for (; at < after.size(); ++at) {
    total += count(before[at], after[at]);
  }
  return total;
}

struct CodeCounts {
  int64_t num_changed = 0;
  int64_t num_saturated = 0;
};

CodeCounts CountE4m3(std::span<const uint8_t> before, std::span<const uint8_t> after) {
  return {SumOf(before, after, [](uint8_t a, uint8_t b) { return a != b ? 1 : 0; }),
          SumOf(after, after, [](uint8_t, uint8_t b) { return (b & 0x7F) == 0x7E ? 1 : 0; })};
}

// Two codes a byte.
CodeCounts CountE2m1(std::span<const uint8_t> before, std::span<const uint8_t> after) {
  return {SumOf(before, after,
                [](uint8_t a, uint8_t b) {
                  return ((a ^ b) & 0x0F ? 1 : 0) + ((a ^ b) & 0xF0 ? 1 : 0);
                }),
          SumOf(after, after, [](uint8_t, uint8_t b) {
            return ((b & 0x07) == 0x07 ? 1 : 0) + ((b & 0x70) == 0x70 ? 1 : 0);
          })};
}

CodeCounts CountValues(std::span<const uint16_t> before, std::span<const uint16_t> after) {
  return {SumOf(before, after, [](uint16_t a, uint16_t b) { return a != b ? 1 : 0; }), 0};
}

template <typename T>
std::span<const T> Part(const Buffer& buffer, int64_t begin, int64_t end) {
  return buffer.As<T>().subspan(static_cast<size_t>(begin) / sizeof(T),
                                static_cast<size_t>(end - begin) / sizeof(T));
}

// Bytes [begin, end) of the packed codes. Padding is the same in both and zero.
CodeCounts CountPart(const PackedMatrix& before, const PackedMatrix& after, int64_t begin,
                     int64_t end) {
  switch (after.format) {
    case WeightFormat::kBf16:
      if (after.vector_dtype == DType::kF32) {
        const auto changed = [](uint32_t a, uint32_t b) { return a != b ? 1 : 0; };
        return {SumOf(Part<uint32_t>(before.codes, begin, end),
                      Part<uint32_t>(after.codes, begin, end), changed),
                0};
      }
      return CountValues(Part<uint16_t>(before.codes, begin, end),
                         Part<uint16_t>(after.codes, begin, end));
    case WeightFormat::kNvfp4:
      return CountE2m1(Part<uint8_t>(before.codes, begin, end),
                       Part<uint8_t>(after.codes, begin, end));
    default:
      return CountE4m3(Part<uint8_t>(before.codes, begin, end),
                       Part<uint8_t>(after.codes, begin, end));
  }
}

CodeCounts CountCodes(const PackedMatrix& before, const PackedMatrix& after, ThreadPool* pool) {
  constexpr int64_t kPiece = 4096;  // Counted twice, the second time from the cache.
  const int64_t num_bytes = after.codes.num_bytes();
  std::vector<CodeCounts> counts(pool == nullptr ? 1 : static_cast<size_t>(pool->num_threads()));
  const auto count = [&](int64_t begin, int64_t end, int worker) {
    CodeCounts& sum = counts[static_cast<size_t>(worker)];
    for (int64_t i = begin; i < end; ++i) {
      const CodeCounts part =
          CountPart(before, after, i * kPiece, std::min((i + 1) * kPiece, num_bytes));
      sum.num_changed += part.num_changed;
      sum.num_saturated += part.num_saturated;
    }
  };
  const int64_t num_pieces = (num_bytes + kPiece - 1) / kPiece;
  if (pool == nullptr) {
    count(0, num_pieces, 0);
  } else {
    pool->ParallelFor(num_pieces, count);
  }
  return std::accumulate(counts.begin(), counts.end(), CodeCounts{},
                         [](const CodeCounts& sum, const CodeCounts& part) {
                           return CodeCounts{sum.num_changed + part.num_changed,
                                             sum.num_saturated + part.num_saturated};
                         });
}

// Adds what the scales tell.
Status CountScales(const PackedMatrix& after, const Backend& backend, WeightChange* change) {
  const int64_t scale_bytes = ScaleBytes(after.format, after.rows, after.cols);
  change->num_scales = scale_bytes;
  if (after.format != WeightFormat::kNvfp4 && after.format != WeightFormat::kMxfp8) {
    change->num_scales = scale_bytes / DTypeBytes(DType::kF32);
    return OkStatus();
  }
  ASSIGN_OR_RETURN(Buffer scales, Buffer::AllocateHost(scale_bytes));
  RETURN_IF_ERROR(backend.UnpackScales(after, scales.bytes()));
  const uint8_t largest = after.format == WeightFormat::kNvfp4 ? 0x07 : 0x00;
  change->num_subnormal_scales = std::ranges::count_if(
      scales.As<uint8_t>(), [largest](uint8_t scale) { return scale <= largest; });
  return OkStatus();
}

}  // namespace

WeightChange& WeightChange::operator+=(const WeightChange& other) {
  num_codes += other.num_codes;
  num_changed += other.num_changed;
  num_saturated += other.num_saturated;
  num_scales += other.num_scales;
  num_subnormal_scales += other.num_subnormal_scales;
  return *this;
}

Result<std::vector<WeightChange>> CompareWeights(const ModelWeights& before,
                                                 const ModelWeights& after, const Backend& backend,
                                                 ThreadPool* pool) {
  std::vector<WeightChange> changes(after.matrices.size());
  for (size_t i = 0; i < after.matrices.size(); ++i) {
    const PackedMatrix& now = after.matrices[i];
    if (now.codes.empty()) {
      continue;  // Of multi-token prediction, and in neither.
    }
    const bool was_held =
        i < before.matrices.size() && before.matrices[i].codes.num_bytes() == now.codes.num_bytes();
    const CodeCounts counts = CountCodes(was_held ? before.matrices[i] : now, now, pool);
    changes[i].num_codes = now.rows * now.cols;
    changes[i].num_changed = was_held ? counts.num_changed : changes[i].num_codes;
    changes[i].num_saturated = counts.num_saturated;
    if (now.format != WeightFormat::kBf16) {
      RETURN_IF_ERROR(CountScales(now, backend, &changes[i]));
    }
  }
  return changes;
}

}  // namespace octavo
