#include "octavo/server/parse_openai.h"

#include <fmt/format.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/engine/request.h"
#include "octavo/server/json.h"
#include "octavo/server/openai_chat.h"
#include "octavo/server/parse_generate.h"
#include "octavo/server/parse_prompts.h"
#include "octavo/server/parse_sampling.h"
#include "octavo/text/tokenizer.h"

namespace octavo {
namespace {

constexpr int64_t kCompletionsBudget = 16;  // max_tokens of a completion that names none.

// Where OpenAI has no name of its own, SGLang's stands.
constexpr SamplingKey kSamplingKeys[] = {
    {"temperature", "temperature"},
    {"top_p", "top_p"},
    {"top_k", "top_k"},
    {"min_p", "min_p"},
    {"frequency_penalty", "frequency_penalty"},
    {"presence_penalty", "presence_penalty"},
    {"repetition_penalty", "repetition_penalty"},
    {"n", "n"},
    {"seed", "sampling_seed"},
    {"stop", "stop"},
    {"stop_token_ids", "stop_token_ids"},
    {"stop_regex", "stop_regex"},
    {"min_tokens", "min_new_tokens"},
    {"ignore_eos", "ignore_eos"},
    {"no_stop_trim", "no_stop_trim"},
    {"skip_special_tokens", "skip_special_tokens"},
    {"logit_bias", "logit_bias"},
    {"stream_interval", "stream_interval"},
    {"json_schema", "json_schema"},
    {"regex", "regex"},
    {"ebnf", "ebnf"},
    {"structural_tag", "structural_tag"},
    {"custom_params", "custom_params"},
};

// Fields of OpenAI's own that change what is generated, and are not built.
constexpr std::string_view kRefusedFields[] = {"functions", "audio", "web_search_options"};

Status RefuseUnbuiltOpenAi(const JsonValue& body, OpenAiKind kind) {
  RETURN_IF_ERROR(RefuseUnbuilt(body));
  if (const JsonValue* format = body.Find("response_format")) {
    if (format->object() == nullptr) {
      return Corrupt("response_format: expected an object, got {}", format->KindName());
    }
    ASSIGN_OR_RETURN(const std::string type, StringField(*format, "type", "text"));
    if (type != "text") {
      return Unsupported("response_format: the type \"{}\" is not supported by this server", type);
    }
  }
  if (kind == OpenAiKind::kChat) {
    for (const std::string_view field : kRefusedFields) {
      if (body.Find(field) != nullptr) {
        return Unsupported("{}: not supported by this server", field);
      }
    }
    return OkStatus();
  }
  ASSIGN_OR_RETURN(const std::string suffix, StringField(body, "suffix", ""));
  if (!suffix.empty()) {
    return Unsupported("suffix: not supported by this server");
  }
  return OkStatus();
}

// --- Sampling ---

// The budget's name as this request spells it.
std::string_view BudgetKey(const JsonValue& body, OpenAiKind kind) {
  const bool is_new_name =
      kind == OpenAiKind::kChat && body.Find("max_completion_tokens") != nullptr;
  return is_new_name ? "max_completion_tokens" : "max_tokens";
}

Status ReadBudget(const JsonValue& body, OpenAiKind kind, SamplingFields& fields) {
  const std::string_view key = BudgetKey(body, kind);
  const JsonValue* value = body.Find(key);
  if (value == nullptr) {
    fields.params.max_new_tokens = kCompletionsBudget;
    fields.to_context_end = kind == OpenAiKind::kChat;
    return OkStatus();
  }
  ASSIGN_OR_RETURN(fields.params.max_new_tokens, AsInt(*value, key));
  if (fields.params.max_new_tokens < 1) {
    return InvalidArgument("{}: expected at least 1, got {}", key, fields.params.max_new_tokens);
  }
  if (kind == OpenAiKind::kChat) {
    ASSIGN_OR_RETURN(const int64_t old_name,
                     IntField(body, "max_tokens", fields.params.max_new_tokens));
    if (old_name != fields.params.max_new_tokens) {
      return InvalidArgument("max_tokens: expected max_completion_tokens ({}) or none, got {}",
                             fields.params.max_new_tokens, old_name);
    }
  }
  return OkStatus();
}

Result<SamplingFields> ReadSampling(const JsonValue& body, OpenAiKind kind,
                                    const OpenAiContext& context) {
  SamplingFields fields;
  if (kind == OpenAiKind::kChat) {
    ASSIGN_OR_RETURN(fields, Result<SamplingFields>(*context.chat_defaults));
    // The marks of a call are special tokens with some models. Nobody reads them here, so whoever
    // offers tools is shown them.
    ASSIGN_OR_RETURN(const bool passes_tools, PassesTools(body));
    fields.skip_special_tokens = !passes_tools;
  }
  RETURN_IF_ERROR(ReadBudget(body, kind, fields));
  for (const SamplingKey& key : kSamplingKeys) {
    if (const JsonValue* value = body.Find(key.key)) {
      RETURN_IF_ERROR(ApplySamplingKey(key, *value, context.generate.vocab_size, fields));
    }
  }
  if (kind == OpenAiKind::kCompletions) {
    ASSIGN_OR_RETURN(const int64_t best_of, IntField(body, "best_of", fields.n));
    if (best_of > fields.n) {
      return Unsupported("best_of: expected at most n ({}), for no sample is dropped, got {}",
                         fields.n, best_of);
    }
  }
  return fields;
}

// What Engine::Validate checks too, under the names that the client knows.
Status CheckLengths(const JsonValue& body, OpenAiKind kind, const GenerateContext& context,
                    const PromptItem& item) {
  const SamplingParams& params = item.sampling.params;
  const auto prompt = static_cast<int64_t>(item.ids.size());
  const std::string_view name = kind == OpenAiKind::kCompletions    ? "prompt"
                                : body.Find("input_ids") != nullptr ? "input_ids"
                                                                    : "messages";
  if (prompt >= context.context_length) {
    return InvalidArgument("{}: expected fewer than {} tokens (context length), got {}", name,
                           context.context_length, prompt);
  }
  if (context.pool_tokens > 0 && prompt >= context.pool_tokens) {
    return InvalidArgument("{}: expected fewer than {} tokens (KV pool), got {}", name,
                           context.pool_tokens, prompt);
  }
  if (params.max_new_tokens > context.context_length - prompt) {
    return InvalidArgument(
        "{}: expected at most {} (context length {} less {} prompt tokens), got {}",
        BudgetKey(body, kind), context.context_length - prompt, context.context_length, prompt,
        params.max_new_tokens);
  }
  if (params.min_new_tokens > params.max_new_tokens) {
    return InvalidArgument("min_tokens: expected at most {} ({}), got {}", params.max_new_tokens,
                           BudgetKey(body, kind), params.min_new_tokens);
  }
  return OkStatus();
}

// --- Prompts ---

Result<Prompts> ReadCompletionPrompts(const JsonValue& body, const GenerateContext& context) {
  const JsonValue* prompt = body.Find("prompt");
  if (prompt == nullptr) {
    return Corrupt("prompt: expected text or token ids, got none");
  }
  const JsonArray* array = prompt->array();
  const bool is_text = array == nullptr || (!array->empty() && array->front().string() != nullptr);
  return ReadPromptField(*prompt, "prompt", is_text ? PromptKind::kText : PromptKind::kIds,
                         context);
}

Result<Prompts> ReadChatPrompt(const JsonValue& body, const OpenAiContext& context) {
  RETURN_IF_ERROR(CheckMessages(body));
  PromptItem item;
  if (const JsonValue* ids = body.Find("input_ids")) {
    ASSIGN_OR_RETURN(item.ids, CheckedIds(*ids, "input_ids", context.generate));
  } else {
    ASSIGN_OR_RETURN(const std::string text, RenderChatPrompt(body, *context.text, context.now));
    RETURN_IF_ERROR(CheckTextSize(text, "messages", context.generate));
    item.ids = context.text->tokenizer->Encode(text, /*add_special_tokens=*/false);
    if (item.ids.empty()) {
      return InvalidArgument("messages: expected a prompt of at least one token, got none");
    }
  }
  Prompts prompts;
  prompts.items.push_back(std::move(item));
  return prompts;
}

// The text of each prompt: as it was sent, or as its ids read.
Result<std::vector<std::string>> ReadEcho(const JsonValue& body, const Prompts& prompts,
                                          const GenerateContext& context) {
  std::vector<std::string> echo;
  ASSIGN_OR_RETURN(const bool is_wanted, BoolField(body, "echo", false));
  if (!is_wanted) {
    return echo;
  }
  const JsonValue& prompt = *body.Find("prompt");
  for (size_t i = 0; i < prompts.items.size(); ++i) {
    const JsonValue& one = prompts.is_batch ? (*prompt.array())[i] : prompt;
    if (one.string() != nullptr) {
      echo.push_back(*one.string());
    } else {
      echo.push_back(context.tokenizer == nullptr
                         ? ""
                         : context.tokenizer->Decode(prompts.items[i].ids, true));
    }
  }
  return echo;
}

// --- The answer ---

Status CheckTopLogprobs(std::string_view name, int64_t num, int64_t vocab_size) {
  if (num < 0 || num > vocab_size) {
    return InvalidArgument("{}: expected 0 to {} (the vocabulary), got {}", name, vocab_size, num);
  }
  return OkStatus();
}

Status ReadLogprobs(const JsonValue& body, OpenAiKind kind, int64_t vocab_size,
                    OpenAiAnswer& answer) {
  if (kind == OpenAiKind::kCompletions) {
    if (const JsonValue* value = body.Find("logprobs")) {
      answer.logprobs = true;
      ASSIGN_OR_RETURN(answer.top_logprobs_num, AsInt(*value, "logprobs"));
    }
    return CheckTopLogprobs("logprobs", answer.top_logprobs_num, vocab_size);
  }
  ASSIGN_OR_RETURN(answer.logprobs, BoolField(body, "logprobs", false));
  ASSIGN_OR_RETURN(answer.top_logprobs_num, IntField(body, "top_logprobs", 0));
  return CheckTopLogprobs("top_logprobs", answer.top_logprobs_num, vocab_size);
}

Status ReadStream(const JsonValue& body, ParsedOpenAi& parsed) {
  OpenAiAnswer& answer = parsed.answer;
  ASSIGN_OR_RETURN(parsed.call.stream, BoolField(body, "stream", false));
  if (const JsonValue* options = body.Find("stream_options")) {
    if (options->object() == nullptr) {
      return Corrupt("stream_options: expected an object, got {}", options->KindName());
    }
    ASSIGN_OR_RETURN(answer.include_usage, BoolField(*options, "include_usage", false));
    ASSIGN_OR_RETURN(answer.continuous_usage_stats,
                     BoolField(*options, "continuous_usage_stats", false));
  }
  ASSIGN_OR_RETURN(answer.return_meta_info, BoolField(body, "return_meta_info", false));
  ASSIGN_OR_RETURN(parsed.call.return_prompt_token_ids,
                   BoolField(body, "return_prompt_token_ids", false));
  ASSIGN_OR_RETURN(parsed.call.return_replay, BoolField(body, "return_replay", false));
  if (parsed.call.return_replay && !answer.return_meta_info) {
    return InvalidArgument("return_replay: expected return_meta_info beside it, which holds it");
  }
  if (parsed.call.stream && (answer.return_meta_info || parsed.call.return_prompt_token_ids)) {
    return InvalidArgument(
        "{}: expected false in a stream, got true",
        answer.return_meta_info ? "return_meta_info" : "return_prompt_token_ids");
  }
  return OkStatus();
}

// Gives each prompt its sampling and the logprobs that the answer shows.
Status FillItems(const JsonValue& body, const OpenAiContext& context, const OpenAiAnswer& answer,
                 Prompts& prompts) {
  ASSIGN_OR_RETURN(const SamplingFields sampling, ReadSampling(body, answer.kind, context));
  for (PromptItem& item : prompts.items) {
    item.sampling = sampling;
    item.return_logprob = answer.logprobs;
    item.top_logprobs_num = answer.logprobs ? answer.top_logprobs_num : 0;
    item.logprob_start_len = answer.logprobs && !answer.echo.empty() ? 0 : -1;
    RETURN_IF_ERROR(FitSampling(context.generate, item));
    RETURN_IF_ERROR(CheckLengths(body, answer.kind, context.generate, item));
  }
  RETURN_IF_ERROR(ReadOthers(body, prompts));
  // Whoever salts the cache must share no prefix with others.
  ASSIGN_OR_RETURN(const std::string salt, StringField(body, "cache_salt", ""));
  for (PromptItem& item : prompts.items) {
    item.extra_key.insert(0, salt);
  }
  return OkStatus();
}

}  // namespace

Result<ParsedOpenAi> ParseOpenAi(std::string_view body, OpenAiKind kind,
                                 const OpenAiContext& context) {
  ASSIGN_OR_RETURN(const JsonValue json, ParseJsonBody(body));
  RETURN_IF_ERROR(RefuseUnbuiltOpenAi(json, kind));
  ParsedOpenAi parsed;
  OpenAiAnswer& answer = parsed.answer;
  answer.kind = kind;
  answer.created_unix_s = context.now_unix_s;
  ASSIGN_OR_RETURN(answer.model, StringField(json, "model", context.served_name));
  RETURN_IF_ERROR(ReadStream(json, parsed));
  RETURN_IF_ERROR(ReadLogprobs(json, kind, context.generate.vocab_size, answer));

  Prompts prompts;
  if (kind == OpenAiKind::kChat) {
    ASSIGN_OR_RETURN(prompts, ReadChatPrompt(json, context));
  } else {
    ASSIGN_OR_RETURN(prompts, ReadCompletionPrompts(json, context.generate));
    ASSIGN_OR_RETURN(answer.echo, ReadEcho(json, prompts, context.generate));
  }
  RETURN_IF_ERROR(FillItems(json, context, answer, prompts));
  answer.num_samples = prompts.items.front().sampling.n;
  answer.return_routed_experts = prompts.items.front().return_routed_experts;

  ParsedGenerate& call = parsed.call;
  call.return_text_in_logprobs = true;
  call.shows_meta = answer.return_meta_info;
  ASSIGN_OR_RETURN(call.batch_rid, ReadRids(json, prompts));
  RETURN_IF_ERROR(SpreadOut(prompts, context.generate, call));
  answer.id = call.batch_rid.empty() ? call.items.front().request.rid : call.batch_rid;
  if (call.items.size() > 1) {
    call.batch_rid = answer.id;
  }
  return parsed;
}

}  // namespace octavo
