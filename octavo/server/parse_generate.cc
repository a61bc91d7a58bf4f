#include "octavo/server/parse_generate.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_set>
#include <utility>
#include <vector>

#include "octavo/base/random.h"
#include "octavo/base/status.h"
#include "octavo/engine/request.h"
#include "octavo/server/json.h"
#include "octavo/server/parse_sampling.h"

namespace octavo {
namespace {

// Fields that change the tokens or the numbers returned and are not built: refused when present.
constexpr std::string_view kRefusedFields[] = {"image_data",
                                               "video_data",
                                               "audio_data",
                                               "lora_path",
                                               "custom_logit_processor",
                                               "lora_id",
                                               "input_embeds",
                                               "bootstrap_host",
                                               "bootstrap_port",
                                               "bootstrap_room",
                                               "bootstrap_pair_key",
                                               "session_params"};
// The same, but false is fine.
constexpr std::string_view kRefusedSwitches[] = {"return_hidden_states", "return_entropy"};

// One prompt with its options, before n is spread out.
struct PromptItem {
  std::vector<int32_t> ids = {};
  SamplingFields sampling = {};
  bool return_logprob = false;
  int64_t logprob_start_len = -1;
  int64_t top_logprobs_num = 0;
  std::vector<int32_t> token_ids_logprob = {};
  bool return_routed_experts = false;
  int64_t routed_experts_start_len = 0;
  std::string rid = {};  // Empty: drawn.
  std::string extra_key = {};
};

struct Prompts {
  std::vector<PromptItem> items = {};
  bool is_batch = false;
};

Status RefuseUnbuilt(const JsonValue& body) {
  for (const std::string_view field : kRefusedFields) {
    if (body.Find(field) != nullptr) {
      return Unsupported("{}: not supported by this server", field);
    }
  }
  for (const std::string_view field : kRefusedSwitches) {
    ASSIGN_OR_RETURN(const bool is_wanted, BoolField(body, field, false));
    if (is_wanted) {
      return Unsupported("{}: not supported by this server", field);
    }
  }
  for (const std::string_view field : {"data_parallel_rank", "routed_dp_rank"}) {
    ASSIGN_OR_RETURN(const int64_t rank, IntField(body, field, 0));
    if (rank != 0) {
      return InvalidArgument("{}: expected 0, for there is one rank, got {}", field, rank);
    }
  }
  return OkStatus();
}

// --- Prompts ---

Result<std::vector<int32_t>> TokenizePrompt(const JsonValue& value, std::string_view name,
                                            const GenerateContext& context) {
  ASSIGN_OR_RETURN(const std::string text, AsString(value, name));
  if (context.tokenizer == nullptr) {
    return Unsupported(
        "text: the model folder has no tokenizer.json, so this server takes input_ids only");
  }
  if (context.max_text_bytes > 0 && static_cast<int64_t>(text.size()) > context.max_text_bytes) {
    return InvalidArgument("{}: expected a prompt of at most {} tokens, got {} bytes of text", name,
                           context.context_length, text.size());
  }
  std::vector<int32_t> ids = context.tokenizer->Encode(text);
  if (ids.empty()) {
    return InvalidArgument("{}: expected text that gives at least one token, got \"{}\"", name,
                           text.substr(0, 64));
  }
  return ids;
}

Result<std::vector<int32_t>> CheckedIds(const JsonValue& value, std::string_view name,
                                        const GenerateContext& context) {
  ASSIGN_OR_RETURN(std::vector<int32_t> ids, AsTokenIds(value, name));
  if (ids.empty()) {
    return InvalidArgument("{}: expected at least one token id, got []", name);
  }
  for (const int32_t id : ids) {
    if (id < 0 || id >= context.vocab_size) {
      return InvalidArgument("{}: expected token ids in [0, {}), got {}", name, context.vocab_size,
                             id);
    }
  }
  return ids;
}

using ReadPrompt = Result<std::vector<int32_t>> (*)(const JsonValue&, std::string_view,
                                                    const GenerateContext&);

Result<Prompts> ReadBatch(const JsonArray& values, std::string_view name, ReadPrompt read,
                          const GenerateContext& context) {
  if (static_cast<int64_t>(values.size()) > context.max_sequences) {
    return InvalidArgument("{}: expected at most {} prompts, got {}", name, context.max_sequences,
                           values.size());
  }
  Prompts prompts{.is_batch = true};
  for (size_t i = 0; i < values.size(); ++i) {
    ASSIGN_OR_RETURN(std::vector<int32_t> ids,
                     read(values[i], fmt::format("{}[{}]", name, i), context));
    prompts.items.push_back({.ids = std::move(ids)});
  }
  return prompts;
}

Result<Prompts> ReadPrompts(const JsonValue& body, const GenerateContext& context) {
  const JsonValue* text = body.Find("text");
  const JsonValue* ids = body.Find("input_ids");
  if ((text == nullptr) == (ids == nullptr)) {
    return InvalidArgument("expected exactly one of text and input_ids, got {}",
                           text == nullptr ? "neither" : "both");
  }
  const std::string_view name = text != nullptr ? "text" : "input_ids";
  const JsonValue& value = text != nullptr ? *text : *ids;
  const ReadPrompt read = text != nullptr ? TokenizePrompt : CheckedIds;
  const JsonArray* array = value.array();
  if (array != nullptr && array->empty()) {
    return InvalidArgument("{}: expected a prompt, got []", name);
  }
  const bool is_batch = array != nullptr && (text != nullptr || array->front().array() != nullptr);
  if (is_batch) {
    return ReadBatch(*array, name, read, context);
  }
  ASSIGN_OR_RETURN(std::vector<int32_t> single, read(value, name, context));
  Prompts prompts;
  prompts.items.push_back({.ids = std::move(single)});
  return prompts;
}

// --- Options that may be one value or a list with one entry a prompt ---

// The value of prompt `item_idx`: an entry of the list, or the one value for all; nullptr when
// absent or null.
const JsonValue* Broadcast(const JsonValue* field, bool is_list, size_t item_idx) {
  if (field == nullptr) {
    return nullptr;
  }
  const JsonValue& value = is_list ? (*field->array())[item_idx] : *field;
  return value.is_null() ? nullptr : &value;
}

struct ListField {
  const JsonValue* value = nullptr;
  bool is_list = false;

