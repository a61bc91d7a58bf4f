#include "octavo/sync/tcp_store_client.h"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/sync/peer_socket.h"

namespace octavo {
namespace {

static_assert(std::endian::native == std::endian::little, "the wire is little endian");

// Types of request.
constexpr uint8_t kValidate = 0;
constexpr uint8_t kSet = 1;
constexpr uint8_t kCompareSet = 2;
constexpr uint8_t kGet = 3;
constexpr uint8_t kAdd = 4;
constexpr uint8_t kCheck = 5;
constexpr uint8_t kWait = 6;
constexpr uint8_t kGetNumKeys = 7;
constexpr uint8_t kDelete = 8;
constexpr uint8_t kPing = 13;

constexpr uint32_t kMagic = 0x3C85F7CE;
constexpr std::string_view kInitKey = "init/";
constexpr uint8_t kAllThere = 0;     // CHECK's READY, and WAIT's STOP_WAITING.
constexpr uint8_t kNotAllThere = 1;  // CHECK's NOT_READY; WAIT's WAIT_CANCELED.

constexpr double kFirstProbeS = 0.01;
constexpr double kLongestProbeS = 0.25;

std::string ListKeys(std::span<const std::string> keys) {
  std::string list;
  for (const std::string& key : keys) {
    list += fmt::format("{}\"{}\"", list.empty() ? "" : ", ", key);
  }
  return list;
}

}  // namespace

std::string StoreKey(const std::vector<std::string>& prefixes, std::string_view key) {
  std::string whole = "/";
  for (const std::string& prefix : prefixes) {
    whole += prefix + "/";
  }
  return whole += key;
}

struct TcpStoreClient::Call {
  explicit Call(std::string name_of_it) : name(std::move(name_of_it)) {}
  Call(std::string_view verb, std::string_view key) : name(fmt::format("{} \"{}\"", verb, key)) {}

  template <typename T>
    requires std::is_integral_v<T>
  Call& Number(T value) {
    const size_t offset = bytes.size();
    bytes.resize(offset + sizeof(value));
    std::memcpy(bytes.data() + offset, &value, sizeof(value));
    return *this;
  }
  Call& Blob(std::span<const std::byte> blob) {
    Number(uint64_t{blob.size()});
    bytes.insert(bytes.end(), blob.begin(), blob.end());
    return *this;
  }
  Call& Text(std::string_view text) { return Blob(std::as_bytes(std::span(text))); }
  Call& Keys(std::span<const std::string> keys) {
    Number(uint64_t{keys.size()});
    for (const std::string& key : keys) {
      Text(key);
    }
    return *this;
  }

