#include "octavo/sync/update_groups.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/buffer.h"
#include "octavo/base/log.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/sync/collective.h"
#include "octavo/sync/peer_socket.h"

namespace octavo {
namespace {

// Bytes of a tensor of untrusted shape.
Result<int64_t> AnnouncedBytes(const AnnouncedTensor& tensor) {
  int64_t num_bytes = DTypeBytes(tensor.dtype);
  for (const int64_t extent : tensor.shape) {
    if (extent < 0 || __builtin_mul_overflow(num_bytes, extent, &num_bytes)) {
      return InvalidArgument(
          "{}: expected a shape whose extents are 0 or more and whose size fits "
          "64 bits, got {}",
          tensor.name, ShapeString(tensor.shape));
    }
  }
  return num_bytes;
}

// One broadcast: tensors of the bucket that lie in it back to back.
struct Broadcast {
  size_t first = 0;
  size_t last = 0;  // Behind the end.
  int64_t num_bytes = 0;
};

Result<std::vector<Broadcast>> PlanBroadcasts(const GroupBucket& bucket,
                                              const std::vector<int64_t>& tensor_bytes,
                                              int64_t bytes_max) {
  std::vector<Broadcast> broadcasts;
  if (bucket.is_flattened && !bucket.tensors.empty()) {
    broadcasts.push_back({0, 0, 0});
  }
  for (size_t i = 0; i < bucket.tensors.size(); ++i) {
    if (!bucket.is_flattened) {
      broadcasts.push_back({i, i, 0});
    }
    Broadcast& broadcast = broadcasts.back();
    if (tensor_bytes[i] > bytes_max - broadcast.num_bytes) {
      return Exhausted("{}: a broadcast of more than {} bytes: {} of this tensor after {} others",
                       bucket.tensors[i].name, bytes_max, tensor_bytes[i], broadcast.num_bytes);
    }
    broadcast.num_bytes += tensor_bytes[i];
    broadcast.last = i + 1;
  }
  return broadcasts;
}

}  // namespace

struct UpdateGroups::Group {
  explicit Group(GroupJoin place) : join(std::move(place)) {}

