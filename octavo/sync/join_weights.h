#pragma once
// A replica that starts without weights takes those of one that serves: canonical bytes, pulled in
// pieces, put through the one transaction, and made live only when their digest is the other's.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/convert/digest.h"
#include "octavo/sync/serving.h"

namespace octavo {

struct PeerVersion {
  std::string weight_version;
  std::string weight_digest;  // 32 hex digits; empty: no weights are live there.
};

// What a peer serves; `tensors` lie one behind the other in its file, from begin_bytes on.
struct PeerWeights {
  PeerVersion live;
  std::string weight_format;
  std::string policy_hash;
  std::string recipe;
  int64_t begin_bytes = 0;
  std::vector<TensorDigestLine> tensors;
};

// A replica to pull from, however it is reached. One thread.
class WeightPeer {
 public:
  virtual ~WeightPeer() = default;
  // How errors call it.
  virtual std::string Name() const = 0;
  virtual Result<PeerWeights> List() = 0;
  virtual Result<PeerVersion> Live() = 0;
  // Fills `out` with bytes of the file. Errors: kCancelled when other weights than those of
  // `weight_digest` are live by now.
  virtual Status Read(const std::string& weight_digest, int64_t begin_bytes,
                      std::span<std::byte> out) = 0;
};

// Pulls and commits the weights of `peer`, under its version; starts over when they change
// meanwhile. Holds a piece of 16 MiB, or the largest tensor, at a time. `stop` ends it.
// Errors: kInvalidArgument for another recipe, table, or tensor, naming the first that differs; and
// for a version that VersionRecord::Readmit refuses; kCorrupt when the digest of what came is not
// the peer's, naming the first tensor; kCancelled by `stop`; kUnavailable when the weights changed
// too often; those of the peer and of WeightUpdater. All name the peer; nothing is live then.
Result<CommitReport> JoinWeights(WeightPeer& peer, Serving* serving, const std::atomic<bool>& stop);

}  // namespace octavo
