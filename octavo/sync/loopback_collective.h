#pragma once
// LoopbackCollective: a group over TCP, without a GPU. Rank 0 is any process that speaks what
// follows: a test, or a trainer on a machine without NCCL.
//
// Rank 0 listens, and sets its address as text, "HOST:PORT", in the group's store under
// "/G/G//loopback//0" for a group named G. Each other rank connects to it. Little endian:
//
//   rank -> 0   12 bytes: uint32 0x31424C4F ("OLB1"), uint32 rank, uint32 world_size
//   0 -> rank   5 bytes: a byte and uint32, the world size that rank 0 has. The byte: 0 accepted,
//               1 another world size, 2 no such rank, 3 that rank is taken; then it closes.
//   0 -> rank   records from here on, each a byte of kind and its arguments:
//     1 JOINED     uint32 rank: is in the group. Sent for those that are already, and as they come.
//     2 READY      all ranks are in.
//     3 BROADCAST  uint64 n, n bytes.
//     4 ABORT      uint32 n, n bytes of text: rank 0 gives the group up, and why.
//
// A rank sends nothing after its first 12 bytes; it leaves by closing.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "octavo/base/status.h"
#include "octavo/sync/collective.h"
#include "octavo/sync/peer_socket.h"

namespace octavo {

inline constexpr uint32_t kLoopbackMagic = 0x31424C4F;
enum class LoopbackAnswer : uint8_t { kAccepted, kWorldSizeDiffers, kNoSuchRank, kRankTaken };
enum class LoopbackRecord : uint8_t { kJoined = 1, kReady = 2, kBroadcast = 3, kAbort = 4 };

// Where rank 0 of `group_name` says where it listens.
std::string LoopbackKey(std::string_view group_name);

class LoopbackCollective final : public Collective {
 public:
  // Errors: those of JoinCollective.
  static Result<std::unique_ptr<Collective>> Join(const GroupJoin& join, const WaitLimit& limit);

  LoopbackCollective(std::string name, PeerSocket socket)
      : name_(std::move(name)), socket_(std::move(socket)) {}
  Status ReceiveBroadcast(std::span<std::byte> out, const WaitLimit& limit) override;

 private:
  Status Receive(std::span<std::byte> out, const WaitLimit& limit);

  std::string name_;  // GroupJoin::ToString.
  PeerSocket socket_;
  Status broken_;  // The first error.
};

}  // namespace octavo
