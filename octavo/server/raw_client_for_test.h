#pragma once
// For tests: an HTTP client that writes bytes by hand, so that framing is tested as it stands on
// the wire.

#include <fmt/format.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/types.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <utility>

namespace octavo {

struct Reply {
  int status = 0;
  std::string head;
  std::string body;  // Decoded from chunks.
};

// One connection, blocking, a minute a read.
class Client {
 public:
  // `receive_bytes` > 0 bounds what the kernel takes in for a client that does not read.
  explicit Client(int port, int receive_bytes = 0) : fd_(socket(AF_INET, SOCK_STREAM, 0)) {
    const timeval timeout{.tv_sec = 60, .tv_usec = 0};
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
    if (receive_bytes > 0) {
      setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_bytes, sizeof(receive_bytes));
    }
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connected_ = connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0;
  }
  ~Client() { Close(); }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  bool connected() const { return connected_; }
  void Close() {
    if (fd_ >= 0) {
      close(std::exchange(fd_, -1));
    }
  }
  void Send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t sent = send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent <= 0) {
        return;
      }
      bytes.remove_prefix(static_cast<size_t>(sent));
    }
  }
  void SendRequest(std::string_view method, std::string_view target, std::string_view body,
                   std::string_view headers = "") {
    Send(fmt::format("{} {} HTTP/1.1\r\nHost: x\r\n{}Content-Length: {}\r\n\r\n{}", method, target,
                     headers, body.size(), body));
  }
  Reply Call(std::string_view method, std::string_view target, std::string_view body = "",
             std::string_view headers = "") {
    SendRequest(method, target, body, headers);
    return Read();
  }

  // The next response. Status 0 when the peer closes first.
  Reply Read() {
    Reply reply;
    while (buffer_.find("\r\n\r\n") == std::string::npos) {
      if (!Fill()) {
        return reply;
      }
    }
    const size_t end = buffer_.find("\r\n\r\n") + 4;
    reply.head = buffer_.substr(0, end);
    buffer_.erase(0, end);
    reply.status = std::atoi(reply.head.c_str() + std::string_view("HTTP/1.1 ").size());
    if (reply.head.find("Transfer-Encoding: chunked") != std::string::npos) {
      ReadChunks(reply.body);
    } else if (const size_t at = reply.head.find("Content-Length: "); at != std::string::npos) {
      reply.body = Take(std::strtoul(reply.head.c_str() + at + 16, nullptr, 10));
    }
    return reply;
  }

  // True when the peer has closed its end and nothing is left to read.
  bool AtEnd() { return buffer_.empty() && !Fill(); }

  bool Fill() {
    char bytes[65536];
    const ssize_t got = recv(fd_, bytes, sizeof(bytes), 0);
    if (got > 0) {
      buffer_.append(bytes, static_cast<size_t>(got));
    }
    return got > 0;
  }
  const std::string& buffer() const { return buffer_; }

 private:
  std::string Take(size_t num_bytes) {
    while (buffer_.size() < num_bytes && Fill()) {
    }
    std::string taken = buffer_.substr(0, num_bytes);
    buffer_.erase(0, num_bytes);
    return taken;
  }
  void ReadChunks(std::string& body) {
    while (true) {
      while (buffer_.find("\r\n") == std::string::npos) {
        if (!Fill()) {
          return;
        }
      }
      const size_t line = buffer_.find("\r\n");
      const size_t size = std::strtoul(buffer_.c_str(), nullptr, 16);
      buffer_.erase(0, line + 2);
      body += Take(size);
      Take(2);
      if (size == 0) {
        return;
      }
    }
  }

  int fd_;
  bool connected_ = false;
  std::string buffer_;
};

}  // namespace octavo
