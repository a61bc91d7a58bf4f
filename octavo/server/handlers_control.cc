// Health, loads, flush, pause, and the weight calls of SGLang's dialect.

#include <charconv>
#include <cmath>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>

#include "octavo/base/hash.h"
#include "octavo/base/log.h"
#include "octavo/base/status.h"
#include "octavo/engine/engine.h"
#include "octavo/server/application.h"
#include "octavo/server/http.h"
#include "octavo/server/in_flight.h"
#include "octavo/server/info.h"
#include "octavo/server/json.h"
#include "octavo/server/json_writer.h"
#include "octavo/server/model_root.h"
#include "octavo/sync/pull_weights.h"
#include "octavo/sync/serving.h"
#include "octavo/sync/weight_update.h"

namespace octavo {
namespace {

std::string OkMessage(std::string_view message) {
  JsonWriter json;
  json.BeginObject().Field("message", message).Field("status", "ok").EndObject();
  return json.Take();
}

HttpResponse VersionReply(std::string_view version) {
  JsonWriter json;
  json.BeginObject().Field("success", true);
  json.Field("message", fmt::format("weight version is now {}", version));
  json.Field("new_version", version).EndObject();
  return JsonResponse(json.Take());
}

Result<double> ParseTimeout(const HttpRequest& request) {
  const std::optional<std::string> text = QueryValue(request.query, "timeout");
  if (!text.has_value()) {
    return 0.0;
  }
  double seconds = -1.0;
  const char* end = text->data() + text->size();
  const auto [stop, error] = std::from_chars(text->data(), end, seconds);
  if (error != std::errc() || stop != end || !std::isfinite(seconds) || seconds < 0.0) {
    return InvalidArgument("timeout: expected a number of seconds >= 0, got \"{}\"", *text);
  }
  return seconds;
}

Result<PauseMode> ParsePauseMode(std::string_view body) {
  ASSIGN_OR_RETURN(const JsonValue json, ParseJsonBody(body));
  ASSIGN_OR_RETURN(const std::string mode, StringField(json, "mode", "abort"));
  if (mode == "abort") {
    return PauseMode::kAbort;
  }
  if (mode == "retract") {
    return PauseMode::kRetract;
  }
  if (mode == "in_place") {
    return PauseMode::kInPlace;
  }
  return Corrupt("mode: expected abort, in_place or retract, got \"{}\"", mode);
}

// What /update_weights_from_disk takes; the other keys that clients send change nothing here.
struct DiskUpdate {
  std::string model_path;
  std::string weight_version;  // Empty: the next one.
  InFlightWish in_flight;
};

Result<DiskUpdate> ParseDiskUpdate(std::string_view body) {
  ASSIGN_OR_RETURN(const JsonValue json, ParseJsonBody(body));
  DiskUpdate update;
  ASSIGN_OR_RETURN(update.model_path, StringField(json, "model_path", ""));
  if (update.model_path.empty()) {
    return Corrupt("model_path: expected the path of a model folder, got none");
  }
  ASSIGN_OR_RETURN(update.weight_version, StringField(json, "weight_version", ""));
  ASSIGN_OR_RETURN(update.in_flight.flush_cache, BoolField(json, "flush_cache", true));
  ASSIGN_OR_RETURN(update.in_flight.abort_all, BoolField(json, "abort_all_requests", false));
  ASSIGN_OR_RETURN(const std::string load_format, StringField(json, "load_format", "auto"));
  if (load_format != "auto" && load_format != "safetensors") {
    return Corrupt("load_format: expected auto or safetensors, got \"{}\"", load_format);
  }
  for (const std::string_view ignored :
       {"is_async", "keep_pause", "recapture_cuda_graph", "torch_empty_cache"}) {
    ASSIGN_OR_RETURN([[maybe_unused]] const bool value, BoolField(json, ignored, false));
  }
  return update;
}

HttpResponse RunDiskUpdate(Serving* serving, const std::string& model_root,
                           const DiskUpdate& update) {
  const Result<std::string> folder = ResolveBelow(model_root, update.model_path);
  if (!folder.has_value()) {
    return WeightError(folder.error().WithContext("model_path"), /*with_paused=*/true);
  }
  if (const Status whole = CheckNotSwitching(*folder); !whole.ok()) {
    return WeightError(whole.WithContext("model_path"), /*with_paused=*/true);
  }
  // Asked again here, on the worker: the engine may have been paused while the call waited.
  Result<InFlight> in_flight = ChooseInFlight(update.in_flight, serving->engine->Stats());
  if (!in_flight.has_value()) {
    return WeightError(in_flight.error(), /*with_paused=*/true);
  }
  const Result<CommitReport> report =
      serving->updater->UpdateFromDisk(*folder, update.weight_version, *in_flight);
  if (!report.has_value()) {
    return WeightError(report.error(), /*with_paused=*/true);
  }
  AwaitBoundary(serving->engine.get());
  JsonWriter json;
  json.BeginObject().Field("success", true);
  json.Field("message", fmt::format("weights of {} are live as version {}", update.model_path,
                                    report->version));
  json.Field("num_paused_requests", 0).Field("weight_version", report->version);
  json.Field("retracted", report->swap.retracted).Field("pause_ms", report->swap.pause_ms);
  json.EndObject();
  return JsonResponse(json.Take());
}

// Where versions are kept: on the worker, for the record is on disk before the label changes.
HttpResponse RecordAndRelabel(Serving* serving, const std::string& version) {
  const EngineStats stats = serving->engine->Stats();
  if (version != stats.weight_version) {
    const std::string digest =
        stats.weight_digest.has_value() ? HashHex(*stats.weight_digest) : std::string();
    Status status = serving->versions->CheckNext(version, stats.weight_version);
    if (status.ok()) {
      status = serving->versions->Write(version, digest);
    }
    if (!status.ok()) {
      return WeightError(status, /*with_paused=*/false);
    }
    serving->engine->SetWeightVersion(version, nullptr);
    AwaitBoundary(serving->engine.get());
  }
  return VersionReply(version);
}

}  // namespace

void Application::Health(const WriterPtr& writer) {
  // The engine thread's heartbeat, not a forward pass: a paused server is healthy.
  const bool stuck = serving_->engine->Stats().heartbeat_age_s > options_.stuck_seconds;
  writer->Send(EmptyResponse(draining_ || stuck ? 503 : 200));
}

void Application::Model(std::string_view id, const WriterPtr& writer) {
  const InfoContext info = Info();
  if (id == ServedModelName(info)) {
    return writer->Send(JsonResponse(ModelCardJson(info)));
  }
  JsonWriter json;
  json.BeginObject().Key("error").BeginObject();
  json.Field("message", fmt::format("The model '{}' does not exist", id));
  json.Field("type", "invalid_request_error").Field("param", "model");
  json.Field("code", "model_not_found").EndObject().EndObject();
  writer->Send(JsonResponse(json.Take(), 404));
}

void Application::WeightVersion(const WriterPtr& writer) {
  JsonWriter json;
  json.BeginObject().Field("weight_version", serving_->engine->Stats().weight_version).EndObject();
  writer->Send(JsonResponse(json.Take()));
}

void Application::Loads(const HttpRequest& request, const WriterPtr& writer) {
  const Result<LoadSections> sections =
      ParseLoadSections(QueryValue(request.query, "include").value_or(""));
  if (!sections.has_value()) {
    return writer->Send(ObjectError(sections.error().message(), 400));
  }
  if (const std::string rank = QueryValue(request.query, "dp_rank").value_or("0"); rank != "0") {
    return writer->Send(ObjectError(
        fmt::format("dp_rank: expected 0, for there is one rank, got \"{}\"", rank), 400));
  }
  const std::string format = QueryValue(request.query, "format").value_or("json");
  if (format == "prometheus") {
    return writer->Send(TextResponse(LoadsPrometheus(Info())));
  }
  if (format != "json") {
    return writer->Send(
        ObjectError(fmt::format("format: expected json or prometheus, got \"{}\"", format), 400));
  }
  writer->Send(JsonResponse(LoadsJson(Info(), *sections)));
}

void Application::Flush(const HttpRequest& request, const WriterPtr& writer) {
  const Result<double> timeout_s = ParseTimeout(request);
  if (!timeout_s.has_value()) {
    return writer->Send(TextResponse(timeout_s.error().message() + "\n", 400));
  }
  if (flush_waits_) {
    return writer->Send(TextResponse("another flush is waiting for its timeout\n", 400));
  }
  flush_waits_ = *timeout_s > 0.0;
  serving_->engine->Flush(*timeout_s, [this, reactor = reactor_, writer](const Status& status) {
    reactor->Post([this, writer, status] {
      flush_waits_ = false;
      writer->Send(status.ok() ? TextResponse("Cache flushed.\n")
                               : TextResponse(status.message() + "\n", 400));
    });
  });
}

void Application::Pause(const HttpRequest& request, const WriterPtr& writer) {
  const Result<PauseMode> mode = ParsePauseMode(request.body);
  if (!mode.has_value()) {
    return writer->Send(RequestError(mode.error()));
  }
  serving_->engine->Pause(*mode, AfterBoundary([writer] {
    writer->Send(JsonResponse(OkMessage("Generation is paused.")));
  }));
}

void Application::Continue(const HttpRequest& request, const WriterPtr& writer) {
  const Result<JsonValue> body = ParseJsonBody(request.body);
  if (!body.has_value()) {
    return writer->Send(RequestError(body.error()));
  }
  if (const Result<bool> ignored = BoolField(*body, "torch_empty_cache", true);
      !ignored.has_value()) {
    return writer->Send(RequestError(ignored.error()));
  }
  if (!HasImplicitUpdate() || bracket_.has_value()) {
    return ContinueEngine(writer);
  }
  // The trainer has sent everything. If that is not all, it must stop, and nobody may generate with
  // the weights of before in the belief that they are the new ones.
  EndImplicitUpdate([this, writer](const Status& status) {
    if (!status.ok()) {
      return writer->Send(ObjectError(
          status
              .WithContext("the weight update is dropped and generation stays paused; "
                           "/continue_generation once more goes on with the old weights")
              .message(),
          500));
    }
    ContinueEngine(writer);
  });
}

void Application::ContinueEngine(const WriterPtr& writer) {
  serving_->engine->Continue(
      AfterBoundary([writer] { writer->Send(JsonResponse(OkMessage("Generation continues."))); }));
}

void Application::UpdateWeightVersion(const HttpRequest& request, const WriterPtr& writer) {
  const Result<JsonValue> body = ParseJsonBody(request.body);
  if (!body.has_value()) {
    return writer->Send(RequestError(body.error()));
  }
  const Result<std::string> version = StringField(*body, "new_version", "");
  const Result<bool> abort_all = BoolField(*body, "abort_all_requests", true);
  if (!version.has_value() || !abort_all.has_value()) {
    return writer->Send(RequestError(!version.has_value() ? version.error() : abort_all.error()));
  }
  if (version->empty()) {
    return writer->Send(RequestError(Corrupt("new_version: expected a string, got none")));
  }
  if (*abort_all) {
    serving_->engine->AbortAll();
  }
  if (HasImplicitUpdate()) {  // It names what is coming, not what is live.
    const Status status = serving_->updater->SetVersion(update_->id, *version);
    return writer->Send(status.ok() ? VersionReply(*version)
                                    : WeightError(status, /*with_paused=*/false));
  }
  if (bracket_.has_value() &&
      serving_->updater->Totals().num_committed == bracket_->num_committed) {
    // Its buckets have failed: the old weights must not get the name of the new ones.
    return writer->Send(WeightError(
        InvalidArgument("update_weight_version: since /begin_weight_update no weights have come "
                        "that \"{}\" could name",
                        *version),
        /*with_paused=*/false));
  }
  if (serving_->versions != nullptr) {
    return AnswerFromWorker(writer, [serving = serving_, version = *version] {
      return RecordAndRelabel(serving, version);
    });
  }
  serving_->engine->SetWeightVersion(*version, AfterBoundary([writer, version = *version] {
    LOG(INFO, "weight version relabelled version={}", version);
    writer->Send(VersionReply(version));
  }));
}

void Application::UpdateFromDisk(const HttpRequest& request, const WriterPtr& writer) {
  const Result<DiskUpdate> update = ParseDiskUpdate(request.body);
  if (!update.has_value()) {
    return writer->Send(RequestError(update.error()));
  }
  if (draining_) {
    return writer->Send(WeightError(Unavailable("the server is stopping"), true));
  }
  AnswerFromWorker(writer, [serving = serving_, root = options_.model_root, update = *update] {
    return RunDiskUpdate(serving, root, update);
  });
}

}  // namespace octavo
