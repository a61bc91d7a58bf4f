// /update_weights_from_tensor: a bucket of tensors as PyTorch pickles them.
//
// A bucket goes into the update that is open, or opens one (WithOpenUpdate). It is the last one
// when it says "flush_cache": true while nothing else will end the update: no pause, no bracket,
// and nobody who began it natively. Then the update is sealed and committed here, or, when tensors
// are missing although requests could run, refused and dropped. Otherwise the bucket is only
// staged.

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "octavo/base/log.h"
#include "octavo/base/status.h"
#include "octavo/engine/engine.h"
#include "octavo/server/application.h"
#include "octavo/server/base64.h"
#include "octavo/server/http.h"
#include "octavo/server/in_flight.h"
#include "octavo/server/json.h"
#include "octavo/server/json_writer.h"
#include "octavo/sync/serving.h"
#include "octavo/sync/tensor_payload.h"
#include "octavo/sync/weight_update.h"

namespace octavo {

// One call, decoded.
struct TensorUpdate {
  std::string weight_version;  // Empty: the next one.
  InFlightWish in_flight;
  TensorPayload payload;
};

namespace {

Result<TensorPayloadForm> ParseLoadFormat(const JsonValue& body) {
  ASSIGN_OR_RETURN(const std::string format, StringField(body, "load_format", ""));
  if (format.empty() || format == "none" || format == "direct") {
    return TensorPayloadForm::kNamedTensors;
  }
  if (format == "flattened_bucket") {
    return TensorPayloadForm::kFlattenedBucket;
  }
  return Corrupt("load_format: expected none, direct or flattened_bucket, got \"{}\"", format);
}

// There is one rank, so one pickle.
Result<std::string> ParsePickle(const JsonValue& body) {
  constexpr std::string_view kKey = "serialized_named_tensors";
  const JsonValue* list = body.Find(kKey);
  if (list == nullptr || list->array() == nullptr) {
    return Corrupt("{}: expected a list of base64 texts, got {}", kKey,
                   list == nullptr ? "none" : list->KindName());
  }
  if (list->array()->size() != 1) {
    return InvalidArgument("{}: expected 1, for there is one rank, got {}", kKey,
                           list->array()->size());
  }
  ASSIGN_OR_RETURN(const std::string text, AsString(list->array()->front(), kKey));
  Result<std::string> pickle = DecodeBase64(text);
  if (!pickle.has_value()) {
    return pickle.error().WithContext(kKey);
  }
  return pickle;
}

Status CheckIgnored(const JsonValue& body) {
  for (const std::string_view key : {"disable_draft_model", "torch_empty_cache"}) {
    RETURN_IF_ERROR(BoolField(body, key, false).error());
  }
  ASSIGN_OR_RETURN(const std::string selector, StringField(body, "selector", "all"));
  return selector == "all" || selector == "target"
             ? OkStatus()
             : Unsupported("selector: expected all or target, got \"{}\"", selector);
}

Result<TensorUpdate> DecodeUpdate(std::string_view text) {
  ASSIGN_OR_RETURN(const JsonValue body, ParseJsonBody(text));
  ASSIGN_OR_RETURN(std::string version, StringField(body, "weight_version", ""));
  InFlightWish in_flight;
  ASSIGN_OR_RETURN(in_flight.flush_cache, BoolField(body, "flush_cache", true));
  ASSIGN_OR_RETURN(in_flight.abort_all, BoolField(body, "abort_all_requests", false));
  ASSIGN_OR_RETURN(const TensorPayloadForm form, ParseLoadFormat(body));
  RETURN_IF_ERROR(CheckIgnored(body));
  ASSIGN_OR_RETURN(std::string pickle, ParsePickle(body));
  Result<TensorPayload> payload = TensorPayload::Read(std::move(pickle), form);
  if (!payload.has_value()) {
    // What is wrong in the pickle is no matter of JSON: an error of the update, not of the request.
    return InvalidArgument("serialized_named_tensors: {}", payload.error().message());
  }
  return TensorUpdate{
      .weight_version = std::move(version), .in_flight = in_flight, .payload = std::move(*payload)};
}

// As for the calls of update groups.
HttpResponse TensorError(const Status& status) {
  return status.code() == StatusCode::kCorrupt ? RequestError(status)
                                               : WeightError(status, /*with_paused=*/false);
}

enum class StageOutcome {
  kOpen,
  kCommitted,
};

struct StageTarget {
  std::string id;
  bool may_end = false;  // Nothing but a bucket ends this update.
};

struct Staged {
  std::string update_id;
  int64_t num_tensors = 0;
  int64_t num_bytes = 0;
};

HttpResponse StagedResponse(const Staged& staged, const CommitReport* commit) {
  JsonWriter json;
  json.BeginObject().Field("success", true);
  json.Field("message", commit == nullptr
                            ? fmt::format("staged in weight update {}", staged.update_id)
                            : fmt::format("live as version {}", commit->version));
  json.Field("update_id", staged.update_id).Field("committed", commit != nullptr);
  json.Field("tensors", staged.num_tensors).Field("bytes", staged.num_bytes).EndObject();
  return JsonResponse(json.Take());
}

// Requests cannot run meanwhile: a trainer that shares the machine sends bucket after bucket.
bool IsReleased(const EngineStats& stats) {
  return stats.kv_released || stats.weight_state != WeightState::kLive;
}

// Ends the update with this bucket if every weight has come.
HttpResponse CommitIfComplete(Serving* serving, const Staged& staged, const InFlightWish& wish,
                              StageOutcome* outcome) {
  const EngineStats stats = serving->engine->Stats();
  const Result<InFlight> in_flight = ChooseInFlight(wish, stats);
  if (!in_flight.has_value()) {
    return TensorError(in_flight.error());
  }
  if (const Status status = serving->updater->Seal(staged.update_id); !status.ok()) {
    return IsReleased(stats) && status.code() == StatusCode::kInvalidArgument
               ? StagedResponse(staged, nullptr)
               : WeightError(status, /*with_paused=*/false);
  }
  const Result<CommitReport> report = serving->updater->Commit(staged.update_id, *in_flight);
  if (!report.has_value()) {
    return WeightError(report.error(), /*with_paused=*/false);
  }
  *outcome = StageOutcome::kCommitted;
  AwaitBoundary(serving->engine.get());
  return StagedResponse(staged, &*report);
}

HttpResponse StageTensors(Serving* serving, const StageTarget& target, const TensorUpdate& update,
                          StageOutcome* outcome) {
  Staged staged{.update_id = target.id};
  for (const NamedTensor& tensor : update.payload.tensors()) {
    const Status status = serving->updater->Put(target.id, tensor.name, tensor.view);
    if (!status.ok()) {
      return WeightError(status, /*with_paused=*/false);
    }
    ++staged.num_tensors;
    staged.num_bytes += tensor.view.NumBytes();
  }
  const bool is_last =
      target.may_end && update.in_flight.flush_cache && !serving->engine->Stats().paused;
  return is_last ? CommitIfComplete(serving, staged, update.in_flight, outcome)
                 : StagedResponse(staged, nullptr);
}

}  // namespace

// Decoded on the worker, for bodies are large; what is malformed opens nothing.
void Application::UpdateFromTensor(HttpRequest& request, const WriterPtr& writer) {
  if (draining_) {
    return writer->Send(WeightError(Unavailable("the server is stopping"), false));
  }
  const auto body = std::make_shared<const std::string>(std::move(request.body));
  const bool accepted =
      reactor_->RunBlocking([this, reactor = reactor_, body, peer = request.peer, writer] {
        const auto update = std::make_shared<Result<TensorUpdate>>(DecodeUpdate(*body));
        reactor->Post([this, update, peer, writer] {
          if (!update->has_value()) {
            return writer->Send(TensorError(update->error()));
          }
          WithOpenUpdate((*update)->weight_version, peer,
                         [this, update, writer](const Result<std::string>& id) {
                           if (!id.has_value()) {
                             return writer->Send(WeightError(id.error(), false));
                           }
                           StageTensorBucket(*id, {update, &**update}, writer);
                         });
        });
      });
  if (!accepted) {
    writer->Send(WeightError(Exhausted("too many weight calls are waiting for their turn"), false));
  }
}

void Application::StageTensorBucket(const std::string& id,
                                    const std::shared_ptr<TensorUpdate>& update,
                                    const WriterPtr& writer) {
  const bool may_end = update_.has_value() && update_->is_implicit && !bracket_.has_value();
  const auto outcome = std::make_shared<StageOutcome>();  // The worker writes, then we read.
  AnswerFromWorker(
      writer,
      [serving = serving_, id, update, may_end, outcome] {
        // Shared memory is given back before the call answers: the sender frees it then.
        const TensorUpdate owned = std::move(*update);
        return StageTensors(serving, {.id = id, .may_end = may_end}, owned, outcome.get());
      },
      [this, id, outcome](const HttpResponse& response) {
        ReleaseUpdate(id);
        if (*outcome == StageOutcome::kCommitted && update_.has_value() && update_->id == id) {
          update_.reset();
        } else if (response.status != 200) {
          DropImplicitUpdate(id);
        }
      });
}

void Application::DropImplicitUpdate(const std::string& id) {
  if (!update_.has_value() || update_->id != id || !update_->is_implicit) {
    return;
  }
  LOG(WARNING, "weight update dropped id={} holder={} reason=\"a bucket failed\"", id,
      update_->holder);
  update_.reset();
  // When the queue is full the next Begin displaces it, once it has been idle.
  reactor_->RunBlocking([updater = serving_->updater.get(), id] { updater->Abort(id); });
}

}  // namespace octavo
