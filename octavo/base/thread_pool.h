#pragma once
// ThreadPool: a fixed team for fork-join loops. The schedule is static, so that which thread does
// what never depends on timing.

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "octavo/base/function_ref.h"

namespace octavo {

// One thread calls Run or ParallelFor at a time; that thread takes part as worker 0.
class ThreadPool {
 public:
  // `num_threads` >= 1 counts the caller. Workers flush subnormals to zero as kernels require
  // (float_env.h) when `flush_subnormals` is set. Each stays on a processor of its own where there
  // are enough of them; the caller's thread is left alone, and the system keeps it off theirs.
  explicit ThreadPool(int num_threads, bool flush_subnormals = false);
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

// Threads that the machine lets this process use; at least 1.
int NumUsableThreads();

}  // namespace octavo
