#include "octavo/sync/peer_socket.h"

#include <asm-generic/socket.h>
#include <netdb.h>
#include <netinet/in.h>  // NOLINT(misc-include-cleaner): IPPROTO_TCP
#include <netinet/tcp.h>
#include <sys/eventfd.h>
#include <sys/poll.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <future>
#include <memory>
#include <ratio>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "octavo/base/check.h"
#include "octavo/base/status.h"

namespace octavo {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kFirstPauseS = 0.02;
constexpr double kLongestPauseS = 0.5;
// Of one address of several: a host that drops packets must not use up the whole limit.
constexpr double kConnectS = 10.0;

std::string ErrnoText(int error) { return std::strerror(error); }  // NOLINT(concurrency-mt-unsafe)

// Waits until `fd` is ready for `events`. Errors: those of WaitLimit::Check.
Status Await(int fd, short events, const WaitLimit& limit) {
  for (;;) {
    // First of all, so that a peer that always has a little more does not outlast the deadline.
    if (limit.MillisecondsLeft() == 0) {
      RETURN_IF_ERROR(limit.Check());
    }
    pollfd polled[2] = {{fd, events, 0},
                        {limit.cancel == nullptr ? -1 : limit.cancel->fd(), POLLIN, 0}};
    const int num_ready = poll(polled, 2, limit.MillisecondsLeft());
    if (num_ready < 0 && errno != EINTR) {
      return Internal("poll: {}", ErrnoText(errno));
    }
    if (num_ready > 0 && polled[0].revents != 0 && polled[1].revents == 0) {
      return OkStatus();
    }
    RETURN_IF_ERROR(limit.Check());
  }
}

struct SocketAddress {
  sockaddr_storage storage = {};
  socklen_t length = 0;
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
};
using SocketAddresses = std::vector<SocketAddress>;

Result<SocketAddresses> Resolve(const PeerAddress& address, int flags) {
  addrinfo hints = {};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags | AI_NUMERICSERV;
  addrinfo* list = nullptr;
  const int error =
      getaddrinfo(address.host.c_str(), std::to_string(address.port).c_str(), &hints, &list);
  if (error != 0) {
    return Unavailable("cannot resolve the host: {}", gai_strerror(error));
  }
  SocketAddresses found;
  for (const addrinfo* entry = list; entry != nullptr; entry = entry->ai_next) {
    SocketAddress& one = found.emplace_back();
    std::memcpy(&one.storage, entry->ai_addr, entry->ai_addrlen);
    one.length = entry->ai_addrlen;
  }
  freeaddrinfo(list);
  return found;
}

// A name server that is silent would hold getaddrinfo, which cannot be interrupted, past any
// deadline: a name is looked up on a thread that is left behind when the time is over.
Result<SocketAddresses> ResolveWithin(const PeerAddress& address, const WaitLimit& limit) {
  if (auto numeric = Resolve(address, AI_NUMERICHOST); numeric.has_value()) {
    return numeric;
  }
  auto promise = std::make_shared<std::promise<Result<SocketAddresses>>>();
  std::future<Result<SocketAddresses>> answer = promise->get_future();
  std::thread([promise, address] { promise->set_value(Resolve(address, 0)); }).detach();
  while (answer.wait_for(std::chrono::milliseconds(10)) != std::future_status::ready) {
    if (const Status over = limit.Check(); !over.ok()) {
      return over.WithContext("resolving the host");
    }
  }
  return answer.get();
}

// With a port of the range that the system draws from, and nobody listening, a socket can become
// its own peer: both ends send a SYN.
bool IsOwnPeer(int fd) {
  SocketAddress own;
  SocketAddress peer;
  own.length = peer.length = sizeof(sockaddr_storage);
  return getsockname(fd, reinterpret_cast<sockaddr*>(&own.storage), &own.length) == 0 &&
         getpeername(fd, reinterpret_cast<sockaddr*>(&peer.storage), &peer.length) == 0 &&
         own.length == peer.length && std::memcmp(&own.storage, &peer.storage, own.length) == 0;
}

// One attempt at one address; the descriptor.
Result<int> ConnectOnce(const SocketAddress& address, const WaitLimit& limit) {
  const int fd = socket(address.storage.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) {
    return Unavailable("socket: {}", ErrnoText(errno));
  }
  Status status = OkStatus();
  if (connect(fd, address.get(), address.length) != 0) {
    status = errno == EINPROGRESS ? Await(fd, POLLOUT, limit) : Unavailable("{}", ErrnoText(errno));
    int error = 0;
    socklen_t length = sizeof(error);
    if (status.ok() && getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) == 0 && error != 0) {
      status = Unavailable("{}", ErrnoText(error));
    }
  }
  if (status.ok() && IsOwnPeer(fd)) {
    status = Unavailable("nobody listens there");
  }
  if (!status.ok()) {
    close(fd);
    return status;
  }
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  return fd;
}

}  // namespace

Cancellation::Cancellation() : fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) { CHECK(fd_ >= 0); }
Cancellation::~Cancellation() { close(fd_); }

void Cancellation::Cancel() {
  const uint64_t one = 1;
  // Fails only when the counter is full, and then it is readable.
  [[maybe_unused]] const ssize_t written = write(fd_, &one, sizeof(one));
}

bool Cancellation::cancelled() const {
  pollfd polled = {fd_, POLLIN, 0};
  return poll(&polled, 1, 0) > 0;
}

