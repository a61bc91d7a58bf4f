#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "octavo/base/thread_pool.h"
#include "octavo/kernels/machine_peaks.h"

namespace octavo {
namespace {

constexpr int64_t kLine = 64;
constexpr int64_t kPrefetchBytes = 4096;

// One word of each line: the whole line moves, and the loop never waits for arithmetic.
uint64_t ReadLine(const std::byte* line) {
  __builtin_prefetch(line + kPrefetchBytes);
  uint64_t word = 0;
  std::memcpy(&word, line, sizeof(word));
  return word;
}

// Reads in `kStreams` concurrent streams of 32 KiB each. Returns something that depends on all
// reads, so that none can be left out.
template <int kStreams>
uint64_t ReadLines(const std::byte* data, int64_t num_lines) {
  constexpr int64_t kStreamLines = 512;
  uint64_t sum = 0;
  int64_t block = 0;
  for (; block + kStreams * kStreamLines <= num_lines; block += kStreams * kStreamLines) {
    for (int64_t i = 0; i < kStreamLines; ++i) {
      for (int64_t s = 0; s < kStreams; ++s) {
        sum ^= ReadLine(data + (block + s * kStreamLines + i) * kLine);
      }
    }
  }
  for (; block < num_lines; ++block) {
    sum ^= ReadLine(data + block * kLine);
  }
  return sum;
}

using ReadFn = uint64_t (*)(const std::byte* data, int64_t num_lines);

// Bytes per second of one pass.
double ReadPass(std::span<const std::span<const std::byte>> memory, ReadFn read, ThreadPool* pool) {
  int64_t num_bytes = 0;
  std::atomic<uint64_t> sink{0};
  const auto start = std::chrono::steady_clock::now();
  for (const std::span<const std::byte> part : memory) {
    const int64_t num_lines = static_cast<int64_t>(part.size()) / kLine;
    num_bytes += num_lines * kLine;
    pool->ParallelFor(num_lines, [&](int64_t begin, int64_t end, int /*worker*/) {
      sink.fetch_xor(read(part.data() + begin * kLine, end - begin), std::memory_order_relaxed);
    });
  }
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  // Part of the result, so that the reads are.
  const double unused = sink.load() == 1 ? 1e-9 : 0.0;
  return num_bytes == 0 ? 0.0 : static_cast<double>(num_bytes) / (elapsed.count() + unused);
}

}  // namespace

double MeasureReadBandwidth(std::span<const std::span<const std::byte>> memory, ThreadPool* pool) {
  // One stream is best on some processors (AMD EPYC, family 26: 37 GB/s a thread against 25), four
  // on others (Xeon with AMX: 36 GB/s on two threads against 33).
  return std::max(ReadPass(memory, ReadLines<1>, pool), ReadPass(memory, ReadLines<4>, pool));
}

}  // namespace octavo
