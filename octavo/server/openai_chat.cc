#include "octavo/server/openai_chat.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <ctime>
#include <iterator>
#include <span>
#include <string>
#include <string_view>

#include "octavo/base/status.h"
#include "octavo/server/json.h"
#include "octavo/server/json_writer.h"
#include "octavo/server/server.h"
#include "octavo/text/chat_template.h"

namespace octavo {
namespace {

void WriteJson(const JsonValue& value, JsonWriter& json);

void WriteArray(const JsonArray& array, JsonWriter& json) {
  json.BeginArray();
  for (const JsonValue& entry : array) {
    WriteJson(entry, json);
  }
  json.EndArray();
}

void WriteObject(const JsonObject& object, JsonWriter& json) {
  json.BeginObject();
  for (const JsonMember& member : object) {
    json.Key(member.key);
    WriteJson(member.value, json);
  }
  json.EndObject();
}

void WriteJson(const JsonValue& value, JsonWriter& json) {
  if (const bool* boolean = value.boolean()) {
    json.Value(*boolean);
  } else if (const int64_t* integer = value.integer()) {
    json.Value(*integer);
  } else if (const double* real = value.real()) {
    json.Value(*real);
  } else if (const std::string* text = value.string()) {
    json.Value(std::string_view(*text));
  } else if (const JsonArray* array = value.array()) {
    WriteArray(*array, json);
  } else if (const JsonObject* object = value.object()) {
    WriteObject(*object, json);
  } else {
    json.Null();
  }
}

std::string JsonOf(const JsonValue& value) {
  JsonWriter json;
  WriteJson(value, json);
  return json.Take();
}

// --- Messages ---

Result<std::string> PartText(const JsonValue& part, std::string_view name) {
  if (part.string() != nullptr) {
    return *part.string();
  }
  if (part.object() == nullptr) {
    return Corrupt("{}: expected a part of a message, got {}", name, part.KindName());
  }
  ASSIGN_OR_RETURN(const std::string type, StringField(part, "type", ""));
  if (type != "text") {
    return Unsupported("{}: the type \"{}\" is not supported by this server", name, type);
  }
  return StringField(part, "text", "");
}

// `content` may be null: absent.
Result<std::string> ContentText(const JsonValue* content, std::string_view name) {
  if (content == nullptr) {
    return std::string();
  }
  if (content->array() == nullptr) {
    return AsString(*content, name);
  }
  std::string joined;
  for (size_t i = 0; i < content->array()->size(); ++i) {
    ASSIGN_OR_RETURN(const std::string text,
                     PartText((*content->array())[i], fmt::format("{}[{}]", name, i)));
    joined += i > 0 ? " " : "";
    joined += text;
  }
  return joined;
}

// How a template is shown an assistant's tool calls. Templates disagree, and what one takes another
// refuses, so these forms are tried in turn.
struct CallForm {
  enum class Content { kAbsent, kNull, kEmpty };
  Content content;        // In the place of a content that the message does not have.
  bool parses_arguments;  // Clients send them as the text of a JSON object.
};
constexpr CallForm kCallForms[] = {
    {CallForm::Content::kAbsent, true},  // HF transformers 5, by which most templates are written.
    {CallForm::Content::kNull, false},  // DeepSeek's, which ask for null and join the text to text.
    {CallForm::Content::kEmpty, true},  // Those that know of no calls and join the content to text.
};

Status WriteFunction(const JsonValue& function, std::string_view name, const CallForm& form,
                     JsonWriter& json) {
  if (function.object() == nullptr) {
    WriteJson(function, json);
    return OkStatus();
  }
  json.BeginObject();
  for (const JsonMember& member : *function.object()) {
    json.Key(member.key);
    if (member.key != "arguments" || member.value.string() == nullptr) {
      WriteJson(member.value, json);
      continue;
    }
    const Result<JsonValue> arguments = ParseJson(*member.value.string());
    if (!arguments.has_value() || arguments->object() == nullptr) {
      return InvalidArgument(
          "{}.function.arguments: expected the text of a JSON object, got \"{}\"", name,
          member.value.string()->substr(0, 64));
    }
    WriteJson(form.parses_arguments ? *arguments : member.value, json);
  }
  json.EndObject();
  return OkStatus();
}

Status WriteToolCalls(const JsonValue& calls, std::string_view name, const CallForm& form,
                      JsonWriter& json) {
  if (calls.array() == nullptr) {
    return Corrupt("{}.tool_calls: expected a list, got {}", name, calls.KindName());
  }
  json.BeginArray();
  for (size_t i = 0; i < calls.array()->size(); ++i) {
    const JsonValue& call = (*calls.array())[i];
    if (call.object() == nullptr) {
      return Corrupt("{}.tool_calls[{}]: expected an object, got {}", name, i, call.KindName());
    }
    json.BeginObject();
    for (const JsonMember& member : *call.object()) {
      json.Key(member.key);
      if (member.key == "function") {
        RETURN_IF_ERROR(
            WriteFunction(member.value, fmt::format("{}.tool_calls[{}]", name, i), form, json));
      } else {
        WriteJson(member.value, json);
      }
    }
    json.EndObject();
  }
  json.EndArray();
  return OkStatus();
}

bool IsAssistant(const JsonValue& message) {
  return *message.Find("role")->string() == "assistant";
}

bool HasToolCalls(const JsonValue& message) {
  return IsAssistant(message) && message.Find("tool_calls") != nullptr;
}

Status WriteMessage(const JsonValue& message, std::string_view name, const CallForm& form,
                    JsonWriter& json) {
  const JsonValue* given = message.Find("content");
  ASSIGN_OR_RETURN(const std::string content, ContentText(given, fmt::format("{}.content", name)));
  json.BeginObject().Field("role", *message.Find("role")->string());
  const bool is_call = given == nullptr && HasToolCalls(message);
  if (!is_call || form.content == CallForm::Content::kEmpty) {
    json.Field("content", content);
  } else if (form.content == CallForm::Content::kNull) {
    json.Key("content").Null();
  }
  for (const JsonMember& member : *message.object()) {
    if (member.key == "role" || member.key == "content" || member.value.is_null()) {
      continue;
    }
    json.Key(member.key);
    if (member.key == "tool_calls" && HasToolCalls(message)) {
      RETURN_IF_ERROR(WriteToolCalls(member.value, name, form, json));
    } else {
      WriteJson(member.value, json);
    }
  }
  json.EndObject();
  return OkStatus();
}

struct ChatMessages {
  std::string json;         // For the template.
  std::string prefix = {};  // How the answer begins: the message that is to be continued.
};

// `body` has passed CheckMessages.
Result<ChatMessages> ReadMessages(const JsonValue& body, const CallForm& form) {
  ASSIGN_OR_RETURN(const bool continues, BoolField(body, "continue_final_message", false));
  std::span<const JsonValue> messages = *body.Find("messages")->array();
  const size_t last_idx = messages.size() - 1;
  const bool ends_in_assistant = IsAssistant(messages[last_idx]);
  ChatMessages chat;
  JsonWriter json;
  json.BeginArray();
  for (size_t i = 0; i < messages.size(); ++i) {
    const std::string name = fmt::format("messages[{}]", i);
    if (i < last_idx || !ends_in_assistant) {
      RETURN_IF_ERROR(WriteMessage(messages[i], name, form, json));
      continue;
    }
    ASSIGN_OR_RETURN(const std::string content,
                     ContentText(messages[i].Find("content"), name + ".content"));
    if (continues) {
      chat.prefix = content;
    } else {
      json.BeginObject().Field("role", "user").Field("content", content).EndObject();
    }
  }
  json.EndArray();
  chat.json = json.Take();
  return chat;
}

// reasoning_effort is a variable of the template like any other; chat_template_kwargs says more.
Result<std::string> ReadTemplateVariables(const JsonValue& body) {
  JsonWriter json;
  json.BeginObject();
  if (const JsonValue* effort = body.Find("reasoning_effort")) {
    ASSIGN_OR_RETURN(const std::string text, AsString(*effort, "reasoning_effort"));
    json.Field("reasoning_effort", text);
  }
  if (const JsonValue* kwargs = body.Find("chat_template_kwargs")) {
    if (kwargs->object() == nullptr) {
      return Corrupt("chat_template_kwargs: expected an object, got {}", kwargs->KindName());
    }
    for (const JsonMember& member : *kwargs->object()) {
      json.Key(member.key);
      WriteJson(member.value, json);
    }
  }
  json.EndObject();
  return json.Take();
}

Result<std::string> RenderMessages(const JsonValue& body, const ChatTemplate& chat_template,
                                   const std::tm& now, const CallForm& form) {
  ASSIGN_OR_RETURN(const ChatMessages messages, ReadMessages(body, form));
  ASSIGN_OR_RETURN(const bool passes_tools, PassesTools(body));
  ASSIGN_OR_RETURN(const std::string variables, ReadTemplateVariables(body));
  const std::string tools = passes_tools ? JsonOf(*body.Find("tools")) : std::string();
  ASSIGN_OR_RETURN(
      const std::string prompt,
      chat_template.Render(
          {.messages = messages.json, .tools = tools, .kwargs = variables, .now = now}));
  return prompt + messages.prefix;
}

}  // namespace

Status CheckMessages(const JsonValue& body) {
  const JsonValue* messages = body.Find("messages");
  if (messages == nullptr || messages->array() == nullptr) {
    return Corrupt("messages: expected a list, got {}",
                   messages == nullptr ? "none" : messages->KindName());
  }
  if (messages->array()->empty()) {
    return InvalidArgument("messages: expected at least one, got []");
  }
  for (size_t i = 0; i < messages->array()->size(); ++i) {
    const JsonValue& message = (*messages->array())[i];
    if (message.object() == nullptr) {
      return Corrupt("messages[{}]: expected an object, got {}", i, message.KindName());
    }
    const JsonValue* role = message.Find("role");
    if (role == nullptr || role->string() == nullptr) {
      return Corrupt("messages[{}].role: expected a string, got {}", i,
                     role == nullptr ? "none" : role->KindName());
    }
  }
  return OkStatus();
}

Result<bool> PassesTools(const JsonValue& body) {
  std::string choice = "auto";
  if (const JsonValue* value = body.Find("tool_choice")) {
    if (value->object() != nullptr) {
      return Unsupported("tool_choice: a call of one function cannot be forced by this server");
    }
    ASSIGN_OR_RETURN(choice, AsString(*value, "tool_choice"));
  }
  if (choice == "required") {
    return Unsupported("tool_choice: a call cannot be forced by this server");
  }
  if (choice != "none" && choice != "auto") {
    return InvalidArgument("tool_choice: expected none or auto, got \"{}\"", choice.substr(0, 64));
  }
  const JsonValue* tools = body.Find("tools");
  if (tools != nullptr && tools->array() == nullptr) {
    return Corrupt("tools: expected a list, got {}", tools->KindName());
  }
  return tools != nullptr && !tools->array()->empty() && choice == "auto";
}

Result<std::string> RenderChatPrompt(const JsonValue& body, const ServerText& text,
                                     const std::tm& now) {
  RETURN_IF_ERROR(CheckMessages(body));
  if (text.tokenizer == nullptr) {
    return Unsupported(
        "messages: the model folder has no tokenizer.json, so this server takes input_ids only");
  }
  if (text.chat_template == nullptr) {
    return Unsupported("messages: chat is not served: {}", text.no_chat_reason);
  }
  Result<std::string> prompt = RenderMessages(body, *text.chat_template, now, kCallForms[0]);
  const bool has_calls = std::ranges::any_of(*body.Find("messages")->array(), HasToolCalls);
  for (size_t i = 1; has_calls && !prompt.has_value() && i < std::size(kCallForms); ++i) {
    Result<std::string> other = RenderMessages(body, *text.chat_template, now, kCallForms[i]);
    if (other.has_value()) {
      return other;
    }
  }
  return prompt;
}

}  // namespace octavo