  std::string name;
  std::vector<std::byte> bytes;
};

Status TcpStoreClient::Fail(const Call& call, const Status& status) {
  socket_.Close();
  return status.WithContext(fmt::format("TCPStore: {}", call.name));
}

Status TcpStoreClient::Send(const Call& call, const WaitLimit& limit) {
  const Status sent = socket_.Send(call.bytes, limit);
  return sent.ok() ? sent : Fail(call, sent);
}

template <typename T>
Result<T> TcpStoreClient::AskNumber(const Call& call, const WaitLimit& limit) {
  RETURN_IF_ERROR(Send(call, limit));
  T number = 0;
  const Status received = socket_.Receive(std::as_writable_bytes(std::span(&number, 1)), limit);
  return received.ok() ? Result<T>(number) : Fail(call, received);
}

Result<std::vector<std::byte>> TcpStoreClient::AskValue(const Call& call, const WaitLimit& limit) {
  ASSIGN_OR_RETURN(const uint64_t num_bytes, AskNumber<uint64_t>(call, limit));
  if (num_bytes > kValueBytesMax) {
    return Fail(call, Corrupt("{}: expected a value of at most {} bytes, got a length of {}",
                              address(), kValueBytesMax, num_bytes));
  }
  std::vector<std::byte> value(num_bytes);
  const Status received = socket_.Receive(value, limit);
  return received.ok() ? Result<std::vector<std::byte>>(std::move(value)) : Fail(call, received);
}

Result<TcpStoreClient> TcpStoreClient::Connect(const PeerAddress& address, const WaitLimit& limit) {
  TcpStoreClient store;
  Call hello("VALIDATE and PING");
  const uint32_t nonce = std::random_device()();
  hello.Number(kValidate).Number(kMagic).Number(kPing).Number(nonce);
  Result<PeerSocket> socket = PeerSocket::Connect(address, limit);
  if (!socket.has_value()) {
    return store.Fail(hello, socket.error());
  }
  store.socket_ = std::move(socket).value();
  ASSIGN_OR_RETURN(const uint32_t echo, store.AskNumber<uint32_t>(hello, limit));
  if (echo != nonce) {
    return store.Fail(hello, Corrupt("{}: expected our nonce {:08x} back, got {:08x}: no TCPStore "
                                     "of torch 2.1 or later listens there",
                                     address.ToString(), nonce, echo));
  }
  ASSIGN_OR_RETURN(store.num_workers_, store.Add(kInitKey, 1, limit));
  return store;
}

Status TcpStoreClient::Set(std::string_view key, std::span<const std::byte> value,
                           const WaitLimit& limit) {
  return Send(Call("SET", key).Number(kSet).Text(key).Blob(value), limit);
}

Result<std::vector<std::byte>> TcpStoreClient::Get(std::string_view key, const WaitLimit& limit) {
  const std::string text(key);
  RETURN_IF_ERROR(Wait(std::span(&text, 1), limit));
  return AskValue(Call("GET", key).Number(kGet).Text(key), limit);
}

Result<int64_t> TcpStoreClient::Add(std::string_view key, int64_t amount, const WaitLimit& limit) {
  return AskNumber<int64_t>(Call("ADD", key).Number(kAdd).Text(key).Number(amount), limit);
}

Result<std::vector<std::byte>> TcpStoreClient::CompareSet(std::string_view key, const Swap& swap,
                                                          const WaitLimit& limit) {
  Call call("COMPARE_SET", key);
  call.Number(kCompareSet).Text(key).Blob(swap.expected).Blob(swap.desired);
  return AskValue(call, limit);
}

Result<bool> TcpStoreClient::Check(std::span<const std::string> keys, const WaitLimit& limit) {
  Call call(fmt::format("CHECK {}", ListKeys(keys)));
  call.Number(kCheck).Keys(keys);
  ASSIGN_OR_RETURN(const uint8_t answer, AskNumber<uint8_t>(call, limit));
  if (answer != kAllThere && answer != kNotAllThere) {
    return Fail(call,
                Corrupt("{}: expected 0 (ready) or 1 (not ready), got {}", address(), answer));
  }
  return answer == kAllThere;
}

Status TcpStoreClient::Wait(std::span<const std::string> keys, const WaitLimit& limit) {
  Call call(fmt::format("WAIT {}", ListKeys(keys)));
  call.Number(kWait).Keys(keys);
  ASSIGN_OR_RETURN(const uint8_t answer, AskNumber<uint8_t>(call, limit));
  if (answer != kAllThere) {
    return Fail(call, Corrupt("{}: expected 0 (stop waiting), got {}", address(), answer));
  }
  return OkStatus();
}

Result<std::string> TcpStoreClient::WaitForAny(std::span<const std::string> candidates,
                                               const WaitLimit& limit) {
  const Call call(fmt::format("waiting for one of {}", ListKeys(candidates)));
  for (double pause_s = kFirstProbeS;; pause_s = std::min(2.0 * pause_s, kLongestProbeS)) {
    for (const std::string& key : candidates) {
      const Result<bool> is_there = Check(std::span(&key, 1), limit);
      if (!is_there.has_value()) {
        return Fail(call, is_there.error());
      }
      if (*is_there) {
        return key;
      }
    }
    if (const Status over = Pause(pause_s, limit); !over.ok()) {
      return Fail(call, over.WithContext(address()));
    }
  }
}

Result<bool> TcpStoreClient::Delete(std::string_view key, const WaitLimit& limit) {
  ASSIGN_OR_RETURN(const int64_t num_deleted,
                   AskNumber<int64_t>(Call("DELETE", key).Number(kDelete).Text(key), limit));
  return num_deleted != 0;
}

Result<int64_t> TcpStoreClient::NumKeys(const WaitLimit& limit) {
  return AskNumber<int64_t>(Call("GETNUMKEYS").Number(kGetNumKeys), limit);
}

}  // namespace octavo
