#pragma once
// IoLoop: the server's two threads, one for all sockets and handlers, one for what blocks.

#include <functional>
#include <memory>

#include "octavo/server/reactor.h"

namespace boost::asio {
class io_context;  // NOLINT(readability-identifier-naming): Asio's
}

namespace octavo {

// Thread-safe.
class IoLoop final : public Reactor {
 public:
  IoLoop();
  ~IoLoop() override;
  IoLoop(const IoLoop&) = delete;
  IoLoop& operator=(const IoLoop&) = delete;

  void Post(std::function<void()> task) override;
  void PostAfter(double seconds, std::function<void()> task) override;
  bool RunBlocking(std::function<void()> task) override;

  // Starts both threads; call once, after the first sockets are registered.
  void Start();
  // Calls `handler` on the io thread for each SIGTERM and SIGINT from now on.
  void WatchSignals(std::function<void()> handler);
  // Ends both threads (the worker after its running task). What is left stays where it is, so that
  // objects which stand on context() can still be destroyed. Not on the io thread or the worker.
  void Join();
  // Join, and drops every task that is left. From here on Post and the others do nothing. Whoever
  // owns a socket or a timer of context() has to let go of it before this.
  void Stop();

  // For sockets; only before Stop, on the io thread or before Start.
  boost::asio::io_context& context();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace octavo
