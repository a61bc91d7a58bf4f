// Method: each piece of base once by its contract: digests against chunks worked out by hand,
// Philox against the known answers of Random123, loops over odd counts, files that fail half way.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <stdlib.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "octavo/base/buffer.h"
#include "octavo/base/check.h"
#include "octavo/base/file.h"
#include "octavo/base/float_env.h"
#include "octavo/base/hash.h"
#include "octavo/base/hash_kernels-inl.h"
#include "octavo/base/random.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/base/thread_pool.h"

namespace octavo {
namespace {

TEST(Status, CarriesCodeMessageAndContext) {
  const Status status = InvalidArgument("expected {}, got {}", 3, 4).WithContext("x.weight");
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), "x.weight: expected 3, got 4");
  EXPECT_TRUE(OkStatus().WithContext("x").ok());
}

TEST(CheckDeathTest, PrintsBothSides) {
  const int left = 2;
  EXPECT_DEATH(CHECK(left == 3), "check failed: left == 3 \\(2 vs 3\\)");
}

TEST(DType, NamesRoundTrip) {
  for (int i = 0; i <= static_cast<int>(DType::kF64); ++i) {
    const auto dtype = static_cast<DType>(i);
    EXPECT_EQ(ParseDType(DTypeName(dtype)), dtype);
  }
  EXPECT_EQ(ParseDType("F4"), std::nullopt);
}

// XXH3-128 with seed 0 of no bytes: 99aa06d3014798d86001c324468d497f (xxHash's own test vector).
TEST(TensorDigest, OfNothingIsTheHashOfNothing) {
  EXPECT_EQ(HashHex(TensorDigest({})), "99aa06d3014798d86001c324468d497f");
}

TEST(TensorDigest, HashesTheHashesOfItsChunks) {
  std::vector<std::byte> bytes(TensorHasher::kChunkBytes + 5);
  for (size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] = static_cast<std::byte>(i * 7 + i / 251);
  }
  const std::span<const std::byte> all(bytes);
  std::array<std::byte, 32> parts;
  const Hash128 first = HashBytes(all.first(TensorHasher::kChunkBytes));
  const Hash128 second = HashBytes(all.subspan(TensorHasher::kChunkBytes));
  std::memcpy(parts.data(), first.data(), 16);
  std::memcpy(parts.data() + 16, second.data(), 16);
  EXPECT_EQ(TensorDigest(all), HashBytes(parts));

  TensorHasher pieces;
  for (size_t begin = 0; begin < all.size(); begin += 997) {
    pieces.Update(all.subspan(begin, std::min<size_t>(997, all.size() - begin)));
  }
  EXPECT_EQ(pieces.Finish(), TensorDigest(all));
}

// Chunks hashed apart, as threads do that share a tensor.
TEST(TensorDigest, IsMadeOfTheChunksOfItsParts) {
  std::vector<std::byte> bytes(5 * TensorHasher::kChunkBytes + 123);
  for (size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] = static_cast<std::byte>(i * 11 + i / 509);
  }
  const std::span<const std::byte> all(bytes);
  for (const size_t cut : {size_t{0}, size_t{1}, size_t{3}, size_t{5}}) {
    std::vector<Hash128> chunks;
    for (const std::span<const std::byte> part : {all.first(cut * TensorHasher::kChunkBytes),
                                                  all.subspan(cut * TensorHasher::kChunkBytes)}) {
      TensorHasher hasher;
      for (size_t begin = 0; begin < part.size(); begin += 100000) {
        hasher.Update(part.subspan(begin, std::min<size_t>(100000, part.size() - begin)));
      }
      std::ranges::copy(hasher.FinishChunks(), std::back_inserter(chunks));
    }
    EXPECT_EQ(chunks.size(), 6U);
    EXPECT_EQ(TensorDigestOfChunks(chunks), TensorDigest(all)) << cut;
  }
}

