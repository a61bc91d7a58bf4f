// Method: KvStore and Attention of every path against the reference's serving recipe, bit for bit:
// odd head shapes (MLA's latent cache among them), chunks, page borders and row counts, with one to
// three threads. And a row alone against the same row in chunks and in company.

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <numeric>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/cpu/cpu_path.h"
#include "octavo/kernels/cpu/kernel_table.h"
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

constexpr size_t kNoParent = std::numeric_limits<size_t>::max();

// A sequence whose cached tokens are stored first, in one call per earlier chunk.
struct Sequence {
  std::vector<int64_t> chunks;  // The last one attends.
  // An earlier sequence whose first pages are this one's too; the chunks include them.
  size_t parent = kNoParent;
  int64_t num_shared_pages = 0;
  uint64_t seed = 0;       // Of what it does not share.
  int64_t bad_token = -1;  // Position whose K and V hold a NaN or an infinity.
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
  void Store(const Sequence& sequence, const std::vector<int32_t>& table, int64_t position,
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

std::vector<AttentionShape> BothDtypes() {
  std::vector<AttentionShape> shapes;
  for (const DType dtype : {DType::kBf16, DType::kF8E4m3}) {
    for (AttentionShape shape : kShapes) {
      shape.kv.dtype = dtype;
      shapes.push_back(shape);
    }
  }
  return shapes;
}

TEST_P(AttentionOps, AttentionEqualsTheReferenceForEveryHeadShape) {
  for (const AttentionShape& shape : BothDtypes()) {
    for (const int num_threads : {1, 3}) {
      const std::vector<Sequence> sequences = {{.chunks = {1}},
                                               {.chunks = {33}, .seed = 1},
                                               {.chunks = {40, 1}, .seed = 2},
                                               {.chunks = {64, 17}, .seed = 3}};
      const auto backend = Make(num_threads);
      EXPECT_TRUE(SameBits(RunAttention(reference_.get(), shape, sequences),
                           RunAttention(backend.get(), shape, sequences)))
          << "head_dim " << shape.kv.head_dim << " group " << shape.group << " threads "
          << num_threads;
    }
  }
}

TEST_P(AttentionOps, AttentionEqualsTheReferenceForEveryRowCount) {
  const auto backend = Make(2);
  for (const DType dtype : {DType::kBf16, DType::kF8E4m3}) {
    const AttentionShape shape{{.num_kv_heads = 2, .head_dim = 64, .dtype = dtype}, 2};
    for (const int64_t rows : kRows) {
      for (const int64_t cached : {0, 31, 32, 95}) {
        const std::vector<int64_t> chunks =
            cached == 0 ? std::vector<int64_t>{rows} : std::vector<int64_t>{cached, rows};
        EXPECT_TRUE(SameBits(RunAttention(reference_.get(), shape, {{.chunks = chunks}}),
                             RunAttention(backend.get(), shape, {{.chunks = chunks}})))
            << "rows " << rows << " cached " << cached;
      }
    }
  }
}

// Found as a rare difference under load: threads that parted between two tokens whose values share
// words lost one of them.
TEST_P(AttentionOps, ThreadsThatStoreNeighboursLoseNothing) {
  constexpr int64_t kTokens = 2;  // One for each thread, so that they meet at every word.
  const auto alone = Make(1);
  const auto team = Make(kTokens);
  std::vector<int32_t> table = {0};
  for (const DType dtype : {DType::kBf16, DType::kF8E4m3}) {
    const KvShape shape{.num_kv_heads = 32, .head_dim = 256, .dtype = dtype};
    TestActivations k(DType::kBf16, kTokens, 32 * 256);
    TestActivations v(DType::kBf16, kTokens, 32 * 256);
    k.Fill(1);
    v.Fill(2);
    const auto store = [&](Backend* backend, int64_t first_position) {
      std::vector<std::byte> page(static_cast<size_t>(backend->KvPageBytes(shape)));
      const Segment segment{0, kTokens, first_position, table};
      const KvLayer kv{page.data(), static_cast<int64_t>(page.size()), 1, shape};
      EXPECT_TRUE(backend->KvStore({k.view(), v.view(), {&segment, 1}, kv}).ok());
      return page;
    };
    for (const int64_t first_position : {0, 1}) {
      const std::vector<std::byte> expected = store(alone.get(), first_position);
      for (int round = 0; round < 40; ++round) {
        ASSERT_TRUE(expected == store(team.get(), first_position)) << "round " << round;
      }
    }
  }
}

TEST_P(AttentionOps, AttentionDoesNotDependOnChunksOrCompany) {
  const auto backend = Make(2);
  for (const DType dtype : {DType::kBf16, DType::kF8E4m3}) {
    const AttentionShape shape{{.num_kv_heads = 1, .head_dim = 64, .dtype = dtype}, 2};
    const TestActivations whole = RunAttention(backend.get(), shape, {{.chunks = {129}}});
    const TestActivations chunked = RunAttention(backend.get(), shape, {{.chunks = {100, 29}}});
    const TestActivations single = RunAttention(backend.get(), shape, {{.chunks = {128, 1}}});
    const TestActivations crowd = RunAttention(
        backend.get(), shape,
        {{.chunks = {128, 1}}, {.chunks = {70, 3}, .seed = 1}, {.chunks = {5}, .seed = 2}});
    for (int64_t c = 0; c < 128; ++c) {
      ASSERT_EQ(whole.At(128, c), single.At(0, c));
      ASSERT_EQ(whole.At(128, c), crowd.At(0, c));
      for (int64_t t = 0; t < 29; ++t) {
        ASSERT_EQ(whole.At(100 + t, c), chunked.At(t, c));
      }
    }
  }
}

// Groups of samples of two prompts, which share a page between them (a common system prompt), in
// mixed order, with a stranger.
std::vector<Sequence> Samples() {
  std::vector<Sequence> sequences = {
      {.chunks = {150, 1}},
      {.chunks = {170, 1}, .parent = 0, .num_shared_pages = 1, .seed = 1},
      {.chunks = {75, 2}, .seed = 2}};
  for (uint64_t i = 0; i < 17; ++i) {
    const auto tokens = static_cast<int64_t>(129 + 7 * i);
    sequences.push_back({.chunks = {tokens, 1 + static_cast<int64_t>(i % 3 == 2)},
                         .parent = i % 2,
                         .num_shared_pages = i % 5 == 4 ? 2 : 4,
                         .seed = 10 + i});
  }
  return sequences;
}

TEST_P(AttentionOps, SegmentsThatSharePagesEqualTheReference) {
  for (const int64_t group : {1, 2, 5}) {
    for (const DType dtype : {DType::kBf16, DType::kF8E4m3}) {
      const AttentionShape shape{{.num_kv_heads = 2, .head_dim = 32, .dtype = dtype}, group};
      const TestActivations expected = RunAttention(reference_.get(), shape, Samples());
      for (const int num_threads : {1, 2, 3}) {
        const auto backend = Make(num_threads);
        EXPECT_TRUE(SameBits(expected, RunAttention(backend.get(), shape, Samples())))
            << "group " << group << " threads " << num_threads;
      }
    }
  }
}

TEST_P(AttentionOps, ASampleHasTheSameBitsWithoutTheOthersOfItsPrompt) {
  const auto backend = Make(2);
  const AttentionShape shape{{.num_kv_heads = 2, .head_dim = 32}, 2};
  const std::vector<Sequence> sequences = Samples();
  const TestActivations all = RunAttention(backend.get(), shape, sequences);
  int64_t row = 0;
  for (const Sequence& sequence : sequences) {
    if (sequence.parent == 0) {
      // Sequence 0 is there for its pages; its own row is the first.
      Sequence alone = sequence;
      const TestActivations y = RunAttention(backend.get(), shape, {sequences[0], alone});
      for (int64_t t = 0; t < sequence.chunks.back(); ++t) {
        for (int64_t c = 0; c < y.view().cols; ++c) {
          ASSERT_EQ(all.At(row + t, c), y.At(1 + t, c)) << "row " << row + t;
        }
      }
    }
    row += sequence.chunks.back();
  }
}

// A matmul that counts how often it was given a panel's address; of one thread.
class CountedReads {
 public:
  // Of the BF16 cache.
  static cpu::CpuPath PathThatCounts(cpu::CpuPath path) {
    counts().clear();
    inner() = path.wide.matmul;
    path.wide.matmul = [](const cpu::MatMulArgs& args) {
      ++counts()[args.b];
      inner()(args);
    };
    return path;
  }
  static std::map<const void*, int>& counts() {
    static std::map<const void*, int> counts;
    return counts;
  }

 private:
  using MatMul = void (*)(const cpu::MatMulArgs& args);
  static MatMul& inner() {
    static MatMul inner = nullptr;
    return inner;
  }
};

TEST_P(AttentionOps, ThePagesOfAPromptAreReadOnceForAllOfItsSamples) {
  // 16 samples of a prompt of two pages, 2 query heads a kv head: 32 rows, and a page of its own
  // for each sample. And 20 of another, whose 40 rows are more than a block of one segment has.
  std::vector<Sequence> sequences;
  for (const uint64_t prompt : {0, 16}) {
    for (uint64_t i = 0; i < (prompt == 0 ? 16 : 20); ++i) {
      sequences.push_back({.chunks = {70, 1},
                           .parent = i == 0 ? kNoParent : static_cast<size_t>(prompt),
                           .num_shared_pages = i == 0 ? 0 : 2,
                           .seed = 100 * prompt + i});
    }
  }
  const AttentionShape shape{{.num_kv_heads = 4, .head_dim = 32}, 2};
  const auto backend = cpu::MakeBackendOfPath(CountedReads::PathThatCounts(GetParam().path), 1);
  const TestActivations y = RunAttention(backend.get(), shape, sequences);
  EXPECT_TRUE(SameBits(RunAttention(reference_.get(), shape, sequences), y));
  // K and V of every kv head, of 2 pages of each prompt and one of each sample.
  EXPECT_EQ(CountedReads::counts().size(), static_cast<size_t>(2 * 4 * (2 * 2 + 36)));
  for (const auto& [panel, count] : CountedReads::counts()) {
    EXPECT_EQ(count, 1);
  }
}

TEST_P(AttentionOps, ABadTokenHarmsOnlyThoseWhoAttendToIt) {
  const auto backend = Make(2);
  for (const DType dtype : {DType::kBf16, DType::kF8E4m3}) {
    const AttentionShape shape{{.num_kv_heads = 1, .head_dim = 32, .dtype = dtype}, 3};
    for (const int64_t bad : {0, 33, 40, 69}) {
      const std::vector<Sequence> good = {{.chunks = {70}}, {.chunks = {35}, .seed = 1}};
      std::vector<Sequence> sequences = good;
      sequences[0].bad_token = bad;
      const TestActivations clean = RunAttention(backend.get(), shape, good);
      const TestActivations y = RunAttention(backend.get(), shape, sequences);
      EXPECT_TRUE(SameBits(RunAttention(reference_.get(), shape, sequences), y)) << "bad " << bad;
      for (int64_t t = 0; t < y.view().rows; ++t) {
        for (int64_t c = 0; c < y.view().cols; ++c) {
          if (t >= bad && t < 70) {
            ASSERT_TRUE(std::isnan(y.At(t, c))) << "row " << t << " bad " << bad;
          } else {
            ASSERT_EQ(y.At(t, c), clean.At(t, c)) << "row " << t << " bad " << bad;
          }
        }
      }
    }
  }
}

TEST_P(AttentionOps, AnFp8PageIsAboutHalfOfABf16Page) {
  const auto backend = Make(1);
  for (const KvShape shape : {KvShape{.num_kv_heads = 8, .head_dim = 128},
                              KvShape{.num_kv_heads = 1, .head_dim = 576, .value_dim = 512}}) {
    KvShape fp8 = shape;
    fp8.dtype = DType::kF8E4m3;
    // And one byte of scale a token, kv head and K or V.
    EXPECT_EQ(backend->KvPageBytes(fp8),
              backend->KvPageBytes(shape) / 2 + shape.num_kv_heads * kPageTokens * 2);
  }
}

}  // namespace
}  // namespace octavo
