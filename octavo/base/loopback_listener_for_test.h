#pragma once
// For tests: a TCP listener on 127.0.0.1 with a thread for each connection.

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <functional>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "octavo/base/check.h"

namespace octavo {

// Calls serve(fd, connection_idx), counted from 0, on a thread of its own for each connection; its
// return shuts the connection down. Stops and joins when destroyed.
class LoopbackListener {
 public:
  using Serve = std::function<void(int fd, int connection_idx)>;

  explicit LoopbackListener(Serve serve) : serve_(std::move(serve)) {
    listener_ = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(listener_ >= 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof(address);
    auto* raw = reinterpret_cast<sockaddr*>(&address);
    CHECK(bind(listener_, raw, length) == 0);
    CHECK(listen(listener_, 64) == 0);
    CHECK(getsockname(listener_, raw, &length) == 0);
    port_ = ntohs(address.sin_port);
    acceptor_ = std::thread([this] { AcceptLoop(); });
  }
  LoopbackListener(const LoopbackListener&) = delete;
  LoopbackListener& operator=(const LoopbackListener&) = delete;
  ~LoopbackListener() { Stop(); }

  // Closes the listener and all connections, and waits for their threads.
  void Stop() {
    if (!acceptor_.joinable()) {
      return;
    }
    shutdown(listener_, SHUT_RDWR);
    acceptor_.join();
    {
      const std::lock_guard lock(mutex_);
      for (const int fd : connections_) {
        shutdown(fd, SHUT_RDWR);
      }
    }
    for (std::thread& thread : threads_) {
      thread.join();
    }
    for (const int fd : connections_) {
      close(fd);
    }
    close(listener_);
  }

  int port() const { return port_; }

 private:
  void AcceptLoop() {
    for (int fd = accept(listener_, nullptr, nullptr); fd >= 0;
         fd = accept(listener_, nullptr, nullptr)) {
      const std::lock_guard lock(mutex_);
      const int connection_idx = static_cast<int>(connections_.size());
      connections_.push_back(fd);
      threads_.emplace_back([this, fd, connection_idx] {
        serve_(fd, connection_idx);
        shutdown(fd, SHUT_RDWR);
      });
    }
  }

  Serve serve_;
  int listener_ = -1;
  int port_ = 0;
  std::thread acceptor_;
  std::mutex mutex_;
  std::vector<std::thread> threads_;
  std::vector<int> connections_;  // Guarded by mutex_.
};

}  // namespace octavo
