#pragma once
// The sender's side of a live weight update (`octavo push`): the native update calls of one server,
// and one transaction over several.

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/client/bucket_stream.h"
#include "octavo/client/http_client.h"
#include "octavo/client/probe_client.h"

namespace octavo {

struct PushOptions {
  std::string api_key = {};                   // Of every server (HttpUrl::api_key).
  int64_t bucket_bytes = int64_t{64} << 20;   // Payload of one bucket; the sender holds one.
  std::optional<std::string> weight_version;  // Absent: the server's next one.
  std::string in_flight = "retract";          // retract, drain, abort or in_place.
  // shadow, or in_place: the servers are paused from before begin until after the commit.
  std::string staging = "shadow";
  std::string require = "all";  // Which weights must be among the tensors: all, seen or any.
  // Scored by the sealed weights of every server before any commit; all must pass.
  std::optional<Probe> probe = {};
  // Every call may be made twice, so one that breaks is: for a minute.
  HttpTimeouts timeouts = {.retry_s = 60.0};
  // Called with bytes sent (to every server) and bytes in all. May be empty.
  std::function<void(int64_t bytes_sent, int64_t bytes_total)> on_progress;
};

struct PushServerReport {
  std::string url;
  std::string version;
  double pause_ms = 0.0;     // No step ran on this server for so long.
  int64_t in_flight = 0;     // Requests that had been started when the weights were swapped.
  int64_t retracted = 0;     // Of these, recomputed under the new weights.
  int64_t aborted = 0;       // Of these, ended early because in_flight is "abort".
  int64_t lost = 0;          // Of these, neither carried over nor aborted on request.
  int64_t load_before = 0;   // Running and waiting requests of /v1/loads before begin ...
  int64_t load_after = 0;    // ... and after commit.
  int64_t carried_over = 0;  // Weights that stayed what they were.
  std::optional<ProbeReport> probe = {};  // If PushOptions::probe.
  std::string digest;                     // Read from the live weights after the commit.
  std::string recipe;                     // What it computes, and ...
  bool is_emulated = false;               // ... whether its hardware has no instructions for that.
};

struct PushReport {
  std::string version;
  double seconds = 0.0;   // From begin on the first server to the last commit.
  double pause_ms = 0.0;  // The longest of the servers.
  int64_t bytes = 0;      // Tensor bytes sent to each server.
  std::string digest;     // Equal on all servers: checked.
  int64_t in_flight = 0;  // Sums over the servers.
  int64_t retracted = 0;
  int64_t lost = 0;
  std::vector<PushServerReport> servers;
};

// Sends `tensors` to every server of `urls`, in rows where one is larger than the smallest body
// that they take, and makes them live: begin on all, every bucket to all, seal on all, and only
// then commit on all. Any failure before the first commit aborts on all, and the servers keep what
// they had. A failed commit cannot take back another server's: the error then says which servers
// run the new version. Errors name the server and, for a bucket, its tensors; kInvalidArgument for
// no url or tensor.
Result<PushReport> PushCheckpoint(std::span<const PushTensor> tensors,
                                  std::span<const std::string> urls, const PushOptions& options);

// {"version","seconds","pause_ms","bytes","digest","in_flight","retracted","lost","servers":[...]}.
std::string PushReportJson(const PushReport& report);

// GET /octavo/v1/digest: the reply's JSON text with digest, weight_version and tensors.
Result<std::string> GetLiveDigestJson(HttpClient& client);

}  // namespace octavo
