#include "octavo/client/update_session.h"

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/client/update_client.h"
#include "octavo/client/update_peer.h"

namespace octavo {
namespace {

using Clock = std::chrono::steady_clock;

// A copy that waits for its bucket to be full.
struct HeldTensor {
  std::string name;
  DType dtype = DType::kU8;
  Shape shape;
  std::vector<std::byte> bytes;
};

}  // namespace

struct UpdateSession::Impl {
  enum class State { kOpen, kSealed, kClosed };

  Status Flush();
  Status Seal();

  PushOptions options;
  std::vector<UpdatePeer> peers;
  Clock::time_point start;
  State state = State::kOpen;
  Status failure;  // Not ok: the session can only be aborted.
  std::vector<HeldTensor> held;
  int64_t held_bytes = 0;
  int64_t num_buckets = 0;
  PushReport report;
};

Status UpdateSession::Impl::Flush() {
  if (held.empty()) {
    return OkStatus();
  }
  std::vector<PushTensor> tensors;
  for (const HeldTensor& tensor : held) {
    tensors.push_back({tensor.name, {tensor.dtype, tensor.shape, tensor.bytes.data()}});
  }
  RETURN_IF_ERROR(PutTensors(peers, tensors, options, &num_buckets,
                             [&](int64_t bytes) { report.bytes += bytes; }));
  held.clear();
  held_bytes = 0;
  return OkStatus();
}

Status UpdateSession::Impl::Seal() {
  RETURN_IF_ERROR(Flush());
  return ForEachPeer(peers, [this](UpdatePeer& peer) { return SealAt(peer, options); });
}

UpdateSession::UpdateSession(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
UpdateSession::UpdateSession(UpdateSession&&) noexcept = default;
UpdateSession::~UpdateSession() { Abort(); }

Result<UpdateSession> UpdateSession::Begin(std::span<const std::string> urls,
                                           const PushOptions& options) {
  if (options.bucket_bytes <= 0) {
    return InvalidArgument("push: expected a bucket of at least 1 byte, got {}",
                           options.bucket_bytes);
  }
  auto impl = std::make_unique<Impl>();
  impl->options = options;
  ASSIGN_OR_RETURN(impl->peers, MakePeers(urls, options));
  impl->start = Clock::now();
  UpdateSession session(std::move(impl));  // Aborts where it was begun when another refuses.
  RETURN_IF_ERROR(
      ForEachPeer(session.impl_->peers, [&](UpdatePeer& peer) { return BeginAt(peer, options); }));
  return session;
}

Status UpdateSession::Put(std::string_view name, const ConstTensorView& tensor) {
  Impl& impl = *impl_;
  RETURN_IF_ERROR(impl.failure);
  if (impl.state != Impl::State::kOpen) {
    return InvalidArgument("{}: expected an update that is open, got one that is {}", name,
                           impl.state == Impl::State::kSealed ? "sealed" : "closed");
  }
  const int64_t bytes = tensor.NumBytes();
  if (impl.held_bytes + bytes > impl.options.bucket_bytes) {
    impl.failure = impl.Flush();
    RETURN_IF_ERROR(impl.failure);
  }
  const std::span<const std::byte> source = tensor.Bytes();
  impl.held.push_back({.name = std::string(name),
                       .dtype = tensor.dtype,
                       .shape = tensor.shape,
                       .bytes = {source.begin(), source.end()}});
  impl.held_bytes += bytes;
  return OkStatus();
}

Status UpdateSession::Seal() {
  Impl& impl = *impl_;
  RETURN_IF_ERROR(impl.failure);
  if (impl.state == Impl::State::kClosed) {
    return InvalidArgument("push: expected an update that is open, got one that is closed");
  }
  if (impl.state == Impl::State::kOpen) {
    impl.failure = impl.Seal();
    RETURN_IF_ERROR(impl.failure);
    impl.state = Impl::State::kSealed;
  }
  return OkStatus();
}

Result<PushReport> UpdateSession::Commit() {
  Impl& impl = *impl_;
  Status outcome = Seal();
  if (outcome.ok()) {
    outcome =
        ForEachPeer(impl.peers, [&](UpdatePeer& peer) { return CommitAt(peer, impl.options); });
  }
  if (!outcome.ok()) {
    const Status failure = WithCommitted(outcome, impl.peers);
    Abort();
    return failure;
  }
  impl.report.seconds = std::chrono::duration<double>(Clock::now() - impl.start).count();
  impl.state = Impl::State::kClosed;
  ContinueOn(impl.peers);
  RETURN_IF_ERROR(ForEachPeer(impl.peers, [](UpdatePeer& peer) {
                    return ReadBackFrom(peer);
                  }).WithContext("the new weights are live, but"));
  RETURN_IF_ERROR(SummarizePeers(impl.peers, &impl.report));
  return impl.report;
}

void UpdateSession::Abort() {
  if (impl_ != nullptr && impl_->state != Impl::State::kClosed) {
    impl_->state = Impl::State::kClosed;
    impl_->held.clear();
    AbortOn(impl_->peers);
    ContinueOn(impl_->peers);
  }
}

}  // namespace octavo