Status WaitLimit::Check() const {
  if (cancel != nullptr && cancel->cancelled()) {
    return Cancelled("cancelled");
  }
  return Clock::now() >= deadline ? Unavailable("the deadline has passed") : OkStatus();
}

int WaitLimit::MillisecondsLeft() const {
  const double left_ms = std::chrono::duration<double, std::milli>(deadline - Clock::now()).count();
  return static_cast<int>(std::clamp(std::ceil(left_ms), 0.0, 1e9));
}

WaitLimit WaitLimit::AtMost(double seconds) const {
  return {.deadline = std::min(deadline, LimitAfter(seconds).deadline), .cancel = cancel};
}

WaitLimit LimitAfter(double seconds, const Cancellation* cancel) {
  return {.deadline = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                         std::chrono::duration<double>(seconds)),
          .cancel = cancel};
}

Status Pause(double seconds, const WaitLimit& limit) {
  const WaitLimit pause = limit.AtMost(seconds);
  while (pause.MillisecondsLeft() > 0) {
    pollfd polled = {limit.cancel == nullptr ? -1 : limit.cancel->fd(), POLLIN, 0};
    if (poll(&polled, 1, pause.MillisecondsLeft()) != 0) {
      break;
    }
  }
  return limit.Check();
}

std::string PeerAddress::ToString() const {
  const bool is_v6 = host.find(':') != std::string::npos;
  return fmt::format("{}{}{}:{}", is_v6 ? "[" : "", host, is_v6 ? "]" : "", port);
}

Result<PeerAddress> ParsePeerAddress(std::string_view text) {
  PeerAddress address;
  const size_t colon = text.rfind(':');
  const std::string_view port = colon == std::string_view::npos ? "" : text.substr(colon + 1);
  const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), address.port);
  std::string_view host = text.substr(0, colon);
  if (host.starts_with('[') && host.ends_with(']')) {
    host = host.substr(1, host.size() - 2);
  }
  if (host.empty() || error != std::errc() || end != port.data() + port.size() ||
      address.port < 1 || address.port > 65535) {
    return Corrupt("expected an address HOST:PORT, got \"{}\"", text);
  }
  address.host = host;
  return address;
}

PeerSocket& PeerSocket::operator=(PeerSocket&& other) noexcept {
  Close();
  fd_ = std::exchange(other.fd_, -1);
  name_ = std::move(other.name_);
  return *this;
}

Result<PeerSocket> PeerSocket::Connect(const PeerAddress& address, const WaitLimit& limit) {
  if (address.host.empty() || address.port < 1 || address.port > 65535) {
    return InvalidArgument("{}: expected a host and a port in 1..65535", address.ToString());
  }
  Status last = OkStatus();
  for (double pause_s = kFirstPauseS;; pause_s = std::min(2.0 * pause_s, kLongestPauseS)) {
    const Result<SocketAddresses> found = ResolveWithin(address, limit);
    last = found.has_value() ? last : found.error();
    for (const SocketAddress& one : found.has_value() ? *found : SocketAddresses()) {
      const Result<int> fd = ConnectOnce(one, limit.AtMost(kConnectS));
      if (fd.has_value()) {
        PeerSocket connected;
        connected.fd_ = *fd;
        connected.name_ = address.ToString();
        return connected;
      }
      last = fd.error();
    }
    if (const Status over = Pause(pause_s, limit); !over.ok()) {
      return Status(over.code(), fmt::format("{}: cannot connect: {} ({})", address.ToString(),
                                             over.message(), last.message()));
    }
  }
}

Status PeerSocket::Send(std::span<const std::byte> bytes, const WaitLimit& limit) {
  if (!is_open()) {
    return Unavailable("{}: the connection is closed", name_);
  }
  size_t num_sent = 0;
  while (num_sent < bytes.size()) {
    const ssize_t sent = send(fd_, bytes.data() + num_sent, bytes.size() - num_sent, MSG_NOSIGNAL);
    if (sent >= 0) {
      num_sent += static_cast<size_t>(sent);
      continue;
    }
    Status status = errno == EAGAIN || errno == EINTR ? Await(fd_, POLLOUT, limit)
                                                      : Unavailable("{}", ErrnoText(errno));
    if (!status.ok()) {
      return status.WithContext(
          fmt::format("{}: sent {} of {} bytes", name_, num_sent, bytes.size()));
    }
  }
  return OkStatus();
}

Status PeerSocket::Receive(std::span<std::byte> out, const WaitLimit& limit) {
  if (!is_open()) {
    return Unavailable("{}: the connection is closed", name_);
  }
  size_t num_received = 0;
  while (num_received < out.size()) {
    Status status = Await(fd_, POLLIN, limit);
    if (status.ok()) {
      const ssize_t received = recv(fd_, out.data() + num_received, out.size() - num_received, 0);
      num_received += static_cast<size_t>(std::max<ssize_t>(received, 0));
      if (received == 0) {
        status = Unavailable("the peer closed the connection");
      } else if (received < 0 && errno != EAGAIN && errno != EINTR) {
        status = Unavailable("{}", ErrnoText(errno));
      }
    }
    if (!status.ok()) {
      return status.WithContext(
          fmt::format("{}: received {} of {} bytes", name_, num_received, out.size()));
    }
  }
  return OkStatus();
}

void PeerSocket::Close() {
  if (fd_ >= 0) {
    close(fd_);
    fd_ = -1;
  }
}

}  // namespace octavo
