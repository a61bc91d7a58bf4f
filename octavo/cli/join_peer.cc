#include "octavo/cli/join_peer.h"

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

#include "octavo/base/log.h"
#include "octavo/base/status.h"
#include "octavo/cli/commands.h"
#include "octavo/client/http_client.h"
#include "octavo/client/weights_client.h"
#include "octavo/server/server.h"
#include "octavo/sync/join_weights.h"
#include "octavo/sync/serving.h"
#include "octavo/sync/weight_update.h"

namespace octavo {
namespace {

// A peer digests all of its weights before it answers with the list.
constexpr HttpTimeouts kTimeouts = {.connect_s = 10.0, .idle_s = 120.0};

class HttpWeightPeer final : public WeightPeer {
 public:
  explicit HttpWeightPeer(const HttpUrl& url) : name_(url.ToString()), client_(url, kTimeouts) {}

  std::string Name() const override { return name_; }

  Result<PeerWeights> List() override {
    ASSIGN_OR_RETURN(RemoteWeights remote, ListRemoteWeights(client_));
    PeerWeights weights{.live = {remote.weight_version, remote.weight_digest},
                        .weight_format = std::move(remote.weight_format),
                        .policy_hash = std::move(remote.policy_hash),
                        .recipe = std::move(remote.recipe),
                        .begin_bytes = remote.tensors.front().begin_bytes,
                        .tensors = {}};
    for (RemoteTensor& tensor : remote.tensors) {
      weights.tensors.push_back({std::move(tensor.name), tensor.dtype, std::move(tensor.shape),
                                 std::move(tensor.digest)});
    }
    return weights;
  }

  Result<PeerVersion> Live() override {
    ASSIGN_OR_RETURN(RemoteVersion remote, GetRemoteVersion(client_));
    return PeerVersion{std::move(remote.weight_version), std::move(remote.weight_digest)};
  }

  Status Read(const std::string& weight_digest, int64_t begin_bytes,
              std::span<std::byte> out) override {
    return ReadRemoteWeights(client_, weight_digest, begin_bytes, out);
  }

 private:
  const std::string name_;
  HttpClient client_;
};

}  // namespace

Joining::Joining(HttpUrl peer, Serving* serving, Server* server)
    : peer_(std::move(peer)), serving_(*serving), server_(*server), thread_([this] { Run(); }) {}

Joining::~Joining() { (void)Finish(); }

Status Joining::Finish() {
  stop_ = true;
  if (thread_.joinable()) {
    thread_.join();
  }
  return outcome_.code() == StatusCode::kCancelled ? OkStatus() : outcome_;
}

void Joining::Run() {
  HttpWeightPeer peer(peer_);
  const Result<CommitReport> report = JoinWeights(peer, &serving_, stop_);
  if (report.has_value()) {
    PrintLine(fmt::format("octavo: joined {} at version {}, digest {}", peer.Name(),
                          report->version, report->digest));
    return;
  }
  outcome_ = report.error();
  if (outcome_.code() != StatusCode::kCancelled) {
    LOG(ERROR, "{}", outcome_.message());
    server_.Drain();
  }
}

}  // namespace octavo
