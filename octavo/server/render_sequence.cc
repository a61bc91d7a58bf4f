#include "octavo/server/render_sequence.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/engine/request.h"
#include "octavo/server/base64.h"
#include "octavo/server/json_writer.h"
#include "octavo/server/replay_record.h"
#include "octavo/server/stop_strings.h"
#include "octavo/text/tokenizer.h"

namespace octavo {
namespace {

// What the engine says of a request that was aborted before it had a first token. Clients look for
// this beginning.
constexpr std::string_view kQueueAbortPrefix = "Abort before prefill";

void Separate(std::string& list) {
  if (!list.empty()) {
    list += ',';
  }
}

// What an object needs beside its text, its lists and its replay record: keys and single values.
constexpr size_t kObjectBytes = 640;

void AppendInteger(std::string& out, int64_t value) {
  const fmt::format_int digits(value);
  out.append(digits.data(), digits.size());
}

}  // namespace

std::string FinishReasonJson(const FinishReason& finish, int64_t max_new_tokens) {
  JsonWriter json;
  switch (finish.type) {
    case FinishType::kNone:
      return "null";
    case FinishType::kStopToken:
      json.BeginObject().Field("type", "stop");
      json.Field("matched", int64_t{finish.matched_token}).EndObject();
      break;
    case FinishType::kStopString:
      json.BeginObject().Field("type", "stop").Field("matched", finish.matched_string).EndObject();
      break;
    case FinishType::kLength:
      json.BeginObject().Field("type", "length").Field("length", max_new_tokens).EndObject();
      break;
    case FinishType::kAbort:
      json.BeginObject().Field("type", "abort").Field("message", finish.message);
      if (!finish.message.starts_with(kQueueAbortPrefix)) {
        json.Key("status_code").Null().Key("err_type").Null();
      }
      json.EndObject();
      break;
    case FinishType::kVersionConflict:
      json.BeginObject().Field("type", "abort").Field("message", finish.message);
      json.Field("status_code", 409).Field("err_type", "WeightVersionConflict").EndObject();
      break;
    case FinishType::kError:
      json.BeginObject().Field("type", "abort").Field("message", finish.message);
      json.Field("status_code", 500).Field("err_type", "InternalServerError").EndObject();
      break;
  }
  return json.Take();
}

void AppendLogprob(std::string& out, float logprob, int64_t* num_clamped) {
  if (!(logprob >= -1e30F) || std::isinf(logprob)) {
    ++*num_clamped;
    logprob = -1e30F;
  }
  AppendJsonFloat(out, logprob);
}

SequenceRenderer::SequenceRenderer(RenderOptions options) : options_(std::move(options)) {
  if (options_.tokenizer != nullptr) {
    decoder_ =
        std::make_unique<IncrementalDecoder>(options_.tokenizer, options_.skip_special_tokens);
  }
}

// What every chunk repeats, and what changes when the engine takes a sequence up, if ever again.
void SequenceRenderer::SettleMembers(const RequestOutput& output) {
  if (!settled_members_.empty() && output.num_retractions == last_.num_retractions &&
      output.queue_seconds == last_.queue_seconds && output.seed == last_.seed) {
    return;
  }
  JsonWriter json;
  json.Field("num_retractions", output.num_retractions);
  json.Field("dp_rank", 0);
  json.Field("queue_time", output.queue_seconds);
  json.Field("seed", output.seed);
  WriteRecipe(json);
  settled_members_ = json.Take();
}

void SequenceRenderer::WriteRecipe(JsonWriter& json) const {
  json.Field("recipe", options_.recipe).Field("emulated", options_.is_emulated);
}

void SequenceRenderer::Append(RequestOutput output) {
  SettleMembers(output);
  // The id that matched a stop id is an output like any other, but no part of the text.
  const bool hides_last = output.finish.type == FinishType::kStopToken && !options_.no_stop_trim;
  for (size_t i = 0; i < output.new_ids.size(); ++i) {
    const int32_t id = output.new_ids[i];
    Separate(ids_);
    AppendInteger(ids_, id);
    if (decoder_ != nullptr && !(hides_last && i + 1 == output.new_ids.size())) {
      decoder_->Append(id);
    }
  }
  num_new_ += static_cast<int64_t>(output.new_ids.size());
  if (options_.return_logprob) {
    AppendLogprobs(output);
    AppendInputLogprobs(output);
  }
  if (options_.routed_experts && output.finish.type != FinishType::kNone) {
    static_assert(std::endian::native == std::endian::little);
    routed_experts_ = Base64(std::as_bytes(std::span(output.routed_experts)));
  }
  last_ = std::move(output);
  last_.new_ids.clear();
  last_.new_logprobs.clear();
  last_.new_top_logprobs.clear();
  last_.new_ids_logprobs.clear();
  last_.input_logprobs.clear();
  last_.input_top_logprobs.clear();
  last_.input_ids_logprobs.clear();
  last_.routed_experts = {};  // May be megabytes.
}

void SequenceRenderer::AppendIdAndText(std::string& list, int32_t id) {
  list += ',';
  AppendInteger(list, id);
  list += ',';
  if (options_.text_in_logprobs && options_.tokenizer != nullptr) {
    const int32_t ids[] = {id};
    AppendJsonString(list, options_.tokenizer->Decode(ids, /*skip_special_tokens=*/false));
  } else {
    list += "null";
  }
  list += ']';
}

void SequenceRenderer::AppendEntry(std::string& list, float logprob, int32_t id) {
  Separate(list);
  list += '[';
  AppendLogprob(list, logprob, &num_clamped_);
  AppendIdAndText(list, id);
}

void SequenceRenderer::AppendEntryList(std::string& list,
                                       const std::vector<TokenLogprob>& entries) {
  std::string inner;
  for (const TokenLogprob& entry : entries) {
    AppendEntry(inner, entry.logprob, entry.id);
  }
  Separate(list);
  list += '[';
  list += inner;
  list += ']';
}

void SequenceRenderer::AppendLogprobs(const RequestOutput& output) {
  for (const TokenLogprob& entry : output.new_logprobs) {
    AppendEntry(output_logprobs_, entry.logprob, entry.id);
    ++num_logprobs_;
  }
  for (const std::vector<TokenLogprob>& entries : output.new_top_logprobs) {
    AppendEntryList(output_top_, entries);
  }
  for (const std::vector<TokenLogprob>& entries : output.new_ids_logprobs) {
    AppendEntryList(output_ids_logprobs_, entries);
  }
}

void SequenceRenderer::AppendInputLogprobs(const RequestOutput& output) {
  for (const auto& [logprob, id] : output.input_logprobs) {
    if (logprob.has_value()) {
      AppendEntry(input_logprobs_, *logprob, id);
    } else {
      Separate(input_logprobs_);
      input_logprobs_ += "[null";
      AppendIdAndText(input_logprobs_, id);
    }
  }
  const auto append_lists = [this](std::string& list,
                                   const std::vector<std::vector<TokenLogprob>>& positions) {
    for (size_t i = 0; i < positions.size(); ++i) {
      if (i == 0 && list.empty() && positions[i].empty()) {
        list += "null";  // The first position has no prediction.
      } else {
        AppendEntryList(list, positions[i]);
      }
    }
  };
  append_lists(input_top_, output.input_top_logprobs);
  append_lists(input_ids_logprobs_, output.input_ids_logprobs);
}

// What a client may see now. `storage` holds it when it is not a view of the decoder's own text.
std::string_view SequenceRenderer::VisibleText(std::string& storage) const {
  if (decoder_ == nullptr) {
    return {};
  }
  if (!finished()) {
    return decoder_->text();
  }
  storage = decoder_->Finished();
  std::string_view text = storage;
  if (last_.finish.type == FinishType::kStopString && !options_.no_stop_trim) {
    text = text.substr(0, text.find(last_.finish.matched_string));
  }
  return text;
}

bool SequenceRenderer::HoldsBack() const {
  if (finished() || decoder_ == nullptr || options_.no_stop_trim) {
    return false;
  }
  return EndsInStopPrefix(decoder_->text(), options_.stop);
}

void SequenceRenderer::WriteLogprobs(JsonWriter& json) const {
  if (!options_.incremental || !inputs_sent_ || finished()) {
    json.Key("input_token_logprobs").RawArray(input_logprobs_);
    if (options_.top_logprobs) {
      json.Key("input_top_logprobs").RawArray(input_top_);
    }
    if (options_.ids_logprobs) {
      json.Key("input_token_ids_logprobs").RawArray(input_ids_logprobs_);
    }
  }
  json.Key("output_token_logprobs").RawArray(output_logprobs_);
  json.Field("output_token_logprobs_length", num_logprobs_);
  if (options_.top_logprobs) {
    json.Key("output_top_logprobs").RawArray(output_top_);
  }
  if (options_.ids_logprobs) {
    json.Key("output_token_ids_logprobs").RawArray(output_ids_logprobs_);
  }
}

void SequenceRenderer::WriteMeta(JsonWriter& json) const {
  json.BeginObject().Field("id", last_.rid);
  json.Key("finish_reason").Raw(FinishReasonJson(last_.finish, options_.max_new_tokens));
  json.Field("prompt_tokens", last_.prompt_tokens);
  json.Field("completion_tokens", last_.completion_tokens);
  json.Field("cached_tokens", last_.cached_tokens);
  json.Field("cached_tokens_stale", last_.cached_tokens_stale);
  json.Field("mixed_context", last_.mixed_context);
  json.Field("reasoning_tokens", 0);
  json.Field("weight_version", last_.weight_version);
  json.Key("weight_versions").BeginArray();
  for (const VersionSpan& span : last_.versions) {
    json.BeginObject().Field("version", span.version).Field("tokens", span.num_tokens).EndObject();
  }
  json.EndArray();
  json.Raw(settled_members_);
  if (finished()) {
    json.Field("e2e_latency", last_.e2e_seconds);
  }
  if (finished() && options_.routed_experts) {
    json.Field("routed_experts", routed_experts_);
    json.Field("routed_experts_start_len", options_.routed_experts_start_len);
  }
  if (finished() && options_.replay != nullptr) {
    WriteReplayRecord(*options_.replay, last_, json.Key("replay"));
  }
  if (options_.return_logprob) {
    WriteLogprobs(json);
  }
  json.EndObject();
}

void SequenceRenderer::WritePromptIds(JsonWriter& json) const {
  if (!options_.return_prompt_token_ids) {
    return;
  }
  json.Key("prompt_token_ids").BeginArray();
  for (const int32_t id : options_.prompt_token_ids) {
    json.Value(int64_t{id});
  }
  json.EndArray();
}

std::string SequenceRenderer::TakeText() {
  std::string storage;
  const std::string_view text = VisibleText(storage);
  std::string taken(text.substr(std::min(sent_bytes_, text.size())));
  sent_bytes_ = std::max(sent_bytes_, text.size());
  num_new_ = 0;
  return taken;
}

// Text that has streamed is never taken back: what could become a stop string was held back. Only
// the last chunk may show less than the decoder has, so only there all of it is written anew.
void SequenceRenderer::WriteText(JsonWriter& json, std::string_view text) {
  json.Key("text");
  if (options_.incremental) {
    json.Value(text.substr(std::min(sent_bytes_, text.size())));
  } else if (finished()) {
    json.Value(text);
  } else {
    AppendJsonChars(text_chars_, text.substr(num_text_bytes_));
    num_text_bytes_ = text.size();
    json.RawString(text_chars_);
  }
}

void SequenceRenderer::Render(std::string& out, int64_t index) {
  std::string storage;
  const std::string_view text = VisibleText(storage);
  out.reserve(out.size() + text.size() + ids_.size() + output_logprobs_.size() +
              output_top_.size() + output_ids_logprobs_.size() + input_logprobs_.size() +
              input_top_.size() + input_ids_logprobs_.size() + routed_experts_.size() +
              kObjectBytes);
  JsonWriter json(std::move(out));
  json.BeginObject();
  WriteText(json, text);
  json.Key("output_ids").RawArray(ids_);
  json.Key("meta_info");
  WriteMeta(json);
  WritePromptIds(json);
  if (index >= 0) {
    json.Field("index", index);
  }
  json.EndObject();
  num_new_ = 0;
  inputs_sent_ = true;
  if (options_.incremental) {
    StartNextDelta(text.size());
  }
  out = json.Take();
}

void SequenceRenderer::StartNextDelta(size_t text_bytes) {
  sent_bytes_ = std::max(sent_bytes_, text_bytes);
  ids_.clear();
  output_logprobs_.clear();
  output_top_.clear();
  output_ids_logprobs_.clear();
  num_logprobs_ = 0;
}

}  // namespace octavo
