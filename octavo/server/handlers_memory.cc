// /release_memory_occupation and /resume_memory_occupation.

#include <string>

#include "octavo/base/status.h"
#include "octavo/engine/engine.h"
#include "octavo/server/application.h"
#include "octavo/server/http.h"
#include "octavo/server/json.h"
#include "octavo/sync/live_weights.h"
#include "octavo/sync/serving.h"
#include "octavo/sync/weight_update.h"

namespace octavo {
namespace {

// No tags, or an empty list, are all. There are no CUDA graphs to free.
Result<MemoryParts> ParseTags(const HttpRequest& request) {
  ASSIGN_OR_RETURN(const JsonValue body, ParseJsonBody(request.body));
  const JsonValue* tags = body.Find("tags");
  if (tags == nullptr || (tags->array() != nullptr && tags->array()->empty())) {
    return MemoryParts{.kv_cache = true, .weights = true};
  }
  if (tags->array() == nullptr) {
    return Corrupt("tags: expected a list of strings, got {}", tags->KindName());
  }
  MemoryParts parts;
  for (const JsonValue& tag : *tags->array()) {
    ASSIGN_OR_RETURN(const std::string name, AsString(tag, "tags"));
    if (name == "kv_cache") {
      parts.kv_cache = true;
    } else if (name == "weights") {
      parts.weights = true;
    } else if (name != "cuda_graph") {
      return Corrupt("tags: expected weights, kv_cache or cuda_graph, got \"{}\"", name);
    }
  }
  return parts;
}

// Each failure is a 400: the caller's order is wrong, or the machine has no memory for it.
HttpResponse NullOr400(const Status& status) {
  return status.ok() ? JsonResponse("null") : PlainError(status.message(), 400);
}

}  // namespace

void Application::ReleaseMemory(const HttpRequest& request, const WriterPtr& writer) {
  const Result<MemoryParts> parts = ParseTags(request);
  if (!parts.has_value()) {
    return writer->Send(RequestError(parts.error()));
  }
  AnswerFromWorker(writer, [live = &serving_->updater->live(), parts = *parts] {
    return NullOr400(live->Release(parts));
  });
}

void Application::ResumeMemory(const HttpRequest& request, const WriterPtr& writer) {
  const Result<MemoryParts> parts = ParseTags(request);
  if (!parts.has_value()) {
    return writer->Send(RequestError(parts.error()));
  }
  // Requests run once the KV cache is there again: with the weights that came meanwhile.
  if (!parts->kv_cache || !HasImplicitUpdate() || bracket_.has_value() ||
      serving_->engine->Stats().paused) {
    return ResumeParts(*parts, writer);
  }
  EndImplicitUpdate([this, parts = *parts, writer](const Status& status) {
    if (!status.ok()) {
      return writer->Send(NullOr400(status.WithContext("the weight update is dropped")));
    }
    ResumeParts(parts, writer);
  });
}

void Application::ResumeParts(MemoryParts parts, const WriterPtr& writer) {
  AnswerFromWorker(writer, [live = &serving_->updater->live(), parts] {
    return NullOr400(live->Resume(parts));
  });
}

}  // namespace octavo
