#include "octavo/server/io_loop.h"

#include <pthread.h>

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

namespace octavo {
namespace {

namespace asio = boost::asio;

// Weight calls that may wait for the worker; each can hold a body of hundreds of MiB.
constexpr size_t kBlockingTasksMax = 32;

// How often RunPosted looks for more before sockets have their turn.
constexpr int kRunsAtOnce = 16;

// What top -H and /proc call the thread, so that its share of the work can be read there. At most
// 15 characters.
void NameThread(const char* name) { (void)pthread_setname_np(pthread_self(), name); }

}  // namespace

struct IoLoop::Impl {
  void WorkerLoop();
  bool TakePosted();
  void RunPosted();
  void AwaitSignal(const std::shared_ptr<std::function<void()>>& handler);

  // Guards io against being destroyed while others post to it. The io thread does not take it to
  // run tasks: whoever wakes that thread still holds it.
  std::mutex io_mutex;
  std::unique_ptr<asio::io_context> io = std::make_unique<asio::io_context>(1);
  std::optional<asio::executor_work_guard<asio::io_context::executor_type>> guard;
  std::unique_ptr<asio::signal_set> signals;
  std::thread io_thread;

  std::mutex posted_mutex;  // Guards posted and run_due; after io_mutex where both are held.
  std::vector<std::function<void()>> posted;
  bool run_due = false;                      // RunPosted will look at `posted` again.
  std::vector<std::function<void()>> taken;  // The io thread's.

  std::mutex worker_mutex;  // Guards tasks and stopping.
  std::condition_variable worker_wake;
  std::deque<std::function<void()>> tasks;
  bool stopping = false;
  std::thread worker;
};

void IoLoop::Impl::WorkerLoop() {
  while (true) {
    std::function<void()> task;
    {
      std::unique_lock lock(worker_mutex);
      worker_wake.wait(lock, [this] { return stopping || !tasks.empty(); });
      if (stopping) {
        return;
      }
      task = std::move(tasks.front());
      tasks.pop_front();
    }
    task();
  }
}

// Gives what was posted since the last time. False when there is nothing: RunPosted ends, and the
// next to post wakes the io thread again.
bool IoLoop::Impl::TakePosted() {
  taken.clear();
  const std::lock_guard lock(posted_mutex);
  taken.swap(posted);
  run_due = !taken.empty();
  return run_due;
}

// Runs what is posted, and what is posted meanwhile. A step of the engine posts once per sequence:
// only the first of them pays for waking the thread, and sockets are written to after the last.
void IoLoop::Impl::RunPosted() {
  for (int i = 0; i < kRunsAtOnce; ++i) {
    if (!TakePosted()) {
      return;
    }
    for (std::function<void()>& task : taken) {
      std::exchange(task, nullptr)();
    }
  }
  asio::post(*io, [this] { RunPosted(); });  // Sockets have their turn.
}

IoLoop::IoLoop() : impl_(std::make_unique<Impl>()) {
  impl_->guard.emplace(impl_->io->get_executor());
}

IoLoop::~IoLoop() { Stop(); }

asio::io_context& IoLoop::context() { return *impl_->io; }

void IoLoop::Start() {
  impl_->io_thread = std::thread([this] {
    NameThread("octavo-http");
    impl_->io->run();
  });
  impl_->worker = std::thread([this] {
    NameThread("octavo-worker");
    impl_->WorkerLoop();
  });
}

void IoLoop::Post(std::function<void()> task) {
  const std::lock_guard lock(impl_->io_mutex);
  if (impl_->io == nullptr) {
    return;
  }
  bool wakes = false;
  {
    const std::lock_guard posted_lock(impl_->posted_mutex);
    impl_->posted.push_back(std::move(task));
    wakes = !std::exchange(impl_->run_due, true);
  }
  if (wakes) {
    asio::post(*impl_->io, [impl = impl_.get()] { impl->RunPosted(); });
  }
}

void IoLoop::PostAfter(double seconds, std::function<void()> task) {
  const std::lock_guard lock(impl_->io_mutex);
  if (impl_->io == nullptr) {
    return;
  }
  const auto timer = std::make_shared<asio::steady_timer>(
      *impl_->io, std::chrono::microseconds(static_cast<int64_t>(seconds * 1e6)));
  timer->async_wait([timer, task = std::move(task)](const boost::system::error_code& error) {
    if (!error) {
      task();
    }
  });
}

bool IoLoop::RunBlocking(std::function<void()> task) {
  const std::lock_guard lock(impl_->worker_mutex);
  if (impl_->stopping || impl_->tasks.size() >= kBlockingTasksMax) {
    return false;
  }
  impl_->tasks.push_back(std::move(task));
  impl_->worker_wake.notify_one();
  return true;
}

void IoLoop::Impl::AwaitSignal(const std::shared_ptr<std::function<void()>>& handler) {
  signals->async_wait([this, handler](const boost::system::error_code& error, int) {
    if (!error) {
      (*handler)();
      AwaitSignal(handler);
    }
  });
}

void IoLoop::WatchSignals(std::function<void()> handler) {
  const auto shared = std::make_shared<std::function<void()>>(std::move(handler));
  const std::lock_guard lock(impl_->io_mutex);
  if (impl_->io == nullptr) {
    return;
  }
  // Registered here, not on the io thread: a signal that comes right after this call is ours.
  impl_->signals = std::make_unique<asio::signal_set>(*impl_->io, SIGTERM, SIGINT);
  asio::post(*impl_->io, [this, shared] { impl_->AwaitSignal(shared); });
}

void IoLoop::Join() {
  {
    const std::lock_guard lock(impl_->worker_mutex);
    impl_->stopping = true;
    impl_->worker_wake.notify_one();
  }
  if (impl_->worker.joinable()) {
    impl_->worker.join();
  }
  impl_->tasks.clear();
  if (impl_->io != nullptr) {
    impl_->io->stop();
  }
  if (impl_->io_thread.joinable()) {
    impl_->io_thread.join();
  }
}

void IoLoop::Stop() {
  Join();
  std::unique_ptr<asio::io_context> io;
  std::vector<std::function<void()>> posted;
  {
    const std::lock_guard lock(impl_->io_mutex);
    const std::lock_guard posted_lock(impl_->posted_mutex);
    posted.swap(impl_->posted);
    impl_->signals.reset();
    impl_->guard.reset();
    io = std::move(impl_->io);
  }
  posted.clear();
  io.reset();  // Destroys sockets, coroutines and tasks, none of which may find the mutex held.
}

}  // namespace octavo
