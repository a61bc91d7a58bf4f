// Method: KvStore and Attention of every path against the reference's serving recipe, bit for bit:
// odd head shapes (MLA's latent cache among them), chunks, page borders and row counts, with one to
// three threads. And a row alone against the same row in chunks and in company.

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <numeric>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/cpu/test_paths.h"
#include "octavo/kernels/ops.h"
#include "octavo/kernels/test_tensors.h"

namespace octavo {
namespace {

constexpr std::array<int64_t, 11> kRows = {1, 2, 3, 15, 16, 17, 31, 33, 64, 127, 129};

class AttentionOps : public PathTest {};

INSTANTIATE_TEST_SUITE_P(Paths, AttentionOps, ::testing::ValuesIn(AllPaths()),
                         [](const auto& info) { return info.param.name; });
// A processor without any vector path has nothing to compare.
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(AttentionOps);

struct AttentionShape {
  KvShape kv;
  int64_t group = 1;

  int64_t NumHeads() const { return kv.num_kv_heads * group; }
};

// A sequence whose cached tokens are stored first, in one call per earlier chunk.
struct Sequence {
  std::vector<int64_t> chunks;  // The last one attends.
};

// The KV cache of some sequences, and the segments of their last chunks.
class Cache {
 public:
  Cache(Backend* backend, const KvShape& shape, const std::vector<Sequence>& sequences)
      : backend_(*backend), shape_(shape) {
    int64_t num_pages = 1;  // Page 0 stays unused, so that a wrong page shows.
    for (const Sequence& sequence : sequences) {
      const int64_t tokens =
          std::accumulate(sequence.chunks.begin(), sequence.chunks.end(), int64_t{0});
      tables_.emplace_back(static_cast<size_t>((tokens + kPageTokens - 1) / kPageTokens));
      num_pages += static_cast<int64_t>(tables_.back().size());
    }
    int32_t next = static_cast<int32_t>(num_pages);  // Handed out backwards.
    for (auto& table : tables_) {
      for (int32_t& page : table) {
        page = --next;
      }
    }
    const int64_t page_bytes = backend->KvPageBytes(shape);
    pages_.resize(static_cast<size_t>(num_pages * page_bytes));
    kv_ = {pages_.data(), page_bytes, num_pages, shape};
    for (size_t s = 0; s < sequences.size(); ++s) {
      int64_t position = 0;
      for (const int64_t chunk : sequences[s].chunks) {
        Store(s, position, chunk);
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
  void Store(size_t sequence, int64_t position, int64_t chunk) {
    const auto fill = [&](TestActivations* x, uint64_t seed, float scale) {
      for (int64_t t = 0; t < chunk; ++t) {
        for (int64_t c = 0; c < x->view().cols; ++c) {
          const auto at = static_cast<uint64_t>((position + t) * x->view().cols + c);
          x->Set(t, c, scale * TestValue(seed + sequence, at));
        }
      }
    };
    TestActivations k(DType::kBf16, chunk, shape_.num_kv_heads * shape_.head_dim);
    TestActivations v(DType::kBf16, chunk, shape_.num_kv_heads * shape_.ValueDim());
    fill(&k, 100, 2.0F);
    fill(&v, 200, 1.0F);
    const Segment segment{0, chunk, position, tables_[sequence]};
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

TestActivations RunAttention(Backend* backend, const AttentionShape& shape,
                             const std::vector<Sequence>& sequences) {
  const Cache cache(backend, shape.kv, sequences);
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

// [kv heads, head_dim, value_dim], group.
const std::array kShapes = {
    AttentionShape{{.num_kv_heads = 2, .head_dim = 16}, 1},
    AttentionShape{{.num_kv_heads = 2, .head_dim = 64}, 2},
    AttentionShape{{.num_kv_heads = 1, .head_dim = 128}, 8},
    AttentionShape{{.num_kv_heads = 2, .head_dim = 128}, 2},
    AttentionShape{{.num_kv_heads = 1, .head_dim = 20}, 3},
    AttentionShape{{.num_kv_heads = 1, .head_dim = 64}, 40},
    AttentionShape{{.num_kv_heads = 1, .head_dim = 48, .value_dim = 32}, 5},
    AttentionShape{{.num_kv_heads = 3, .head_dim = 18, .value_dim = 70}, 2},
    AttentionShape{{.num_kv_heads = 1, .head_dim = 576, .value_dim = 512}, 16},
    AttentionShape{{.num_kv_heads = 1, .head_dim = 40, .value_dim = 32}, 128},
};

TEST_P(AttentionOps, AttentionEqualsTheReferenceForEveryHeadShape) {
  for (const AttentionShape& shape : kShapes) {
    for (const int num_threads : {1, 3}) {
      const std::vector<Sequence> sequences = {{{1}}, {{33}}, {{40, 1}}, {{64, 17}}};
      const auto backend = Make(num_threads);
      EXPECT_TRUE(SameBits(RunAttention(reference_.get(), shape, sequences),
                           RunAttention(backend.get(), shape, sequences)))
          << "head_dim " << shape.kv.head_dim << " group " << shape.group << " threads "
          << num_threads;
    }
  }
}

TEST_P(AttentionOps, AttentionEqualsTheReferenceForEveryRowCount) {
  const AttentionShape shape{{.num_kv_heads = 2, .head_dim = 64}, 2};
  const auto backend = Make(2);
  for (const int64_t rows : kRows) {
    for (const int64_t cached : {0, 31, 32, 95}) {
      const std::vector<int64_t> chunks =
          cached == 0 ? std::vector<int64_t>{rows} : std::vector<int64_t>{cached, rows};
      EXPECT_TRUE(SameBits(RunAttention(reference_.get(), shape, {{chunks}}),
                           RunAttention(backend.get(), shape, {{chunks}})))
          << "rows " << rows << " cached " << cached;
    }
  }
}

TEST_P(AttentionOps, AttentionDoesNotDependOnChunksOrCompany) {
  const AttentionShape shape{{.num_kv_heads = 1, .head_dim = 64}, 2};
  const auto backend = Make(2);
  const TestActivations whole = RunAttention(backend.get(), shape, {{{129}}});
  const TestActivations chunked = RunAttention(backend.get(), shape, {{{100, 29}}});
  const TestActivations single = RunAttention(backend.get(), shape, {{{128, 1}}});
  // Company behind the sequence, so that its seeds stay those of sequence 0.
  const TestActivations crowd = RunAttention(backend.get(), shape, {{{128, 1}}, {{70, 3}}, {{5}}});
  for (int64_t c = 0; c < 128; ++c) {
    ASSERT_EQ(whole.At(128, c), single.At(0, c));
    ASSERT_EQ(whole.At(128, c), crowd.At(0, c));
    for (int64_t t = 0; t < 29; ++t) {
      ASSERT_EQ(whole.At(100 + t, c), chunked.At(t, c));
    }
  }
}

}  // namespace
}  // namespace octavo
