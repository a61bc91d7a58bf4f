// Method: Attention of every path over sequences that share pages, against the reference's serving
// recipe, bit for bit: groups of samples, random trees of prefixes with short and long chunks
// behind them, and tables that no tree has. A sample with and without the others of its prompt. And
// how often a shared page is read.

#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <numeric>
#include <vector>

#include "octavo/base/random.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/cpu/attention_for_test.h"
#include "octavo/kernels/cpu/cpu_path.h"
#include "octavo/kernels/cpu/kernel_table.h"
#include "octavo/kernels/cpu/test_paths.h"
#include "octavo/kernels/ops.h"
#include "octavo/kernels/test_tensors.h"

namespace octavo {
namespace {

class AttentionSharing : public PathTest {};

INSTANTIATE_TEST_SUITE_P(Paths, AttentionSharing, ::testing::ValuesIn(AllPaths()),
                         [](const auto& info) { return info.param.name; });
// A processor without any vector path has nothing to compare.
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(AttentionSharing);

// Groups of samples of two prompts, which share a page between them (a common system prompt), in
// mixed order, with a stranger.
std::vector<TestSequence> Samples() {
  std::vector<TestSequence> sequences = {
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

TEST_P(AttentionSharing, SegmentsThatSharePagesEqualTheReference) {
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

TEST_P(AttentionSharing, ASampleHasTheSameBitsWithoutTheOthersOfItsPrompt) {
  const auto backend = Make(2);
  const AttentionShape shape{{.num_kv_heads = 2, .head_dim = 32}, 2};
  const std::vector<TestSequence> sequences = Samples();
  const TestActivations all = RunAttention(backend.get(), shape, sequences);
  int64_t row = 0;
  for (const TestSequence& sequence : sequences) {
    if (sequence.parent == 0) {
      // TestSequence 0 is there for its pages; its own row is the first.
      TestSequence alone = sequence;
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

// The numbers 0 .. n - 1 by chance, the same for the same seed.
class Draws {
 public:
  explicit Draws(uint64_t seed) : seed_(seed) {}
  int64_t operator()(int64_t n) { return Philox(seed_, next_++)[0] % n; }
  template <size_t kSize>
  int64_t OneOf(const std::array<int64_t, kSize>& values) {
    return values[static_cast<size_t>((*this)(int64_t{kSize}))];
  }

 private:
  uint64_t seed_;
  uint64_t next_ = 0;
};

// Up to 24 sequences. Four of five share any number of an earlier one's pages, which may have been
// another's before; a third attend with up to 80 rows, so that a block ends within a chunk.
std::vector<TestSequence> RandomTree(Draws& draw) {
  std::vector<TestSequence> sequences;
  const int64_t num_sequences = 1 + draw(24);
  for (int64_t i = 0; i < num_sequences; ++i) {
    TestSequence sequence;
    sequence.seed = static_cast<uint64_t>(i);
    int64_t cached = draw(200);
    if (i > 0 && draw(5) != 0) {
      const auto parent = static_cast<size_t>(draw(i));
      const std::vector<int64_t>& chunks = sequences[parent].chunks;
      const int64_t tokens = std::accumulate(chunks.begin(), chunks.end(), int64_t{0});
      sequence.num_shared_pages = draw(tokens / kPageTokens + 1);
      sequence.parent = sequence.num_shared_pages > 0 ? parent : kNoParent;
      cached = sequence.num_shared_pages * kPageTokens + draw(70);
    }
    if (cached > 0) {
      sequence.chunks.push_back(cached);
    }
    sequence.chunks.push_back(1 + draw(draw(3) == 0 ? 80 : 3));
    sequences.push_back(sequence);
  }
  return sequences;
}

TEST_P(AttentionSharing, RandomTreesOfPagesEqualTheReference) {
  const auto alone = Make(1);
  const auto team = Make(3);
  const uint64_t num_trees = is_model() ? 3 : 60;
  for (uint64_t seed = 0; seed < num_trees; ++seed) {
    Draws draw(seed);
    const AttentionShape shape{{.num_kv_heads = 1 + draw(2),
                                .head_dim = draw.OneOf(std::array<int64_t, 2>{18, 32}),
                                .dtype = draw(2) == 0 ? DType::kBf16 : DType::kF8E4m3},
                               draw.OneOf(std::array<int64_t, 6>{1, 2, 3, 5, 8, 16})};
    const std::vector<TestSequence> sequences = RandomTree(draw);
    const TestActivations expected = RunAttention(reference_.get(), shape, sequences);
    EXPECT_TRUE(SameBits(expected, RunAttention(alone.get(), shape, sequences))) << "seed " << seed;
    EXPECT_TRUE(SameBits(expected, RunAttention(team.get(), shape, sequences))) << "seed " << seed;
  }
}

// No prefix tree makes such tables: rows that share a page behind one that they do not share.
TEST_P(AttentionSharing, TablesThatPartAndMeetAgainEqualTheReference) {
  const std::vector<int32_t> all = {1, 2, 3, 4};
  const std::vector<int32_t> left = {1, 2, 4};
  const std::vector<int32_t> right = {1, 3, 4};
  const AttentionShape shape{{.num_kv_heads = 1, .head_dim = 32}, 2};
  const auto attend = [&](Backend* backend) {
    const int64_t page_bytes = backend->KvPageBytes(shape.kv);
    std::vector<std::byte> pages(static_cast<size_t>(5 * page_bytes));
    const KvLayer kv{pages.data(), page_bytes, 5, shape.kv};
    TestActivations k(DType::kBf16, 4 * kPageTokens, 32);
    TestActivations v(DType::kBf16, 4 * kPageTokens, 32);
    k.Fill(1);
    v.Fill(2);
    const Segment store{0, 4 * kPageTokens, 0, all};
    EXPECT_TRUE(backend->KvStore({k.view(), v.view(), {&store, 1}, kv}).ok());
    const std::array segments = {Segment{0, 1, 90, left}, Segment{1, 1, 91, right}};
    TestActivations q(DType::kBf16, 2, 64);
    TestActivations y(DType::kBf16, 2, 64);
    q.Fill(3);
    EXPECT_TRUE(backend->Attention({q.view(), y.view(), segments, kv, 2, 0.2F}).ok());
    return y;
  };
  const auto backend = Make(1);
  EXPECT_TRUE(SameBits(attend(reference_.get()), attend(backend.get())));
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

TEST_P(AttentionSharing, ThePagesOfAPromptAreReadOnceForAllOfItsSamples) {
  // 16 samples of a prompt of two pages, 2 query heads a kv head: 32 rows, and a page of its own
  // for each sample. And 20 of another, whose 40 rows are more than a block of one segment has.
  std::vector<TestSequence> sequences;
  for (const uint64_t prompt : {uint64_t{0}, uint64_t{16}}) {
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

}  // namespace
}  // namespace octavo