  const GroupJoin join;
  Cancellation cancel;
  std::mutex busy;  // Held by the call that joins, receives or leaves.
  // Guarded by busy. Null until joined, and after an error that broke the group.
  std::unique_ptr<Collective> collective;
  Status broken;  // Guarded by busy. That error.
};

UpdateGroups::UpdateGroups(UpdateGroupsOptions options) : options_(std::move(options)) {}
UpdateGroups::~UpdateGroups() = default;

Status UpdateGroups::NoSuchGroup(std::string_view group) const {
  std::string known;
  for (const auto& [name, unused] : groups_) {
    known += fmt::format("{}\"{}\"", known.empty() ? "" : ", ", name);
  }
  return NotFound("group \"{}\": no such update group; there {}", group,
                  known.empty() ? "is none" : "are " + known);
}

Result<UpdateGroups::GroupPtr> UpdateGroups::Find(std::string_view group) const {
  const std::lock_guard lock(mutex_);
  const auto found = groups_.find(group);
  if (found == groups_.end()) {
    return NoSuchGroup(group);
  }
  return found->second;
}

Status UpdateGroups::Init(const GroupJoin& join) {
  const auto group = std::make_shared<Group>(join);
  const std::lock_guard joining(group->busy);
  {
    const std::lock_guard lock(mutex_);
    if (is_stopped_) {
      return Cancelled("{}: the server is stopping", join.ToString());
    }
    if (const auto known = groups_.find(join.group_name); known != groups_.end()) {
      const std::unique_lock idle(known->second->busy, std::try_to_lock);
      if (!idle.owns_lock()) {
        return Unavailable("{}: a call that joins or receives from it is running",
                           known->second->join.ToString());
      }
      if (known->second->broken.ok()) {
        return InvalidArgument("{}: joined already; destroy it first",
                               known->second->join.ToString());
      }
    }
    groups_[join.group_name] = group;
  }
  const WaitLimit limit = LimitAfter(options_.join_timeout_s, &group->cancel);
  Result<std::unique_ptr<Collective>> joined =
      options_.join ? options_.join(join, limit) : JoinCollective(join, limit);
  if (joined.has_value()) {
    group->collective = std::move(joined).value();
    LOG(INFO, "update group joined name={} rank={} world_size={} backend={}", join.group_name,
        join.rank, join.world_size, join.backend);
    return OkStatus();
  }
  group->broken = joined.error();
  const std::lock_guard lock(mutex_);
  if (const auto own = groups_.find(join.group_name);
      own != groups_.end() && own->second == group) {
    groups_.erase(own);
  }
  return joined.error();
}

Status UpdateGroups::Receive(std::string_view group, const GroupBucket& bucket, PutTensor put,
                             const Status& refusal) {
  ASSIGN_OR_RETURN(const GroupPtr found, Find(group));
  const std::unique_lock receiving(found->busy, std::try_to_lock);
  if (!receiving.owns_lock()) {
    return Unavailable("{}: another call that joins or receives from it is running",
                       found->join.ToString());
  }
  if (found->collective == nullptr) {
    return Unavailable("{}: broken by an earlier error; destroy it, or join again ({})",
                       found->join.ToString(), found->broken.message());
  }
  Status status = ReceiveAll(*found, bucket, put, refusal);
  if (!found->broken.ok()) {
    found->collective.reset();
    LOG(WARNING, "update group broken name={} error=\"{}\"", found->join.group_name,
        found->broken.message());
  }
  return status;
}

// Sets group.broken when this rank is out of step.
Status UpdateGroups::ReceiveAll(Group& group, const GroupBucket& bucket, PutTensor put,
                                Status refusal) {
  const auto break_with = [&group](const Status& why) {
    group.broken = why;
    return why;
  };
  std::vector<int64_t> tensor_bytes;
  for (const AnnouncedTensor& tensor : bucket.tensors) {
    const Result<int64_t> num_bytes = AnnouncedBytes(tensor);
    if (!num_bytes.has_value()) {
      return break_with(num_bytes.error());
    }
    tensor_bytes.push_back(*num_bytes);
  }
  const auto broadcasts = PlanBroadcasts(bucket, tensor_bytes, options_.broadcast_bytes_max);
  if (!broadcasts.has_value()) {
    return break_with(broadcasts.error());
  }
  int64_t scratch_bytes = 0;
  for (const Broadcast& broadcast : *broadcasts) {
    scratch_bytes = std::max(scratch_bytes, broadcast.num_bytes);
  }
  if (const Status admitted = options_.admit ? options_.admit(scratch_bytes) : OkStatus();
      !admitted.ok()) {
    return break_with(admitted.WithContext("receiving weights"));
  }
  Result<Buffer> scratch = Buffer::AllocateHost(scratch_bytes);
  if (!scratch.has_value()) {
    return break_with(scratch.error().WithContext("receiving weights"));
  }
  const WaitLimit limit = LimitAfter(options_.receive_timeout_s, &group.cancel);
  for (const Broadcast& broadcast : *broadcasts) {
    const Status received = group.collective->ReceiveBroadcast(
        scratch->bytes().first(static_cast<size_t>(broadcast.num_bytes)), limit);
    if (!received.ok()) {
      const AnnouncedTensor& tensor = bucket.tensors[broadcast.first];
      return break_with(received.WithContext(fmt::format(
          "{} ({} {}{})", tensor.name, DTypeName(tensor.dtype), ShapeString(tensor.shape),
          bucket.is_flattened ? ", first of a bucket" : "")));
    }
    int64_t offset = 0;
    for (size_t i = broadcast.first; i < broadcast.last && refusal.ok(); ++i) {
      const AnnouncedTensor& tensor = bucket.tensors[i];
      refusal = put(tensor.name, {tensor.dtype, tensor.shape, scratch->data() + offset});
      offset += tensor_bytes[i];
    }
  }
  return refusal;
}

Status UpdateGroups::Break(std::string_view group, const Status& why) {
  ASSIGN_OR_RETURN(const GroupPtr found, Find(group));
  const std::unique_lock idle(found->busy, std::try_to_lock);
  if (!idle.owns_lock()) {
    return why;  // A call runs, and it is in step with what its own metadata said.
  }
  found->broken = why;
  found->collective.reset();
  return Status(why.code(), fmt::format("{}; {} was left, for nobody knows how many bytes would "
                                        "come: join it again",
                                        why.message(), found->join.ToString()));
}

Status UpdateGroups::Destroy(std::string_view group) {
  GroupPtr leaving;
  {
    const std::lock_guard lock(mutex_);
    const auto found = groups_.find(group);
    if (found == groups_.end()) {
      return NoSuchGroup(group);
    }
    leaving = std::move(found->second);
    groups_.erase(found);
  }
  leaving->cancel.Cancel();
  const std::lock_guard ended(leaving->busy);
  leaving->collective.reset();
  leaving->broken = Cancelled("the group was destroyed");
  LOG(INFO, "update group destroyed name={}", group);
  return OkStatus();
}

void UpdateGroups::CancelAll() {
  const std::lock_guard lock(mutex_);
  is_stopped_ = true;
  for (const auto& [name, group] : groups_) {
    group->cancel.Cancel();
  }
}

Status UpdateGroups::Check(std::string_view group) const { return Find(group).error(); }

std::vector<std::string> UpdateGroups::List() const {
  const std::lock_guard lock(mutex_);
  std::vector<std::string> list;
  list.reserve(groups_.size());
  for (const auto& [name, group] : groups_) {
    list.push_back(group->join.ToString());
  }
  return list;
}

}  // namespace octavo