// Lengths on both sides of every case that xxHash has: 16, 128, 240 and blocks of 1024 bytes.
TEST(HashKernels, OfEveryBuildGiveTheSameValues) {
  std::vector<std::byte> bytes(70000);
  for (size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] = static_cast<std::byte>(i * 13 + i / 127);
  }
  const auto expect_same = [&](const internal::HashKernels& kernels) {
    for (const size_t size : {0U, 1U, 16U, 17U, 128U, 129U, 240U, 241U, 1024U, 1025U, 70000U}) {
      const XXH128_hash_t expected = internal::kHashKernels.hash(bytes.data(), size);
      EXPECT_TRUE(XXH128_isEqual(kernels.hash(bytes.data(), size), expected)) << size;
      XXH3_state_t state;
      XXH3_128bits_reset(&state);
      kernels.update(&state, bytes.data(), size / 3);
      kernels.update(&state, bytes.data() + size / 3, size - size / 3);
      EXPECT_TRUE(XXH128_isEqual(kernels.digest(&state), expected)) << size;
    }
  };
  if (__builtin_cpu_supports("avx2")) {
    expect_same(internal::HashKernelsAvx2());
  }
  if (__builtin_cpu_supports("avx512f")) {
    expect_same(internal::HashKernelsAvx512());
  }
}

// Known answers of Random123 (kat_vectors, philox4x32 10): counter and key all zero.
TEST(Philox, GivesTheKnownAnswerForZeros) {
  EXPECT_THAT(Philox(0, 0),
              testing::ElementsAre(0x6627e8d5U, 0xe169c58dU, 0xbc57ac4cU, 0x9b00dbd8U));
}

// Processors that the calling thread may run on.
int NumAllowed() {
  cpu_set_t set;
  EXPECT_EQ(sched_getaffinity(0, sizeof(set), &set), 0);
  return CPU_COUNT(&set);
}

// With more threads than processors two on one would wait for each other; with fewer, a second
// team would sit on the processors of the first while others idle.
TEST(ThreadPool, PinsATeamThatTakesAllProcessors) {
  const int all = NumAllowed();
  for (const int threads : {std::max(1, all - 1), all, all + 1}) {
    for (const bool pin : {false, true}) {
      ThreadPool pool(threads, {.pin = pin});
      std::vector<int> allowed(static_cast<size_t>(threads), 0);
      pool.Run([&](int worker_idx) { allowed[static_cast<size_t>(worker_idx)] = NumAllowed(); });
      EXPECT_EQ(allowed[0], all);
      for (int i = 1; i < threads; ++i) {
        EXPECT_EQ(allowed[static_cast<size_t>(i)], pin && threads == all ? 1 : all) << i;
      }
    }
  }
}

TEST(ThreadPool, TakesNoMoreThreadsThanTheQuotaIsWorth) {
  EXPECT_EQ(ThreadsOfQuota("200000 100000\n"), 2);
  EXPECT_EQ(ThreadsOfQuota("150000 100000"), 2);
  EXPECT_EQ(ThreadsOfQuota("1000 100000"), 1);
  for (const char* none : {"max 100000\n", "", "200000", "200000 ", "200000 0", "-1 100000", "x"}) {
    EXPECT_EQ(ThreadsOfQuota(none), std::nullopt) << none;
  }
  EXPECT_LE(NumUsableThreads(), NumAllowed());
}

TEST(ThreadPool, CoversEveryIndexOnceForOddCounts) {
  for (const int threads : {1, 2, 3, 5}) {
    ThreadPool pool(threads);
    for (const int64_t count : {0, 1, 2, 3, 7, 64, 1001}) {
      std::vector<int> hits(static_cast<size_t>(count), 0);
      pool.ParallelFor(count, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
          ++hits[static_cast<size_t>(i)];
        }
      });
      EXPECT_EQ(std::accumulate(hits.begin(), hits.end(), int64_t{0}), count);
      EXPECT_TRUE(std::all_of(hits.begin(), hits.end(), [](int hit) { return hit == 1; }));
    }
  }
}

