#pragma once
// For tests: a KV cache of sequences that may share pages, and Attention over their last chunks.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/ops.h"
#include "octavo/kernels/test_tensors.h"

namespace octavo {

struct AttentionShape {
  KvShape kv;
  int64_t group = 1;

  int64_t NumHeads() const { return kv.num_kv_heads * group; }
};

inline constexpr size_t kNoParent = std::numeric_limits<size_t>::max();

// A sequence whose cached tokens are stored first, in one call per earlier chunk.
struct TestSequence {
  std::vector<int64_t> chunks;  // The last one attends.
  // An earlier sequence whose first pages are this one's too; the chunks include them.
  size_t parent = kNoParent;
  int64_t num_shared_pages = 0;
  uint64_t seed = 0;       // Of what it does not share.
  int64_t bad_token = -1;  // Position whose K and V hold a NaN or an infinity.
};

// The KV cache of some sequences, and the segments of their last chunks.
class TestKvCache {
 public:
  TestKvCache(Backend* backend, const KvShape& shape, const std::vector<TestSequence>& sequences)
      : backend_(*backend), shape_(shape) {
    int64_t num_pages = 1;  // Page 0 stays unused, so that a wrong page shows.
    for (const TestSequence& sequence : sequences) {
      const int64_t tokens =
          std::accumulate(sequence.chunks.begin(), sequence.chunks.end(), int64_t{0});
      tables_.emplace_back(static_cast<size_t>((tokens + kPageTokens - 1) / kPageTokens));
      num_pages += static_cast<int64_t>(tables_.back().size()) - sequence.num_shared_pages;
    }
    int32_t next = static_cast<int32_t>(num_pages);  // Handed out backwards.
    for (size_t s = 0; s < tables_.size(); ++s) {
      for (size_t i = 0; i < tables_[s].size(); ++i) {
        const bool is_shared = static_cast<int64_t>(i) < sequences[s].num_shared_pages;
        tables_[s][i] = is_shared ? tables_[sequences[s].parent][i] : --next;
      }
    }
    const int64_t page_bytes = backend->KvPageBytes(shape);
    pages_.resize(static_cast<size_t>(num_pages * page_bytes));
    kv_ = {pages_.data(), page_bytes, num_pages, shape};
    for (size_t s = 0; s < sequences.size(); ++s) {
      int64_t position = 0;
      for (const int64_t chunk : sequences[s].chunks) {
        Store(sequences[s], tables_[s], position, chunk);
        position += chunk;
      }
      const int64_t rows = sequences[s].chunks.back();
      segments_.push_back({num_rows_, rows, position - rows, tables_[s]});
      num_rows_ += rows;
    }
  }

  const KvLayer& kv() const { return kv_; }
  const std::vector<Segment>& segments() const { return segments_; }
  int64_t num_rows() const { return num_rows_; }

 private:
  // The tokens [position, position + num) that are not shared.
  void Store(const TestSequence& sequence, const std::vector<int32_t>& table, int64_t position,
             int64_t num) {
    const int64_t first = std::max(position, sequence.num_shared_pages * kPageTokens);
    const int64_t rows = position + num - first;
    if (rows <= 0) {
      return;
    }
    const auto fill = [&](TestActivations* x, uint64_t seed, float scale) {
      for (int64_t t = 0; t < rows; ++t) {
        // Tokens differ by powers of two in size, so that those of a page have different scales.
        const float size = std::ldexp(scale, static_cast<int>((first + t) % 5) - 2);
        for (int64_t c = 0; c < x->view().cols; ++c) {
          const auto at = static_cast<uint64_t>((first + t) * x->view().cols + c);
          x->Set(t, c, size * TestValue(seed + sequence.seed, at));
        }
      }
    };
    TestActivations k(DType::kBf16, rows, shape_.num_kv_heads * shape_.head_dim);
    TestActivations v(DType::kBf16, rows, shape_.num_kv_heads * shape_.ValueDim());
    fill(&k, 100, 2.0F);
    fill(&v, 200, 1.0F);
    if (sequence.bad_token >= first && sequence.bad_token < first + rows) {
      // In V alone: 0 * Inf would harm the tokens before it in its page.
      v.Set(sequence.bad_token - first, shape_.ValueDim() - 1,
            sequence.bad_token % 2 == 0 ? std::numeric_limits<float>::infinity()
                                        : std::numeric_limits<float>::quiet_NaN());
    }
    const Segment segment{0, rows, first, table};
    EXPECT_TRUE(backend_.KvStore({k.view(), v.view(), {&segment, 1}, kv_}).ok());
  }

  Backend& backend_;
  KvShape shape_;
  std::vector<std::vector<int32_t>> tables_;
  std::vector<std::byte> pages_;
  KvLayer kv_;
  std::vector<Segment> segments_;
  int64_t num_rows_ = 0;
};

inline TestActivations RunAttention(Backend* backend, const AttentionShape& shape,
                                    const std::vector<TestSequence>& sequences) {
  const TestKvCache cache(backend, shape.kv, sequences);
  TestActivations q(DType::kBf16, cache.num_rows(), shape.NumHeads() * shape.kv.head_dim);
  for (const Segment& segment : cache.segments()) {
    for (int64_t t = 0; t < segment.num_rows; ++t) {
      for (int64_t c = 0; c < q.view().cols; ++c) {
        const auto at = static_cast<uint64_t>((segment.first_position + t) * q.view().cols + c);
        q.Set(segment.first_row + t, c, 2.0F * TestValue(300, at));
      }
    }
  }
  TestActivations y(DType::kBf16, cache.num_rows(), shape.NumHeads() * shape.kv.ValueDim());
  const float scale = 1.0F / std::sqrt(static_cast<float>(shape.kv.head_dim));
  EXPECT_TRUE(
      backend
          ->Attention({q.view(), y.view(), cache.segments(), cache.kv(), shape.NumHeads(), scale})
          .ok());
  return y;
}

}  // namespace octavo
