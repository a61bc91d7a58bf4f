#include "octavo/server/render_openai.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/engine/request.h"
#include "octavo/server/answer_shape.h"
#include "octavo/server/http.h"
#include "octavo/server/json_writer.h"
#include "octavo/server/openai_logprobs.h"
#include "octavo/server/parse_openai.h"
#include "octavo/server/render_sequence.h"
#include "octavo/text/tokenizer.h"

namespace octavo {
namespace {

struct Usage {
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;
  int64_t completion_tokens = 0;
};

std::string UsageJson(const Usage& usage) {
  JsonWriter json;
  json.BeginObject().Field("prompt_tokens", usage.prompt_tokens);
  json.Field("completion_tokens", usage.completion_tokens);
  json.Field("total_tokens", usage.prompt_tokens + usage.completion_tokens);
  json.Key("prompt_tokens_details").BeginObject();
  json.Field("cached_tokens", usage.cached_tokens).EndObject();
  json.Field("reasoning_tokens", 0).EndObject();
  return json.Take();
}

// "finish_reason" and "matched_stop"; both null while it runs.
void WriteFinish(const FinishReason& finish, JsonWriter& json) {
  json.Key("finish_reason");
  switch (finish.type) {
    case FinishType::kNone:
      json.Null();
      break;
    case FinishType::kStopToken:
    case FinishType::kStopString:
      json.Value("stop");
      break;
    case FinishType::kLength:
      json.Value("length");
      break;
    case FinishType::kAbort:
    case FinishType::kVersionConflict:
    case FinishType::kError:
      json.Value("abort");
      break;
  }
  json.Key("matched_stop");
  if (finish.type == FinishType::kStopToken) {
    json.Value(int64_t{finish.matched_token});
  } else if (finish.type == FinishType::kStopString) {
    json.Value(finish.matched_string);
  } else {
    json.Null();
  }
}

void WriteMetadata(const SequenceRenderer& sequence, JsonWriter& json) {
  json.Key("metadata").BeginObject();
  json.Field("weight_version", sequence.last().weight_version);
  sequence.WriteRecipe(json);
  json.EndObject();
}

class OpenAiShape : public AnswerShape {
 public:
  OpenAiShape(OpenAiAnswer answer, const Tokenizer* tokenizer)
      : answer_(std::move(answer)), tokenizer_(tokenizer) {}

  void Append(size_t seq_idx, const RequestOutput& output) override {
    if (answer_.logprobs) {
      ChoiceAt(seq_idx).logprobs.Append(output);
    }
  }

  std::string Whole(std::span<SequenceRenderer> sequences) override {
    JsonWriter json = Begin(/*is_chunk=*/false);
    for (size_t i = 0; i < sequences.size(); ++i) {
      json.BeginObject().Field("index", static_cast<int64_t>(i));
      WriteWhole(i, sequences[i].TakeText(), json);
      json.Key("logprobs").Raw(TakeLogprobs(i, /*is_whole=*/true));
      WriteFinish(sequences[i].finish(), json);
      if (answer_.return_meta_info) {
        json.Key("meta_info");
        sequences[i].WriteMeta(json);
      }
      sequences[i].WritePromptIds(json);
      json.EndObject();
    }
    json.EndArray().Key("usage").Raw(UsageJson(UsageOf(sequences)));
    WriteMetadata(sequences.front(), json);
    if (answer_.return_routed_experts) {
      WriteExperts(sequences, json);
    }
    json.EndObject();
    return json.Take();
  }

  std::string Tail(std::span<const SequenceRenderer> sequences) override {
    std::string events;
    if (answer_.return_routed_experts) {
      JsonWriter json = Begin(/*is_chunk=*/true);
      json.EndArray().Key("usage").Null();
      WriteExperts(sequences, json);
      json.EndObject();
      events += SseEvent(json.Take());
    }
    if (answer_.include_usage) {
      JsonWriter json = Begin(/*is_chunk=*/true);
      json.EndArray().Key("usage").Raw(UsageJson(UsageOf(sequences))).EndObject();
      events += SseEvent(json.Take());
    }
    return events;
  }

  int64_t num_clamped() const override {
    int64_t num_clamped = 0;
    for (const Choice& choice : choices_) {
      num_clamped += choice.logprobs.num_clamped();
    }
    return num_clamped;
  }

 protected:
  struct Choice {
    OpenAiLogprobs logprobs;
    bool is_shown = false;  // A chunk has left.
  };

  // "text" or "message".
  virtual void WriteWhole(size_t seq_idx, std::string text, JsonWriter& json) const = 0;
  virtual std::string_view ObjectName(bool is_chunk) const = 0;

  const OpenAiAnswer& answer() const { return answer_; }
  std::string_view EchoOf(size_t seq_idx) const {
    const size_t prompt_idx = seq_idx / static_cast<size_t>(answer_.num_samples);
    return answer_.echo.empty() ? std::string_view() : answer_.echo[prompt_idx];
  }

  Choice& ChoiceAt(size_t seq_idx) {
    while (choices_.size() <= seq_idx) {
      choices_.push_back({{answer_.kind, answer_.top_logprobs_num > 0, tokenizer_}});
    }
    return choices_[seq_idx];
  }
  bool HasLogprobNews(size_t seq_idx) {
    return answer_.logprobs && ChoiceAt(seq_idx).logprobs.HasNews();
  }
  // "null" when none were asked for; in a chunk also when none are new.
  std::string TakeLogprobs(size_t seq_idx, bool is_whole) {
    const bool has_any = answer_.logprobs && (is_whole || HasLogprobNews(seq_idx));
    return has_any ? ChoiceAt(seq_idx).logprobs.Take() : "null";
  }

