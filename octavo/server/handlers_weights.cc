// Weight calls that inspect, and the brackets that some trainers put around an update.

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "octavo/base/log.h"
#include "octavo/base/status.h"
#include "octavo/convert/digest.h"
#include "octavo/model/model.h"
#include "octavo/server/application.h"
#include "octavo/server/http.h"
#include "octavo/server/json.h"
#include "octavo/server/json_writer.h"
#include "octavo/server/sha256.h"
#include "octavo/sync/live_weights.h"
#include "octavo/sync/serving.h"
#include "octavo/sync/stored_values.h"
#include "octavo/sync/weight_checker.h"
#include "octavo/sync/weight_update.h"

namespace octavo {
namespace {

HttpResponse SuccessOr400(const Status& status, std::string_view message) {
  return status.ok() ? WeightSuccess(message) : WeightError(status, /*with_paused=*/false);
}

// --- /get_weights_by_name ---

// The values of `level` and what lies in it, from `offset` on, which moves.
void WriteNested(JsonWriter& json, const StoredValues& values, size_t level, size_t* offset) {
  if (level == values.shape.size()) {
    json.Value(values.values[(*offset)++]);
    return;
  }
  json.BeginArray();
  for (int64_t i = 0; i < values.shape[level]; ++i) {
    WriteNested(json, values, level + 1, offset);
  }
  json.EndArray();
}

HttpResponse ReadByName(LiveWeights* live, const std::string& name, int64_t num_rows) {
  StoredValues values;
  const Status status = live->Read([&](const ModelWeights& weights) -> Status {
    ASSIGN_OR_RETURN(values,
                     ReadStoredValues(live->plan(), weights, live->backend(), name, num_rows));
    return OkStatus();
  });
  if (!status.ok()) {
    return PlainError(status.message(), 400);
  }
  JsonWriter json;
  size_t offset = 0;
  WriteNested(json, values, 0, &offset);
  return JsonResponse(json.Take());
}

// --- /weights_checker ---

struct CheckCall {
  std::string action;
  WeightCheckOptions options;
};

Status CheckSelector(const JsonValue& body) {
  ASSIGN_OR_RETURN(const std::string selector, StringField(body, "selector", "all"));
  if (selector == "draft") {
    return Unsupported("selector: draft: there is no draft model");
  }
  return selector == "all" || selector == "target"
             ? OkStatus()
             : Corrupt("selector: expected all, target or draft, got \"{}\"", selector);
}

Result<CheckCall> ParseCheck(const HttpRequest& request) {
  ASSIGN_OR_RETURN(const JsonValue body, ParseJsonBody(request.body));
  CheckCall call;
  ASSIGN_OR_RETURN(call.action, StringField(body, "action", "checksum"));
  if (call.action != "checksum" && call.action != "snapshot" && call.action != "reset_tensors" &&
      call.action != "compare") {
    return Corrupt("action: expected checksum, snapshot, reset_tensors or compare, got \"{}\"",
                   call.action);
  }
  RETURN_IF_ERROR(CheckSelector(body));
  ASSIGN_OR_RETURN(call.options.allow_quant_error, BoolField(body, "allow_quant_error", false));
  if (const JsonValue* skip = body.Find("skip_tensor_list"); skip != nullptr) {
    if (skip->array() == nullptr) {
      return Corrupt("skip_tensor_list: expected a list of strings, got {}", skip->KindName());
    }
    for (const JsonValue& part : *skip->array()) {
      ASSIGN_OR_RETURN(std::string text, AsString(part, "skip_tensor_list"));
      if (text.empty()) {
        return Corrupt("skip_tensor_list: expected parts of names, got an empty one");
      }
      call.options.skip.push_back(std::move(text));
    }
  }
  return call;
}

HttpResponse Checksum(LiveWeights* live) {
  const Result<ModelDigest> digest = live->Digest();
  if (!digest.has_value()) {
    return WeightError(digest.error(), /*with_paused=*/false);
  }
  constexpr size_t kDigits = 16;  // Of 32: what clients expect.
  JsonWriter json;
  json.BeginObject().Field("success", true).Field("message", "checksums of the live weights");
  json.Key("ranks").BeginArray().BeginObject().Key("checksums").BeginObject();
  std::string all;
  for (const TensorDigestLine& tensor : digest->tensors) {
    const std::string_view hex = std::string_view(tensor.hex).substr(0, kDigits);
    json.Field(tensor.name, hex);
    all += fmt::format("{}{}", tensor.name, hex);
  }
  const std::string checksum = Sha256Hex(all);
  json.EndObject().Field("per_gpu_checksum", checksum).Key("parallelism_info").BeginObject();
  for (const std::string_view kind : {"tp", "dp", "pp"}) {
    json.Field(fmt::format("{}_rank", kind), 0).Field(fmt::format("{}_size", kind), 1);
  }
  json.Field("rank", 0).Field("size", 1).EndObject().EndObject().EndArray();
  json.Field("per_engine_checksum", Sha256Hex(checksum)).Field("digest", digest->hex).EndObject();
  return JsonResponse(json.Take());
}

HttpResponse RunCheck(LiveWeights* live, WeightChecker* checker, const CheckCall& call) {
  if (call.action == "snapshot") {
    return SuccessOr400(checker->Snapshot(), "a snapshot of the live weights is kept");
  }
  if (call.action == "reset_tensors") {
    return SuccessOr400(checker->ResetTensors(call.options),
                        "the live weights are noise; requests are held until an update");
  }
  if (call.action == "compare") {
    return SuccessOr400(checker->Compare(call.options), "the live weights equal the snapshot");
  }
  return Checksum(live);
}

}  // namespace

void Application::WeightsByName(const HttpRequest& request, const WriterPtr& writer) {
  const Result<JsonValue> body = ParseJsonBody(request.body);
  if (!body.has_value()) {
    return writer->Send(RequestError(body.error()));
  }
  const Result<std::string> name = StringField(*body, "name", "");
  const Result<int64_t> num_rows = IntField(*body, "truncate_size", 100);
  if (!name.has_value() || !num_rows.has_value()) {
    return writer->Send(RequestError(!name.has_value() ? name.error() : num_rows.error()));
  }
  if (name->empty()) {
    return writer->Send(RequestError(Corrupt("name: expected the name of a tensor, got none")));
  }
  if (*num_rows < 0) {
    return writer->Send(
        RequestError(InvalidArgument("truncate_size: expected 0 rows or more, got {}", *num_rows)));
  }
  AnswerFromWorker(writer, [live = &serving_->updater->live(), name = *name, rows = *num_rows] {
    return ReadByName(live, name, rows);
  });
}

void Application::WeightsChecker(const HttpRequest& request, const WriterPtr& writer) {
  const Result<CheckCall> call = ParseCheck(request);
  if (!call.has_value()) {
    return writer->Send(RequestError(call.error()));
  }
  AnswerFromWorker(writer, [this, call = *call] {
    HttpResponse response = RunCheck(&serving_->updater->live(), checker_.get(), call);
    AwaitBoundary(serving_->engine.get());
    return response;
  });
}

// --- The bracket ---

void Application::BeginWeightUpdate(const HttpRequest& request, const WriterPtr& writer) {
  const Result<JsonValue> body = ParseJsonBody(request.body);
  if (!body.has_value()) {
    return writer->Send(RequestError(body.error()));
  }
  if (const Status status = CheckSelector(*body); !status.ok()) {
    return writer->Send(status.code() == StatusCode::kCorrupt
                            ? RequestError(status)
                            : WeightError(status, /*with_paused=*/false));
  }
  const auto now = std::chrono::steady_clock::now();
  if (bracket_.has_value()) {
    const double age_s = std::chrono::duration<double>(now - bracket_->begun).count();
    return writer->Send(
        WeightError(InvalidArgument("begin_weight_update: {} began one {:.1f} s ago; "
                                    "/end_weight_update ends it",
                                    bracket_->holder, age_s),
                    /*with_paused=*/false));
  }
  bracket_ = Bracket{.holder = request.peer,
                     .begun = now,
                     .num_committed = serving_->updater->Totals().num_committed};
  LOG(INFO, "weight update bracket begun by={}", request.peer);
  writer->Send(WeightSuccess("a weight update has begun"));
}

void Application::EndWeightUpdate(const HttpRequest& request, const WriterPtr& writer) {
  const Result<JsonValue> body = ParseJsonBody(request.body);
  if (!body.has_value()) {
    return writer->Send(RequestError(body.error()));
  }
  if (!bracket_.has_value()) {
    return writer->Send(
        WeightError(InvalidArgument("end_weight_update: no /begin_weight_update came before it"),
                    /*with_paused=*/false));
  }
  bracket_.reset();
  LOG(INFO, "weight update bracket ended by={}", request.peer);
  if (!HasImplicitUpdate()) {
    return writer->Send(WeightSuccess("the weight update has ended"));
  }
  EndImplicitUpdate([this, writer](const Status& status) {
    writer->Send(
        SuccessOr400(status.ok() ? OkStatus() : status.WithContext("the weight update is dropped"),
                     fmt::format("version {} is live", serving_->engine->Stats().weight_version)));
  });
}

// Quantizing and packing belong to the transaction that brings the weights: a commit leaves nothing
// to process, and there is no raw form to go back to.
void Application::PostProcessWeights(const HttpRequest& request, const WriterPtr& writer) {
  const Result<JsonValue> body = ParseJsonBody(request.body);
  if (!body.has_value()) {
    return writer->Send(RequestError(body.error()));
  }
  for (const std::string_view key : {"restore_weights_before_load", "post_process_quantization"}) {
    if (const Result<bool> value = BoolField(*body, key, false); !value.has_value()) {
      return writer->Send(RequestError(value.error()));
    }
  }
  writer->Send(
      WeightSuccess("every update is processed as it is committed; nothing was left to do"));
}

void Application::Profile(const WriterPtr& writer) {
  writer->Send(PlainError(
      "start_profile and stop_profile: there is no profiler in the server; octavo bench and perf "
      "show where the time goes",
      400));
}

}  // namespace octavo
