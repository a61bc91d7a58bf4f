#pragma once
// From the messages of a chat request to the text of its prompt.

#include <ctime>
#include <string>

#include "octavo/base/status.h"
#include "octavo/server/json.h"
#include "octavo/server/server.h"

namespace octavo {

// Errors: kCorrupt unless `body` has "messages", a list of at least one message with a role.
Status CheckMessages(const JsonValue& body);

// Whether the template is given the body's tools: there are some, and tool_choice does not say
// none. Errors: kCorrupt; kUnsupported for a tool_choice that would force a call.
Result<bool> PassesTools(const JsonValue& body);

// The prompt by the model's chat template, which `now` tells the local time: messages, tools,
// tool_choice, reasoning_effort, chat_template_kwargs and continue_final_message of `body`. It is
// encoded without further special tokens.
//
// Before the template sees them, messages are put into the form that templates of HF expect: parts
// of text are joined by spaces, an absent content is "", null members are dropped, and the
// arguments of an assistant's tool calls are parsed; for a template that refuses calls in that form
// they are put into the other forms that templates know. An assistant message that comes last is
// continued (continue_final_message) or becomes the user's. The generation prompt is always added.
//
// Errors: kCorrupt, kInvalidArgument (what the template refuses), kUnsupported (no tokenizer; no
// template, with the reason; parts that are not text).
Result<std::string> RenderChatPrompt(const JsonValue& body, const ServerText& text,
                                     const std::tm& now);

}  // namespace octavo
