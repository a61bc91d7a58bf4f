#pragma once
// PeerSocket: a TCP connection to a peer of an update group, every wait of which has an end.

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "octavo/base/status.h"

namespace octavo {

// Ends the waits of another thread, now and for good. Thread-safe.
class Cancellation {
 public:
  Cancellation();
  ~Cancellation();
  Cancellation(const Cancellation&) = delete;
  Cancellation& operator=(const Cancellation&) = delete;

  void Cancel();
  bool cancelled() const;
  // A descriptor that is readable once it is cancelled: for poll, beside a socket.
  int fd() const { return fd_; }

 private:
  int fd_ = -1;
};

// Up to when a call may wait for its peer.
struct WaitLimit {
  std::chrono::steady_clock::time_point deadline;
  // Ends the wait earlier, with kCancelled; must outlive the call. May be null.
  const Cancellation* cancel = nullptr;

  // kCancelled or kUnavailable ("the deadline has passed") when the wait is over already.
  Status Check() const;
  // Milliseconds that are left, rounded up, at least 0: for poll.
  int MillisecondsLeft() const;
  // The same limit, but no later than `seconds` from now.
  WaitLimit AtMost(double seconds) const;
};

// A limit `seconds` from now.
WaitLimit LimitAfter(double seconds, const Cancellation* cancel = nullptr);
// Waits `seconds`, or until the limit if that comes first: its Check.
Status Pause(double seconds, const WaitLimit& limit);

struct PeerAddress {
  std::string host;  // A name, or an address without brackets.
  int port = 0;

  // "HOST:PORT", "[::1]:PORT".
  std::string ToString() const;
};

// Inverse of PeerAddress::ToString. Errors: kCorrupt.
Result<PeerAddress> ParsePeerAddress(std::string_view text);

// One thread at a time. Move-only. After an error the connection is in no known state: the caller
// closes it.
class PeerSocket {
 public:
  PeerSocket() = default;
  PeerSocket(PeerSocket&& other) noexcept
      : fd_(std::exchange(other.fd_, -1)), name_(std::move(other.name_)) {}
  PeerSocket& operator=(PeerSocket&& other) noexcept;
  ~PeerSocket() { Close(); }

  // Tries again while nobody listens: a trainer tells us where its store will be before it opens
  // it. Errors: kUnavailable naming the address and the last reason, kCancelled, kInvalidArgument
  // (a port that is none), kInternal.
  static Result<PeerSocket> Connect(const PeerAddress& address, const WaitLimit& limit);

  // All of `bytes`, or an error: kUnavailable (peer gone, deadline; says how many bytes had
  // passed), kCancelled.
  Status Send(std::span<const std::byte> bytes, const WaitLimit& limit);
  // Fills `out`. Errors as of Send.
  Status Receive(std::span<std::byte> out, const WaitLimit& limit);

  bool is_open() const { return fd_ >= 0; }
  void Close();
  // Whom it was connected to: "HOST:PORT".
  const std::string& name() const { return name_; }

 private:
  int fd_ = -1;
  std::string name_;
};

}  // namespace octavo
