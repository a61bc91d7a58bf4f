#include "octavo/server/openai_logprobs.h"

#include <fmt/format.h>

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "octavo/engine/request.h"
#include "octavo/server/json_writer.h"
#include "octavo/server/parse_openai.h"
#include "octavo/server/render_sequence.h"
#include "octavo/text/tokenizer.h"

namespace octavo {
namespace {

void Separate(std::string& list) {
  if (!list.empty()) {
    list += ',';
  }
}

const std::vector<TokenLogprob>* At(const std::vector<std::vector<TokenLogprob>>& lists, size_t i) {
  return i < lists.size() && !lists[i].empty() ? &lists[i] : nullptr;
}

}  // namespace

void OpenAiLogprobs::Append(const RequestOutput& output) {
  for (size_t i = 0; i < output.input_logprobs.size(); ++i) {
    const auto& [logprob, id] = output.input_logprobs[i];
    AppendToken(logprob.has_value() ? &*logprob : nullptr, id, At(output.input_top_logprobs, i));
  }
  for (size_t i = 0; i < output.new_logprobs.size(); ++i) {
    const TokenLogprob& entry = output.new_logprobs[i];
    AppendToken(&entry.logprob, entry.id, At(output.new_top_logprobs, i));
  }
}

std::string OpenAiLogprobs::TokenText(int32_t id) const {
  const int32_t ids[] = {id};
  return tokenizer_ == nullptr ? "" : tokenizer_->Decode(ids, /*skip_special_tokens=*/false);
}

void OpenAiLogprobs::AppendToken(const float* logprob, int32_t id, const Entries* top) {
  if (kind_ == OpenAiKind::kCompletions) {
    AppendCompletionsToken(logprob, id, top);
  } else {
    AppendChatToken(*logprob, id, top);  // Chat scores no prompt, so there always is one.
  }
}

void OpenAiLogprobs::AppendCompletionsToken(const float* logprob, int32_t id, const Entries* top) {
  Separate(tokens_);
  AppendJsonString(tokens_, TokenText(id));
  Separate(logprobs_);
  if (logprob != nullptr) {
    AppendLogprob(logprobs_, *logprob, &num_clamped_);
  } else {
    logprobs_ += "null";
  }
  Separate(offsets_);
  offsets_ += "-1";
  if (!has_top_) {
    return;
  }
  Separate(top_);
  if (top == nullptr) {
    top_ += "null";
    return;
  }
  // Tokens that read alike, such as halves of characters, share a key: the likeliest has it.
  std::unordered_set<std::string> seen;
  std::string members;
  for (const TokenLogprob& entry : *top) {
    std::string text = TokenText(entry.id);
    if (!seen.insert(text).second) {
      continue;
    }
    Separate(members);
    AppendJsonString(members, text);
    members += ':';
    AppendLogprob(members, entry.logprob, &num_clamped_);
  }
  top_ += '{' + members + '}';
}

// "token", "bytes" and "logprob". The bytes are those of the token itself, so that clients can join
// halves of characters, of which the text only shows U+FFFD.
void OpenAiLogprobs::AppendChatFields(std::string& out, float logprob, int32_t id) {
  out += R"("token":)";
  AppendJsonString(out, TokenText(id));
  out += R"(,"bytes":)";
  if (tokenizer_ == nullptr) {
    out += "null";
  } else {
    std::string bytes;
    for (const char c : tokenizer_->TokenBytes(id, /*skip_special_tokens=*/false)) {
      Separate(bytes);
      fmt::format_to(std::back_inserter(bytes), "{}", static_cast<unsigned char>(c));
    }
    out += '[' + bytes + ']';
  }
  out += R"(,"logprob":)";
  AppendLogprob(out, logprob, &num_clamped_);
}

void OpenAiLogprobs::AppendChatToken(float logprob, int32_t id, const Entries* top) {
  Separate(tokens_);
  tokens_ += '{';
  AppendChatFields(tokens_, logprob, id);
  tokens_ += R"(,"top_logprobs":[)";
  std::string entries;
  for (size_t i = 0; top != nullptr && i < top->size(); ++i) {
    Separate(entries);
    entries += '{';
    AppendChatFields(entries, (*top)[i].logprob, (*top)[i].id);
    entries += '}';
  }
  tokens_ += entries + "]}";
}

std::string OpenAiLogprobs::Take() {
  if (kind_ == OpenAiKind::kChat) {
    return R"({"content":[)" + std::exchange(tokens_, {}) + "]}";
  }
  return fmt::format(
      R"({{"tokens":[{}],"token_logprobs":[{}],"top_logprobs":[{}],"text_offset":[{}]}})",
      std::exchange(tokens_, {}), std::exchange(logprobs_, {}), std::exchange(top_, {}),
      std::exchange(offsets_, {}));
}

}  // namespace octavo
