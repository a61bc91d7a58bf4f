#pragma once
// Replays recorded replies on a server and compares tokens and logprobs bit for bit
// (docs/replay.md). Equal recipe, weights, prompt, parameters and seed give equal bits, alone or in
// any batch; so what differs was made otherwise than its record says.

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/client/http_client.h"
#include "octavo/measure/replay_compare.h"
#include "octavo/measure/replay_file.h"

namespace octavo {

// What a server is, as far as bits follow from it.
struct ReplayTarget {
  std::string url;
  std::string recipe = {};
  bool is_emulated = false;
  std::string weight_version = {};
  std::string digest = {};  // Read from its live weights.
  std::string policy_hash = {};
  std::string kv_cache_dtype = {};
};

// GET /server_info and /octavo/v1/digest. Errors: those of GetText; kCorrupt for a reply without
// these keys; kInternal when the live weights are no longer those that were sealed.
Result<ReplayTarget> GetReplayTarget(const HttpUrl& url);

struct ReplayOptions {
  int64_t parallel = 16;  // Requests in flight.
  // A weight version is a label: with equal digests, replay under another one too.
  bool any_version = false;
  // Replay what this server's weights and recipe made, and leave out the rest, instead of refusing
  // the file: of a reply that spans several versions, the part that is theirs.
  bool matching = false;
  HttpTimeouts timeouts = {};
  // Called with requests done and requests in all, by any thread, one at a time. May be empty.
  std::function<void(int64_t done, int64_t total)> on_progress = {};
};

// One request that replays a reply, or a part of one.
struct ReplayTask {
  const RecordedReply* recorded = nullptr;  // As in the file.
  RecordedReply sent;                       // Its request and what must come back.
  int64_t first_token = 0;                  // Of the part, in the recorded output.
};

struct LeftOut {
  std::string reason;
  int64_t num_replies = 0;
};

struct ReplayPlan {
  std::vector<ReplayTask> tasks;  // In the order of the file.
  std::vector<LeftOut> left_out;  // By reason, in order of appearance.
};

// What can be replayed on `target`. `replies` must outlive the plan.
// Errors: kInvalidArgument, naming the first reply that cannot be replayed there, why, and how many
// more (unless options.matching); also when nothing is left.
Result<ReplayPlan> PlanReplay(const std::vector<RecordedReply>& replies, const ReplayTarget& target,
                              const ReplayOptions& options);

struct ReplayMismatch {
  std::string name;  // RecordedReply::Name.
  int64_t line = 0;
  int64_t index = 0;
  std::string rid;
  ReplayDifference difference;  // Its position counts in the recorded reply.
};

struct ReplayReport {
  ReplayTarget target;
  int64_t num_replies = 0;         // In the file.
  int64_t num_requests = 0;        // Sent: replies and parts of replies.
  int64_t num_same = 0;            // Of these.
  int64_t num_different = 0;       // Of these.
  int64_t num_tokens = 0;          // Output tokens compared.
  int64_t num_scores = 0;          // Logprobs compared.
  int64_t num_without_digest = 0;  // Requests whose record names a version alone.
  double seconds = 0.0;
  std::vector<LeftOut> left_out = {};
  std::optional<ReplayMismatch> first = {};  // In the order of the file.
};

// Sends the plan's requests, options.parallel at a time, and compares what comes back.
// Errors: those of the requests, naming the reply; kUnavailable when the server's weights changed
// meanwhile.
Result<ReplayReport> RunReplay(const HttpUrl& url, const ReplayTarget& target,
                               const ReplayPlan& plan, const ReplayOptions& options);

std::string ReplayReportText(const ReplayReport& report);
// {"same", "different", "requests", "replies", "tokens", "logprobs", "without_digest", "seconds",
// "left_out": [{"reason","replies"}], "first_difference": {...} or null, "server": {...}}
std::string ReplayReportJson(const ReplayReport& report);

}  // namespace octavo
