#include "octavo/server/parse_generate.h"

#include <fmt/format.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "octavo/base/random.h"
#include "octavo/base/status.h"
#include "octavo/server/json.h"
#include "octavo/server/parse_prompts.h"
#include "octavo/server/parse_sampling.h"

namespace octavo {
namespace {

Result<Prompts> ReadPrompts(const JsonValue& body, const GenerateContext& context) {
  const JsonValue* text = body.Find("text");
  const JsonValue* ids = body.Find("input_ids");
  if ((text == nullptr) == (ids == nullptr)) {
    return InvalidArgument("expected exactly one of text and input_ids, got {}",
                           text == nullptr ? "neither" : "both");
  }
  return text != nullptr ? ReadPromptField(*text, "text", PromptKind::kText, context)
                         : ReadPromptField(*ids, "input_ids", PromptKind::kIds, context);
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

Status ReadSampling(const JsonValue& body, const GenerateContext& context, Prompts& prompts) {
  ASSIGN_OR_RETURN(const ListField field, FindListField(body, "sampling_params", prompts));
  for (size_t i = 0; i < prompts.items.size(); ++i) {
    PromptItem& item = prompts.items[i];
    ASSIGN_OR_RETURN(item.sampling, ParseSampling(field.At(i), context.vocab_size));
    if (item.sampling.n != prompts.items.front().sampling.n) {
      return InvalidArgument("n: expected the same for all items of a batch, got {} and {}",
                             prompts.items.front().sampling.n, item.sampling.n);
    }
    RETURN_IF_ERROR(FitSampling(context, item));
  }
  return OkStatus();
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
  ASSIGN_OR_RETURN(call.return_replay, BoolField(json, "return_replay", false));

  ASSIGN_OR_RETURN(Prompts prompts, ReadPrompts(json, context));
  RETURN_IF_ERROR(ReadSampling(json, context, prompts));
  const int64_t n = prompts.items.front().sampling.n;
  RETURN_IF_ERROR(ReadLogprobs(json, context, n, prompts));
  RETURN_IF_ERROR(ReadOthers(json, prompts));
  ASSIGN_OR_RETURN(call.batch_rid, ReadRids(json, prompts));
  RETURN_IF_ERROR(SpreadOut(prompts, context, call));
  return call;
}

}  // namespace octavo