  const JsonValue* At(size_t item_idx) const { return Broadcast(value, is_list, item_idx); }
};

// `nested`: the single value is itself a list, so a list of lists is one entry a prompt.
Result<ListField> FindListField(const JsonValue& body, std::string_view key, const Prompts& prompts,
                                bool nested = false) {
  ListField field{.value = body.Find(key)};
  if (field.value == nullptr || field.value->array() == nullptr) {
    return field;
  }
  const JsonArray& array = *field.value->array();
  field.is_list = !nested || std::any_of(array.begin(), array.end(), [](const JsonValue& entry) {
    return entry.array() != nullptr || entry.is_null();
  });
  if (!field.is_list) {
    return field;
  }
  if (!prompts.is_batch) {
    return Corrupt("{}: expected one value for a single prompt, got a list", key);
  }
  if (array.size() != prompts.items.size()) {
    return InvalidArgument("{}: expected a list of {}, one for each prompt, got {}", key,
                           prompts.items.size(), array.size());
  }
  return field;
}

struct LogprobFields {
  ListField return_logprob;
  ListField start_len;
  ListField top_num;
  ListField token_ids;

  bool any_list() const {
    return return_logprob.is_list || start_len.is_list || top_num.is_list || token_ids.is_list;
  }
};

Status ApplyLogprobs(const LogprobFields& fields, size_t item_idx, const GenerateContext& context,
                     PromptItem& item) {
  if (const JsonValue* value = fields.return_logprob.At(item_idx)) {
    ASSIGN_OR_RETURN(item.return_logprob, AsBool(*value, "return_logprob"));
  }
  if (const JsonValue* value = fields.start_len.At(item_idx)) {
    ASSIGN_OR_RETURN(item.logprob_start_len, AsInt(*value, "logprob_start_len"));
  }
  if (const JsonValue* value = fields.top_num.At(item_idx)) {
    ASSIGN_OR_RETURN(item.top_logprobs_num, AsInt(*value, "top_logprobs_num"));
  }
  if (const JsonValue* value = fields.token_ids.At(item_idx)) {
    ASSIGN_OR_RETURN(item.token_ids_logprob, AsTokenIds(*value, "token_ids_logprob"));
  }
  const auto prompt_len = static_cast<int64_t>(item.ids.size());
  if (item.logprob_start_len < -1 || item.logprob_start_len > prompt_len) {
    return InvalidArgument("logprob_start_len: expected -1 to {} (the prompt's length), got {}",
                           prompt_len, item.logprob_start_len);
  }
  if (item.top_logprobs_num < 0 || item.top_logprobs_num > context.vocab_size) {
    return InvalidArgument("top_logprobs_num: expected 0 to {} (the vocabulary), got {}",
                           context.vocab_size, item.top_logprobs_num);
  }
  for (const int32_t id : item.token_ids_logprob) {
    if (id < 0 || id >= context.vocab_size) {
      return InvalidArgument("token_ids_logprob: expected token ids in [0, {}), got {}",
                             context.vocab_size, id);
    }
  }
  if (!item.return_logprob) {  // The other three only shape what it returns.
    item.logprob_start_len = -1;
    item.top_logprobs_num = 0;
    item.token_ids_logprob.clear();
  }
  return OkStatus();
}

Status ReadLogprobs(const JsonValue& body, const GenerateContext& context, int64_t n,
                    Prompts& prompts) {
  LogprobFields fields;
  ASSIGN_OR_RETURN(fields.return_logprob, FindListField(body, "return_logprob", prompts));
  ASSIGN_OR_RETURN(fields.start_len, FindListField(body, "logprob_start_len", prompts));
  ASSIGN_OR_RETURN(fields.top_num, FindListField(body, "top_logprobs_num", prompts));
  ASSIGN_OR_RETURN(fields.token_ids, FindListField(body, "token_ids_logprob", prompts, true));
  if (n > 1 && fields.any_list()) {
    return InvalidArgument("n: list-valued logprob options need n = 1, got n = {}", n);
  }
  for (size_t i = 0; i < prompts.items.size(); ++i) {
    RETURN_IF_ERROR(ApplyLogprobs(fields, i, context, prompts.items[i]));
  }
  return OkStatus();
}

// Cuts what does not fit the context, for a server started with --allow-auto-truncate.
void Truncate(int64_t context_length, PromptItem& item) {
  const auto longest = static_cast<size_t>(std::max<int64_t>(context_length - 1, 1));
  item.ids.resize(std::min(item.ids.size(), longest));
  SamplingParams& params = item.sampling.params;
  params.max_new_tokens =
      std::min(params.max_new_tokens, context_length - static_cast<int64_t>(item.ids.size()));
  params.min_new_tokens = std::min(params.min_new_tokens, params.max_new_tokens);
}

Status ReadSampling(const JsonValue& body, const GenerateContext& context, Prompts& prompts) {
  ASSIGN_OR_RETURN(const ListField field, FindListField(body, "sampling_params", prompts));
  for (size_t i = 0; i < prompts.items.size(); ++i) {
    PromptItem& item = prompts.items[i];
    ASSIGN_OR_RETURN(item.sampling, ParseSampling(field.At(i), context.vocab_size));
    SamplingFields& sampling = item.sampling;
    if (sampling.n != prompts.items.front().sampling.n) {
      return InvalidArgument("n: expected the same for all items of a batch, got {} and {}",
                             prompts.items.front().sampling.n, sampling.n);
    }
    if (!sampling.stop.empty() && context.tokenizer == nullptr) {
      return Unsupported(
          "stop: the model folder has no tokenizer.json, so this server takes stop_token_ids only");
    }
    if (sampling.to_context_end) {
      sampling.params.max_new_tokens =
          std::max<int64_t>(context.context_length - static_cast<int64_t>(item.ids.size()), 0);
    }
    if (context.auto_truncate) {
      Truncate(context.context_length, item);
    }
  }
  return OkStatus();
}

// --- rid ---

// Gives each prompt the rid that the client named; returns the one rid of a batch.
Result<std::string> ReadRids(const JsonValue& body, Prompts& prompts) {
  ASSIGN_OR_RETURN(const ListField field, FindListField(body, "rid", prompts));
  if (field.value == nullptr) {
    return std::string();
  }
  if (!field.is_list) {
    ASSIGN_OR_RETURN(const std::string rid, AsString(*field.value, "rid"));
    for (size_t i = 0; i < prompts.items.size() && !rid.empty(); ++i) {
      prompts.items[i].rid = prompts.is_batch ? fmt::format("{}_{}", rid, i) : rid;
    }
    return prompts.is_batch ? rid : std::string();
  }
  std::unordered_set<std::string> seen;
  for (size_t i = 0; i < prompts.items.size(); ++i) {
    if (const JsonValue* value = field.At(i)) {
      ASSIGN_OR_RETURN(prompts.items[i].rid, AsString(*value, "rid"));
    }
    if (!prompts.items[i].rid.empty() && !seen.insert(prompts.items[i].rid).second) {
      return InvalidArgument("rid: expected one of its own for each prompt, got \"{}\" twice",
                             prompts.items[i].rid);
    }
  }
  return std::string();
}

Status ReadOthers(const JsonValue& body, Prompts& prompts) {
  ASSIGN_OR_RETURN(const ListField extra_key, FindListField(body, "extra_key", prompts));
  // Whether the model and the server can return them is the engine's to say.
  ASSIGN_OR_RETURN(const bool routed, BoolField(body, "return_routed_experts", false));
  ASSIGN_OR_RETURN(const int64_t routed_start, IntField(body, "routed_experts_start_len", 0));
  for (size_t i = 0; i < prompts.items.size(); ++i) {
    PromptItem& item = prompts.items[i];
    if (const JsonValue* value = extra_key.At(i)) {
      ASSIGN_OR_RETURN(item.extra_key, AsString(*value, "extra_key"));
    }
    const auto prompt_len = static_cast<int64_t>(item.ids.size());
    if (routed_start < 0 || routed_start > prompt_len) {
      return InvalidArgument(
          "routed_experts_start_len: expected 0 to {} (the prompt's length), got {}", prompt_len,
          routed_start);
    }
    item.return_routed_experts = routed;
    item.routed_experts_start_len = routed_start;
  }
  return OkStatus();
}

// --- Spreading out ---

GenerateItem MakeItem(const PromptItem& prompt, int64_t sample_idx, bool stream,
                      const GenerateContext& context) {
  GenerateItem item;
  Request& request = item.request;
  const SamplingFields& sampling = prompt.sampling;
  // With n > 1 the given rid names no single sequence, so each gets a fresh one.
  request.rid = prompt.rid.empty() || sampling.n > 1 ? context.rids->Next() : prompt.rid;
  request.input_ids = prompt.ids;
  request.sampling = sampling.params;
  if (request.sampling.seed.has_value()) {
    // The samples of one prompt must differ; the reply reports the seed that each one used.
    const auto seed = static_cast<uint64_t>(*request.sampling.seed);
    request.sampling.seed = static_cast<int64_t>(seed + static_cast<uint64_t>(sample_idx));
  }
  request.return_logprob = prompt.return_logprob;
  request.logprob_start_len = prompt.logprob_start_len;
  request.top_logprobs_num = prompt.top_logprobs_num;
  request.token_ids_logprob = prompt.token_ids_logprob;
  request.return_routed_experts = prompt.return_routed_experts;
  request.routed_experts_start_len = prompt.routed_experts_start_len;
  request.stream = stream;
  request.stream_interval =
      sampling.stream_interval > 0 ? sampling.stream_interval : context.stream_interval;
  request.extra_key = prompt.extra_key;
  item.stop = sampling.stop;
  item.skip_special_tokens = sampling.skip_special_tokens;
  item.no_stop_trim = sampling.no_stop_trim;
  return item;
}

}  // namespace

std::string RidSource::Next() {
  const std::array<uint32_t, 4> words = Philox(seed_, count_.fetch_add(1));
  return fmt::format("{:08x}{:08x}{:08x}{:08x}", words[0], words[1], words[2], words[3]);
}

Result<ParsedGenerate> ParseGenerate(std::string_view body, const GenerateContext& context) {
  ASSIGN_OR_RETURN(const JsonValue json, ParseJsonBody(body));
  RETURN_IF_ERROR(RefuseUnbuilt(json));
  ParsedGenerate call;
  ASSIGN_OR_RETURN(call.stream, BoolField(json, "stream", false));
  ASSIGN_OR_RETURN(call.return_prompt_token_ids, BoolField(json, "return_prompt_token_ids", false));
  ASSIGN_OR_RETURN(call.return_text_in_logprobs, BoolField(json, "return_text_in_logprobs", false));

  ASSIGN_OR_RETURN(Prompts prompts, ReadPrompts(json, context));
  RETURN_IF_ERROR(ReadSampling(json, context, prompts));
  const int64_t n = prompts.items.front().sampling.n;
  RETURN_IF_ERROR(ReadLogprobs(json, context, n, prompts));
  RETURN_IF_ERROR(ReadOthers(json, prompts));
  ASSIGN_OR_RETURN(call.batch_rid, ReadRids(json, prompts));

  const auto num_prompts = static_cast<int64_t>(prompts.items.size());
  if (n > context.max_sequences / num_prompts) {
    return InvalidArgument(
        "n: expected at most {} sequences in one call, got {} prompts with n = {}",
        context.max_sequences, num_prompts, n);
  }
  call.is_list = prompts.is_batch || n > 1;
  if (n > 1) {
    call.batch_rid.clear();
  }
  call.items.reserve(static_cast<size_t>(num_prompts * n));
  for (const PromptItem& prompt : prompts.items) {
    for (int64_t sample_idx = 0; sample_idx < n; ++sample_idx) {
      call.items.push_back(MakeItem(prompt, sample_idx, call.stream, context));
    }
  }
  return call;
}

}  // namespace octavo
