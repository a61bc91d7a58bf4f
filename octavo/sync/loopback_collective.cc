#include "octavo/sync/loopback_collective.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/sync/collective.h"
#include "octavo/sync/peer_socket.h"
#include "octavo/sync/tcp_store_client.h"

namespace octavo {
namespace {

// Of an ABORT's text.
constexpr uint32_t kTextBytesMax = 4096;
// How long one address of rank 0 is tried before the store is asked again: an earlier group of the
// same name may have left its own.
constexpr double kRetryS = 1.0;

template <typename T>
Status ReceiveNumber(PeerSocket& socket, T& number, const WaitLimit& limit) {
  return socket.Receive(std::as_writable_bytes(std::span(&number, 1)), limit);
}

Result<LoopbackRecord> ReceiveKind(PeerSocket& socket, const WaitLimit& limit) {
  uint8_t kind = 0;
  RETURN_IF_ERROR(ReceiveNumber(socket, kind, limit));
  if (kind < static_cast<uint8_t>(LoopbackRecord::kJoined) ||
      kind > static_cast<uint8_t>(LoopbackRecord::kAbort)) {
    return Corrupt("{}: expected a record of kind 1 to 4, got {}", socket.name(), kind);
  }
  return static_cast<LoopbackRecord>(kind);
}

// What an ABORT says.
Status ReceiveAbort(PeerSocket& socket, const WaitLimit& limit) {
  uint32_t num_bytes = 0;
  RETURN_IF_ERROR(ReceiveNumber(socket, num_bytes, limit));
  if (num_bytes > kTextBytesMax) {
    return Corrupt("{}: expected an ABORT's text of at most {} bytes, got a length of {}",
                   socket.name(), kTextBytesMax, num_bytes);
  }
  std::string text(num_bytes, '\0');
  RETURN_IF_ERROR(socket.Receive(std::as_writable_bytes(std::span(text)), limit));
  return Unavailable("{}: rank 0 gave the group up: {}", socket.name(), text);
}

// Rank 0's socket, by way of the store.
Result<PeerSocket> FindRankZero(const GroupJoin& join, const WaitLimit& limit) {
  ASSIGN_OR_RETURN(TcpStoreClient store, TcpStoreClient::Connect(join.master, limit));
  for (;;) {
    ASSIGN_OR_RETURN(const std::vector<std::byte> value,
                     store.Get(LoopbackKey(join.group_name), limit));
    const std::string_view text(reinterpret_cast<const char*>(value.data()), value.size());
    const Result<PeerAddress> address = ParsePeerAddress(text);
    if (!address.has_value()) {
      return address.error().WithContext(
          fmt::format("TCPStore {}: \"{}\"", store.address(), LoopbackKey(join.group_name)));
    }
    Result<PeerSocket> socket = PeerSocket::Connect(*address, limit.AtMost(kRetryS));
    if (socket.has_value() || !limit.Check().ok()) {
      return socket;
    }
  }
}

Status SayHello(PeerSocket& socket, const GroupJoin& join, const WaitLimit& limit) {
  const std::array<uint32_t, 3> hello = {kLoopbackMagic, static_cast<uint32_t>(join.rank),
                                         static_cast<uint32_t>(join.world_size)};
  RETURN_IF_ERROR(socket.Send(std::as_bytes(std::span(hello)), limit));
  uint8_t answer = 0;
  uint32_t world_size = 0;
  RETURN_IF_ERROR(ReceiveNumber(socket, answer, limit));
  RETURN_IF_ERROR(ReceiveNumber(socket, world_size, limit));
  switch (static_cast<LoopbackAnswer>(answer)) {
    case LoopbackAnswer::kAccepted:
      return OkStatus();
    case LoopbackAnswer::kWorldSizeDiffers:
      return InvalidArgument("{}: expected world size {}, rank 0 has {}", socket.name(),
                             join.world_size, world_size);
    case LoopbackAnswer::kNoSuchRank:
      return InvalidArgument("{}: rank {}: rank 0 has ranks 0 to {}", socket.name(), join.rank,
                             int64_t{world_size} - 1);
    case LoopbackAnswer::kRankTaken:
      return InvalidArgument("{}: rank {} is taken by another peer", socket.name(), join.rank);
  }
  return Corrupt("{}: expected an answer of 0 to 3, got {}", socket.name(), answer);
}

// "ranks 0, 1 of 4 had joined, 2, 3 had not".
std::string DescribeRoster(const std::vector<bool>& has_joined) {
  std::string in;
  std::string out;
  for (size_t rank = 0; rank < has_joined.size(); ++rank) {
    std::string& list = has_joined[rank] ? in : out;
    list += fmt::format("{}{}", list.empty() ? "" : ", ", rank);
  }
  return fmt::format("of {} ranks {} had joined, {} had not", has_joined.size(), in, out);
}

// Until READY. Keeps `has_joined` for the message of an error.
Status AwaitReady(PeerSocket& socket, std::vector<bool>& has_joined, const WaitLimit& limit) {
  for (;;) {
    ASSIGN_OR_RETURN(const LoopbackRecord kind, ReceiveKind(socket, limit));
    if (kind == LoopbackRecord::kReady) {
      return OkStatus();
    }
    if (kind == LoopbackRecord::kAbort) {
      return ReceiveAbort(socket, limit);
    }
    if (kind == LoopbackRecord::kBroadcast) {
      return Corrupt("{}: expected JOINED or READY, got a BROADCAST", socket.name());
    }
    uint32_t rank = 0;
    RETURN_IF_ERROR(ReceiveNumber(socket, rank, limit));
    if (rank >= has_joined.size()) {
      return Corrupt("{}: JOINED: expected a rank below {}, got {}", socket.name(),
                     has_joined.size(), rank);
    }
    has_joined[rank] = true;
  }
}

}  // namespace

std::string LoopbackKey(std::string_view group_name) {
  const std::string group(group_name);
  return StoreKey({group, group, "/loopback/"}, "0");
}

Result<std::unique_ptr<Collective>> LoopbackCollective::Join(const GroupJoin& join,
                                                             const WaitLimit& limit) {
  // Bounds the roster, which is ours to allocate.
  constexpr int kWorldSizeMax = 1 << 16;
  if (join.world_size > kWorldSizeMax) {
    return InvalidArgument("{}: expected a world size of at most {}", join.ToString(),
                           kWorldSizeMax);
  }
  Result<PeerSocket> socket = FindRankZero(join, limit);
  if (!socket.has_value()) {
    return socket.error().WithContext(join.ToString());
  }
  Status status = SayHello(*socket, join, limit);
  if (!status.ok()) {
    return status.WithContext(join.ToString());
  }
  std::vector<bool> has_joined(static_cast<size_t>(join.world_size), false);
  has_joined[0] = true;
  status = AwaitReady(*socket, has_joined, limit);
  if (!status.ok()) {
    return Status(status.code(), fmt::format("{}: {}; {}", join.ToString(), status.message(),
                                             DescribeRoster(has_joined)));
  }
  return std::unique_ptr<Collective>(
      std::make_unique<LoopbackCollective>(join.ToString(), std::move(socket).value()));
}

Status LoopbackCollective::Receive(std::span<std::byte> out, const WaitLimit& limit) {
  ASSIGN_OR_RETURN(const LoopbackRecord kind, ReceiveKind(socket_, limit));
  if (kind == LoopbackRecord::kAbort) {
    return ReceiveAbort(socket_, limit);
  }
  if (kind != LoopbackRecord::kBroadcast) {
    return Corrupt("{}: expected a BROADCAST, got a record of kind {}", socket_.name(),
                   static_cast<int>(kind));
  }
  uint64_t num_bytes = 0;
  RETURN_IF_ERROR(ReceiveNumber(socket_, num_bytes, limit));
  if (num_bytes != out.size()) {
    return InvalidArgument("{}: expected a broadcast of {} bytes, rank 0 sends {}", socket_.name(),
                           out.size(), num_bytes);
  }
  return socket_.Receive(out, limit);
}

Status LoopbackCollective::ReceiveBroadcast(std::span<std::byte> out, const WaitLimit& limit) {
  if (!broken_.ok()) {
    return Unavailable("{}: out of step since an earlier error: {}", name_, broken_.message());
  }
  broken_ = Receive(out, limit);
  if (!broken_.ok()) {
    socket_.Close();
    return broken_.WithContext(name_);
  }
  return OkStatus();
}

}  // namespace octavo
