#pragma once
// Chat formats: the chat_template of a checkpoint, rendered as HF's apply_chat_template does.
//
// ChatML (Qwen), Llama-3 and DeepSeek prompts differ between releases in ways that no list of
// formats keeps up with: default system prompts, what happens to the thoughts of earlier turns,
// where white space is cut. So the template itself is run, by an interpreter of the part of Jinja2
// that such templates are written in. A template that uses more is refused by name when it is
// loaded; none is ever rendered by guess.

#include <ctime>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/text/template_parser.h"
#include "octavo/text/tokenizer_config.h"

namespace octavo {

struct ChatRequest {
  // JSON array of messages, as the template will see them: "role", "content" and what else it asks
  // for ("reasoning_content", "tool_calls", ...).
  std::string_view messages;
  std::string_view tools = {};   // JSON array; empty: none.
  std::string_view kwargs = {};  // JSON object, chat_template_kwargs such as enable_thinking.
  bool add_generation_prompt = true;
  // Local time for templates that tell the date by strftime_now, as Llama-3.2's does; such a
  // template is refused without it.
  std::optional<std::tm> now = {};
};

// Move-only; const is thread-safe.
class ChatTemplate {
 public:
  // `config` gives the special tokens that templates name. Errors: kCorrupt (syntax), kUnsupported
  // (what is not built, by name and line).
  static Result<ChatTemplate> Parse(std::string_view source, const TokenizerConfig& config);

  // Of a checkpoint folder: chat_template.jinja, else the one in tokenizer_config.json. Absent
  // without either. Errors as above; kNotFound never.
  static Result<std::optional<ChatTemplate>> LoadFolder(const std::string& folder);

  // The prompt. Special tokens stand in it as text, so it is encoded with add_special_tokens off.
  // Errors: kInvalidArgument (JSON that is none, messages that the template cannot take or raises
  // an exception for), kUnsupported (what is not built, by name).
  Result<std::string> Render(const ChatRequest& request) const;

  ChatTemplate(ChatTemplate&&) noexcept = default;
  ChatTemplate& operator=(ChatTemplate&&) noexcept = default;

 private:
  ChatTemplate(std::vector<TemplateNode> nodes, TokenizerConfig config);

  std::vector<TemplateNode> nodes_;
  TokenizerConfig config_;
};

}  // namespace octavo
