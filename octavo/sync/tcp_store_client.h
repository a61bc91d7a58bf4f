#pragma once
// TcpStoreClient: a client of PyTorch's TCPStore, the key-value server over which the ranks of a
// process group find each other. Rank 0 (the trainer) runs the server.
//
// Wire (torch >= 2.1, the libuv server; recorded with torch 2.11): little endian; a request is one
// byte of type and its arguments; a string or blob is uint64 length + bytes.
//
//   VALIDATE 0     uint32 0x3C85F7CE                         -> nothing
//   SET 1          key, value                                -> nothing
//   COMPARE_SET 2  key, expected, desired                    -> value
//   GET 3          key, which must be there (WAIT first)     -> value
//   ADD 4          key, int64                                -> int64, the sum
//   CHECK 5        uint64 count, keys                        -> byte, 0: all are there, 1: not
//   WAIT 6         uint64 count, keys                        -> byte 0 once all are there
//   GETNUMKEYS 7                                             -> int64
//   DELETE 8       key                                       -> int64, how many were there
//   PING 13        uint32 nonce                              -> the nonce
//
// A client opens with VALIDATE and PING in one packet, then counts itself: ADD "init/" 1. Keys of
// users have '/' in front; those of a prefix store inside are PREFIX '/' KEY.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/sync/peer_socket.h"

namespace octavo {

// The key as the server has it of `key` under nested prefix stores, outermost first:
// StoreKey({"G", "G", "/cuda/"}, "0") is "/G/G//cuda//0".
std::string StoreKey(const std::vector<std::string>& prefixes, std::string_view key);

// One thread at a time. Move-only. Keys are whole: StoreKey makes them.
//
// Every call is bounded by its limit. Errors of all: kUnavailable (peer gone, deadline),
// kCancelled, kCorrupt (not what the protocol says); the message names address, call and key. After
// one the two sides may be out of step, so the connection is closed, and later calls are
// kUnavailable.
class TcpStoreClient {
 public:
  // Longest value that is taken from a server; a NCCL id has 128 bytes.
  static constexpr uint64_t kValueBytesMax = uint64_t{1} << 20;

  // Connects (PeerSocket::Connect), validates, pings, and counts itself under "init/".
  static Result<TcpStoreClient> Connect(const PeerAddress& address, const WaitLimit& limit);

  // Clients that had counted themselves when this one had, itself included: at most the world size
  // as long as nobody joins twice.
  int64_t num_workers() const { return num_workers_; }
  bool is_open() const { return socket_.is_open(); }
  const std::string& address() const { return socket_.name(); }

  // The server answers nothing: that it has the value shows at the next call.
  Status Set(std::string_view key, std::span<const std::byte> value, const WaitLimit& limit);
  // Waits until the key is there.
  Result<std::vector<std::byte>> Get(std::string_view key, const WaitLimit& limit);
  // Adds to the decimal number under `key`, 0 when there is none; the sum.
  Result<int64_t> Add(std::string_view key, int64_t amount, const WaitLimit& limit);
  // Sets `desired` if the key holds `expected`, or if there is none and `expected` is empty.
  // Returns what it holds then (`expected`, when there is none still).
  struct Swap {
    std::span<const std::byte> expected;
    std::span<const std::byte> desired;
  };
  Result<std::vector<std::byte>> CompareSet(std::string_view key, const Swap& swap,
                                            const WaitLimit& limit);
  // Whether all of `keys` are there.
  Result<bool> Check(std::span<const std::string> keys, const WaitLimit& limit);
  // Waits until all of `keys` are there.
  Status Wait(std::span<const std::string> keys, const WaitLimit& limit);
  // Waits until one of `candidates` is there; which. How a key that depends on the peer's version
  // is found. The error at the deadline names all of them.
  Result<std::string> WaitForAny(std::span<const std::string> candidates, const WaitLimit& limit);
  // Whether the key was there.
  Result<bool> Delete(std::string_view key, const WaitLimit& limit);
  Result<int64_t> NumKeys(const WaitLimit& limit);

 private:
  struct Call;  // What is sent, and what messages call it.

  Status Send(const Call& call, const WaitLimit& limit);
  // Send, then the answer of that type.
  template <typename T>
  Result<T> AskNumber(const Call& call, const WaitLimit& limit);
  Result<std::vector<std::byte>> AskValue(const Call& call, const WaitLimit& limit);
  // Closes, and says in which call.
  Status Fail(const Call& call, const Status& status);

  PeerSocket socket_;
  int64_t num_workers_ = 0;
};

}  // namespace octavo
