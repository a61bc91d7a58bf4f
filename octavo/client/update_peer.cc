#include "octavo/client/update_peer.h"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "octavo/base/function_ref.h"
#include "octavo/base/hash.h"
#include "octavo/base/status.h"
#include "octavo/client/bucket_stream.h"
#include "octavo/client/generate_client.h"
#include "octavo/client/http_client.h"
#include "octavo/client/probe_client.h"
#include "octavo/client/update_client.h"

namespace octavo {
namespace {

using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

// Text that is not UTF-8 cannot stand in JSON: it goes out with U+FFFD in its place, which a server
// then refuses by that name.
std::string Dump(const Json& json) {
  return json.dump(-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
}

Result<Json> PostObject(HttpClient& client, std::string_view target, const Json& body) {
  ASSIGN_OR_RETURN(const std::string text, PostJson(client, target, Dump(body)));
  Json reply = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!reply.is_object()) {
    return Corrupt("POST {}{}: expected a JSON object, got '{}'", client.url().ToString(), target,
                   text.substr(0, 200));
  }
  return reply;
}

int64_t IntOf(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_number_integer() ? found->get<int64_t>() : 0;
}

double NumberOf(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_number() ? found->get<double>() : 0.0;
}

std::string TextOf(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : std::string();
}

// The weights are taken away, so nobody may hold pages. A server that is paused already stays so.
Status PauseFor(UpdatePeer& peer, const std::string& in_flight) {
  ASSIGN_OR_RETURN(const std::string text, GetText(peer.client, "/server_info"));
  const Json info = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  const Json::json_pointer paused("/internal_states/0/paused");
  const bool was_paused = info.contains(paused) && info[paused] == true;
  peer.is_paused = !was_paused;
  peer.paused_at = Clock::now();
  const std::string mode = in_flight == "abort" ? "abort" : "retract";
  return PostObject(peer.client, "/pause_generation", {{"mode", mode}}).error();
}

// "model.embed_tokens.weight" or "a.weight .. b.weight (12 tensors)".
std::string BucketName(std::span<const PushTensor> tensors) {
  return tensors.size() == 1 ? tensors[0].name
                             : fmt::format("{} .. {} ({} tensors)", tensors.front().name,
                                           tensors.back().name, tensors.size());
}

// The bucket, to every server.
Status PutBucket(std::vector<UpdatePeer>& peers, std::span<const PushTensor> tensors,
                 int64_t bucket_idx) {
  const std::string body = SafetensorsBuffer(tensors);
  const std::string checksum = HashHex(HashText(body));
  return ForEachPeer(peers, [&](UpdatePeer& peer) {
    const std::string target =
        fmt::format("/octavo/v1/update/put?update_id={}&sequence={}&checksum={}", peer.update_id,
                    bucket_idx, checksum);
    const HttpCall call = {.method = "POST",
                           .target = target,
                           .content_type = "application/octet-stream",
                           .body = std::as_bytes(std::span(body))};
    Result<HttpReply> reply = peer.client.Call(call);
    const Status outcome = !reply.has_value()     ? reply.error()
                           : reply->status != 200 ? StatusOfReply(peer.client.url(), call, *reply)
                                                  : OkStatus();
    return outcome.WithContext(fmt::format("bucket {}, {}", bucket_idx, BucketName(tensors)));
  });
}

// Of the requests in flight at the swap, those that neither went on nor were aborted as asked.
int64_t NumLost(const PushServerReport& report, std::string_view in_flight) {
  if (in_flight == "abort") {
    return std::max<int64_t>(report.in_flight - report.aborted, 0);
  }
  const int64_t carried = in_flight == "retract" ? report.retracted : report.in_flight;
  return std::max<int64_t>(report.in_flight - carried, 0) + report.aborted;
}

}  // namespace

Result<std::vector<UpdatePeer>> MakePeers(std::span<const std::string> urls,
                                          const PushOptions& options) {
  if (urls.empty()) {
    return InvalidArgument("push: expected at least one url, got none");
  }
  std::vector<UpdatePeer> peers;
  for (const std::string& text : urls) {
    ASSIGN_OR_RETURN(HttpUrl url, ParseHttpUrl(text));
    url.api_key = options.api_key;
    std::string name = url.ToString();
    peers.push_back({.client = HttpClient(std::move(url), options.timeouts)});
    peers.back().report.url = std::move(name);
  }
  return peers;
}

Status ForEachPeer(std::vector<UpdatePeer>& peers, FunctionRef<Status(UpdatePeer&)> step) {
  std::vector<Status> outcomes(peers.size());
  std::vector<std::thread> threads;
  for (size_t i = 1; i < peers.size(); ++i) {
    threads.emplace_back([&, i] { outcomes[i] = step(peers[i]); });
  }
  outcomes[0] = step(peers[0]);
  for (std::thread& thread : threads) {
    thread.join();
  }
  for (const Status& outcome : outcomes) {
    RETURN_IF_ERROR(outcome);
  }
  return OkStatus();
}

Status BeginAt(UpdatePeer& peer, const PushOptions& options) {
  ASSIGN_OR_RETURN(const ServerLoad load, GetLoad(peer.client));
  peer.report.load_before = load.num_running + load.num_waiting;
  Json body;
  body["weight_version"] = nullptr;
  if (options.staging != "shadow") {
    RETURN_IF_ERROR(PauseFor(peer, options.in_flight));
    body["staging"] = options.staging;
  }
  if (options.require != "all") {
    body["require"] = options.require;
  }
  body["request_key"] = NewRequestKey();
  if (options.weight_version.has_value()) {
    body["weight_version"] = *options.weight_version;
  }
  ASSIGN_OR_RETURN(const Json reply, PostObject(peer.client, "/octavo/v1/update/begin", body));
  peer.update_id = TextOf(reply, "update_id");
  if (peer.update_id.empty()) {
    return Corrupt("{}/octavo/v1/update/begin: no update_id in {}", peer.report.url, Dump(reply));
  }
  ASSIGN_OR_RETURN(peer.body_bytes_max, GetBodyLimit(peer.client));
  return OkStatus();
}

Status PutTensors(std::vector<UpdatePeer>& peers, std::span<const PushTensor> tensors,
                  const PushOptions& options, int64_t* num_buckets,
                  FunctionRef<void(int64_t bytes)> sent) {
  BucketLimits limits{.tensor_bytes = options.bucket_bytes};
  for (const UpdatePeer& peer : peers) {
    limits.body_bytes = std::min(limits.body_bytes, peer.body_bytes_max);
  }
  ASSIGN_OR_RETURN(const std::vector<PushTensor> pieces, CutTensors(tensors, limits));
  const std::vector<size_t> starts = PlanBuckets(pieces, limits);
  for (size_t i = 0; i < starts.size(); ++i) {
    const size_t end = i + 1 < starts.size() ? starts[i + 1] : pieces.size();
    const auto bucket = std::span(pieces).subspan(starts[i], end - starts[i]);
    RETURN_IF_ERROR(PutBucket(peers, bucket, *num_buckets));
    ++*num_buckets;
    int64_t bytes = 0;
    for (const PushTensor& tensor : bucket) {
      bytes += tensor.view.NumBytes();
    }
    sent(bytes);
  }
  return OkStatus();
}

Status SealAt(UpdatePeer& peer, const PushOptions& options) {
  RETURN_IF_ERROR(
      PostObject(peer.client, "/octavo/v1/update/seal", {{"update_id", peer.update_id}}).error());
  if (options.probe.has_value()) {
    ASSIGN_OR_RETURN(peer.report.probe, RunProbe(peer.client, peer.update_id, *options.probe));
  }
  return OkStatus();
}

Status CommitAt(UpdatePeer& peer, const PushOptions& options) {
  const Result<Json> answer = PostObject(peer.client, "/octavo/v1/update/commit",
                                         {{"update_id", peer.update_id},
                                          {"in_flight", options.in_flight},
                                          {"digest", false}});  // Read after the clock has stopped.
  if (!answer.has_value()) {
    return answer.error().code() == StatusCode::kUnavailable
               ? answer.error().WithContext("whether its new weights are live is not known")
               : answer.error();
  }
  const Json& reply = *answer;
  peer.committed = true;
  peer.update_id.clear();
  PushServerReport& report = peer.report;
  report.version = TextOf(reply, "version");
  report.pause_ms = NumberOf(reply, "pause_ms");
  report.in_flight = IntOf(reply, "in_flight");
  report.retracted = IntOf(reply, "retracted");
  report.aborted = IntOf(reply, "aborted");
  report.carried_over = IntOf(reply, "carried_over");
  report.lost = NumLost(report, options.in_flight);
  return OkStatus();
}

Status ReadBackFrom(UpdatePeer& peer) {
  ASSIGN_OR_RETURN(const ServerLoad load, GetLoad(peer.client));
  peer.report.load_after = load.num_running + load.num_waiting;
  ASSIGN_OR_RETURN(const ModelInfo info, GetModelInfo(peer.client));
  peer.report.recipe = info.recipe;
  peer.report.is_emulated = info.is_emulated;
  ASSIGN_OR_RETURN(const std::string text, GetLiveDigestJson(peer.client));
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  peer.report.digest = json.is_object() ? TextOf(json, "digest") : "";
  return peer.report.digest.empty()
             ? Corrupt("{}/octavo/v1/digest: no digest in the reply", peer.report.url)
             : OkStatus();
}

void AbortOn(std::vector<UpdatePeer>& peers) {
  constexpr double kRetrySeconds = 5.0;  // A server that is gone need not be waited for again.
  for (UpdatePeer& peer : peers) {
    peer.client.LimitRetries(kRetrySeconds);
    if (!peer.update_id.empty()) {
      (void)PostObject(peer.client, "/octavo/v1/update/abort", {{"update_id", peer.update_id}});
    }
  }
}

void ContinueOn(std::vector<UpdatePeer>& peers) {
  for (UpdatePeer& peer : peers) {
    if (peer.is_paused) {
      (void)PostObject(peer.client, "/continue_generation", Json::object());
      peer.report.pause_ms =
          std::chrono::duration<double, std::milli>(Clock::now() - peer.paused_at).count();
    }
  }
}

Status WithCommitted(const Status& failure, const std::vector<UpdatePeer>& peers) {
  std::string changed;
  for (const UpdatePeer& peer : peers) {
    if (peer.committed) {
      changed += (changed.empty() ? "" : ", ") + peer.report.url;
    }
  }
  return changed.empty() ? failure
                         : failure.WithContext("new weights are live on " + changed + ", but");
}

Status SummarizePeers(const std::vector<UpdatePeer>& peers, PushReport* report) {
  for (const UpdatePeer& peer : peers) {
    report->pause_ms = std::max(report->pause_ms, peer.report.pause_ms);
    report->in_flight += peer.report.in_flight;
    report->retracted += peer.report.retracted;
    report->lost += peer.report.lost;
    report->servers.push_back(peer.report);
  }
  report->version = peers[0].report.version;
  report->digest = peers[0].report.digest;
  for (const UpdatePeer& peer : peers) {
    if (peer.report.digest != report->digest) {
      return Internal("live digests differ after the commit: {} has {}, {} has {}",
                      peers[0].report.url, report->digest, peer.report.url, peer.report.digest);
    }
  }
  return OkStatus();
}

}  // namespace octavo
