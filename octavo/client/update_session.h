#pragma once
// A live weight update, tensor by tensor: for a sender that makes its tensors one after the other.
// PushCheckpoint (update_client.h) is the same transaction over tensors that are all there.

#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/client/update_client.h"

namespace octavo {

// Open on every server from Begin until Commit or Abort. After an error it can only be aborted.
// One thread. Movable; an open one that is destroyed is aborted.
class UpdateSession {
 public:
  // Begins on every server of `urls`, or on none. `options.on_progress` is not called.
  // Errors: kInvalidArgument for no url, a url that is none or bucket_bytes below 1; what a server
  // answers, with its name.
  static Result<UpdateSession> Begin(std::span<const std::string> urls, const PushOptions& options);
  UpdateSession(UpdateSession&&) noexcept;
  ~UpdateSession();

  // Copies the tensor into the bucket; one that has no room for it is sent to all servers first.
  // Errors: what a server answers to a bucket, with its name and its tensors.
  Status Put(std::string_view name, const ConstTensorView& tensor);
  // Sends what is left; every server then holds all weights. Errors: those of Put; kInvalidArgument
  // naming what is missing.
  Status Seal();
  // Seals if nobody has, and makes the weights live on all servers. Errors: those of Seal, after
  // which the update is aborted; of a failed commit, which says where the new weights are live.
  Result<PushReport> Commit();
  // Best effort; nothing when it is not open.
  void Abort();

 private:
  struct Impl;
  explicit UpdateSession(std::unique_ptr<Impl> impl);

  std::unique_ptr<Impl> impl_;
};

}  // namespace octavo
