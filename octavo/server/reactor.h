#pragma once
// Reactor: where the server's code runs. Handlers and sessions live on one io thread, so they need
// no lock; whatever blocks (disk, quantizing, digests) runs on a worker and posts its result back.

#include <functional>

namespace octavo {

// Thread-safe.
class Reactor {
 public:
  virtual ~Reactor() = default;
  // Runs `task` on the io thread, in the order of the calls; drops it once the server has stopped.
  virtual void Post(std::function<void()> task) = 0;
  // The same after `seconds`.
  virtual void PostAfter(double seconds, std::function<void()> task) = 0;
  // Runs `task` on the worker, one after the other. False when too many are waiting already or the
  // server stops; the task is then dropped.
  virtual bool RunBlocking(std::function<void()> task) = 0;
};

}  // namespace octavo
