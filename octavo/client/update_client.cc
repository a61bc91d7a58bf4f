#include "octavo/client/update_client.h"

#include <chrono>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/client/bucket_stream.h"
#include "octavo/client/http_client.h"
#include "octavo/client/probe_client.h"
#include "octavo/client/update_peer.h"

namespace octavo {
namespace {

using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

Status PutAll(std::vector<UpdatePeer>& peers, std::span<const PushTensor> tensors,
              const PushOptions& options, PushReport* report) {
  int64_t bytes_total = 0;
  for (const PushTensor& tensor : tensors) {
    bytes_total += tensor.view.NumBytes();
  }
  int64_t num_buckets = 0;
  return PutTensors(peers, tensors, options, &num_buckets, [&](int64_t bytes) {
    report->bytes += bytes;
    if (options.on_progress) {
      options.on_progress(report->bytes, bytes_total);
    }
  });
}

Status RunTransaction(std::vector<UpdatePeer>& peers, std::span<const PushTensor> tensors,
                      const PushOptions& options, PushReport* report) {
  const Clock::time_point start = Clock::now();
  RETURN_IF_ERROR(ForEachPeer(peers, [&](UpdatePeer& peer) { return BeginAt(peer, options); }));
  RETURN_IF_ERROR(PutAll(peers, tensors, options, report));
  RETURN_IF_ERROR(ForEachPeer(peers, [&](UpdatePeer& peer) { return SealAt(peer, options); }));
  RETURN_IF_ERROR(ForEachPeer(peers, [&](UpdatePeer& peer) { return CommitAt(peer, options); }));
  report->seconds = std::chrono::duration<double>(Clock::now() - start).count();
  return ForEachPeer(peers, [](UpdatePeer& peer) { return ReadBackFrom(peer); });
}

}  // namespace

Result<PushReport> PushCheckpoint(std::span<const PushTensor> tensors,
                                  std::span<const std::string> urls, const PushOptions& options) {
  if (urls.empty() || tensors.empty()) {
    return InvalidArgument("push: expected at least one {}, got none",
                           urls.empty() ? "url" : "tensor");
  }
  if (options.bucket_bytes <= 0) {
    return InvalidArgument("push: expected a bucket of at least 1 byte, got {}",
                           options.bucket_bytes);
  }
  ASSIGN_OR_RETURN(std::vector<UpdatePeer> peers, MakePeers(urls, options));
  PushReport report;
  const Status outcome = RunTransaction(peers, tensors, options, &report);
  if (!outcome.ok()) {
    AbortOn(peers);
  }
  ContinueOn(peers);
  if (!outcome.ok()) {
    return WithCommitted(outcome, peers);
  }
  RETURN_IF_ERROR(SummarizePeers(peers, &report));
  return report;
}

std::string PushReportJson(const PushReport& report) {
  Json json = {{"version", report.version},     {"seconds", report.seconds},
               {"pause_ms", report.pause_ms},   {"bytes", report.bytes},
               {"digest", report.digest},       {"in_flight", report.in_flight},
               {"retracted", report.retracted}, {"lost", report.lost}};
  json["servers"] = Json::array();
  for (const PushServerReport& server : report.servers) {
    json["servers"].push_back({{"url", server.url},
                               {"version", server.version},
                               {"pause_ms", server.pause_ms},
                               {"in_flight", server.in_flight},
                               {"retracted", server.retracted},
                               {"aborted", server.aborted},
                               {"lost", server.lost},
                               {"carried_over", server.carried_over},
                               {"load_before", server.load_before},
                               {"load_after", server.load_after},
                               {"digest", server.digest},
                               {"recipe", server.recipe},
                               {"emulated", server.is_emulated}});
    if (const std::optional<ProbeReport>& probe = server.probe) {
      json["servers"].back()["probe"] = {{"sequences", probe->num_sequences},
                                         {"tokens", probe->num_tokens},
                                         {"mean_dlogp", probe->mean_dlogp},
                                         {"max_dlogp", probe->max_dlogp},
                                         {"k3", probe->k3}};
    }
  }
  return json.dump(-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
}

Result<std::string> GetLiveDigestJson(HttpClient& client) {
  return GetText(client, "/octavo/v1/digest");
}

}  // namespace octavo
