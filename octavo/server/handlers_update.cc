// The native weight update: /octavo/v1/update/{begin,put,seal,commit,abort}, and what proves it:
// /octavo/v1/{digest,policy,manifest}. docs/design/0003-weight-updates.md.

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "octavo/base/hash.h"
#include "octavo/base/log.h"
#include "octavo/base/status.h"
#include "octavo/convert/digest.h"
#include "octavo/engine/engine.h"
#include "octavo/policy/manifest.h"
#include "octavo/policy/precision_table.h"
#include "octavo/policy/table_json.h"
#include "octavo/server/application.h"
#include "octavo/server/http.h"
#include "octavo/server/json.h"
#include "octavo/server/json_writer.h"
#include "octavo/server/weight_bucket.h"
#include "octavo/sync/serving.h"
#include "octavo/sync/staging.h"
#include "octavo/sync/staging_budget.h"
#include "octavo/sync/weight_change.h"
#include "octavo/sync/weight_update.h"

namespace octavo {
namespace {

using Clock = std::chrono::steady_clock;

Result<std::string> ParseUpdateId(const JsonValue& body) {
  ASSIGN_OR_RETURN(std::string id, StringField(body, "update_id", ""));
  if (id.empty()) {
    return Corrupt("update_id: expected the id that begin gave, got none");
  }
  return id;
}

Result<InFlight> ParseInFlight(const JsonValue& body) {
  ASSIGN_OR_RETURN(const std::string name, StringField(body, "in_flight", "retract"));
  if (name == "retract") {
    return InFlight::kRetract;
  }
  if (name == "drain") {
    return InFlight::kDrain;
  }
  if (name == "abort") {
    return InFlight::kAbort;
  }
  if (name == "in_place") {
    return InFlight::kInPlace;
  }
  return InvalidArgument("in_flight: expected retract, drain, abort or in_place, got \"{}\"", name);
}

Result<StagingMode> ParseStagingMode(const JsonValue& body) {
  ASSIGN_OR_RETURN(const std::string name, StringField(body, "staging", "shadow"));
  if (name == "shadow") {
    return StagingMode::kShadow;
  }
  if (name == "in_place") {
    return StagingMode::kInPlace;
  }
  return InvalidArgument("staging: expected shadow or in_place, got \"{}\"", name);
}

Result<Require> RequireOf(const JsonValue& body) {
  ASSIGN_OR_RETURN(const std::string name, StringField(body, "require", "all"));
  const std::optional<Require> require = ParseRequire(name);
  if (!require.has_value()) {
    return InvalidArgument("require: expected all, seen or any, got \"{}\"", name);
  }
  return *require;
}

struct PutQuery {
  std::string update_id;
  int64_t sequence = 0;
  std::string checksum;  // XXH3-128 of the body, as its sender had it; empty: it did not say.
};

Result<PutQuery> ParsePutQuery(std::string_view query) {
  PutQuery put;
  put.update_id = QueryValue(query, "update_id").value_or("");
  if (put.update_id.empty()) {
    return InvalidArgument("update_id: expected it in the query, got none");
  }
  const std::string sequence = QueryValue(query, "sequence").value_or("");
  const char* end = sequence.data() + sequence.size();
  const auto [stop, error] = std::from_chars(sequence.data(), end, put.sequence);
  if (error != std::errc() || stop != end || put.sequence < 0) {
    return InvalidArgument("sequence: expected the bucket's number, 0 or more, got \"{}\"",
                           sequence);
  }
  put.checksum = QueryValue(query, "checksum").value_or("");
  return put;
}

struct BucketBody {
  std::shared_ptr<const std::string> bytes;
  Hash128 hash;
};

// What a sender does well to send again, for it had other bytes.
HttpResponse DamagedBucket(const PutQuery& put, const Status& why) {
  HttpResponse response = NativeError(why.WithContext(fmt::format("bucket {}", put.sequence)));
  response.status = 422;
  return response;
}

// Stages a bucket. The container and its checksums are checked before the first tensor is staged.
HttpResponse StageBucket(WeightUpdater* updater, const PutQuery& put, const BucketBody& body) {
  const Result<Bucket> bucket = ParseBucket(*body.bytes);
  if (bucket.has_value() && !bucket->damage.ok()) {
    return DamagedBucket(put, bucket->damage);
  }
  if (const std::string actual = HashHex(body.hash);
      !put.checksum.empty() && put.checksum != actual) {
    return DamagedBucket(put, Corrupt("damaged on the way: expected xxh3-128 {}, got {}",
                                      put.checksum.substr(0, 64), actual));
  }
  if (!bucket.has_value()) {
    return NativeError(bucket.error().WithContext(fmt::format("bucket {}", put.sequence)));
  }
  int64_t num_bytes = 0;
  for (const BucketTensor& tensor : bucket->tensors) {
    if (const Status status = updater->Put(put.update_id, tensor.name, tensor.view); !status.ok()) {
      return NativeError(status);
    }
    num_bytes += tensor.view.NumBytes();
  }
  JsonWriter json;
  json.BeginObject().Field("success", true).Field("sequence", put.sequence);
  json.Field("tensors", static_cast<int64_t>(bucket->tensors.size())).Field("bytes", num_bytes);
  json.EndObject();
  return JsonResponse(json.Take());
}

double ShareOf(int64_t part, int64_t whole) {
  return whole == 0 ? 0.0 : static_cast<double>(part) / static_cast<double>(whole);
}

// What an update changed; of one weight, or of all.
void WriteChange(const WeightChange& change, JsonWriter& json) {
  json.Field("changed_share", ShareOf(change.num_changed, change.num_codes));
  json.Field("saturated_share", ShareOf(change.num_saturated, change.num_codes));
  json.Field("subnormal_scale_share", ShareOf(change.num_subnormal_scales, change.num_scales));
}

void WriteChanges(const PrecisionTable& table, const CommitReport& commit, JsonWriter& json) {
  json.Key("weights").BeginObject();
  for (size_t i = 0; i < commit.changes.size(); ++i) {
    if (commit.changes[i].num_codes > 0) {
      json.Key(table.rows[i].name).BeginObject();
      WriteChange(commit.changes[i], json);
      json.EndObject();
    }
  }
  json.EndObject();
}

// The weights that stayed what they were.
void WriteCarriedOver(const CommitReport& commit, JsonWriter& json) {
  json.Key("carried_over_weights").BeginArray();
  for (const std::string& name : commit.carried_over) {
    json.Value(name);
  }
  json.EndArray();
}

struct CommitCall {
  std::string id;
  InFlight in_flight = InFlight::kRetract;
  bool with_digest = true;
  bool per_tensor = false;
};

HttpResponse CommitAndDigest(Serving* serving, const CommitCall& call) {
  const Result<CommitReport> report = serving->updater->Commit(call.id, call.in_flight);
  if (!report.has_value()) {
    return NativeError(report.error());
  }
  AwaitBoundary(serving->engine.get());
  JsonWriter json;
  json.BeginObject().Field("success", true).Field("version", report->version);
  json.Field("in_flight", report->swap.in_flight).Field("retracted", report->swap.retracted);
  json.Field("aborted", report->swap.aborted).Field("pause_ms", report->swap.pause_ms);
  json.Field("tensors", report->num_tensors).Field("bytes_in", report->bytes_in);
  json.Field("bytes_staged", report->bytes_staged).Field("put_seconds", report->put_seconds);
  json.Field("seal_seconds", report->seal_seconds);
  json.Field("commit_seconds", report->commit_seconds);
  json.Field("carried_over", static_cast<int64_t>(report->carried_over.size()));
  WriteChange(report->change, json);
  if (call.per_tensor) {
    WriteChanges(serving->table, *report, json);
  }
  WriteCarriedOver(*report, json);
  if (call.with_digest) {
    const Result<ModelDigest> digest = serving->updater->LiveDigest();
    if (!digest.has_value()) {
      return NativeError(digest.error().WithContext(
          fmt::format("version {} is live, but its digest", report->version)));
    }
    json.Field("digest", digest->hex);
  }
  json.EndObject();
  return JsonResponse(json.Take());
}

HttpResponse ReadDigest(Serving* serving) {
  const Result<ModelDigest> digest = serving->updater->LiveDigest();
  if (!digest.has_value()) {
    return NativeError(digest.error());
  }
  JsonWriter json;
  json.BeginObject().Field("digest", digest->hex);
  json.Field("weight_version", serving->engine->Stats().weight_version);
  json.Key("tensors").BeginObject();
  for (const TensorDigestLine& tensor : digest->tensors) {
    json.Field(tensor.name, tensor.hex);
  }
  json.EndObject().EndObject();
  return JsonResponse(json.Take());
}

// The last update that went live, whoever sent it, and where its time went.
void WriteLastCommit(const CommitReport& commit, const PrecisionTable* per_tensor,
                     JsonWriter& json) {
  json.BeginObject().Field("version", commit.version).Field("digest", commit.digest);
  json.Field("unix_seconds", commit.unix_seconds).Field("open_seconds", commit.open_seconds);
  json.Field("put_seconds", commit.put_seconds).Field("seal_seconds", commit.seal_seconds);
  json.Field("commit_seconds", commit.commit_seconds);
  json.Field("pause_ms", commit.swap.pause_ms).Field("in_flight", commit.swap.in_flight);
  json.Field("retracted", commit.swap.retracted).Field("aborted", commit.swap.aborted);
  json.Field("tensors", commit.num_tensors).Field("bytes_in", commit.bytes_in);
  json.Field("bytes_staged", commit.bytes_staged);
  json.Field("carried_over", static_cast<int64_t>(commit.carried_over.size()));
  WriteChange(commit.change, json);
  if (per_tensor != nullptr) {
    WriteChanges(*per_tensor, commit, json);
  }
  json.EndObject();
}

void WriteBudget(const StagingBudget& budget, JsonWriter& json) {
  json.Key("memory").BeginObject().Field("total_bytes", budget.TotalBytes());
  json.Field("staged_bytes", budget.staged_bytes).Field("waiting_bytes", budget.waiting_bytes);
  json.Field("scratch_bytes", budget.scratch_bytes).Field("bucket_bytes", budget.bucket_bytes);
  json.Key("available_bytes");
  if (budget.available_bytes.has_value()) {
    json.Value(*budget.available_bytes);
  } else {
    json.Null();
  }
  json.EndObject();
}

HttpResponse ReadManifest(Serving* serving) {
  const LiveBase live = serving->updater->live().Base();
  Manifest manifest = MakeManifest(serving->spec, serving->table, live.is_held);
  manifest.weight_version = serving->engine->Stats().weight_version;
  return JsonResponse(ManifestToJson(manifest));
}

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

// --- Who has an update open ---

Application::OpenUpdate* Application::TouchUpdate(const std::string& id, const WriterPtr& writer) {
  if (!update_.has_value() || update_->id != id) {
    writer->Send(NativeError(NotFound("weight update {}: not open; {}", id,
                                      update_.has_value()
                                          ? fmt::format("{} of {} is", update_->id, update_->holder)
                                          : std::string("none is"))));
    return nullptr;
  }
  ++update_->num_busy;
  update_->last_touched = Clock::now();
  return &*update_;
}

void Application::ReleaseUpdate(const std::string& id) {
  if (update_.has_value() && update_->id == id) {
    --update_->num_busy;
    update_->last_touched = Clock::now();
  }
}

// Drops the staging of a sender that has been gone for too long: its memory is worth more than the
// hope that it comes back.
void Application::WatchIdle(const std::string& id) {
  if (!update_.has_value() || update_->id != id) {
    return;
  }
  const double idle_s = update_->num_busy > 0 ? 0.0 : SecondsSince(update_->last_touched);
  if (idle_s >= options_.update_idle_seconds) {
    LOG(WARNING, "weight update dropped id={} holder={} idle_s={:.1f}", id, update_->holder,
        idle_s);
    update_.reset();
    const bool queued =
        reactor_->RunBlocking([updater = serving_->updater.get(), id] { updater->Abort(id); });
    if (queued) {
      return;
    }
  }
  reactor_->PostAfter(std::max(options_.update_idle_seconds - idle_s, 0.05),
                      [this, id] { WatchIdle(id); });
}

void Application::UpdateStatus(const HttpRequest& request, const WriterPtr& writer) {
  const std::string per_tensor = QueryValue(request.query, "per_tensor").value_or("false");
  if (per_tensor != "true" && per_tensor != "false") {
    return writer->Send(
        NativeError(InvalidArgument("per_tensor: expected true or false, got \"{}\"", per_tensor)));
  }
  JsonWriter json;
  json.BeginObject().Field("weight_version", serving_->engine->Stats().weight_version);
  json.Field("open", update_.has_value());
  if (update_.has_value()) {
    json.Field("update_id", update_->id).Field("target_version", update_->version);
    json.Field("holder", update_->holder);
    json.Field("idle_seconds", update_->num_busy > 0 ? 0.0 : SecondsSince(update_->last_touched));
    json.Field("buckets", static_cast<int64_t>(update_->done.size()));
  }
  json.Key("last");
  if (const std::optional<CommitReport> last = serving_->updater->LastCommit()) {
    WriteLastCommit(*last, per_tensor == "true" ? &serving_->table : nullptr, json);
  } else {
    json.Null();
  }
  json.EndObject();
  writer->Send(JsonResponse(json.Take()));
}

// --- The calls ---

void Application::UpdateBegin(const HttpRequest& request, const WriterPtr& writer) {
  const Result<JsonValue> body = ParseJsonBody(request.body);
  if (!body.has_value()) {
    return writer->Send(RequestError(body.error()));
  }
  const Result<std::string> version = StringField(*body, "weight_version", "");
  const Result<bool> takeover = BoolField(*body, "takeover", false);
  const Result<StagingMode> mode = ParseStagingMode(*body);
  const Result<Require> require = RequireOf(*body);
  const Result<std::string> request_key = StringField(*body, "request_key", "");
  for (const Status& status :
       {version.error(), takeover.error(), mode.error(), require.error(), request_key.error()}) {
    if (!status.ok()) {
      return writer->Send(RequestError(status));
    }
  }
  if (const std::string* answer = begun_.Find(*request_key); answer != nullptr) {
    return writer->Send(JsonResponse(*answer));
  }
  if (draining_) {
    return writer->Send(NativeError(Unavailable("the server is stopping")));
  }
  std::string displaced;
  if (*takeover && update_.has_value()) {
    if (update_->num_busy > 0) {
      return writer->Send(NativeError(Unavailable(
          "weight update {} of {}: a call is working on it; repeat the takeover when it is done",
          update_->id, update_->holder)));
    }
    LOG(WARNING, "weight update taken over id={} holder={} by={}", update_->id, update_->holder,
        request.peer);
    displaced = update_->id;
    update_.reset();
  }
  BeginOnWorker({*version, *mode, *require, displaced, request.peer, *request_key}, writer);
}

// The updater knows that an update is open; we know whose it is.
Status Application::WithHolder(const Status& status) const {
  if (status.code() != StatusCode::kUnavailable || !update_.has_value()) {
    return status;
  }
  return Unavailable("{}; it was begun by {}; begin with \"takeover\": true to displace it",
                     status.message(), update_->holder);
}

void Application::BeginOnWorker(const BeginCall& call, const WriterPtr& writer) {
  const bool accepted = reactor_->RunBlocking([this, call, writer] {
    if (!call.displaced.empty()) {
      serving_->updater->Abort(call.displaced);
    }
    const Result<std::string> id = serving_->updater->Begin(call.version, call.mode, call.require);
    const Result<StagingBudget> budget =
        id.has_value() ? serving_->updater->BudgetOf(*id) : Result<StagingBudget>(id.error());
    reactor_->Post([this, id, budget, call, writer] {
      if (!budget.has_value()) {  // The first call of this key may just have opened it.
        const std::string* answer = begun_.Find(call.request_key);
        return writer->Send(answer != nullptr ? JsonResponse(*answer)
                                              : NativeError(WithHolder(budget.error())));
      }
      update_ =
          OpenUpdate{.id = *id, .version = call.version.empty() ? "(the next one)" : call.version};
      update_->holder = call.peer;
      update_->last_touched = Clock::now();
      WatchIdle(*id);
      JsonWriter json;
      json.BeginObject().Field("success", true).Field("update_id", *id);
      WriteBudget(*budget, json);
      json.EndObject();
      std::string answer = json.Take();
      if (!call.request_key.empty()) {
        begun_.Keep(call.request_key, answer);
      }
      writer->Send(JsonResponse(std::move(answer)));
    });
  });
  if (!accepted) {
    writer->Send(NativeError(Exhausted("too many weight calls are waiting for their turn")));
  }
}

void Application::UpdatePut(HttpRequest& request, const WriterPtr& writer) {
  const Result<PutQuery> put = ParsePutQuery(request.query);
  if (!put.has_value()) {
    return writer->Send(NativeError(put.error()));
  }
  OpenUpdate* update = TouchUpdate(put->update_id, writer);
  if (update == nullptr) {
    return;
  }
  const auto body = std::make_shared<const std::string>(std::move(request.body));
  const Hash128 hash = HashText(*body);
  if (const auto known = update->done.find(put->sequence); known != update->done.end()) {
    ReleaseUpdate(put->update_id);
    const bool same = known->second.first == hash;
    return writer->Send(same ? JsonResponse(known->second.second)
                             : NativeError(InvalidArgument(
                                   "bucket {}: a bucket of this number and other content is staged",
                                   put->sequence)));
  }
  AnswerFromWorker(
      writer,
      [updater = serving_->updater.get(), put = *put, body = BucketBody{body, hash}] {
        return StageBucket(updater, put, body);
      },
      [this, put = *put, hash](const HttpResponse& response) {
        ReleaseUpdate(put.update_id);
        if (response.status == 200 && update_.has_value() && update_->id == put.update_id) {
          update_->done.emplace(put.sequence, std::pair(hash, response.body));
        }
      });
}

void Application::UpdateSeal(const HttpRequest& request, const WriterPtr& writer) {
  const Result<JsonValue> body = ParseJsonBody(request.body);
  const Result<std::string> id = body.has_value() ? ParseUpdateId(*body) : body.error();
  if (!id.has_value()) {
    return writer->Send(RequestError(id.error()));
  }
  if (TouchUpdate(*id, writer) == nullptr) {
    return;
  }
  AnswerFromWorker(
      writer,
      [updater = serving_->updater.get(), id = *id] {
        const Status status = updater->Seal(id);
        return status.ok() ? WeightSuccess("every weight is staged") : NativeError(status);
      },
      [this, id = *id](const HttpResponse&) { ReleaseUpdate(id); });
}

void Application::UpdateCommit(const HttpRequest& request, const WriterPtr& writer) {
  const Result<JsonValue> body = ParseJsonBody(request.body);
  const Result<std::string> id = body.has_value() ? ParseUpdateId(*body) : body.error();
  if (!id.has_value()) {
    return writer->Send(RequestError(id.error()));
  }
  const Result<InFlight> in_flight = ParseInFlight(*body);
  const Result<bool> with_digest = BoolField(*body, "digest", true);
  const Result<bool> per_tensor = BoolField(*body, "per_tensor", false);
  for (const Status& status : {in_flight.error(), with_digest.error(), per_tensor.error()}) {
    if (!status.ok()) {
      return writer->Send(NativeError(status));
    }
  }
  if (const std::string* answer = committed_.Find(*id); answer != nullptr) {
    return writer->Send(JsonResponse(*answer));
  }
  if (const auto waiting = committing_.find(*id); waiting != committing_.end()) {
    return waiting->second.push_back(writer);
  }
  if (TouchUpdate(*id, writer) == nullptr) {
    return;
  }
  committing_[*id];
  AnswerFromWorker(
      writer,
      [serving = serving_, call = CommitCall{*id, *in_flight, *with_digest, *per_tensor}] {
        return CommitAndDigest(serving, call);
      },
      [this, id = *id](const HttpResponse& response) { EndCommit(id, response); });
}

// A sender that asked again, for its connection broke, is answered as it was the first time.
void Application::EndCommit(const std::string& id, const HttpResponse& response) {
  ReleaseUpdate(id);
  if (response.status == 200) {
    committed_.Keep(id, response.body);
    if (update_.has_value() && update_->id == id) {
      update_.reset();
    }
  }
  const std::vector<WriterPtr> waiting = std::move(committing_[id]);
  committing_.erase(id);
  for (const WriterPtr& writer : waiting) {
    writer->Send(response);
  }
}

void Application::UpdateAbort(const HttpRequest& request, const WriterPtr& writer) {
  const Result<JsonValue> body = ParseJsonBody(request.body);
  const Result<std::string> id = body.has_value() ? ParseUpdateId(*body) : body.error();
  if (!id.has_value()) {
    return writer->Send(RequestError(id.error()));
  }
  if (update_.has_value() && update_->id == *id) {
    update_.reset();
  }
  // Succeeds for an update that is not open: a repeated abort is as good as the first.
  AnswerFromWorker(writer, [updater = serving_->updater.get(), id = *id] {
    updater->Abort(id);
    return WeightSuccess(fmt::format("weight update {} is not open", id));
  });
}

void Application::Digest(const WriterPtr& writer) {
  AnswerFromWorker(writer, [serving = serving_] { return ReadDigest(serving); });
}

void Application::Policy(const WriterPtr& writer) {
  writer->Send(JsonResponse(TableToJson(serving_->table)));
}

void Application::Manifest(const WriterPtr& writer) {
  AnswerFromWorker(writer, [serving = serving_] { return ReadManifest(serving); });
}

}  // namespace octavo
