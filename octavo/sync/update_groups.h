#pragma once
// UpdateGroups: the named groups over which trainers broadcast weights, and what is received over
// them. Knows nothing of HTTP, and of weights only that each has a name, a dtype and a shape.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/function_ref.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/sync/collective.h"

namespace octavo {

// What a trainer announces of one tensor.
struct AnnouncedTensor {
  std::string name;
  DType dtype = DType::kU8;
  Shape shape;
};

// One call's worth of tensors, in the order in which they are sent.
struct GroupBucket {
  std::vector<AnnouncedTensor> tensors;
  // False: one broadcast a tensor. True: one of all of them back to back, without alignment.
  bool is_flattened = false;
};

struct UpdateGroupsOptions {
  // From the call to the last rank having joined. torch's own store waits as long.
  double join_timeout_s = 300.0;
  // Of a whole bucket.
  double receive_timeout_s = 300.0;
  // Of one broadcast: what is received lies in memory once, beside the staging.
  int64_t broadcast_bytes_max = int64_t{8} << 30;
  // Whether a bucket may take so many bytes at once; asked before it takes them. Default: it may.
  std::function<Status(int64_t num_bytes)> admit = {};
  // For tests. Default: JoinCollective.
  std::function<Result<std::unique_ptr<Collective>>(const GroupJoin&, const WaitLimit&)> join = {};
};

// Thread-safe. Every call ends within its timeout, or when the group is destroyed.
class UpdateGroups {
 public:
  explicit UpdateGroups(UpdateGroupsOptions options = {});
  // No other call may be running: CancelAll ends those that are.
  ~UpdateGroups();
  UpdateGroups(const UpdateGroups&) = delete;
  UpdateGroups& operator=(const UpdateGroups&) = delete;

  // Joins; returns when every rank has. After an error there is no such group, and the same call
  // may be made again. A group that an error broke is left first. Errors: those of JoinCollective;
  // kInvalidArgument when it is joined already; kUnavailable while it is being joined.
  Status Init(const GroupJoin& join);

  using PutTensor = FunctionRef<Status(std::string_view name, const ConstTensorView& tensor)>;
  // Receives a bucket and hands each tensor to `put` as it comes; the view lives until `put`
  // returns, at any alignment. When `put` refuses one, the rest is received all the same and
  // dropped, so that the other ranks of the group do not wait for this one; the error is answered
  // then, and the group stays in step. `refusal`, if not ok, does so for the whole bucket: for what
  // is known to be wrong before a byte has come. Errors: kNotFound naming the groups that there
  // are; kUnavailable while another call receives from it; those of `put` and `refusal`; and, each
  // of which breaks the group: those of ReceiveBroadcast naming the tensor, kInvalidArgument (a
  // shape without a size), kExhausted (a broadcast above broadcast_bytes_max, or no memory), those
  // of `admit`.
  Status Receive(std::string_view group, const GroupBucket& bucket, PutTensor put,
                 const Status& refusal = {});

  // For a bucket that nobody can receive, for its metadata does not say how many bytes it has:
  // leaves the group, so that its other ranks get an error rather than wait. Returns `why` with
  // that said. The group has to be destroyed, or joined again.
  Status Break(std::string_view group, const Status& why);

  // Leaves the group; ends what is being received or joined with kCancelled, and waits for that.
  // Errors: kNotFound naming the groups that there are.
  Status Destroy(std::string_view group);

  // Ends all calls that wait, and all later ones, with kCancelled: for when the server stops.
  void CancelAll();

  // Whether there is such a group. Errors: kNotFound naming those that there are.
  Status Check(std::string_view group) const;
  // "group "G", rank 1 of 3" of each.
  std::vector<std::string> List() const;

 private:
  struct Group;
  using GroupPtr = std::shared_ptr<Group>;

  Status NoSuchGroup(std::string_view group) const;  // With mutex_ held.
  Result<GroupPtr> Find(std::string_view group) const;
  Status ReceiveAll(Group& group, const GroupBucket& bucket, PutTensor put, Status refusal);

  const UpdateGroupsOptions options_;
  mutable std::mutex mutex_;
  std::map<std::string, GroupPtr, std::less<>> groups_;  // Guarded by mutex_.
  bool is_stopped_ = false;                              // Guarded by mutex_.
};

}  // namespace octavo
