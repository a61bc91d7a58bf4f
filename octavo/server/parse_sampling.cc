#include "octavo/server/parse_sampling.h"

#include <charconv>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "octavo/base/check.h"
#include "octavo/base/status.h"
#include "octavo/server/json.h"

namespace octavo {
namespace {

struct KeyContext {
  std::string_view key;
  int64_t vocab_size = 0;
};
using Apply = Status (*)(const JsonValue& value, const KeyContext& context, SamplingFields& out);

Status SetInt(const JsonValue& value, std::string_view key, int64_t minimum, int64_t& out) {
  ASSIGN_OR_RETURN(const int64_t parsed, AsInt(value, key));
  if (parsed < minimum) {
    return InvalidArgument("{}: expected at least {}, got {}", key, minimum, parsed);
  }
  out = parsed;
  return OkStatus();
}

struct Range {
  double low = 0.0;
  double high = 0.0;
  bool low_open = false;  // (low, high] instead of [low, high].
};

Status SetFloat(const JsonValue& value, std::string_view key, Range range, float& out) {
  ASSIGN_OR_RETURN(const double parsed, AsDouble(value, key));
  if (parsed > range.high || parsed < range.low || (range.low_open && parsed == range.low)) {
    if (range.high == std::numeric_limits<float>::max()) {
      return InvalidArgument("{}: expected a finite number of at least {}, got {}", key, range.low,
                             parsed);
    }
    return InvalidArgument("{}: expected a number in {}{}, {}], got {}", key,
                           range.low_open ? '(' : '[', range.low, range.high, parsed);
  }
  out = static_cast<float>(parsed);
  return OkStatus();
}

Status SetBool(const JsonValue& value, std::string_view key, bool& out) {
  ASSIGN_OR_RETURN(out, AsBool(value, key));
  return OkStatus();
}

Status SetMaxNewTokens(const JsonValue& value, const KeyContext& context, SamplingFields& out) {
  out.to_context_end = false;
  return SetInt(value, context.key, 0, out.params.max_new_tokens);
}

Status SetTopK(const JsonValue& value, const KeyContext& context, SamplingFields& out) {
  ASSIGN_OR_RETURN(const int64_t top_k, AsInt(value, context.key));
  if (top_k != -1 && top_k < 1) {
    return InvalidArgument("top_k: expected -1 or at least 1, got {}", top_k);
  }
  out.params.top_k = top_k;
  return OkStatus();
}

Status SetStop(const JsonValue& value, const KeyContext& context, SamplingFields& out) {
  out.stop.clear();
  const auto add = [&](const JsonValue& entry) -> Status {
    ASSIGN_OR_RETURN(std::string text, AsString(entry, context.key));
    if (text.empty()) {
      return InvalidArgument("stop: expected strings that are not empty, got \"\"");
    }
    out.stop.push_back(std::move(text));
    return OkStatus();
  };
  if (value.string() != nullptr) {
    return add(value);
  }
  if (value.array() == nullptr) {
    return Corrupt("stop: expected a string or a list of strings, got {}", value.KindName());
  }
  for (const JsonValue& entry : *value.array()) {
    if (!entry.is_null()) {
      RETURN_IF_ERROR(add(entry));
    }
  }
  return OkStatus();
}

Status CheckTokenId(std::string_view key, int64_t id, int64_t vocab_size) {
  if (id < 0 || id >= vocab_size) {
    return InvalidArgument("{}: expected token ids in [0, {}), got {}", key, vocab_size, id);
  }
  return OkStatus();
}

Status SetStopTokenIds(const JsonValue& value, const KeyContext& context, SamplingFields& out) {
  ASSIGN_OR_RETURN(out.params.stop_token_ids, AsTokenIds(value, context.key, /*skip_null=*/true));
  for (const int32_t id : out.params.stop_token_ids) {
    RETURN_IF_ERROR(CheckTokenId(context.key, id, context.vocab_size));
  }
  return OkStatus();
}

Status SetLogitBias(const JsonValue& value, const KeyContext& context, SamplingFields& out) {
  const JsonObject* object = value.object();
  if (object == nullptr) {
    return Corrupt("logit_bias: expected an object of token id to number, got {}",
                   value.KindName());
  }
  out.params.logit_bias.clear();
  for (const JsonMember& member : *object) {
    int32_t id = -1;
    const char* end = member.key.data() + member.key.size();
    const auto [stop, error] = std::from_chars(member.key.data(), end, id);
    if (error != std::errc() || stop != end) {
      return Corrupt("logit_bias: expected a token id as key, got \"{}\"", member.key);
    }
    RETURN_IF_ERROR(CheckTokenId("logit_bias", id, context.vocab_size));
    ASSIGN_OR_RETURN(const double bias, AsDouble(member.value, "logit_bias"));
    if (std::abs(bias) > std::numeric_limits<float>::max()) {
      return InvalidArgument("logit_bias[{}]: expected a finite float32, got {}", id, bias);
    }
    out.params.logit_bias.emplace_back(id, static_cast<float>(bias));
  }
  return OkStatus();
}

// Regular expressions to stop at: only the empty set can be honoured.
Status RefuseStopRegex(const JsonValue& value, const KeyContext& context, SamplingFields&) {
  const bool is_empty = (value.string() != nullptr && value.string()->empty()) ||
                        (value.array() != nullptr && value.array()->empty());
  return is_empty ? OkStatus() : Unsupported("{}: not supported by this server", context.key);
}

Status Refuse(const JsonValue&, const KeyContext& context, SamplingFields&) {
  return Unsupported("{}: not supported by this server", context.key);
}

Status CheckCustomParams(const JsonValue& value, const KeyContext&, SamplingFields&) {
  if (value.object() == nullptr) {
    return Corrupt("custom_params: expected an object, got {}", value.KindName());
  }
  if (const JsonValue* wanted = value.Find("return_top_p_token_ids")) {
    ASSIGN_OR_RETURN(const bool is_wanted, AsBool(*wanted, "custom_params.return_top_p_token_ids"));
    if (is_wanted) {
      return Unsupported("custom_params.return_top_p_token_ids: not supported by this server");
    }
  }
  return OkStatus();
}

constexpr double kFloatMax = std::numeric_limits<float>::max();

struct KeyRule {
  std::string_view key;
  Apply apply;
};

// Every key that a client may send (docs/api.md).
constexpr KeyRule kRules[] = {
    {"max_new_tokens", SetMaxNewTokens},
    {"min_new_tokens",
     [](const JsonValue& value, const KeyContext& context, SamplingFields& out) {
       return SetInt(value, context.key, 0, out.params.min_new_tokens);
     }},
    {"temperature",
     [](const JsonValue& value, const KeyContext& context, SamplingFields& out) {
       return SetFloat(value, context.key, {0.0, kFloatMax}, out.params.temperature);
     }},
    {"top_p",
     [](const JsonValue& value, const KeyContext& context, SamplingFields& out) {
       return SetFloat(value, context.key, {0.0, 1.0, true}, out.params.top_p);
     }},
    {"top_k", SetTopK},
    {"min_p",
     [](const JsonValue& value, const KeyContext& context, SamplingFields& out) {
       return SetFloat(value, context.key, {0.0, 1.0}, out.params.min_p);
     }},
    {"frequency_penalty",
     [](const JsonValue& value, const KeyContext& context, SamplingFields& out) {
       return SetFloat(value, context.key, {-2.0, 2.0}, out.params.frequency_penalty);
     }},
    {"presence_penalty",
     [](const JsonValue& value, const KeyContext& context, SamplingFields& out) {
       return SetFloat(value, context.key, {-2.0, 2.0}, out.params.presence_penalty);
     }},
    {"repetition_penalty",
     [](const JsonValue& value, const KeyContext& context, SamplingFields& out) {
       return SetFloat(value, context.key, {0.0, 2.0, true}, out.params.repetition_penalty);
     }},
    {"stop", SetStop},
    {"stop_token_ids", SetStopTokenIds},
    {"stop_regex", RefuseStopRegex},
    {"ignore_eos",
     [](const JsonValue& value, const KeyContext& context, SamplingFields& out) {
       return SetBool(value, context.key, out.params.ignore_eos);
     }},
    {"n", [](const JsonValue& value, const KeyContext& context,
             SamplingFields& out) { return SetInt(value, context.key, 1, out.n); }},
    {"skip_special_tokens",
     [](const JsonValue& value, const KeyContext& context, SamplingFields& out) {
       return SetBool(value, context.key, out.skip_special_tokens);
     }},
    {"spaces_between_special_tokens",  // No effect on byte-level BPE; checked all the same.
     [](const JsonValue& value, const KeyContext& context, SamplingFields&) {
       bool ignored = false;
       return SetBool(value, context.key, ignored);
     }},
    {"no_stop_trim",
     [](const JsonValue& value, const KeyContext& context, SamplingFields& out) {
       return SetBool(value, context.key, out.no_stop_trim);
     }},
    {"logit_bias", SetLogitBias},
    {"sampling_seed",
     [](const JsonValue& value, const KeyContext& context, SamplingFields& out) -> Status {
       ASSIGN_OR_RETURN(out.params.seed, AsInt(value, context.key));
       return OkStatus();
     }},
    {"stream_interval",
     [](const JsonValue& value, const KeyContext& context, SamplingFields& out) {
       return SetInt(value, context.key, 1, out.stream_interval);
     }},
    {"json_schema", Refuse},
    {"regex", Refuse},
    {"ebnf", Refuse},
    {"structural_tag", Refuse},
    {"custom_params", CheckCustomParams},
};

const KeyRule* FindRule(std::string_view key) {
  for (const KeyRule& rule : kRules) {
    if (rule.key == key) {
      return &rule;
    }
  }
  return nullptr;
}

}  // namespace

Result<SamplingFields> ParseSampling(const JsonValue* object, int64_t vocab_size) {
  SamplingFields fields;
  if (object == nullptr) {
    return fields;
  }
  if (object->object() == nullptr) {
    return Corrupt("sampling_params: expected an object, got {}", object->KindName());
  }
  for (const JsonMember& member : *object->object()) {
    const KeyRule* rule = FindRule(member.key);
    if (rule == nullptr) {
      return InvalidArgument("sampling_params: unknown key \"{}\"", member.key);
    }
    if (!member.value.is_null()) {
      RETURN_IF_ERROR(rule->apply(member.value, {member.key, vocab_size}, fields));
    } else if (member.key == "max_new_tokens") {
      fields.to_context_end = true;  // The one key whose null is a value.
    }
  }
  if (!fields.to_context_end && fields.params.min_new_tokens > fields.params.max_new_tokens) {
    return InvalidArgument("min_new_tokens: expected at most max_new_tokens ({}), got {}",
                           fields.params.max_new_tokens, fields.params.min_new_tokens);
  }
  return fields;
}

Status ApplySamplingKey(SamplingKey key, const JsonValue& value, int64_t vocab_size,
                        SamplingFields& fields) {
  const KeyRule* rule = FindRule(key.native_key);
  CHECK(rule != nullptr);
  return rule->apply(value, {key.key, vocab_size}, fields);
}

}  // namespace octavo
