#include "octavo/server/parse_prompts.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_set>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/engine/request.h"
#include "octavo/engine/version_demand.h"
#include "octavo/server/json.h"
#include "octavo/server/parse_generate.h"
#include "octavo/server/parse_sampling.h"
#include "octavo/text/tokenizer.h"

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

// Of one call: prompts times n, each with its own copy. A body of the largest size holds fewer.
constexpr int64_t kPromptTokensMax = int64_t{1} << 26;

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

// Cuts what does not fit the context, for a server started with --allow-auto-truncate.
void Truncate(int64_t context_length, PromptItem& item) {
  const auto longest = static_cast<size_t>(std::max<int64_t>(context_length - 1, 1));
  item.ids.resize(std::min(item.ids.size(), longest));
  SamplingParams& params = item.sampling.params;
  params.max_new_tokens =
      std::min(params.max_new_tokens, context_length - static_cast<int64_t>(item.ids.size()));
  params.min_new_tokens = std::min(params.min_new_tokens, params.max_new_tokens);
}

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
  request.version_demand = prompt.version_demand;
  request.stale_prefix_versions = prompt.stale_prefix_versions;
  item.stop = sampling.stop;
  item.skip_special_tokens = sampling.skip_special_tokens;
  item.no_stop_trim = sampling.no_stop_trim;
  return item;
}

// A version, which counts mostly: as text or as a number. Empty when absent.
Result<std::string> VersionField(const JsonValue& body, std::string_view key) {
  const JsonValue* value = body.Find(key);
  if (value == nullptr) {
    return std::string();
  }
  if (value->string() == nullptr) {
    ASSIGN_OR_RETURN(const int64_t number, AsInt(*value, key));
    return std::to_string(number);
  }
  if (value->string()->empty()) {
    return InvalidArgument("{}: expected a version, got \"\"", key);
  }
  return *value->string();
}

Result<VersionDemand> ReadVersionDemand(const JsonValue& body) {
  ASSIGN_OR_RETURN(std::string exact, VersionField(body, "exact_weight_version"));
  ASSIGN_OR_RETURN(std::string minimum, VersionField(body, "min_weight_version"));
  if (!exact.empty() && !minimum.empty()) {
    return InvalidArgument(
        "min_weight_version: expected none beside exact_weight_version ({}), got {}", exact,
        minimum);
  }
  if (!exact.empty()) {
    return VersionDemand{.kind = VersionDemand::Kind::kExact, .version = std::move(exact)};
  }
  if (minimum.empty()) {
    return VersionDemand{};
  }
  if (!VersionNumber(minimum).has_value()) {
    return InvalidArgument("min_weight_version: expected a decimal number below 2^64, got {}",
                           minimum);
  }
  return VersionDemand{.kind = VersionDemand::Kind::kMinimum, .version = std::move(minimum)};
}

}  // namespace

const JsonValue* ListField::At(size_t item_idx) const {
  if (value == nullptr) {
    return nullptr;
  }
  const JsonValue& entry = is_list ? (*value->array())[item_idx] : *value;
  return entry.is_null() ? nullptr : &entry;
}

Result<ListField> FindListField(const JsonValue& body, std::string_view key, const Prompts& prompts,
                                bool nested) {
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

Status CheckTextSize(std::string_view text, std::string_view name, const GenerateContext& context) {
  if (context.max_text_bytes > 0 && static_cast<int64_t>(text.size()) > context.max_text_bytes) {
    return InvalidArgument("{}: expected a prompt of at most {} tokens, got {} bytes of text", name,
                           context.context_length, text.size());
  }
  return OkStatus();
}

Result<std::vector<int32_t>> TokenizePrompt(const JsonValue& value, std::string_view name,
                                            const GenerateContext& context) {
  ASSIGN_OR_RETURN(const std::string text, AsString(value, name));
  if (context.tokenizer == nullptr) {
    return Unsupported(
        "{}: the model folder has no tokenizer.json, so this server takes token ids only", name);
  }
  RETURN_IF_ERROR(CheckTextSize(text, name, context));
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

Result<Prompts> ReadPromptField(const JsonValue& value, std::string_view name, PromptKind kind,
                                const GenerateContext& context) {
  const ReadPrompt read = kind == PromptKind::kText ? TokenizePrompt : CheckedIds;
  const JsonArray* array = value.array();
  if (array != nullptr && array->empty()) {
    return InvalidArgument("{}: expected a prompt, got []", name);
  }
  const bool is_batch =
      array != nullptr && (kind == PromptKind::kText || array->front().array() != nullptr);
  if (is_batch) {
    return ReadBatch(*array, name, read, context);
  }
  ASSIGN_OR_RETURN(std::vector<int32_t> single, read(value, name, context));
  Prompts prompts;
  prompts.items.push_back({.ids = std::move(single)});
  return prompts;
}

Status FitSampling(const GenerateContext& context, PromptItem& item) {
  SamplingFields& sampling = item.sampling;
  if (!sampling.stop.empty() && context.tokenizer == nullptr) {
    return Unsupported(
        "stop: the model folder has no tokenizer.json, so this server takes stop_token_ids only");
  }
  // A pool smaller than the context ends a request earlier.
  const int64_t longest = context.pool_tokens > 0
                              ? std::min(context.context_length, context.pool_tokens)
                              : context.context_length;
  if (sampling.to_context_end) {
    sampling.params.max_new_tokens =
        std::max<int64_t>(longest - static_cast<int64_t>(item.ids.size()), 0);
  }
  if (context.auto_truncate) {
    Truncate(longest, item);
  }
  return OkStatus();
}

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
  ASSIGN_OR_RETURN(const VersionDemand demand, ReadVersionDemand(body));
  std::optional<int64_t> stale_versions;
  if (body.Find("stale_prefix_versions") != nullptr) {
    ASSIGN_OR_RETURN(stale_versions, IntField(body, "stale_prefix_versions", 0));
  }
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
    item.version_demand = demand;
    item.stale_prefix_versions = stale_versions;
  }
  return OkStatus();
}

Status SpreadOut(const Prompts& prompts, const GenerateContext& context, ParsedGenerate& call) {
  const int64_t n = prompts.items.front().sampling.n;
  const auto num_prompts = static_cast<int64_t>(prompts.items.size());
  if (n > context.max_sequences / num_prompts) {
    return InvalidArgument(
        "n: expected at most {} sequences in one call, got {} prompts with n = {}",
        context.max_sequences, num_prompts, n);
  }
  int64_t prompt_tokens = 0;
  for (const PromptItem& prompt : prompts.items) {
    prompt_tokens += static_cast<int64_t>(prompt.ids.size());
  }
  if (prompt_tokens > kPromptTokensMax / n) {
    return InvalidArgument(
        "n: expected at most {} prompt tokens in one call, got {} in {} prompts with n = {}",
        kPromptTokensMax, prompt_tokens, num_prompts, n);
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
  return OkStatus();
}

}  // namespace octavo
