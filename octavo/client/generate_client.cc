#include "octavo/client/generate_client.h"

#include <nlohmann/json.hpp>
#include <utility>

namespace octavo {
namespace {

using Json = nlohmann::json;

constexpr std::string_view kGenerate = "/generate";

Result<Json> ParseObject(std::string_view text, std::string_view what) {
  Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) {
    return Corrupt("{}: expected a JSON object, got '{}'", what, text.substr(0, 200));
  }
  return json;
}

// The member, or null when it is absent or JSON null.
const Json* Member(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

int64_t IntOr(const Json& object, const char* key, int64_t fallback) {
  const Json* value = Member(object, key);
  return value != nullptr && value->is_number_integer() ? value->get<int64_t>() : fallback;
}

std::string StringOr(const Json& object, const char* key) {
  const Json* value = Member(object, key);
  return value != nullptr && value->is_string() ? value->get<std::string>() : std::string();
}

Result<std::vector<ReplyLogprob>> ParseLogprobs(const Json& meta, const char* key) {
  std::vector<ReplyLogprob> logprobs;
  const Json* list = Member(meta, key);
  if (list == nullptr) {
    return logprobs;
  }
  if (!list->is_array()) {
    return Corrupt("meta_info.{}: expected a list", key);
  }
  logprobs.reserve(list->size());
  for (const Json& entry : *list) {
    if (!entry.is_array() || entry.size() < 2 || !entry[1].is_number_integer() ||
        !(entry[0].is_null() || entry[0].is_number())) {
      return Corrupt("meta_info.{}[{}]: expected [logprob or null, id, text or null], got {}", key,
                     logprobs.size(), entry.dump());
    }
    ReplyLogprob& logprob = logprobs.emplace_back();
    logprob.id = entry[1].get<int32_t>();
    if (entry[0].is_number()) {
      logprob.logprob = entry[0].get<double>();
    }
  }
  return logprobs;
}

void ParseVersions(const Json& meta, GenerateReply* reply) {
  reply->weight_version = StringOr(meta, "weight_version");
  const Json* spans = Member(meta, "weight_versions");
  if (spans == nullptr || !spans->is_array()) {
    return;
  }
  for (const Json& span : *spans) {
    if (span.is_object()) {
      reply->weight_versions.push_back({StringOr(span, "version"), IntOr(span, "tokens", 0)});
    }
  }
}

Status ParseMeta(const Json& meta, GenerateReply* reply) {
  reply->prompt_tokens = IntOr(meta, "prompt_tokens", 0);
  reply->completion_tokens = IntOr(meta, "completion_tokens", 0);
  reply->cached_tokens = IntOr(meta, "cached_tokens", 0);
  reply->num_retractions = IntOr(meta, "num_retractions", 0);
  if (const Json* reason = Member(meta, "finish_reason");
      reason != nullptr && reason->is_object()) {
    reply->finish_type = StringOr(*reason, "type");
    reply->finish_message = StringOr(*reason, "message");
  }
  ParseVersions(meta, reply);
  ASSIGN_OR_RETURN(reply->output_logprobs, ParseLogprobs(meta, "output_token_logprobs"));
  ASSIGN_OR_RETURN(reply->input_logprobs, ParseLogprobs(meta, "input_token_logprobs"));
  return OkStatus();
}

// Text that is not UTF-8 cannot stand in JSON; it goes out with U+FFFD in its place.
std::string Dump(const Json& json) {
  return json.dump(-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
}

}  // namespace

std::string GenerateBody(const GenerateCall& call) {
  Json body;
  if (call.input_ids.empty()) {
    body["text"] = call.text;
  } else {
    body["input_ids"] = call.input_ids;
  }
  if (!call.rid.empty()) {
    body["rid"] = call.rid;
  }
  Json sampling = {{"skip_special_tokens", call.skip_special_tokens},
                   {"spaces_between_special_tokens", true},
                   {"max_new_tokens", call.max_new_tokens},
                   {"min_new_tokens", call.min_new_tokens},
                   {"n", 1},
                   {"stop", call.stop},
                   {"stop_token_ids", Json::array()},
                   {"stop_regex", Json::array()},
                   {"temperature", call.temperature},
                   {"top_p", call.top_p},
                   {"top_k", call.top_k},
                   {"min_p", call.min_p},
                   {"frequency_penalty", 0.0},
                   {"presence_penalty", 0.0},
                   {"ignore_eos", call.ignore_eos},
                   {"regex", nullptr},
                   {"json_schema", nullptr}};
  if (call.no_stop_trim) {
    sampling["no_stop_trim"] = true;
  }
  if (call.seed.has_value()) {
    sampling["sampling_seed"] = *call.seed;
  }
  body["sampling_params"] = std::move(sampling);
  if (call.return_logprob) {
    body["return_logprob"] = true;
    body["logprob_start_len"] = call.logprob_start_len;
  }
  return Dump(body);
}

Result<GenerateReply> ParseGenerateReply(std::string_view text) {
  ASSIGN_OR_RETURN(const Json json, ParseObject(text, "reply of /generate"));
  GenerateReply reply;
  const Json* meta = Member(json, "meta_info");
  if (meta == nullptr || !meta->is_object()) {
    return Corrupt("reply of /generate: no meta_info object");
  }
  reply.text = StringOr(json, "text");
  if (const Json* ids = Member(json, "output_ids"); ids != nullptr && ids->is_array()) {
    reply.output_ids.reserve(ids->size());
    for (const Json& id : *ids) {
      if (!id.is_number_integer()) {
        return Corrupt("reply of /generate: output_ids[{}]: expected an integer, got {}",
                       reply.output_ids.size(), id.dump());
      }
      reply.output_ids.push_back(id.get<int32_t>());
    }
  }
  RETURN_IF_ERROR(ParseMeta(*meta, &reply));
  return reply;
}

Result<GenerateReply> Generate(HttpClient& client, const GenerateCall& call) {
  ASSIGN_OR_RETURN(const std::string text, PostJson(client, kGenerate, GenerateBody(call)));
  Result<GenerateReply> reply = ParseGenerateReply(text);
  return reply.has_value()
             ? std::move(reply)
             : Result<GenerateReply>(reply.error().WithContext(client.url().ToString()));
}

Result<ModelInfo> GetModelInfo(HttpClient& client) {
  ASSIGN_OR_RETURN(const std::string text, GetText(client, "/get_model_info"));
  ASSIGN_OR_RETURN(const Json json, ParseObject(text, "reply of /get_model_info"));
  const Json* emulated = Member(json, "emulated");
  const auto tokenizer = json.find("tokenizer_path");
  return ModelInfo{.model_path = StringOr(json, "model_path"),
                   .weight_version = StringOr(json, "weight_version"),
                   .recipe = StringOr(json, "recipe"),
                   .is_emulated = emulated != nullptr && *emulated == true,
                   .has_tokenizer = tokenizer == json.end() || !tokenizer->is_null()};
}

Result<std::optional<int64_t>> GetVocabSize(HttpClient& client) {
  ASSIGN_OR_RETURN(const std::string text, GetText(client, "/get_server_info"));
  ASSIGN_OR_RETURN(const Json json, ParseObject(text, "reply of /get_server_info"));
  const Json* size = Member(json, "vocab_size");
  if (size == nullptr || !size->is_number_integer()) {
    return std::optional<int64_t>();
  }
  return std::optional<int64_t>(size->get<int64_t>());
}

Result<ServerLoad> GetLoad(HttpClient& client) {
  ASSIGN_OR_RETURN(const std::string text, GetText(client, "/v1/loads"));
  ASSIGN_OR_RETURN(const Json json, ParseObject(text, "reply of /v1/loads"));
  const Json* loads = Member(json, "loads");
  if (loads == nullptr || !loads->is_array()) {
    return Corrupt("{}/v1/loads: no list 'loads'", client.url().ToString());
  }
  ServerLoad sum;
  for (const Json& load : *loads) {
    if (load.is_object()) {
      sum.num_running += IntOr(load, "num_running_reqs", 0);
      sum.num_waiting += IntOr(load, "num_waiting_reqs", 0);
    }
  }
  return sum;
}

bool SseSplitter::Feed(std::string_view piece, FunctionRef<bool(std::string_view)> on_data) {
  constexpr std::string_view kData = "data:";
  while (!piece.empty()) {
    const size_t end = piece.find('\n');
    line_.append(piece.substr(0, end));
    if (end == std::string_view::npos) {
      return true;
    }
    piece.remove_prefix(end + 1);
    const std::string line = std::exchange(line_, {});
    std::string_view data = line;
    if (!data.starts_with(kData)) {
      continue;
    }
    data.remove_prefix(kData.size());
    data.remove_prefix(data.starts_with(' ') ? 1 : 0);
    data.remove_suffix(data.ends_with('\r') ? 1 : 0);
    if (!on_data(data)) {
      return false;
    }
  }
  return true;
}

}  // namespace octavo
