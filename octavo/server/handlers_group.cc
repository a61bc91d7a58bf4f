// /init_weights_update_group, /update_weights_from_distributed, /destroy_weights_update_group: new
// weights over a process group whose rank 0 is the trainer.

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/server/application.h"
#include "octavo/server/http.h"
#include "octavo/server/json.h"
#include "octavo/server/json_writer.h"
#include "octavo/sync/collective.h"
#include "octavo/sync/serving.h"
#include "octavo/sync/torch_names.h"
#include "octavo/sync/update_groups.h"
#include "octavo/sync/weight_update.h"

namespace octavo {

// One call of /update_weights_from_distributed.
struct GroupUpdate {
  std::string group;
  std::string weight_version;  // Empty: the next one.
  GroupBucket bucket;
  // What is wrong with it although its bytes are known: they are received, and then it is answered.
  Status refusal = {};
};

namespace {

constexpr std::string_view kDefaultGroup = "weight_update_group";

HttpResponse GroupError(const Status& status) { return WeightError(status, /*with_paused=*/false); }

// A body of the wrong type is answered as everywhere.
HttpResponse BodyError(const Status& status) {
  return status.code() == StatusCode::kCorrupt ? RequestError(status) : GroupError(status);
}

// --- /init_weights_update_group ---

Result<int> RequiredInt(const JsonValue& body, std::string_view key) {
  if (body.Find(key) == nullptr) {
    return Corrupt("{}: expected a number, got none", key);
  }
  ASSIGN_OR_RETURN(const int64_t value, IntField(body, key, 0));
  if (value < std::numeric_limits<int>::min() || value > std::numeric_limits<int>::max()) {
    return InvalidArgument("{}: expected a number of 32 bits, got {}", key, value);
  }
  return static_cast<int>(value);
}

Result<GroupJoin> ParseJoin(const HttpRequest& request) {
  ASSIGN_OR_RETURN(const JsonValue body, ParseJsonBody(request.body));
  GroupJoin join;
  ASSIGN_OR_RETURN(join.master.host, StringField(body, "master_address", ""));
  if (join.master.host.empty()) {
    return Corrupt("master_address: expected a host, got none");
  }
  ASSIGN_OR_RETURN(join.master.port, RequiredInt(body, "master_port"));
  // Of the ranks of this engine there is one, so its rank is the offset.
  ASSIGN_OR_RETURN(join.rank, RequiredInt(body, "rank_offset"));
  ASSIGN_OR_RETURN(join.world_size, RequiredInt(body, "world_size"));
  ASSIGN_OR_RETURN(join.group_name, StringField(body, "group_name", kDefaultGroup));
  ASSIGN_OR_RETURN(join.backend, StringField(body, "backend", "nccl"));
  return join;
}

// --- /update_weights_from_distributed ---

Result<std::vector<std::string>> ParseStrings(const JsonValue& body, std::string_view key) {
  const JsonValue* list = body.Find(key);
  if (list == nullptr || list->array() == nullptr) {
    return Corrupt("{}: expected a list of strings, got {}", key,
                   list == nullptr ? "none" : list->KindName());
  }
  std::vector<std::string> strings;
  strings.reserve(list->array()->size());
  for (const JsonValue& entry : *list->array()) {
    ASSIGN_OR_RETURN(std::string text, AsString(entry, key));
    strings.push_back(std::move(text));
  }
  return strings;
}

Result<std::vector<Shape>> ParseShapes(const JsonValue& body) {
  const JsonValue* list = body.Find("shapes");
  if (list == nullptr || list->array() == nullptr) {
    return Corrupt("shapes: expected a list of lists of numbers, got {}",
                   list == nullptr ? "none" : list->KindName());
  }
  std::vector<Shape> shapes;
  shapes.reserve(list->array()->size());
  for (const JsonValue& entry : *list->array()) {
    if (entry.array() == nullptr) {
      return Corrupt("shapes: expected a list of numbers for each tensor, got {}",
                     entry.KindName());
    }
    Shape& shape = shapes.emplace_back();
    for (const JsonValue& extent : *entry.array()) {
      ASSIGN_OR_RETURN(const int64_t value, AsInt(extent, "shapes"));
      shape.push_back(value);
    }
  }
  return shapes;
}

// An error is one after which nobody knows how many bytes will come.
Status ParseTensors(const JsonValue& body, GroupUpdate& update) {
  ASSIGN_OR_RETURN(const std::string load_format, StringField(body, "load_format", ""));
  if (!load_format.empty() && load_format != "flattened_bucket") {
    return InvalidArgument("load_format: expected flattened_bucket or none, got \"{}\"",
                           load_format);
  }
  update.bucket.is_flattened = !load_format.empty();
  ASSIGN_OR_RETURN(const std::vector<std::string> dtypes, ParseStrings(body, "dtypes"));
  ASSIGN_OR_RETURN(std::vector<Shape> shapes, ParseShapes(body));
  if (dtypes.size() != shapes.size()) {
    return InvalidArgument("dtypes and shapes: expected one of each a tensor, got {} and {}",
                           dtypes.size(), shapes.size());
  }
  Result<std::vector<std::string>> names = ParseStrings(body, "names");
  if (!names.has_value()) {
    update.refusal = names.error();
  } else if (names->size() != dtypes.size()) {
    update.refusal =
        InvalidArgument("names and dtypes: expected one of each a tensor, got {} and {}",
                        names->size(), dtypes.size());
  }
  for (size_t i = 0; i < dtypes.size(); ++i) {
    const bool has_name = names.has_value() && i < names->size();
    AnnouncedTensor tensor;
    tensor.name = has_name ? (*names)[i] : fmt::format("tensor {}", i);
    const std::optional<DType> dtype = DTypeOfTorch(dtypes[i]);
    if (!dtype.has_value()) {
      return InvalidArgument("{}: dtypes: expected a dtype of torch, got \"{}\"", tensor.name,
                             dtypes[i]);
    }
    tensor.dtype = *dtype;
    tensor.shape = std::move(shapes[i]);
    update.bucket.tensors.push_back(std::move(tensor));
  }
  return OkStatus();
}

// What changes nothing here, and must have its type all the same: a bucket ends no requests and
// flushes nothing, for it changes nothing that is live.
Status CheckIgnored(const JsonValue& body) {
  for (const std::string_view key : {"flush_cache", "abort_all_requests", "torch_empty_cache"}) {
    RETURN_IF_ERROR(BoolField(body, key, false).error());
  }
  return OkStatus();
}

// Receives the bucket into the update `id`, or into nothing when there is a refusal.
HttpResponse ReceiveInto(UpdateGroups* groups, WeightUpdater* updater, const std::string& id,
                         const GroupUpdate& update) {
  int64_t num_bytes = 0;
  const auto put = [&](std::string_view name, const ConstTensorView& tensor) {
    num_bytes += tensor.NumBytes();
    return updater->Put(id, name, tensor);
  };
  const Status status = groups->Receive(update.group, update.bucket, put, update.refusal);
  if (!status.ok()) {
    return GroupError(status);
  }
  JsonWriter json;
  json.BeginObject().Field("success", true);
  json.Field("message", fmt::format("staged in weight update {}", id));
  json.Field("update_id", id);
  json.Field("tensors", static_cast<int64_t>(update.bucket.tensors.size()));
  json.Field("bytes", num_bytes).EndObject();
  return JsonResponse(json.Take());
}

}  // namespace

void Application::AnswerFromCallThread(const WriterPtr& writer, std::function<HttpResponse()> work,
                                       const std::function<void(const HttpResponse&)>& finish) {
  const auto answer = [reactor = reactor_, writer, finish](const HttpResponse& response) {
    reactor->Post([writer, finish, response] {
      if (finish) {
        finish(response);
      }
      writer->Send(response);
    });
  };
  if (!call_threads_.Run([answer, work = std::move(work)] { answer(work()); })) {
    answer(ObjectError("too many calls of update groups are waiting for their peers", 503));
  }
}

void Application::InitUpdateGroup(const HttpRequest& request, const WriterPtr& writer) {
  const Result<GroupJoin> join = ParseJoin(request);
  if (!join.has_value()) {
    return writer->Send(BodyError(join.error()));
  }
  if (draining_) {
    return writer->Send(GroupError(Unavailable("the server is stopping")));
  }
  AnswerFromCallThread(writer, [groups = &groups_, join = *join] {
    const Status status = groups->Init(join);
    return status.ok() ? WeightSuccess(join.ToString() + ": joined") : GroupError(status);
  });
}

void Application::DestroyUpdateGroup(const HttpRequest& request, const WriterPtr& writer) {
  const Result<JsonValue> body = ParseJsonBody(request.body);
  const Result<std::string> group =
      body.has_value() ? StringField(*body, "group_name", kDefaultGroup) : body.error();
  if (!group.has_value()) {
    return writer->Send(BodyError(group.error()));
  }
  // Waits for a call that receives from the group to see that it is cancelled.
  AnswerFromCallThread(writer, [groups = &groups_, group = *group] {
    const Status status = groups->Destroy(group);
    return status.ok() ? WeightSuccess(fmt::format("group \"{}\" is left", group))
                       : GroupError(status);
  });
}

void Application::UpdateFromDistributed(const HttpRequest& request, const WriterPtr& writer) {
  const Result<JsonValue> body = ParseJsonBody(request.body);
  const Result<std::string> group =
      body.has_value() ? StringField(*body, "group_name", kDefaultGroup) : body.error();
  if (!group.has_value()) {
    return writer->Send(BodyError(group.error()));
  }
  GroupUpdate update;
  update.group = *group;
  if (const Status status = ParseTensors(*body, update); !status.ok()) {
    const Status broken = groups_.Break(*group, status);
    return writer->Send(BodyError(broken.code() == StatusCode::kNotFound ? status : broken));
  }
  if (const Status known = groups_.Check(*group); !known.ok()) {
    return writer->Send(GroupError(known));
  }
  const Result<std::string> version = StringField(*body, "weight_version", "");
  const Status ignored = CheckIgnored(*body);
  for (const Status& wrong :
       {draining_ ? Unavailable("the server is stopping") : OkStatus(), version.error(), ignored}) {
    update.refusal = update.refusal.ok() ? wrong : update.refusal;
  }
  update.weight_version = version.has_value() ? *version : "";
  if (!update.refusal.ok()) {
    return ReceiveBucket(update, "", writer);
  }
  WithOpenUpdate(update.weight_version, request.peer,
                 [this, update, writer](const Result<std::string>& id) mutable {
                   update.refusal = id.error();
                   ReceiveBucket(update, id.has_value() ? *id : "", writer);
                 });
}

void Application::WithOpenUpdate(const std::string& version, const std::string& peer,
                                 const std::function<void(const Result<std::string>&)>& then) {
  if (update_.has_value()) {
    ++update_->num_busy;
    update_->last_touched = std::chrono::steady_clock::now();
    return then(update_->id);
  }
  const bool accepted = reactor_->RunBlocking([this, version, peer, then] {
    const Result<std::string> begun =
        serving_->updater->Begin(version, StagingMode::kShadow, options_.update_require);
    reactor_->Post([this, begun, version, peer, then] {
      if (!begun.has_value() && update_.has_value()) {
        return WithOpenUpdate(version, peer, then);  // Another bucket's call was first.
      }
      if (begun.has_value()) {
        update_ = OpenUpdate{.id = *begun,
                             .version = version.empty() ? "(the next one)" : version,
                             .holder = peer,
                             .last_touched = std::chrono::steady_clock::now(),
                             .num_busy = 1,
                             .is_implicit = true};
        WatchIdle(*begun);
      }
      then(begun);
    });
  });
  if (!accepted) {
    then(Exhausted("too many weight calls are waiting for their turn"));
  }
}

void Application::ReceiveBucket(const GroupUpdate& update, const std::string& id,
                                const WriterPtr& writer) {
  AnswerFromCallThread(
      writer,
      [groups = &groups_, updater = serving_->updater.get(), id, update] {
        return ReceiveInto(groups, updater, id, update);
      },
      [this, id](const HttpResponse& response) {
        ReleaseUpdate(id);
        if (response.status != 200) {
          DropImplicitUpdate(id);
        }
      });
}

}  // namespace octavo
