#include "octavo/base/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <thread>

#include "octavo/base/check.h"
#include "octavo/base/float_env.h"
#include "octavo/base/function_ref.h"

namespace octavo {
namespace {

// A worker spins this often before it sleeps: a step's ops follow each other within microseconds,
// and a futex wake costs about as much as a small op.
constexpr int kSpins = 4000;

inline void Relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Returns once `word` differs from `old`.
void WaitForChange(const std::atomic<uint32_t>& word, uint32_t old) {
  for (int i = 0; i < kSpins; ++i) {
    if (word.load(std::memory_order_acquire) != old) {
      return;
    }
    Relax();
  }
  word.wait(old, std::memory_order_acquire);
}

// Keeps `thread` on processor number `index` of those that this process may use. A failure is of no
// consequence: the thread then runs anywhere.
void Pin(std::thread* thread, int index) {
  cpu_set_t usable;
  if (sched_getaffinity(0, sizeof(usable), &usable) != 0) {
    return;
  }
  for (size_t cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &usable) && index-- == 0) {
      cpu_set_t one;
      CPU_ZERO(&one);
      CPU_SET(cpu, &one);
      (void)pthread_setaffinity_np(thread->native_handle(), sizeof(one), &one);
      return;
    }
  }
}

}  // namespace

ThreadPool::ThreadPool(int num_threads, bool flush_subnormals) {
  CHECK(num_threads >= 1);
  const bool has_processor_each = num_threads <= NumUsableThreads();
  workers_.reserve(static_cast<size_t>(num_threads - 1));
  for (int i = 1; i < num_threads; ++i) {
    workers_.emplace_back([this, i, flush_subnormals] { WorkerLoop(i, flush_subnormals); });
    if (has_processor_each) {
      Pin(&workers_.back(), i);
    }
  }
}

ThreadPool::~ThreadPool() {
  stopping_ = true;
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (std::thread& worker : workers_) {
    worker.join();
  }
}

void ThreadPool::WorkerLoop(int worker_idx, bool flush_subnormals) {
  std::optional<ScopedFlushSubnormals> guard;
  if (flush_subnormals) {
    guard.emplace();
  }
  uint32_t seen = 0;
  while (true) {
    WaitForChange(generation_, seen);
    seen = generation_.load(std::memory_order_acquire);
    if (stopping_) {
      return;
    }
    (*task_)(worker_idx);
    if (pending_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      pending_.notify_one();
    }
  }
}

void ThreadPool::Run(FunctionRef<void(int)> task) {
  if (workers_.empty()) {
    task(0);
    return;
  }
  task_ = &task;
  pending_.store(static_cast<uint32_t>(workers_.size()), std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  task(0);
  for (uint32_t left = pending_.load(std::memory_order_acquire); left != 0;
       left = pending_.load(std::memory_order_acquire)) {
    WaitForChange(pending_, left);
  }
}

void ThreadPool::ParallelFor(int64_t count, FunctionRef<void(int64_t, int64_t, int)> body) {
  const int64_t num_workers = num_threads();
  if (count <= 1 || num_workers == 1) {
    if (count > 0) {
      body(0, count, 0);
    }
    return;
  }
  Run([&](int worker_idx) {
    const int64_t begin = count * worker_idx / num_workers;
    const int64_t end = count * (worker_idx + 1) / num_workers;
    if (begin < end) {
      body(begin, end, worker_idx);
    }
  });
}

int NumUsableThreads() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) {
    return std::max(1, CPU_COUNT(&set));
  }
  return static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
}

}  // namespace octavo
