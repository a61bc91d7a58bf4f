// What a fleet asks of a replica: whether it is ready, and its weights, for another one that joins.

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "octavo/base/hash.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/convert/digest.h"
#include "octavo/engine/engine.h"
#include "octavo/formats/format.h"
#include "octavo/model/model.h"
#include "octavo/server/application.h"
#include "octavo/server/http.h"
#include "octavo/server/json_writer.h"
#include "octavo/sync/canonical_file.h"
#include "octavo/sync/live_weights.h"
#include "octavo/sync/pack_row.h"
#include "octavo/sync/serving.h"
#include "octavo/sync/weight_plan.h"
#include "octavo/sync/weight_update.h"

namespace octavo {
namespace {

// Of one reply: all that is held of the weights for a peer.
constexpr int64_t kPieceBytesMax = int64_t{64} << 20;
// A commit between two looks is rare, two are rarer.
constexpr int kLooksMax = 4;

// The live weights with their label, which belong together.
struct LiveVersion {
  std::string version;
  ModelDigest digest;
};

Result<LiveVersion> ReadLiveVersion(Serving* serving) {
  for (int look = 0; look < kLooksMax; ++look) {
    const EngineStats before = serving->engine->Stats();
    if (before.weight_state != WeightState::kLive || !before.weight_digest.has_value()) {
      return Unavailable("weights: they are {}", WeightStateName(before.weight_state));
    }
    ASSIGN_OR_RETURN(ModelDigest digest, serving->updater->LiveDigest());
    if (digest.hash == *before.weight_digest) {
      return LiveVersion{before.weight_version, std::move(digest)};
    }
  }
  return Unavailable("weights: they change faster than they can be read");
}

HttpResponse ListWeights(Serving* serving) {
  const Result<LiveVersion> live = ReadLiveVersion(serving);
  if (!live.has_value()) {
    return NativeError(live.error());
  }
  const CanonicalFile file(live->digest.tensors);
  JsonWriter json;
  json.BeginObject().Field("weight_version", live->version);
  json.Field("weight_digest", live->digest.hex).Field("recipe", serving->recipe);
  json.Field("weight_format", WeightFormatName(serving->table.format));
  json.Field("policy_hash", serving->table.Hash()).Field("bytes", file.num_bytes());
  json.Key("tensors").BeginArray();
  for (const CanonicalEntry& entry : file.entries()) {
    json.BeginObject().Field("name", entry.line.name);
    json.Field("dtype", DTypeName(entry.line.dtype)).Key("shape").BeginArray();
    for (const int64_t extent : entry.line.shape) {
      json.Value(extent);
    }
    json.EndArray().Field("begin", entry.begin_bytes).Field("end", entry.end_bytes);
    json.Field("digest", entry.line.hex).EndObject();
  }
  json.EndArray().EndObject();
  return JsonResponse(json.Take());
}

// --- Bytes ---

struct BytesQuery {
  std::string digest;
  std::string name;  // Empty: of all tensors.
  int64_t begin = 0;
  std::optional<int64_t> end;  // Absent: to the end.
};

Result<std::optional<int64_t>> ParsePlace(std::string_view query, std::string_view key) {
  const std::optional<std::string> text = QueryValue(query, key);
  if (!text.has_value()) {
    return std::optional<int64_t>();
  }
  int64_t place = -1;
  const char* end = text->data() + text->size();
  const auto [stop, error] = std::from_chars(text->data(), end, place);
  if (error != std::errc() || stop != end || place < 0) {
    return InvalidArgument("{}: expected a number of bytes, got \"{}\"", key, *text);
  }
  return std::optional(place);
}

Result<BytesQuery> ParseBytesQuery(std::string_view query) {
  BytesQuery bytes;
  bytes.digest = QueryValue(query, "digest").value_or("");
  if (bytes.digest.empty()) {
    return InvalidArgument("digest: expected the weight_digest of /octavo/v1/weights, got none");
  }
  bytes.name = QueryValue(query, "name").value_or("");
  ASSIGN_OR_RETURN(const std::optional<int64_t> begin, ParsePlace(query, "begin"));
  bytes.begin = begin.value_or(0);
  ASSIGN_OR_RETURN(bytes.end, ParsePlace(query, "end"));
  return bytes;
}

// What is there of the served table, in the order of a digest, without the digests.
std::vector<TensorDigestLine> LinesOf(const WeightPlan& plan, const ModelWeights& weights,
                                      const std::string& name) {
  std::vector<TensorDigestLine> lines;
  for (size_t i = 0; i < plan.parts.size(); ++i) {
    const PackedMatrix& packed = weights.matrices[i];
    const float input_scale =
        weights.stored_input_scales.empty() ? 0.0F : weights.stored_input_scales[i];
    for (const StoredTensorSpec& part : plan.parts[i]) {
      const bool is_there = !packed.codes.empty() &&
                            !(IsInputScale(part.part) && input_scale == 0.0F) &&
                            (name.empty() || name == part.name);
      if (is_there) {
        const DType dtype = IsVector(plan.table->rows[i]) ? packed.vector_dtype : part.dtype;
        lines.push_back({part.name, dtype, part.shape, ""});
      }
    }
  }
  std::ranges::sort(lines, {}, &TensorDigestLine::name);
  return lines;
}

Result<std::string> ReadBytes(LiveWeights& live, const BytesQuery& query,
                              const ModelWeights& weights) {
  const std::string digest = weights.digest.has_value() ? HashHex(*weights.digest) : "none";
  if (digest != query.digest) {
    return Unavailable("weights: {} were asked for and {} are live; read the list again",
                       query.digest, digest);
  }
  std::vector<TensorDigestLine> lines = LinesOf(live.plan(), weights, query.name);
  if (lines.empty()) {
    return NotFound("{}: the served model stores no such tensor", query.name);
  }
  const CanonicalFile file(std::move(lines));
  const int64_t end = query.end.value_or(file.num_bytes());
  if (query.begin > end || end > file.num_bytes()) {
    return InvalidArgument("bytes {} to {}: expected a range within the {} bytes of the file",
                           query.begin, end, file.num_bytes());
  }
  if (end - query.begin > kPieceBytesMax) {
    return InvalidArgument("bytes {} to {}: expected at most {} at a time, got {}", query.begin,
                           end, kPieceBytesMax, end - query.begin);
  }
  std::string bytes(static_cast<size_t>(end - query.begin), '\0');
  RETURN_IF_ERROR(file.Read(live.plan(), weights, live.backend(), query.begin,
                            std::as_writable_bytes(std::span(bytes))));
  return bytes;
}

HttpResponse SendBytes(LiveWeights* live, const BytesQuery& query) {
  std::string bytes;
  const Status status = live->Read([&](const ModelWeights& weights) -> Status {
    ASSIGN_OR_RETURN(bytes, ReadBytes(*live, query, weights));
    return OkStatus();
  });
  if (!status.ok()) {
    return NativeError(status);
  }
  return {.content_type = "application/octet-stream", .body = std::move(bytes)};
}

}  // namespace

bool Application::AwaitsFirstWeights(const EngineStats& stats) const {
  return serving_->starts_without_weights && !stats.weight_digest.has_value() &&
         !serving_->updater->LastCommit().has_value();
}

std::string Application::WhyNotReady() const {
  const EngineStats stats = serving_->engine->Stats();
  if (draining_) {
    return "the server is stopping";
  }
  if (stats.heartbeat_age_s > options_.stuck_seconds) {
    return fmt::format("the engine has been silent for {:.0f} s", stats.heartbeat_age_s);
  }
  if (AwaitsFirstWeights(stats)) {
    return "no weights have come yet";
  }
  if (stats.weight_state != WeightState::kLive) {
    return fmt::format("the weights are {}", WeightStateName(stats.weight_state));
  }
  return stats.kv_released ? "the KV cache is released" : "";
}

void Application::Ready(const WriterPtr& writer) {
  const std::string reason = WhyNotReady();
  JsonWriter json;
  json.BeginObject().Field("ready", reason.empty());
  json.Field("weight_version", serving_->engine->Stats().weight_version);
  if (!reason.empty()) {
    json.Field("reason", reason);
  }
  json.EndObject();
  writer->Send(JsonResponse(json.Take(), reason.empty() ? 200 : 503));
}

void Application::Weights(const WriterPtr& writer) {
  AnswerFromWorker(writer, [serving = serving_] { return ListWeights(serving); });
}

void Application::WeightBytes(const HttpRequest& request, const WriterPtr& writer) {
  const Result<BytesQuery> query = ParseBytesQuery(request.query);
  if (!query.has_value()) {
    return writer->Send(NativeError(query.error()));
  }
  AnswerFromWorker(writer, [live = &serving_->updater->live(), query = *query] {
    return SendBytes(live, query);
  });
}

}  // namespace octavo