  // Up to the beginning of the choices.
  JsonWriter Begin(bool is_chunk) const {
    JsonWriter json;
    json.BeginObject().Field("id", answer_.id).Field("object", ObjectName(is_chunk));
    json.Field("created", answer_.created_unix_s).Field("model", answer_.model);
    json.Key("choices").BeginArray();
    return json;
  }

  // The rest of a chunk, from the end of its one choice on.
  std::string EndChunk(const SequenceRenderer& sequence, JsonWriter& json) const {
    json.EndObject().EndArray().Key("usage");
    if (answer_.continuous_usage_stats) {
      const RequestOutput& last = sequence.last();
      json.Raw(UsageJson({last.prompt_tokens, last.cached_tokens, last.completion_tokens}));
    } else {
      json.Null();
    }
    if (sequence.finished()) {
      WriteMetadata(sequence, json);
    }
    json.EndObject();
    return SseEvent(json.Take());
  }

 private:
  // A prompt counts once, however many samples it has.
  Usage UsageOf(std::span<const SequenceRenderer> sequences) const {
    Usage usage;
    for (size_t i = 0; i < sequences.size(); ++i) {
      const RequestOutput& last = sequences[i].last();
      usage.completion_tokens += last.completion_tokens;
      if (i % static_cast<size_t>(answer_.num_samples) == 0) {
        usage.prompt_tokens += last.prompt_tokens;
        usage.cached_tokens += last.cached_tokens;
      }
    }
    return usage;
  }

  // Clients look for one choice's experts here; those of the others are in their meta_info.
  static void WriteExperts(std::span<const SequenceRenderer> sequences, JsonWriter& json) {
    json.Key("sglext").BeginObject();
    json.Field("routed_experts", sequences.front().routed_experts()).EndObject();
  }

  const OpenAiAnswer answer_;
  const Tokenizer* const tokenizer_;
  std::vector<Choice> choices_;
};

class CompletionsShape final : public OpenAiShape {
 public:
  using OpenAiShape::OpenAiShape;

  std::string Chunk(size_t seq_idx, SequenceRenderer& sequence) override {
    Choice& choice = ChoiceAt(seq_idx);
    std::string text(choice.is_shown ? std::string_view() : EchoOf(seq_idx));
    text += sequence.TakeText();
    if (text.empty() && !HasLogprobNews(seq_idx) && !sequence.finished()) {
      return {};
    }
    choice.is_shown = true;
    JsonWriter json = Begin(/*is_chunk=*/true);
    json.BeginObject().Field("index", static_cast<int64_t>(seq_idx)).Field("text", text);
    json.Key("logprobs").Raw(TakeLogprobs(seq_idx, /*is_whole=*/false));
    WriteFinish(sequence.finish(), json);
    return EndChunk(sequence, json);
  }

 protected:
  void WriteWhole(size_t seq_idx, std::string text, JsonWriter& json) const override {
    json.Field("text", text.insert(0, EchoOf(seq_idx)));
  }
  std::string_view ObjectName(bool) const override { return "text_completion"; }
};

class ChatShape final : public OpenAiShape {
 public:
  using OpenAiShape::OpenAiShape;

  std::string Chunk(size_t seq_idx, SequenceRenderer& sequence) override {
    std::string events;
    Choice& choice = ChoiceAt(seq_idx);
    if (!std::exchange(choice.is_shown, true)) {
      events += Delta(seq_idx, sequence,
                      R"({"role":"assistant","content":"","reasoning_content":null})", "null", {});
    }
    const std::string text = sequence.TakeText();
    if (!text.empty() || HasLogprobNews(seq_idx)) {
      JsonWriter delta;
      delta.BeginObject().Field("content", text).Key("reasoning_content").Null().EndObject();
      events +=
          Delta(seq_idx, sequence, delta.Take(), TakeLogprobs(seq_idx, /*is_whole=*/false), {});
    }
    if (sequence.finished()) {
      events +=
          Delta(seq_idx, sequence, R"({"reasoning_content":null})", "null", sequence.finish());
    }
    return events;
  }

 protected:
  void WriteWhole(size_t, std::string text, JsonWriter& json) const override {
    json.Key("message").BeginObject().Field("role", "assistant").Field("content", text);
    json.Key("reasoning_content").Null().Key("tool_calls").Null().EndObject();
  }
  std::string_view ObjectName(bool is_chunk) const override {
    return is_chunk ? "chat.completion.chunk" : "chat.completion";
  }

 private:
  std::string Delta(size_t seq_idx, const SequenceRenderer& sequence, std::string_view delta,
                    std::string_view logprobs, const FinishReason& finish) const {
    JsonWriter json = Begin(/*is_chunk=*/true);
    json.BeginObject().Field("index", static_cast<int64_t>(seq_idx));
    json.Key("delta").Raw(delta).Key("logprobs").Raw(logprobs);
    WriteFinish(finish, json);
    return EndChunk(sequence, json);
  }
};

}  // namespace

std::unique_ptr<AnswerShape> MakeOpenAiShape(OpenAiAnswer answer, const Tokenizer* tokenizer) {
  if (answer.kind == OpenAiKind::kChat) {
    return std::make_unique<ChatShape>(std::move(answer), tokenizer);
  }
  return std::make_unique<CompletionsShape>(std::move(answer), tokenizer);
}

}  // namespace octavo