TEST(FloatEnv, GuardFlushesAndRestores) {
  volatile float tiny = 1e-39F;
  EXPECT_NE(tiny * 1.0F, 0.0F);
  {
    const ScopedFlushSubnormals guard;
    EXPECT_EQ(tiny * 1.0F, 0.0F);
    {
      const ScopedIeeeSubnormals inner;
      EXPECT_NE(tiny * 1.0F, 0.0F);
    }
    EXPECT_EQ(tiny * 1.0F, 0.0F);
  }
  EXPECT_NE(tiny * 1.0F, 0.0F);
}

class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "octavo-XXXXXX").string();
    path_ = mkdtemp(pattern.data());
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  std::string File(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

TEST(AtomicFile, LeavesNothingBehindWithoutCommit) {
  const TemporaryFolder folder;
  {
    auto file = AtomicFile::Create(folder.File("a"));
    ASSERT_TRUE(file.has_value());
    ASSERT_TRUE(file->Append("half").ok());
  }
  EXPECT_TRUE(std::filesystem::is_empty(std::filesystem::path(folder.File("a")).parent_path()));
}

TEST(AtomicFile, WritesAtAnyPlaceAndAppendsWhereItStopped) {
  const TemporaryFolder folder;
  auto file = AtomicFile::Create(folder.File("a"));
  ASSERT_TRUE(file.has_value());
  const std::string_view tail = "cd";
  ASSERT_TRUE(file->WriteAt(4, std::as_bytes(std::span(tail.data(), tail.size()))).ok());
  file->StartWriteBack(0, 6);
  ASSERT_TRUE(file->Append("ab..").ok());
  ASSERT_TRUE(file->Commit().ok());
  EXPECT_EQ(ReadTextFile(folder.File("a")).value(), "ab..cd");
}

TEST(MappedFile, ReadsTheSameAfterHints) {
  const TemporaryFolder folder;
  const std::string text(100'000, 'x');
  ASSERT_TRUE(WriteTextFile(folder.File("a"), text).ok());
  const auto file = MappedFile::Open(folder.File("a"));
  ASSERT_TRUE(file.has_value());
  for (const size_t begin : {size_t{0}, size_t{1}, size_t{5000}, text.size()}) {
    WillRead(file->bytes().subspan(begin));
    DoneReading(file->bytes().subspan(begin));
  }
  EXPECT_TRUE(std::ranges::all_of(file->bytes(), [](std::byte b) { return b == std::byte{'x'}; }));
}

TEST(AtomicFile, CommitsTheWholeFile) {
  const TemporaryFolder folder;
  ASSERT_TRUE(WriteTextFile(folder.File("a"), "one").ok());
  ASSERT_TRUE(WriteTextFile(folder.File("a"), "three").ok());
  EXPECT_EQ(*ReadTextFile(folder.File("a")), "three");
  const auto too_long = ReadTextFile(folder.File("a"), 4);
  ASSERT_FALSE(too_long.has_value());
  EXPECT_EQ(too_long.error().code(), StatusCode::kExhausted);
}

TEST(ReadTextFile, ReadsFilesWithoutASize) {
  const auto status = ReadTextFile("/proc/self/status");
  ASSERT_TRUE(status.has_value());
  EXPECT_THAT(*status, testing::HasSubstr("VmRSS"));
}

TEST(MappedFile, NamesAMissingFile) {
  const auto file = MappedFile::Open("/nonexistent/x");
  ASSERT_FALSE(file.has_value());
  EXPECT_EQ(file.error().code(), StatusCode::kNotFound);
  EXPECT_THAT(file.error().message(), testing::HasSubstr("/nonexistent/x"));
}

TEST(Buffer, IsAlignedZeroedAndCloned) {
  for (const int64_t size : {int64_t{1}, int64_t{100}, int64_t{3} << 20}) {
    auto buffer = Buffer::AllocateHost(size);
    ASSERT_TRUE(buffer.has_value());
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer->data()) % Buffer::kAlignment, 0U);
    EXPECT_EQ(buffer->bytes()[static_cast<size_t>(size) - 1], std::byte{0});
    buffer->bytes()[0] = std::byte{7};
    const auto copy = buffer->Clone();
    ASSERT_TRUE(copy.has_value());
    EXPECT_EQ(copy->bytes()[0], std::byte{7});
  }
}

}  // namespace
}  // namespace octavo
