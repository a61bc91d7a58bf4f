#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>

#include "octavo/kernels/machine_peaks.h"

namespace octavo {
namespace {

constexpr int64_t kLine = 64;
constexpr int64_t kStreams = 4;
constexpr int64_t kPrefetchBytes = 1024;

// XOR of all words, so that no read can be left out.
uint64_t ReadLine(const std::byte* line) {
  std::array<uint64_t, 8> words;
  std::memcpy(words.data(), line, kLine);
  return (words[0] ^ words[1]) ^ (words[2] ^ words[3]) ^ (words[4] ^ words[5]) ^
         (words[6] ^ words[7]);
}

uint64_t ReadLines(const std::byte* data, int64_t num_lines) {
  const int64_t per_stream = num_lines / kStreams;
  std::array<uint64_t, kStreams> sums = {};
  for (int64_t i = 0; i < per_stream; ++i) {
    for (int64_t s = 0; s < kStreams; ++s) {
      const std::byte* line = data + (s * per_stream + i) * kLine;
      __builtin_prefetch(line + kPrefetchBytes);
      sums[static_cast<size_t>(s)] ^= ReadLine(line);
    }
  }
  for (int64_t i = kStreams * per_stream; i < num_lines; ++i) {
    sums[0] ^= ReadLine(data + i * kLine);
  }
  return sums[0] ^ sums[1] ^ sums[2] ^ sums[3];
}

}  // namespace

double MeasureReadBandwidth(std::span<const std::span<const std::byte>> memory, ThreadPool* pool) {
  int64_t num_bytes = 0;
  std::atomic<uint64_t> sink{0};
  const auto start = std::chrono::steady_clock::now();
  for (const std::span<const std::byte> part : memory) {
    const int64_t num_lines = static_cast<int64_t>(part.size()) / kLine;
    num_bytes += num_lines * kLine;
    pool->ParallelFor(num_lines, [&](int64_t begin, int64_t end, int /*worker*/) {
      sink.fetch_xor(ReadLines(part.data() + begin * kLine, end - begin),
                     std::memory_order_relaxed);
    });
  }
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  // Part of the result, so that the reads are.
  const double unused = sink.load() == 1 ? 1e-9 : 0.0;
  return num_bytes == 0 ? 0.0 : static_cast<double>(num_bytes) / (elapsed.count() + unused);
}

}  // namespace octavo
