#include "octavo/server/replay_record.h"

#include <fmt/format.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/hash.h"
#include "octavo/base/tensor.h"
#include "octavo/engine/request.h"
#include "octavo/formats/format.h"
#include "octavo/server/json_writer.h"
#include "octavo/server/parse_generate.h"
#include "octavo/sync/serving.h"

namespace octavo {
namespace {

void WriteIds(std::span<const int32_t> ids, JsonWriter& json) {
  json.BeginArray();
  for (const int32_t id : ids) {
    json.Value(int64_t{id});
  }
  json.EndArray();
}

// Every key that can change a token. Floats are written with the fewest digits that give back the
// same float32.
void WriteSampling(const ReplayRequest& request, int64_t seed, JsonWriter& json) {
  const SamplingParams& params = request.sampling;
  json.BeginObject().Field("max_new_tokens", params.max_new_tokens);
  json.Field("min_new_tokens", params.min_new_tokens);
  json.Field("temperature", params.temperature).Field("top_p", params.top_p);
  json.Field("top_k", params.top_k).Field("min_p", params.min_p);
  json.Field("frequency_penalty", params.frequency_penalty);
  json.Field("presence_penalty", params.presence_penalty);
  json.Field("repetition_penalty", params.repetition_penalty);
  json.Key("stop").BeginArray();
  for (const std::string& stop : request.stop) {
    json.Value(stop);
  }
  json.EndArray().Key("stop_token_ids");
  WriteIds(params.stop_token_ids, json);
  json.Field("ignore_eos", params.ignore_eos);
  json.Field("skip_special_tokens", request.skip_special_tokens);
  json.Field("no_stop_trim", request.no_stop_trim);
  json.Key("logit_bias").BeginObject();
  for (const auto& [id, bias] : params.logit_bias) {
    json.Field(fmt::format("{}", id), bias);
  }
  json.EndObject().Field("sampling_seed", seed).EndObject();
}

void WriteRequest(const ReplayRequest& request, int64_t seed, JsonWriter& json) {
  json.BeginObject().Key("input_ids");
  WriteIds(request.input_ids, json);
  json.Key("sampling_params");
  WriteSampling(request, seed, json);
  json.Field("return_logprob", request.return_logprob);
  if (request.return_logprob) {
    json.Field("logprob_start_len", request.logprob_start_len);
    json.Field("top_logprobs_num", request.top_logprobs_num).Key("token_ids_logprob");
    WriteIds(request.token_ids_logprob, json);
  }
  json.EndObject();
}

void WriteSpan(const VersionSpan& span, JsonWriter& json) {
  json.BeginObject().Field("version", span.version).Key("digest");
  if (span.digest.has_value()) {
    json.Value(HashHex(*span.digest));
  } else {
    json.Null();
  }
  json.Field("tokens", span.num_tokens).EndObject();
}

}  // namespace

ReplayServer MakeReplayServer(const Serving& serving) {
  return {.recipe = serving.recipe,
          .weight_format = std::string(WeightFormatName(serving.table.format)),
          .policy_hash = serving.table.Hash(),
          .kv_cache_dtype = serving.kv_cache_dtype == DType::kF8E4m3 ? "fp8_e4m3" : "bf16",
          .depends_on_batch = serving.depends_on_batch};
}

ReplayRequest MakeReplayRequest(const GenerateItem& item,
                                std::shared_ptr<const ReplayServer> server) {
  const Request& request = item.request;
  return {.server = std::move(server),
          .input_ids = request.input_ids,
          .sampling = request.sampling,
          .stop = item.stop,
          .skip_special_tokens = item.skip_special_tokens,
          .no_stop_trim = item.no_stop_trim,
          .return_logprob = request.return_logprob,
          .logprob_start_len = request.logprob_start_len,
          .top_logprobs_num = request.top_logprobs_num,
          .token_ids_logprob = request.token_ids_logprob};
}

void WriteReplayRecord(const ReplayRequest& request, const RequestOutput& last, JsonWriter& json) {
  const ReplayServer& server = *request.server;
  json.BeginObject().Key("request");
  WriteRequest(request, last.seed, json);
  json.Field("recipe", server.recipe).Field("weight_format", server.weight_format);
  json.Field("policy_hash", server.policy_hash).Field("kv_cache_dtype", server.kv_cache_dtype);
  json.Key("weights").BeginArray();
  for (const VersionSpan& span : last.versions) {
    WriteSpan(span, json);
  }
  if (last.versions.empty()) {  // Nothing was sampled: scored, or aborted early.
    WriteSpan({.version = last.weight_version, .num_tokens = 0, .digest = last.weight_digest},
              json);
  }
  json.EndArray().Field("mixed_context", last.mixed_context);
  json.Field("depends_on_batch", server.depends_on_batch).EndObject();
}

}  // namespace octavo
