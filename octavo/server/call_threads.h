#pragma once
// CallThreads: a thread for each call that waits for another machine. The reactor's worker runs one
// task after the other, and a group of ranks may be waiting for one of a second group.

#include <atomic>
#include <functional>
#include <list>
#include <memory>
#include <thread>

namespace octavo {

// One thread calls it. Tasks must end by themselves: destroying it waits for them.
class CallThreads {
 public:
  explicit CallThreads(int num_calls_max) : num_calls_max_(num_calls_max) {}
  ~CallThreads();
  CallThreads(const CallThreads&) = delete;
  CallThreads& operator=(const CallThreads&) = delete;

  // False, and nothing is run, while as many tasks as allowed are running.
  bool Run(std::function<void()> task);

 private:
  struct Call {
    std::thread thread;
    std::shared_ptr<std::atomic<bool>> is_done;
  };

  const int num_calls_max_;
  std::list<Call> calls_;
};

}  // namespace octavo
