#include "octavo/sync/collective.h"

#include <memory>
#include <string>

#include "octavo/base/status.h"
#include "octavo/sync/loopback_collective.h"
#include "octavo/sync/peer_socket.h"

namespace octavo {

std::string GroupJoin::ToString() const {
  return fmt::format("group \"{}\", rank {} of {}", group_name, rank, world_size);
}

Result<std::unique_ptr<Collective>> JoinCollective(const GroupJoin& join, const WaitLimit& limit) {
  if (join.world_size < 2 || join.rank < 1 || join.rank >= join.world_size) {
    return InvalidArgument(
        "{}: expected a world size of at least 2 and a rank of ours in 1..world size - 1 (rank 0 "
        "is the trainer)",
        join.ToString());
  }
  if (join.backend == "loopback") {
    return LoopbackCollective::Join(join, limit);
  }
  if (join.backend == "nccl") {
    return Unsupported("{}: backend \"nccl\": this build has no NCCL; it has \"loopback\"",
                       join.ToString());
  }
  return Unsupported("{}: backend \"{}\": expected \"nccl\" (not in this build) or \"loopback\"",
                     join.ToString(), join.backend);
}

}  // namespace octavo
