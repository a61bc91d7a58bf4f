// Any bytes as the body of /v1/completions and of /v1/chat/completions, the latter by ChatML's
// template: refused with a message that is JSON again, or requests within their bounds whose whole
// answer and chunks are JSON too.

#include <fmt/format.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/check.h"
#include "octavo/base/status.h"
#include "octavo/engine/request.h"
#include "octavo/server/answer_shape.h"
#include "octavo/server/http.h"
#include "octavo/server/json.h"
#include "octavo/server/openai_error.h"
#include "octavo/server/parse_generate.h"
#include "octavo/server/parse_openai.h"
#include "octavo/server/parse_sampling.h"
#include "octavo/server/render_openai.h"
#include "octavo/server/render_sequence.h"
#include "octavo/server/server.h"
#include "octavo/text/byte_level.h"
#include "octavo/text/chat_template.h"
#include "octavo/text/tokenizer.h"
#include "octavo/text/utf8.h"

namespace {

constexpr int64_t kContext = 4096;

// Every byte is a token, and there is one special token.
std::string TokenizerJson() {
  std::string vocabulary;
  for (int byte = 0; byte < 256; ++byte) {
    std::string symbol;
    octavo::AppendUtf8(octavo::SymbolOfByte(static_cast<uint8_t>(byte)), &symbol);
    if (symbol == "\"" || symbol == "\\") {
      symbol.insert(0, "\\");
    }
    vocabulary += fmt::format("{}\"{}\":{}", byte > 0 ? "," : "", symbol, byte);
  }
  return fmt::format(
      R"({{"version":"1.0","truncation":null,"padding":null,"added_tokens":[{{"id":256,)"
      R"("content":"<|im_end|>","normalized":false,"special":true}}],"normalizer":null,)"
      R"("pre_tokenizer":{{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,)"
      R"("use_regex":false}},"post_processor":null,"decoder":{{"type":"ByteLevel"}},)"
      R"("model":{{"type":"BPE","dropout":null,"unk_token":null,"fuse_unk":false,)"
      R"("vocab":{{{}}},"merges":[]}}}})",
      vocabulary);
}

constexpr std::string_view kChatMl =
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% if message.tool_calls %}{{ message.tool_calls | tojson }}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

struct Text {
  octavo::Tokenizer tokenizer = octavo::Tokenizer::Parse(TokenizerJson()).value();
  octavo::ChatTemplate chat = octavo::ChatTemplate::Parse(kChatMl, {}).value();
};

void CheckJson(std::string_view text) { CHECK(octavo::ParseJson(text).has_value()); }

void CheckItem(const octavo::GenerateItem& item, int64_t vocab_size) {
  const octavo::Request& request = item.request;
  CHECK(!request.input_ids.empty());
  for (const int32_t id : request.input_ids) {
    CHECK(id >= 0);
    CHECK(id < vocab_size);
  }
  const octavo::SamplingParams& sampling = request.sampling;
  CHECK(sampling.max_new_tokens >= 1);
  CHECK(sampling.max_new_tokens + static_cast<int64_t>(request.input_ids.size()) <= kContext);
  CHECK(sampling.min_new_tokens <= sampling.max_new_tokens);
  CHECK(sampling.temperature >= 0.0F);
  CHECK(sampling.top_p > 0.0F);
  CHECK(request.stream_interval >= 1);
}

// One token and the end, as the engine would report them.
octavo::RequestOutput Output(const octavo::GenerateItem& item) {
  octavo::RequestOutput output;
  output.rid = item.request.rid;
  output.new_ids = {item.request.input_ids[0]};
  if (item.request.return_logprob) {
    output.new_logprobs = {{-1.0F, output.new_ids[0]}};
  }
  output.finish.type = octavo::FinishType::kLength;
  return output;
}

void CheckAnswer(const octavo::ParsedOpenAi& parsed, const octavo::Tokenizer& tokenizer) {
  for (const bool whole : {true, false}) {
    const std::unique_ptr<octavo::AnswerShape> shape =
        octavo::MakeOpenAiShape(parsed.answer, &tokenizer);
    std::vector<octavo::SequenceRenderer> sequences;
    for (size_t i = 0; i < parsed.call.items.size(); ++i) {
      octavo::RenderOptions options;
      options.tokenizer = &tokenizer;
      options.stop = parsed.call.items[i].stop;
      sequences.emplace_back(std::move(options));
      const octavo::RequestOutput output = Output(parsed.call.items[i]);
      sequences.back().Append(output);
      shape->Append(i, output);
      if (!whole) {
        const std::string events = shape->Chunk(i, sequences.back());
        CHECK(events.starts_with("data: "));
        CHECK(events.ends_with("\n\n"));
        CheckJson(std::string_view(events).substr(6, events.find('\n') - 6));
      }
    }
    if (whole) {
      CheckJson(shape->Whole(sequences));
    }
  }
}

void Fuzz(std::string_view body, octavo::OpenAiKind kind, const Text& text) {
  octavo::RidSource rids(1);
  const octavo::ServerText server_text = {.tokenizer = &text.tokenizer,
                                          .chat_template = &text.chat};
  const octavo::Result<octavo::SamplingFields> defaults = octavo::SamplingFields{};
  const int64_t vocab_size = text.tokenizer.vocab_size();
  const auto parsed = octavo::ParseOpenAi(body, kind,
                                          {.generate = {.tokenizer = &text.tokenizer,
                                                        .rids = &rids,
                                                        .vocab_size = vocab_size,
                                                        .context_length = kContext,
                                                        .max_sequences = 16},
                                           .text = &server_text,
                                           .chat_defaults = &defaults,
                                           .served_name = "model"});
  if (!parsed.has_value()) {
    const octavo::HttpResponse response = octavo::OpenAiError(parsed.error());
    CHECK(response.status == 400);
    CheckJson(response.body);
    return;
  }
  for (const octavo::GenerateItem& item : parsed->call.items) {
    CheckItem(item, vocab_size);
  }
  CheckAnswer(*parsed, text.tokenizer);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t num_bytes) {
  static const Text text;
  const std::string_view body(reinterpret_cast<const char*>(data), num_bytes);
  Fuzz(body, octavo::OpenAiKind::kCompletions, text);
  Fuzz(body, octavo::OpenAiKind::kChat, text);
  return 0;
}
