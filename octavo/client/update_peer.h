#pragma once
// One server's part in a live weight update: each native call of the transaction.

#include <chrono>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "octavo/base/function_ref.h"
#include "octavo/base/status.h"
#include "octavo/client/http_client.h"
#include "octavo/client/update_client.h"

namespace octavo {

// One thread at a time.
struct UpdatePeer {
  HttpClient client;
  std::string update_id = {};  // Empty when no update is open there.
  int64_t body_bytes_max = 0;  // It takes at once; known when it is open.
  bool committed = false;
  bool is_paused = false;  // By us, since:
  std::chrono::steady_clock::time_point paused_at = {};
  PushServerReport report = {};
};

// Not connected yet. Errors: kInvalidArgument for no url or one that is none.
Result<std::vector<UpdatePeer>> MakePeers(std::span<const std::string> urls,
                                          const PushOptions& options);

// Runs `step` for every server at once, one thread each; the first error in url order. Every step
// runs to its end, whatever happens to the others.
Status ForEachPeer(std::vector<UpdatePeer>& peers, FunctionRef<Status(UpdatePeer&)> step);

// Errors of all: what the server answers, with its name.
Status BeginAt(UpdatePeer& peer, const PushOptions& options);
// All of them to every server, in buckets that the smallest of them takes, with larger tensors in
// rows. `num_buckets` counts those that were sent in the update so far; `sent` is told the bytes of
// each.
Status PutTensors(std::vector<UpdatePeer>& peers, std::span<const PushTensor> tensors,
                  const PushOptions& options, int64_t* num_buckets,
                  FunctionRef<void(int64_t bytes)> sent);
// And has the sealed weights scored where options.probe asks for it.
Status SealAt(UpdatePeer& peer, const PushOptions& options);
Status CommitAt(UpdatePeer& peer, const PushOptions& options);
// What is live after the commit, into peer.report.
Status ReadBackFrom(UpdatePeer& peer);

// Best effort: a server that cannot be reached drops the staging by itself.
void AbortOn(std::vector<UpdatePeer>& peers);
// Best effort, after the update or its failure: ends the pauses that BeginAt has begun.
void ContinueOn(std::vector<UpdatePeer>& peers);

// The failure of a commit, with the servers that run the new weights all the same.
Status WithCommitted(const Status& failure, const std::vector<UpdatePeer>& peers);
// Sums up the servers. Errors: kInternal when their digests differ.
Status SummarizePeers(const std::vector<UpdatePeer>& peers, PushReport* report);

}  // namespace octavo
