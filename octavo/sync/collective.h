#pragma once
// Collective: what an update group needs of a communication library. The ranks of a group join
// once; then rank 0, the trainer, broadcasts bytes and the others receive them.

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "octavo/base/status.h"
#include "octavo/sync/peer_socket.h"

namespace octavo {

// Which place in which group.
struct GroupJoin {
  PeerAddress master;  // Where rank 0 runs its TCPStore (tcp_store_client.h).
  std::string group_name;
  std::string backend = "nccl";
  int rank = 0;        // 1..world_size - 1: rank 0 is the trainer.
  int world_size = 0;  // All ranks, the trainer's included.

  // "group "G", rank 1 of 3": what messages call it.
  std::string ToString() const;
};

// One thread at a time. To abort what another thread waits for, cancel its limit. Destroying it
// leaves the group, and never waits for a peer.
class Collective {
 public:
  virtual ~Collective() = default;
  // Receives what rank 0 broadcasts next into `out`, host memory: exactly out.size() bytes.
  // Errors: kUnavailable (a peer is gone, the deadline), kCancelled, kInvalidArgument (another
  // number of bytes came, where the library can tell), kCorrupt. After one this rank is out of step
  // with its peers, and every later call is kUnavailable naming the first error: leave, join again.
  virtual Status ReceiveBroadcast(std::span<std::byte> out, const WaitLimit& limit) = 0;
};

// Joins; returns when every rank of the group has.
// Errors: kInvalidArgument (a rank or world size that cannot be, or that rank 0 refuses),
// kUnsupported naming the backend and those that this build has, kUnavailable (who had joined when
// the limit ended), kCancelled, kCorrupt.
Result<std::unique_ptr<Collective>> JoinCollective(const GroupJoin& join, const WaitLimit& limit);

}  // namespace octavo
