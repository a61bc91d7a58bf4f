#include "octavo/sync/join_weights.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/buffer.h"
#include "octavo/base/log.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/convert/digest.h"
#include "octavo/formats/format.h"
#include "octavo/policy/precision_table.h"
#include "octavo/sync/pack_row.h"
#include "octavo/sync/serving.h"
#include "octavo/sync/version_record.h"
#include "octavo/sync/weight_plan.h"
#include "octavo/sync/weight_update.h"

namespace octavo {
namespace {

constexpr int64_t kPieceBytes = int64_t{16} << 20;
// A trainer that commits every few seconds leaves a pull of a large model no time; then it joins
// when the trainer sends to it, too.
constexpr int kAttemptsMax = 5;

int64_t BytesOf(const TensorDigestLine& line) {
  return NumElements(line.shape) * DTypeBytes(line.dtype);
}

std::string TypeText(DType dtype, const Shape& shape) {
  return fmt::format("{} {}", ShapeString(shape), DTypeName(dtype));
}

// Every tensor is one that this replica stores in the same form.
Status CheckTensors(const WeightPlan& plan, const std::vector<TensorDigestLine>& tensors) {
  for (const TensorDigestLine& tensor : tensors) {
    const auto found = plan.targets.find(tensor.name);
    if (found == plan.targets.end() || found->second.part_idx == PutTarget::kNoPart) {
      return InvalidArgument("{}: this replica stores no such tensor", tensor.name);
    }
    const StoredTensorSpec& part = plan.parts[found->second.row_idx][found->second.part_idx];
    const bool is_vector = IsVector(plan.table->rows[found->second.row_idx]);
    if (tensor.shape != part.shape || (tensor.dtype != part.dtype && !is_vector)) {
      return InvalidArgument("{}: expected {} as here, got {}", tensor.name,
                             TypeText(part.dtype, part.shape),
                             TypeText(tensor.dtype, tensor.shape));
    }
  }
  return OkStatus();
}

Status CheckSameReplica(const Serving& serving, const PeerWeights& weights) {
  RETURN_IF_ERROR(CheckTensors(*serving.plan, weights.tensors));
  if (weights.policy_hash != serving.table.Hash()) {
    return InvalidArgument("it serves {} by the table {}, this replica {} by {}",
                           weights.weight_format, weights.policy_hash,
                           WeightFormatName(serving.table.format), serving.table.Hash());
  }
  return weights.recipe == serving.recipe
             ? OkStatus()
             : InvalidArgument("it computes by the recipe {}, this replica by {}", weights.recipe,
                               serving.recipe);
}

// One pull of one version.
class Pull {
 public:
  Pull(WeightPeer& peer, const PeerWeights& weights, WeightUpdater& updater, std::string id,
       const std::atomic<bool>& stop)
      : peer_(peer), weights_(weights), updater_(updater), id_(std::move(id)), stop_(stop) {}

  // All tensors in runs: as many as a piece holds, or one that is larger.
  Status Run() {
    const std::vector<TensorDigestLine>& tensors = weights_.tensors;
    int64_t at = weights_.begin_bytes;
    for (size_t first = 0; first < tensors.size();) {
      size_t end = first;
      int64_t num_bytes = 0;
      do {
        num_bytes += BytesOf(tensors[end++]);
      } while (end < tensors.size() && num_bytes + BytesOf(tensors[end]) <= kPieceBytes);
      RETURN_IF_ERROR(PutRun(at, num_bytes, std::span(tensors).subspan(first, end - first)));
      at += num_bytes;
      first = end;
    }
    return OkStatus();
  }

 private:
  Status PutRun(int64_t begin_bytes, int64_t num_bytes, std::span<const TensorDigestLine> tensors) {
    ASSIGN_OR_RETURN(Buffer bytes, Buffer::AllocateHost(num_bytes));
    for (int64_t done = 0; done < num_bytes; done += kPieceBytes) {
      if (stop_.load()) {
        return Cancelled("stopped while weights came");
      }
      const int64_t count = std::min(kPieceBytes, num_bytes - done);
      RETURN_IF_ERROR(
          peer_.Read(weights_.live.weight_digest, begin_bytes + done,
                     bytes.bytes().subspan(static_cast<size_t>(done), static_cast<size_t>(count))));
    }
    int64_t at = 0;
    for (const TensorDigestLine& tensor : tensors) {
      RETURN_IF_ERROR(
          updater_.Put(id_, tensor.name, {tensor.dtype, tensor.shape, bytes.data() + at}));
      at += BytesOf(tensor);
    }
    return OkStatus();
  }

