// The digest of all live weights against plain reads of the same memory.

#include <fmt/core.h>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <memory>
#include <span>
#include <vector>

#include "bench/engine/rollout_bench.h"
#include "octavo/base/thread_pool.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/machine_peaks.h"
#include "octavo/kernels/matrix.h"
#include "octavo/model/model.h"
#include "octavo/sync/live_digest.h"
#include "octavo/sync/serving.h"

namespace octavo {
namespace {

// What DigestLiveWeights reads.
std::vector<std::span<const std::byte>> MemoryOf(const ModelWeights& weights) {
  std::vector<std::span<const std::byte>> memory;
  for (const PackedMatrix& matrix : weights.matrices) {
    memory.push_back(matrix.codes.bytes());
    memory.push_back(matrix.scales.bytes());
  }
  return memory;
}

}  // namespace

void BenchDigest(const ShapeArgs& args, int num_rounds) {
  const std::unique_ptr<Serving> serving = StartShape(args);
  ThreadPool pool(args.num_threads > 0 ? args.num_threads : NumUsableThreads());
  OnLiveWeights(*serving, [&](const ModelWeights& live, Backend& backend) {
    const std::vector<std::span<const std::byte>> memory = MemoryOf(live);
    double num_bytes = 0.0;
    for (const std::span<const std::byte> part : memory) {
      num_bytes += static_cast<double>(part.size());
    }
    std::vector<double> rates;
    std::vector<double> reads;
    std::vector<double> shares;
    double before = MeasureReadBandwidth(memory, &pool);
    for (int round = 0; round < num_rounds; ++round) {
      const double start = Now();
      Must(DigestLiveWeights(serving->table, live, backend, &pool).error());
      rates.push_back(num_bytes / (Now() - start));
      const double after = MeasureReadBandwidth(memory, &pool);
      reads.push_back(after);
      shares.push_back(rates.back() / (0.5 * (before + after)));
      before = after;
    }
    std::ranges::sort(shares);
    fmt::print(
        "{{\"bench\":\"digest\",\"shape\":\"{}\",\"format\":\"{}\",{},\"backend\":\"{}\","
        "\"threads\":{},\"rounds\":{},\"gb\":{:.3f},\"gb_per_s\":{:.2f},\"read_gb_per_s\":{:.2f},"
        "\"read_share\":{:.3f},\"read_share_quartiles\":[{:.3f},{:.3f}]}}\n",
        args.shape, args.format, ArithmeticJson(*serving), serving->backend_name,
        pool.num_threads(), num_rounds, num_bytes / 1e9, Median(rates) / 1e9, Median(reads) / 1e9,
        shares[shares.size() / 2], shares[shares.size() / 4], shares[3 * shares.size() / 4]);
    std::fflush(stdout);
  });
}

}  // namespace octavo
