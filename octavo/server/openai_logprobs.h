#pragma once
// The logprobs of one choice as OpenAI's two endpoints write them.

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "octavo/engine/request.h"
#include "octavo/server/parse_openai.h"
#include "octavo/text/tokenizer.h"

namespace octavo {

// Gathers what snapshots bring, as JSON text. One thread; `tokenizer` may be null and must outlive
// it.
class OpenAiLogprobs {
 public:
  OpenAiLogprobs(OpenAiKind kind, bool has_top, const Tokenizer* tokenizer)
      : kind_(kind), has_top_(has_top), tokenizer_(tokenizer) {}

  // Prompt positions too, where the snapshot has them.
  void Append(const RequestOutput& output);
  bool HasNews() const { return !tokens_.empty(); }

  // The object with what no earlier call gave:
  //   completions  {"tokens", "token_logprobs", "top_logprobs", "text_offset"}; offsets are -1
  //   chat         {"content": [{"token", "bytes", "logprob", "top_logprobs"}]}
  std::string Take();

  int64_t num_clamped() const { return num_clamped_; }

 private:
  using Entries = std::vector<TokenLogprob>;
  // `logprob` null: a position without prediction; `top` null: no list for it.
  void AppendToken(const float* logprob, int32_t id, const Entries* top);
  void AppendCompletionsToken(const float* logprob, int32_t id, const Entries* top);
  void AppendChatToken(float logprob, int32_t id, const Entries* top);
  void AppendChatFields(std::string& out, float logprob, int32_t id);
  std::string TokenText(int32_t id) const;

  OpenAiKind kind_;
  bool has_top_;
  const Tokenizer* tokenizer_;
  // Contents of JSON arrays, without their brackets. Chat has tokens_ alone, of whole entries.
  std::string tokens_;
  std::string logprobs_;
  std::string top_;
  std::string offsets_;
  int64_t num_clamped_ = 0;
};

}  // namespace octavo
