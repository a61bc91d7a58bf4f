// /tokenize and /detokenize.

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/server/application.h"
#include "octavo/server/http.h"
#include "octavo/server/json.h"
#include "octavo/server/json_writer.h"
#include "octavo/server/openai_chat.h"
#include "octavo/server/openai_error.h"
#include "octavo/server/parse_openai.h"
#include "octavo/server/parse_prompts.h"
#include "octavo/text/tokenizer.h"

namespace octavo {
namespace {

Status NoTokenizer() { return Unsupported("the model folder has no tokenizer.json"); }

void WriteIds(const std::vector<int32_t>& ids, JsonWriter& json) {
  json.BeginArray();
  for (const int32_t id : ids) {
    json.Value(int64_t{id});
  }
  json.EndArray();
}

// --- /tokenize ---

Result<std::vector<int32_t>> EncodeText(const JsonValue& value, std::string_view name,
                                        const OpenAiContext& context, bool add_special_tokens) {
  ASSIGN_OR_RETURN(const std::string text, AsString(value, name));
  RETURN_IF_ERROR(CheckTextSize(text, name, context.generate));
  return context.text->tokenizer->Encode(text, add_special_tokens);
}

std::string TokensJson(const std::vector<std::vector<int32_t>>& lists, bool is_batch,
                       int64_t max_model_len) {
  JsonWriter tokens;
  JsonWriter counts;
  if (is_batch) {
    tokens.BeginArray();
    counts.BeginArray();
  }
  for (const std::vector<int32_t>& ids : lists) {
    WriteIds(ids, tokens);
    counts.Value(static_cast<int64_t>(ids.size()));
  }
  if (is_batch) {
    tokens.EndArray();
    counts.EndArray();
  }
  JsonWriter json;
  json.BeginObject().Key("tokens").Raw(tokens.Take()).Key("count").Raw(counts.Take());
  json.Field("max_model_len", max_model_len).EndObject();
  return json.Take();
}

Result<std::string> TokenizeBody(std::string_view text, const OpenAiContext& context) {
  ASSIGN_OR_RETURN(const JsonValue body, ParseJsonBody(text));
  const JsonValue* prompt = body.Find("prompt");
  const bool has_messages = body.Find("messages") != nullptr;
  if ((prompt != nullptr) == has_messages) {
    return Corrupt("expected exactly one of prompt and messages, got {}",
                   has_messages ? "both" : "neither");
  }
  if (context.text->tokenizer == nullptr) {
    return NoTokenizer();
  }
  ASSIGN_OR_RETURN(const bool adds_special, BoolField(body, "add_special_tokens", true));
  std::vector<std::vector<int32_t>> lists;
  const bool is_batch = prompt != nullptr && prompt->array() != nullptr;
  if (has_messages) {
    ASSIGN_OR_RETURN(const std::string chat, RenderChatPrompt(body, *context.text, context.now));
    RETURN_IF_ERROR(CheckTextSize(chat, "messages", context.generate));
    lists.push_back(context.text->tokenizer->Encode(chat, /*add_special_tokens=*/false));
  } else if (!is_batch) {
    ASSIGN_OR_RETURN(lists.emplace_back(), EncodeText(*prompt, "prompt", context, adds_special));
  } else {
    for (size_t i = 0; i < prompt->array()->size(); ++i) {
      ASSIGN_OR_RETURN(
          lists.emplace_back(),
          EncodeText((*prompt->array())[i], fmt::format("prompt[{}]", i), context, adds_special));
    }
  }
  return TokensJson(lists, is_batch, context.generate.context_length);
}

// --- /detokenize ---

Result<std::string> DecodeIds(const JsonValue& value, std::string_view name,
                              const OpenAiContext& context, bool skips_special) {
  const Tokenizer& tokenizer = *context.text->tokenizer;
  // A vocabulary may be padded beyond the tokenizer's, or end before its added tokens.
  const int64_t num_ids = std::max<int64_t>(context.generate.vocab_size, tokenizer.vocab_size());
  ASSIGN_OR_RETURN(const std::vector<int32_t> ids, AsTokenIds(value, name));
  for (const int32_t id : ids) {
    if (id < 0 || id >= num_ids) {
      return InvalidArgument("{}: expected token ids in [0, {}), got {}", name, num_ids, id);
    }
  }
  return tokenizer.Decode(ids, skips_special);
}

Result<std::string> DetokenizeBody(std::string_view text, const OpenAiContext& context) {
  ASSIGN_OR_RETURN(const JsonValue body, ParseJsonBody(text));
  const JsonValue* tokens = body.Find("tokens");
  if (tokens == nullptr || tokens->array() == nullptr) {
    return Corrupt("tokens: expected a list of token ids, got {}",
                   tokens == nullptr ? "none" : tokens->KindName());
  }
  if (context.text->tokenizer == nullptr) {
    return NoTokenizer();
  }
  ASSIGN_OR_RETURN(const bool skips_special, BoolField(body, "skip_special_tokens", true));
  const JsonArray& array = *tokens->array();
  const bool is_batch = !array.empty() && array.front().array() != nullptr;
  JsonWriter json;
  json.BeginObject().Key("text");
  if (!is_batch) {
    ASSIGN_OR_RETURN(const std::string decoded,
                     DecodeIds(*tokens, "tokens", context, skips_special));
    json.Value(decoded).EndObject();
    return json.Take();
  }
  json.BeginArray();
  for (size_t i = 0; i < array.size(); ++i) {
    ASSIGN_OR_RETURN(const std::string decoded,
                     DecodeIds(array[i], fmt::format("tokens[{}]", i), context, skips_special));
    json.Value(decoded);
  }
  json.EndArray().EndObject();
  return json.Take();
}

using AnswerBody = Result<std::string> (*)(std::string_view body, const OpenAiContext& context);

HttpResponse Answer(const HttpRequest& request, AnswerBody answer, const OpenAiContext& context) {
  if (const Status status = CheckJsonMediaType(request.content_type); !status.ok()) {
    return OpenAiError(status);
  }
  Result<std::string> body = answer(request.body, context);
  return body.has_value() ? JsonResponse(*std::move(body)) : OpenAiError(body.error());
}

}  // namespace

void Application::Tokenize(const HttpRequest& request, const WriterPtr& writer) {
  writer->Send(Answer(request, TokenizeBody, MakeOpenAiContext()));
}

void Application::Detokenize(const HttpRequest& request, const WriterPtr& writer) {
  writer->Send(Answer(request, DetokenizeBody, MakeOpenAiContext()));
}

}  // namespace octavo
