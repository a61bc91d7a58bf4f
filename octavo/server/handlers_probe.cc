// /octavo/v1/update/probe: weights that are sealed and not yet live score the trainer's sequences.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/log.h"
#include "octavo/base/status.h"
#include "octavo/model/model.h"
#include "octavo/server/application.h"
#include "octavo/server/http.h"
#include "octavo/server/json.h"
#include "octavo/server/json_writer.h"
#include "octavo/sync/probe.h"
#include "octavo/sync/serving.h"
#include "octavo/sync/weight_update.h"

namespace octavo {
namespace {

struct ProbeCall {
  std::string id;
  ProbeLimits limits;
  std::vector<ProbeSequence> sequences;
  bool return_logprobs = false;
};

Result<std::optional<double>> ParseLimit(const JsonValue& body, std::string_view key) {
  const JsonValue* value = body.Find(key);
  if (value == nullptr) {
    return std::optional<double>();
  }
  ASSIGN_OR_RETURN(const double limit, AsDouble(*value, key));
  if (!std::isfinite(limit) || limit < 0.0) {
    return InvalidArgument("{}: expected a number of at least 0, got {}", key, limit);
  }
  return std::optional(limit);
}

Result<std::vector<double>> ParseLogprobs(const JsonValue& value) {
  if (value.array() == nullptr) {
    return Corrupt("logprobs: expected a list of numbers, got {}", value.KindName());
  }
  std::vector<double> logprobs;
  logprobs.reserve(value.array()->size());
  for (const JsonValue& entry : *value.array()) {
    if (entry.is_null()) {  // What a NaN or an infinity becomes on its way through JSON.
      return InvalidArgument("logprobs[{}]: expected a finite number, got null", logprobs.size());
    }
    ASSIGN_OR_RETURN(const double logprob, AsDouble(entry, "logprobs"));
    logprobs.push_back(logprob);
  }
  return logprobs;
}

Result<ProbeSequence> ParseSequence(const JsonValue& value) {
  const JsonValue* ids = value.Find("input_ids");
  const JsonValue* logprobs = value.Find("logprobs");
  if (ids == nullptr || logprobs == nullptr) {
    return Corrupt("expected an object with input_ids and logprobs");
  }
  ProbeSequence sequence;
  ASSIGN_OR_RETURN(sequence.input_ids, AsTokenIds(*ids, "input_ids"));
  ASSIGN_OR_RETURN(sequence.logprobs, ParseLogprobs(*logprobs));
  const auto num_scored = static_cast<int64_t>(sequence.logprobs.size());
  const auto num_ids = static_cast<int64_t>(sequence.input_ids.size());
  ASSIGN_OR_RETURN(const int64_t prompt_len, IntField(value, "prompt_len", num_ids - num_scored));
  if (prompt_len != num_ids - num_scored) {
    return InvalidArgument("prompt_len {} of {} input_ids: expected {} logprobs, got {}",
                           prompt_len, num_ids, num_ids - prompt_len, num_scored);
  }
  return sequence;
}

Result<ProbeCall> ParseProbe(std::string_view text) {
  ASSIGN_OR_RETURN(const JsonValue body, ParseJsonBody(text));
  ProbeCall call;
  ASSIGN_OR_RETURN(call.id, StringField(body, "update_id", ""));
  if (call.id.empty()) {
    return Corrupt("update_id: expected the id that begin gave, got none");
  }
  ASSIGN_OR_RETURN(call.limits.max_dlogp, ParseLimit(body, "max_dlogp"));
  ASSIGN_OR_RETURN(call.limits.max_mean_dlogp, ParseLimit(body, "max_mean_dlogp"));
  ASSIGN_OR_RETURN(call.return_logprobs, BoolField(body, "return_logprobs", false));
  const JsonValue* sequences = body.Find("sequences");
  if (sequences == nullptr || sequences->array() == nullptr) {
    return Corrupt("sequences: expected a list of {{input_ids, logprobs}}, got {}",
                   sequences == nullptr ? "none" : sequences->KindName());
  }
  for (const JsonValue& value : *sequences->array()) {
    Result<ProbeSequence> sequence = ParseSequence(value);
    if (!sequence.has_value()) {
      return sequence.error().WithContext(fmt::format("sequences[{}]", call.sequences.size()));
    }
    call.sequences.push_back(*std::move(sequence));
  }
  return call;
}

void WriteFigures(const ProbeFigures& figures, JsonWriter& json) {
  json.Field("sequences", figures.num_sequences).Field("tokens", figures.num_tokens);
  json.Field("mean_dlogp", figures.mean_dlogp).Field("max_dlogp", figures.max_dlogp);
  json.Field("k3", figures.k3).Key("largest").BeginObject();
  json.Field("sequence", figures.sequence).Field("position", figures.position);
  json.Field("token_id", int64_t{figures.token_id}).Field("expected", figures.expected);
  json.Field("got", figures.got).EndObject();
}

void WriteScores(const std::vector<std::vector<float>>& scores, JsonWriter& json) {
  json.Key("logprobs").BeginArray();
  for (const std::vector<float>& sequence : scores) {
    json.BeginArray();
    for (const float logprob : sequence) {
      json.Value(logprob);
    }
    json.EndArray();
  }
  json.EndArray();
}

// A probe that fails has its figures all the same.
HttpResponse RunProbe(Serving* serving, const ProbeCall& call) {
  std::vector<std::vector<float>> scores;
  ProbeFigures figures;
  const auto use = [&](std::unique_ptr<ModelWeights>* weights) -> Status {
    ASSIGN_OR_RETURN(scores, ScoreProbe(*serving, call.sequences, weights));
    figures = CompareProbe(call.sequences, scores);
    return CheckLimits(figures, call.limits);
  };
  const Status status = serving->updater->TrySealed(call.id, use);
  if (scores.empty()) {
    return NativeError(status.WithContext("probe"));
  }
  LOG(INFO,
      "probe id={} passed={} sequences={} tokens={} mean_dlogp={:.6g} max_dlogp={:.6g} k3={:.6g}",
      call.id, status.ok(), figures.num_sequences, figures.num_tokens, figures.mean_dlogp,
      figures.max_dlogp, figures.k3);
  JsonWriter json;
  json.BeginObject().Field("success", status.ok());
  json.Field("message", status.ok() ? "the probe passed" : status.message());
  WriteFigures(figures, json);
  if (call.return_logprobs) {
    WriteScores(scores, json);
  }
  json.EndObject();
  return JsonResponse(json.Take(), status.ok() ? 200 : 400);
}

}  // namespace

void Application::UpdateProbe(const HttpRequest& request, const WriterPtr& writer) {
  Result<ProbeCall> call = ParseProbe(request.body);
  if (!call.has_value()) {
    return writer->Send(call.error().code() == StatusCode::kCorrupt ? RequestError(call.error())
                                                                    : NativeError(call.error()));
  }
  // Before the weights are touched: a call that cannot be is not a probe that failed.
  if (const Status status = CheckProbe(*serving_, call->sequences); !status.ok()) {
    return writer->Send(NativeError(status));
  }
  if (TouchUpdate(call->id, writer) == nullptr) {
    return;
  }
  const std::string id = call->id;
  const auto shared = std::make_shared<const ProbeCall>(*std::move(call));
  AnswerFromWorker(
      writer, [serving = serving_, shared] { return RunProbe(serving, *shared); },
      [this, id](const HttpResponse&) { ReleaseUpdate(id); });
}

}  // namespace octavo
