#pragma once
// For tests: peers of an update group that do what the test writes out. ScriptedPeer is any TCP
// server; MapStore a TCPStore with a map behind it; LoopbackRoot rank 0 of a loopback group.

#include <sys/socket.h>

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/check.h"
#include "octavo/base/loopback_listener_for_test.h"
#include "octavo/sync/loopback_collective.h"
#include "octavo/sync/peer_socket.h"

namespace octavo {

// The bytes of numbers in memory order, which is the wire's.
template <typename T>
std::string RawBytes(T value) {
  std::string bytes(sizeof(value), '\0');
  std::memcpy(bytes.data(), &value, sizeof(value));
  return bytes;
}
inline std::string RawBlob(std::string_view text) {
  return RawBytes(uint64_t{text.size()}) + std::string(text);
}

// One accepted connection. Read and Number CHECK nothing: after the peer has gone they give "" and
// 0.
class ScriptedConnection {
 public:
  explicit ScriptedConnection(int fd) : fd_(fd) {}

  bool Write(std::string_view bytes) const {
    while (!bytes.empty()) {
      const ssize_t sent = send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent <= 0) {
        return false;
      }
      bytes.remove_prefix(static_cast<size_t>(sent));
    }
    return true;
  }
  // Exactly `num_bytes`, or "" when the peer has gone.
  std::string Read(size_t num_bytes) const {
    std::string bytes(num_bytes, '\0');
    size_t num_read = 0;
    while (num_read < num_bytes) {
      const ssize_t got = recv(fd_, bytes.data() + num_read, num_bytes - num_read, 0);
      if (got <= 0) {
        return "";
      }
      num_read += static_cast<size_t>(got);
    }
    return bytes;
  }
  template <typename T>
  std::optional<T> Number() const {
    const std::string bytes = Read(sizeof(T));
    if (bytes.empty()) {
      return std::nullopt;
    }
    T value;
    std::memcpy(&value, bytes.data(), sizeof(T));
    return value;
  }
  std::string Blob() const { return Read(Number<uint64_t>().value_or(0)); }
  void HangUp() const { shutdown(fd_, SHUT_RDWR); }
  // Until one side has hung up.
  void AwaitGone() const {
    while (Number<uint8_t>().has_value()) {
    }
  }

 private:
  int fd_;
};

// Calls `script` on a thread of its own for each connection; its return closes it. Stops and joins
// when destroyed.
class ScriptedPeer {
 public:
  using Script = std::function<void(const ScriptedConnection&)>;

  explicit ScriptedPeer(Script script)
      : listener_([script = std::move(script)](int fd, int /*connection_idx*/) {
          script(ScriptedConnection(fd));
        }) {}

  // Closes the listener and all connections, and waits for the scripts.
  void Stop() { listener_.Stop(); }

  PeerAddress address() const { return {.host = "127.0.0.1", .port = listener_.port()}; }

 private:
  LoopbackListener listener_;
};

// A TCPStore that keeps its promises.
class MapStore {
 public:
  MapStore() : peer_([this](const ScriptedConnection& connection) { Serve(connection); }) {}
  ~MapStore() {
    {
      const std::lock_guard lock(mutex_);
      is_stopped_ = true;
      changed_.notify_all();
    }
    peer_.Stop();
  }

  PeerAddress address() const { return peer_.address(); }
  void Set(const std::string& key, const std::string& value) {
    const std::lock_guard lock(mutex_);
    values_[key] = value;
    changed_.notify_all();
  }
  std::string Get(const std::string& key) {
    const std::lock_guard lock(mutex_);
    return values_.contains(key) ? values_[key] : "";
  }

 private:
  void Serve(const ScriptedConnection& connection) {
    while (const auto type = connection.Number<uint8_t>()) {
      if (!Answer(*type, connection)) {
        return;
      }
    }
  }

  bool Answer(uint8_t type, const ScriptedConnection& connection) {
    switch (type) {
      case 0:
        return connection.Number<uint32_t>() == 0x3C85F7CE;
      case 1: {
        const std::string key = connection.Blob();
        Set(key, connection.Blob());
        return true;
      }
      case 5:
      case 6:
        return AnswerKeys(type, connection);
      case 7: {
        const std::lock_guard lock(mutex_);
        return connection.Write(RawBytes(int64_t(values_.size())));
      }
      case 13:
        return connection.Write(RawBytes(connection.Number<uint32_t>().value_or(0)));
      default:
        return AnswerKey(type, connection);
    }
  }

