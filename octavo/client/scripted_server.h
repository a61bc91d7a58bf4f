#pragma once
// For tests: an HTTP server on a port of its own whose every reply is written out by the test, raw.

#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/types.h>

#include <charconv>
#include <cstddef>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/loopback_listener_for_test.h"

namespace octavo {

struct ScriptedRequest {
  std::string line;  // "POST /generate"
  std::string body;
  std::string authorization;  // Of the header; empty: there was none.
  int connection_idx = 0;
};

// "HTTP/1.1 STATUS x" with a Content-Length.
inline std::string RawReply(int status, std::string_view body, std::string_view headers = "") {
  return fmt::format("HTTP/1.1 {} x\r\nContent-Length: {}\r\n{}\r\n{}", status, body.size(),
                     headers, body);
}

// Handlers run on connection threads, one request a connection at a time. A reply that is empty
// closes the connection. Stops and joins when destroyed.
class ScriptedServer {
 public:
  using Handler = std::function<std::string(const ScriptedRequest&)>;

  explicit ScriptedServer(Handler handler)
      : handler_(std::move(handler)),
        listener_([this](int fd, int connection_idx) { Serve(fd, connection_idx); }) {}

  std::string url() const { return fmt::format("http://127.0.0.1:{}", port()); }
  int port() const { return listener_.port(); }
  std::vector<ScriptedRequest> requests() const {
    const std::lock_guard lock(mutex_);
    return requests_;
  }

 private:
  void Serve(int fd, int connection_idx) {
    std::string data;
    for (;;) {
      size_t head_end = 0;
      while ((head_end = data.find("\r\n\r\n")) == std::string::npos) {
        if (!Receive(fd, &data)) {
          return;
        }
      }
      const size_t body_bytes = ContentLength(std::string_view(data).substr(0, head_end));
      while (data.size() < head_end + 4 + body_bytes) {
        if (!Receive(fd, &data)) {
          return;
        }
      }
      ScriptedRequest request = {
          .line = data.substr(0, data.find(" HTTP/1.1")),
          .body = data.substr(head_end + 4, body_bytes),
          .authorization = Field(std::string_view(data).substr(0, head_end), "Authorization"),
          .connection_idx = connection_idx};
      data.erase(0, head_end + 4 + body_bytes);
      {
        const std::lock_guard lock(mutex_);
        requests_.push_back(request);
      }
      const std::string reply = handler_(request);
      if (reply.empty()) {
        shutdown(fd, SHUT_RDWR);
        return;
      }
      if (send(fd, reply.data(), reply.size(), MSG_NOSIGNAL) < 0) {
        return;
      }
    }
  }

  static bool Receive(int fd, std::string* data) {
    char piece[4096];
    const ssize_t got = recv(fd, piece, sizeof(piece), 0);
    if (got > 0) {
      data->append(piece, static_cast<size_t>(got));
    }
    return got > 0;
  }

  static std::string Field(std::string_view head, std::string_view name) {
    const std::string start = fmt::format("\r\n{}: ", name);
    const size_t at = head.find(start);
    if (at == std::string_view::npos) {
      return "";
    }
    head.remove_prefix(at + start.size());
    return std::string(head.substr(0, head.find("\r\n")));
  }

  static size_t ContentLength(std::string_view head) {
    const std::string field = Field(head, "Content-Length");
    size_t length = 0;
    std::from_chars(field.data(), field.data() + field.size(), length);
    return length;
  }

  Handler handler_;
  mutable std::mutex mutex_;
  std::vector<ScriptedRequest> requests_;  // Guarded by mutex_.
  LoopbackListener listener_;              // Last: its threads use what is above.
};

}  // namespace octavo
