#include "octavo/base/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <climits>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>

#include "octavo/base/check.h"
#include "octavo/base/file.h"
#include "octavo/base/float_env.h"
#include "octavo/base/function_ref.h"
#include "octavo/base/status.h"

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

// That this process may run on; at least 1.
int NumProcessors() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) {
    return std::max(1, CPU_COUNT(&set));
  }
  return static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
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

ThreadPool::ThreadPool(int num_threads, const ThreadPoolOptions& options) {
  CHECK(num_threads >= 1);
  const bool pin = options.pin && num_threads == NumProcessors();
  workers_.reserve(static_cast<size_t>(num_threads - 1));
  for (int i = 1; i < num_threads; ++i) {
    workers_.emplace_back([this, i, flush = options.flush_subnormals] { WorkerLoop(i, flush); });
    if (pin) {
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
  const Result<std::string> quota = ReadTextFile("/sys/fs/cgroup/cpu.max");
  return std::min(NumProcessors(),
                  quota.has_value() ? ThreadsOfQuota(*quota).value_or(INT_MAX) : INT_MAX);
}

std::optional<int> ThreadsOfQuota(std::string_view cpu_max) {
  int64_t quota = 0;
  int64_t period = 0;
  const char* end = cpu_max.data() + cpu_max.size();
  const std::from_chars_result read = std::from_chars(cpu_max.data(), end, quota);
  if (read.ec != std::errc() || read.ptr == end || *read.ptr != ' ' ||
      std::from_chars(read.ptr + 1, end, period).ec != std::errc() || quota <= 0 || period <= 0) {
    return std::nullopt;
  }
  return static_cast<int>(std::min<int64_t>((quota - 1) / period + 1, INT_MAX));
}

}  // namespace octavo