  WeightPeer& peer_;
  const PeerWeights& weights_;
  WeightUpdater& updater_;
  const std::string id_;
  const std::atomic<bool>& stop_;
};

Status CheckDigest(const ModelDigest& came, const PeerWeights& weights) {
  if (came.hex == weights.live.weight_digest) {
    return OkStatus();
  }
  std::map<std::string, std::string> expected;
  for (const TensorDigestLine& tensor : weights.tensors) {
    expected[tensor.name] = tensor.hex;
  }
  std::string first = "no tensor of its list";
  for (const TensorDigestLine& tensor : came.tensors) {
    if (const auto found = expected.find(tensor.name);
        found == expected.end() || found->second != tensor.hex) {
      first = tensor.name;
      break;
    }
  }
  return Corrupt("expected weights of digest {}, got {}; the first that differs is {}",
                 weights.live.weight_digest, came.hex, first);
}

// Errors: kCancelled when the peer's weights are others by now.
Status PullAndSeal(WeightPeer& peer, const PeerWeights& weights, WeightUpdater& updater,
                   const std::string& id, const std::atomic<bool>& stop) {
  RETURN_IF_ERROR(Pull(peer, weights, updater, id, stop).Run());
  RETURN_IF_ERROR(updater.Seal(id));
  ASSIGN_OR_RETURN(const ModelDigest digest, updater.SealedDigest(id));
  RETURN_IF_ERROR(CheckDigest(digest, weights));
  if (stop.load()) {
    return Cancelled("stopped before they were live");
  }
  ASSIGN_OR_RETURN(const PeerVersion live, peer.Live());
  if (live.weight_digest != weights.live.weight_digest ||
      live.weight_version != weights.live.weight_version) {
    return Cancelled("version {} went live meanwhile", live.weight_version);
  }
  return OkStatus();
}

Result<CommitReport> JoinOnce(WeightPeer& peer, Serving* serving, const std::atomic<bool>& stop) {
  ASSIGN_OR_RETURN(const PeerWeights weights, peer.List());
  RETURN_IF_ERROR(CheckSameReplica(*serving, weights));
  const PeerVersion& live = weights.live;
  if (serving->versions != nullptr) {
    RETURN_IF_ERROR(serving->versions->Readmit(live.weight_version, live.weight_digest));
  }
  LOG(INFO, "joining peer={} version={} digest={} tensors={}", peer.Name(), live.weight_version,
      live.weight_digest, weights.tensors.size());
  WeightUpdater& updater = *serving->updater;
  ASSIGN_OR_RETURN(const std::string id, updater.Begin(live.weight_version));
  const Status status = PullAndSeal(peer, weights, updater, id, stop);
  if (!status.ok()) {
    updater.Abort(id);
    return status;
  }
  Result<CommitReport> report = updater.Commit(id, InFlight::kRetract);
  if (!report.has_value()) {
    updater.Abort(id);
  }
  return report;
}

}  // namespace

Result<CommitReport> JoinWeights(WeightPeer& peer, Serving* serving,
                                 const std::atomic<bool>& stop) {
  for (int attempt = 1;; ++attempt) {
    Result<CommitReport> report = JoinOnce(peer, serving, stop);
    if (report.has_value()) {
      return report;
    }
    const Status status = report.error().WithContext("joining " + peer.Name());
    if (status.code() != StatusCode::kCancelled || stop.load()) {
      return status;
    }
    if (attempt == kAttemptsMax) {
      return Unavailable("{}, as in {} attempts before", status.message(), attempt - 1);
    }
    LOG(WARNING, "{}; starting over", status.message());
  }
}

}  // namespace octavo
