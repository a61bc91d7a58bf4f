#pragma once
// ThreadPool: a fixed team for fork-join loops.

#include <atomic>
#include <cstdint>
#include <optional>
#include <string_view>
#include <thread>
#include <vector>

#include "octavo/base/function_ref.h"

namespace octavo {

struct ThreadPoolOptions {
  // Workers flush subnormals to zero as kernels require (float_env.h).
  bool flush_subnormals = false;
  // Workers stay on a processor of their own, if the team takes every one that this process may
  // use. With fewer, other programs and pools choose theirs too, and nobody knows which; the system
  // does. The caller's thread is left alone, and the system keeps it off the workers' processors.
  bool pin = false;
};

// One thread calls Run or ParallelFor at a time; that thread takes part as worker 0.
class ThreadPool {
 public:
  // `num_threads` >= 1 counts the caller.
  explicit ThreadPool(int num_threads, const ThreadPoolOptions& options = {});
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls task(worker_idx) once on every worker and returns when all are done.
  void Run(FunctionRef<void(int)> task);

  // Splits [0, count) into one contiguous range a worker and calls body(begin, end, worker_idx)
  // for each range that is not empty. The cut depends on count and num_threads alone.
  void ParallelFor(int64_t count, FunctionRef<void(int64_t, int64_t, int)> body);

 private:
  void WorkerLoop(int worker_idx, bool flush_subnormals);

  std::vector<std::thread> workers_;
  const FunctionRef<void(int)>* task_ = nullptr;  // Valid while a generation runs.
  std::atomic<uint32_t> generation_{0};           // Bumped to start a loop or to stop.
  std::atomic<uint32_t> pending_{0};              // Workers that still have to finish.
  bool stopping_ = false;
};

// Threads that the machine lets this process use, by its affinity and the quota of its control
// group (cpu.max of v2, rounded up); at least 1.
int NumUsableThreads();

// The threads that a quota is worth: of "QUOTA PERIOD", microseconds both, as Linux writes cpu.max;
// nullopt for "max PERIOD", which is none, and for anything else.
// Source: Linux, Documentation/admin-guide/cgroup-v2.rst, "CPU Interface Files".
std::optional<int> ThreadsOfQuota(std::string_view cpu_max);

}  // namespace octavo
