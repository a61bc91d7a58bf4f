#include <atomic>
#include <chrono>
#include <cstdint>

#include "octavo/base/status.h"
#include "octavo/base/thread_pool.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/cpu/cpu_dispatch.h"
#include "octavo/kernels/cpu/cpu_path.h"
#include "octavo/kernels/machine_peaks.h"

namespace octavo {

Result<double> MeasureMatrixPeak(Isa isa, ThreadPool* pool, double seconds) {
  ASSIGN_OR_RETURN(const cpu::CpuPath path, cpu::FindPath(isa));
  using Clock = std::chrono::steady_clock;
  constexpr int64_t kRounds = 20000;  // Some tens of microseconds between looks at the clock.
  std::atomic<int64_t> total_flops{0};
  const auto start = Clock::now();
  pool->Run([&](int /*worker*/) {
    const cpu::MatMulScope scope(path.wide);
    int64_t flops = 0;
    while (std::chrono::duration<double>(Clock::now() - start).count() < seconds) {
      flops += path.wide.burn(kRounds);
    }
    total_flops.fetch_add(flops, std::memory_order_relaxed);
  });
  const std::chrono::duration<double> elapsed = Clock::now() - start;
  return static_cast<double>(total_flops.load()) / elapsed.count();
}

}  // namespace octavo