  bool AnswerKey(uint8_t type, const ScriptedConnection& connection) {
    const std::string key = connection.Blob();
    const std::string first = type == 2 ? connection.Blob() : "";
    const std::string second = type == 2 ? connection.Blob() : "";
    const int64_t amount = type == 4 ? connection.Number<int64_t>().value_or(0) : 0;
    const std::lock_guard lock(mutex_);
    const auto found = values_.find(key);
    const bool is_there = found != values_.end();
    switch (type) {
      case 2:
        if (is_there ? found->second == first : first.empty()) {
          values_[key] = second;
          changed_.notify_all();
        }
        return connection.Write(RawBlob(values_.contains(key) ? values_[key] : first));
      case 3:
        return is_there && connection.Write(RawBlob(found->second));
      case 4: {
        const int64_t sum = amount + (is_there ? std::stoll(found->second) : 0);
        values_[key] = std::to_string(sum);
        changed_.notify_all();
        return connection.Write(RawBytes(sum));
      }
      case 8:
        return connection.Write(RawBytes(static_cast<int64_t>(values_.erase(key))));
      default:
        return false;
    }
  }

  bool AnswerKeys(uint8_t type, const ScriptedConnection& connection) {
    std::vector<std::string> keys(connection.Number<uint64_t>().value_or(0));
    for (std::string& key : keys) {
      key = connection.Blob();
    }
    std::unique_lock lock(mutex_);
    const auto all_there = [&] {
      return std::ranges::all_of(keys, [&](const auto& key) { return values_.contains(key); });
    };
    if (type == 5) {
      return connection.Write(RawBytes(uint8_t{!all_there()}));
    }
    changed_.wait(lock, [&] { return is_stopped_ || all_there(); });
    return connection.Write(RawBytes(uint8_t{!all_there()}));
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, std::string> values_;  // Guarded by mutex_.
  bool is_stopped_ = false;                    // Guarded by mutex_.
  ScriptedPeer peer_;
};

// The records of a loopback group, as rank 0 sends them.
inline std::string LoopbackAccepted(uint32_t world_size) {
  return RawBytes(LoopbackAnswer::kAccepted) + RawBytes(world_size);
}
inline std::string LoopbackJoined(uint32_t rank) {
  return RawBytes(LoopbackRecord::kJoined) + RawBytes(rank);
}
inline std::string LoopbackReady() { return RawBytes(LoopbackRecord::kReady); }
inline std::string LoopbackBroadcast(std::string_view bytes) {
  return RawBytes(LoopbackRecord::kBroadcast) + RawBlob(bytes);
}
inline std::string LoopbackAbort(std::string_view text) {
  return RawBytes(LoopbackRecord::kAbort) + RawBytes(static_cast<uint32_t>(text.size())) +
         std::string(text);
}

// Rank 0 as it should be: refuses what it must, and once all ranks are in calls `broadcast` for
// each rank's connection.
class LoopbackRoot {
 public:
  LoopbackRoot(MapStore* store, const std::string& group, uint32_t world_size,
               ScriptedPeer::Script broadcast)
      : world_size_(world_size),
        broadcast_(std::move(broadcast)),
        peer_([this](const ScriptedConnection& connection) { Serve(connection); }) {
    store->Set(LoopbackKey(group), peer_.address().ToString());
  }
  ~LoopbackRoot() {
    {
      const std::lock_guard lock(mutex_);
      is_stopped_ = true;
      changed_.notify_all();
    }
    peer_.Stop();
  }

 private:
  LoopbackAnswer Judge(uint32_t rank, uint32_t world_size) {
    if (world_size != world_size_) {
      return LoopbackAnswer::kWorldSizeDiffers;
    }
    if (rank == 0 || rank >= world_size) {
      return LoopbackAnswer::kNoSuchRank;
    }
    return ranks_.insert(rank).second ? LoopbackAnswer::kAccepted : LoopbackAnswer::kRankTaken;
  }

  void Serve(const ScriptedConnection& connection) {
    CHECK(connection.Number<uint32_t>().value_or(0) == kLoopbackMagic);
    const uint32_t rank = connection.Number<uint32_t>().value_or(0);
    const uint32_t world_size = connection.Number<uint32_t>().value_or(0);
    {
      std::unique_lock lock(mutex_);
      const LoopbackAnswer answer = Judge(rank, world_size);
      connection.Write(RawBytes(answer) + RawBytes(world_size_));
      if (answer != LoopbackAnswer::kAccepted) {
        return;
      }
      changed_.notify_all();
      changed_.wait(lock, [&] { return is_stopped_ || ranks_.size() == world_size_ - 1; });
      if (is_stopped_) {
        return;
      }
    }
    connection.Write(LoopbackJoined(rank) + LoopbackReady());
    broadcast_(connection);
    connection.AwaitGone();
    const std::lock_guard lock(mutex_);
    ranks_.erase(rank);
  }

  const uint32_t world_size_;
  ScriptedPeer::Script broadcast_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::set<uint32_t> ranks_;  // Guarded by mutex_. Those that are in.
  bool is_stopped_ = false;   // Guarded by mutex_.
  ScriptedPeer peer_;
};

}  // namespace octavo
