#include "octavo/measure/replay_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/file.h"
#include "octavo/base/status.h"

namespace octavo {
namespace {

using Json = nlohmann::json;

constexpr int64_t kFileBytesMax = int64_t{16} << 30;
// The lists of meta_info that hold logprobs, in the order of the positions that they are about.
constexpr const char* kScoreKeys[] = {"input_token_logprobs",     "input_top_logprobs",
                                      "input_token_ids_logprobs", "output_token_logprobs",
                                      "output_top_logprobs",      "output_token_ids_logprobs"};

// The member, or null when it is absent or JSON null.
const Json* Member(const Json& object, std::string_view key) {
  if (!object.is_object()) {
    return nullptr;
  }
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

std::string StringOr(const Json& object, std::string_view key) {
  const Json* value = Member(object, key);
  return value != nullptr && value->is_string() ? value->get<std::string>() : std::string();
}

bool BoolOr(const Json& object, std::string_view key) {
  const Json* value = Member(object, key);
  return value != nullptr && value->is_boolean() && value->get<bool>();
}

// `absent` also for a number that is no integer.
int64_t IntOr(const Json& object, std::string_view key, int64_t absent) {
  const Json* value = Member(object, key);
  return value != nullptr && value->is_number_integer() ? value->get<int64_t>() : absent;
}

double DoubleOr(const Json& object, std::string_view key, double absent) {
  const Json* value = Member(object, key);
  return value != nullptr && value->is_number() ? value->get<double>() : absent;
}

// Text that is not UTF-8 cannot stand in JSON; it goes out with U+FFFD in its place.
std::string Dump(const Json& json) {
  return json.dump(-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
}

Result<int32_t> ToId(const Json& value, std::string_view where) {
  if (value.is_number_integer()) {
    const auto id = value.get<int64_t>();
    if (id >= 0 && id <= std::numeric_limits<int32_t>::max()) {
      return static_cast<int32_t>(id);
    }
  }
  return Corrupt("{}: expected a token id, got {}", where, Dump(value));
}

// --- Logprobs ---

Result<ReplayScore> ToScore(const Json& entry, std::string_view where) {
  if (!entry.is_array() || entry.size() < 2 || !(entry[0].is_null() || entry[0].is_number())) {
    return Corrupt("{}: expected [logprob or null, id, text or null], got {}", where, Dump(entry));
  }
  ReplayScore score;
  ASSIGN_OR_RETURN(score.id, ToId(entry[1], where));
  if (entry[0].is_number()) {
    const auto logprob = entry[0].get<double>();
    if (!(std::abs(logprob) <= std::numeric_limits<float>::max())) {
      return Corrupt("{}: expected the logprob as a float32, got {}", where, logprob);
    }
    score.logprob = static_cast<float>(logprob);
  }
  return score;
}

// A position of the plain lists is an entry; of the others a list of entries, or null.
bool IsEntry(const Json& position) {
  return position.is_array() && position.size() >= 2 && !position[0].is_array();
}

Result<std::vector<ReplayScore>> ToPosition(const Json& position, std::string_view where) {
  std::vector<ReplayScore> scores;
  if (position.is_null()) {
    return scores;
  }
  if (IsEntry(position)) {
    ASSIGN_OR_RETURN(const ReplayScore score, ToScore(position, where));
    scores.push_back(score);
    return scores;
  }
  if (!position.is_array()) {
    return Corrupt("{}: expected a list of logprobs, got {}", where, Dump(position));
  }
  for (const Json& entry : position) {
    ASSIGN_OR_RETURN(const ReplayScore score, ToScore(entry, where));
    scores.push_back(score);
  }
  return scores;
}

Status ReadScores(const Json& meta, ReplyContent* content) {
  for (const char* key : kScoreKeys) {
    const Json* list = Member(meta, key);
    if (list == nullptr) {
      continue;
    }
    if (!list->is_array()) {
      return Corrupt("meta_info.{}: expected a list, got {}", key, Dump(*list));
    }
    ReplayScores& scores = content->scores.emplace_back(ReplayScores{.key = key});
    scores.positions.reserve(list->size());
    for (const Json& position : *list) {
      ASSIGN_OR_RETURN(
          std::vector<ReplayScore> entries,
          ToPosition(position, fmt::format("meta_info.{}[{}]", key, scores.positions.size())));
      scores.positions.push_back(std::move(entries));
    }
  }
  return OkStatus();
}

const ReplayScores* FindScores(const ReplyContent& content, std::string_view key) {
  const auto found = std::ranges::find(content.scores, key, &ReplayScores::key);
  return found == content.scores.end() ? nullptr : &*found;
}

// --- Content ---

// Ids stand in the reply of /generate, and with the logprobs in every reply.
Status ReadIds(const Json& reply, const Json& meta, ReplyContent* content) {
  const Json* ids = Member(reply, "output_ids");
  const ReplayScores* scores = FindScores(*content, "output_token_logprobs");
  if (ids != nullptr && ids->is_array()) {
    for (const Json& id : *ids) {
      ASSIGN_OR_RETURN(const int32_t checked,
                       ToId(id, fmt::format("output_ids[{}]", content->output_ids.size())));
      content->output_ids.push_back(checked);
    }
    return OkStatus();
  }
  if (scores == nullptr) {
    return InvalidArgument(
        "no output_ids and no meta_info.output_token_logprobs, so there is nothing to compare; ask "
        "for logprobs");
  }
  // Scoring alone leaves one logprob and no token.
  const auto num_tokens = std::min<size_t>(
      scores->positions.size(),
      static_cast<size_t>(std::max<int64_t>(IntOr(meta, "completion_tokens", INT64_MAX), 0)));
  for (size_t i = 0; i < num_tokens; ++i) {
    if (scores->positions[i].size() != 1) {
      return Corrupt("meta_info.output_token_logprobs[{}]: expected one logprob", i);
    }
    content->output_ids.push_back(scores->positions[i].front().id);
  }
  return OkStatus();
}

Status ReadContent(const Json& reply, RecordedReply* out) {
  const Json* meta = Member(reply, "meta_info");
  if (meta == nullptr || !meta->is_object()) {
    return Corrupt("expected a reply with meta_info, got {}", Dump(reply).substr(0, 200));
  }
  out->rid = StringOr(*meta, "id");
  out->content.finish_reason = Dump(meta->value("finish_reason", Json()));
  const Json* finish = Member(*meta, "finish_reason");
  if (finish == nullptr || !finish->is_object()) {
    return InvalidArgument("expected a finished reply, got finish_reason {}",
                           out->content.finish_reason);
  }
  out->is_aborted = StringOr(*finish, "type") == "abort";
  RETURN_IF_ERROR(ReadScores(*meta, &out->content));
  return ReadIds(reply, *meta, &out->content);
}

// --- Where it came from ---

// The reply to it tells the weights that made it.
std::string BodyText(Json body) {
  body["return_replay"] = true;
  return Dump(body);
}

Status ReadRecord(const Json& record, RecordedReply* out) {
  const Json* request = Member(record, "request");
  const Json* weights = Member(record, "weights");
  if (request == nullptr || !request->is_object() || weights == nullptr || !weights->is_array()) {
    return Corrupt("meta_info.replay: expected an object with request and weights, got {}",
                   Dump(record).substr(0, 200));
  }
  out->request = BodyText(*request);
  out->recipe = StringOr(record, "recipe");
  out->policy_hash = StringOr(record, "policy_hash");
  out->kv_cache_dtype = StringOr(record, "kv_cache_dtype");
  out->mixed_context = BoolOr(record, "mixed_context");
  out->depends_on_batch = BoolOr(record, "depends_on_batch");
  int64_t num_tokens = 0;
  for (const Json& span : *weights) {
    const ReplaySpan& added =
        out->weights.emplace_back(ReplaySpan{.version = StringOr(span, "version"),
                                             .digest = StringOr(span, "digest"),
                                             .num_tokens = IntOr(span, "tokens", -1)});
    if (added.num_tokens < 0) {
      return Corrupt("meta_info.replay.weights: expected spans with tokens, got {}", Dump(span));
    }
    num_tokens += added.num_tokens;
  }
  if (num_tokens != static_cast<int64_t>(out->content.output_ids.size())) {
    return Corrupt("meta_info.replay.weights: expected spans of {} tokens in all, got {}",
                   out->content.output_ids.size(), num_tokens);
  }
  return OkStatus();
}

// The body of a single prompt as it was sent, with the seed that its reply reports.
Result<std::string> BodyOfRequest(const Json& request, const Json& meta) {
  const Json* ids = Member(request, "input_ids");
  const Json* text = Member(request, "text");
  const bool is_single =
      (ids != nullptr && ids->is_array() && !ids->empty() && ids->front().is_number()) ||
      (text != nullptr && text->is_string());
  if (!is_single) {
    return InvalidArgument(
        "the reply has no meta_info.replay, and its request is not one prompt of /generate; record "
        "with return_replay");
  }
  const Json* given = Member(request, "sampling_params");
  Json sampling = given != nullptr ? *given : Json::object();
  if (!sampling.is_object() || IntOr(sampling, "n", 1) != 1) {
    return InvalidArgument(
        "the reply has no meta_info.replay, and its sampling_params are not those of one sequence");
  }
  const bool is_greedy = DoubleOr(sampling, "temperature", 1.0) < 1e-6;
  if (const Json* seed = Member(meta, "seed")) {
    sampling["sampling_seed"] = *seed;
  } else if (!is_greedy && Member(sampling, "sampling_seed") == nullptr) {
    return InvalidArgument("a sampled reply without a seed: it cannot be replayed");
  }
  Json body = {{"sampling_params", std::move(sampling)}};
  for (const char* key : {"input_ids", "text", "return_logprob", "logprob_start_len",
                          "top_logprobs_num", "token_ids_logprob"}) {
    if (const Json* value = Member(request, key)) {
      body[key] = *value;
    }
  }
  return BodyText(body);
}

Status ReadFromMeta(const Json& meta, RecordedReply* out) {
  out->recipe = StringOr(meta, "recipe");
  if (const Json* spans = Member(meta, "weight_versions"); spans != nullptr && spans->is_array()) {
    for (const Json& span : *spans) {
      out->weights.push_back(
          {.version = StringOr(span, "version"), .num_tokens = IntOr(span, "tokens", 0)});
    }
  }
  if (out->weights.empty()) {
    out->weights.push_back({.version = StringOr(meta, "weight_version"),
                            .num_tokens = static_cast<int64_t>(out->content.output_ids.size())});
  }
  if (out->weights.front().version.empty()) {
    return InvalidArgument("no meta_info.replay and no weight_version: nothing says what made it");
  }
  return OkStatus();
}

Result<RecordedReply> ReadReply(const Json& reply, const Json* request) {
  RecordedReply out;
  RETURN_IF_ERROR(ReadContent(reply, &out));
  const Json& meta = *Member(reply, "meta_info");
  if (const Json* record = Member(meta, "replay")) {
    RETURN_IF_ERROR(ReadRecord(*record, &out));
    return out;
  }
  if (request == nullptr) {
    return InvalidArgument("no meta_info.replay: record with return_replay or --return-replay");
  }
  ASSIGN_OR_RETURN(out.request, BodyOfRequest(*request, meta));
  RETURN_IF_ERROR(ReadFromMeta(meta, &out));
  return out;
}

Result<std::vector<RecordedReply>> ReadValue(const Json& value, const Json* request) {
  std::vector<RecordedReply> replies;
  const Json* choices = Member(value, "choices");
  const Json* list = value.is_array() ? &value : choices;
  if (list == nullptr) {
    ASSIGN_OR_RETURN(replies.emplace_back(), ReadReply(value, request));
    return replies;
  }
  for (const Json& entry : *list) {
    // One request for several replies says nothing of a single one.
    Result<RecordedReply> reply = ReadReply(entry, nullptr);
    if (!reply.has_value()) {
      return reply.error().WithContext(
          fmt::format("{} {}", choices != nullptr ? "choice" : "reply", replies.size()));
    }
    reply->index = static_cast<int64_t>(replies.size());
    replies.push_back(*std::move(reply));
  }
  return replies;
}

// --- Parts ---

// Positions [first, first + count) of the output lists; input lists belong to the beginning.
ReplyContent CutContent(const ReplyContent& content, int64_t first, int64_t count) {
  const auto cut = [&](const auto& list) {
    const auto size = static_cast<int64_t>(list.size());
    const auto begin = list.begin() + std::min(first, size);
    return std::vector(begin, list.begin() + std::min(first + count, size));
  };
  ReplyContent part{.output_ids = cut(content.output_ids)};
  for (const ReplayScores& scores : content.scores) {
    if (scores.key.starts_with("output")) {
      part.scores.push_back({.key = scores.key, .positions = cut(scores.positions)});
    } else if (first == 0) {
      part.scores.push_back(scores);
    }
  }
  return part;
}

bool HasPenalties(const Json& sampling) {
  return DoubleOr(sampling, "frequency_penalty", 0.0) != 0.0 ||
         DoubleOr(sampling, "presence_penalty", 0.0) != 0.0 ||
         DoubleOr(sampling, "repetition_penalty", 1.0) != 1.0;
}

}  // namespace

std::string RecordedReply::Name() const {
  std::string name = fmt::format("line {}", line);
  if (index > 0) {
    name += fmt::format(" [{}]", index);
  }
  return rid.empty() ? name : fmt::format("{} (rid {})", name, rid);
}

Result<std::vector<RecordedReply>> ParseReplayLine(std::string_view text, int64_t line) {
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  const std::string where = fmt::format("line {}", line);
  if (!json.is_object() && !json.is_array()) {
    return Corrupt("{}: expected a JSON object or list, got '{}'", where, text.substr(0, 200));
  }
  const Json* response = Member(json, "response");
  const Json* request = Member(json, "request");
  const bool is_pair = response != nullptr && request != nullptr;
  Result<std::vector<RecordedReply>> replies =
      is_pair ? ReadValue(*response, request) : ReadValue(json, nullptr);
  if (!replies.has_value()) {
    return replies.error().WithContext(where);
  }
  for (RecordedReply& reply : *replies) {
    reply.line = line;
  }
  return replies;
}

Result<std::vector<RecordedReply>> ReadReplayFile(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadTextFile(path, kFileBytesMax));
  std::vector<RecordedReply> all;
  std::string_view rest = text;
  for (int64_t line = 1; !rest.empty(); ++line) {
    const size_t end = rest.find('\n');
    const std::string_view one = rest.substr(0, end);
    rest = end == std::string_view::npos ? std::string_view() : rest.substr(end + 1);
    if (one.find_first_not_of(" \t\r") == std::string_view::npos) {
      continue;
    }
    Result<std::vector<RecordedReply>> replies = ParseReplayLine(one, line);
    if (!replies.has_value()) {
      return replies.error().WithContext(path);
    }
    std::ranges::move(*replies, std::back_inserter(all));
  }
  if (all.empty()) {
    return InvalidArgument("{}: expected recorded replies, one JSON value a line, got none", path);
  }
  return all;
}

Result<RecordedReply> ParseReplayedReply(std::string_view text) {
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) {
    return Corrupt("reply of /generate: expected a JSON object, got '{}'", text.substr(0, 200));
  }
  return ReadReply(json, nullptr);
}

Result<RecordedReply> PartOfReply(const RecordedReply& reply, int64_t first, int64_t count) {
  Json body = Json::parse(reply.request, nullptr, /*allow_exceptions=*/false);
  if (!body.is_object() || Member(body, "sampling_params") == nullptr) {
    return Corrupt("{}: expected a request with sampling_params", reply.Name());
  }
  Json& sampling = body["sampling_params"];
  if (first > 0 && HasPenalties(sampling)) {
    return Unsupported("{}: its penalties count the tokens before the part that is replayed",
                       reply.Name());
  }
  const Json* ids = Member(body, "input_ids");
  if (first > 0 && (ids == nullptr || !ids->is_array())) {
    return Unsupported("{}: a part of a reply is replayed from prompt ids, and it has none",
                       reply.Name());
  }
  for (int64_t i = 0; i < first; ++i) {
    body["input_ids"].push_back(reply.content.output_ids[static_cast<size_t>(i)]);
  }
  const int64_t min_left = IntOr(sampling, "min_new_tokens", 0) - first;
  sampling["max_new_tokens"] = count;
  sampling["min_new_tokens"] = std::clamp<int64_t>(min_left, 0, count);
  sampling["stop"] = Json::array();  // A match would not change an id, and the budget ends it.
  if (first > 0 && Member(body, "return_logprob") != nullptr) {
    body["logprob_start_len"] = -1;
  }
  RecordedReply part = reply;
  part.request = Dump(body);
  part.content = CutContent(reply.content, first, count);
  return part;
}

}  // namespace octavo
