#include "octavo/text/chat_template.h"

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/text/template_evaluator.h"
#include "octavo/text/template_parser.h"
#include "octavo/text/template_value.h"
#include "octavo/text/tokenizer_config.h"
#include "octavo/text/utf8.h"

namespace octavo {
namespace {

Result<TemplateValue> ParseField(std::string_view json, std::string_view name) {
  Result<TemplateValue> value = ParseTemplateJson(json);
  if (!value.has_value()) return value.error().WithContext(name);
  return value;
}

Result<TemplateValue> ParseMessages(std::string_view json) {
  ASSIGN_OR_RETURN(TemplateValue messages, ParseField(json, "messages"));
  if (messages.list() == nullptr || messages.list()->empty()) {
    return InvalidArgument("messages: expected an array of at least one");
  }
  for (const TemplateValue& message : *messages.list()) {
    if (message.dict() == nullptr) {
      return InvalidArgument("messages: expected objects, got {}", message.KindName());
    }
  }
  return messages;
}

Result<TemplateValue> ParseTools(std::string_view json) {
  if (json.empty()) return TemplateValue::MakeNone();
  ASSIGN_OR_RETURN(TemplateValue tools, ParseField(json, "tools"));
  if (tools.list() == nullptr && !tools.is_none()) {
    return InvalidArgument("tools: expected an array, got {}", tools.KindName());
  }
  return tools;
}

}  // namespace

ChatTemplate::ChatTemplate(std::vector<TemplateNode> nodes, TokenizerConfig config)
    : nodes_(std::move(nodes)), config_(std::move(config)) {}

Result<ChatTemplate> ChatTemplate::Parse(std::string_view source, const TokenizerConfig& config) {
  if (!IsValidUtf8(source)) return Corrupt("chat template: not UTF-8");
  Result<std::vector<TemplateNode>> nodes = ParseTemplate(source);
  if (!nodes.has_value()) return nodes.error().WithContext("chat template");
  return ChatTemplate(*std::move(nodes), config);
}

Result<std::optional<ChatTemplate>> ChatTemplate::LoadFolder(const std::string& folder) {
  ASSIGN_OR_RETURN(const TokenizerConfig config, LoadTokenizerConfig(folder));
  if (config.chat_template.empty()) return std::optional<ChatTemplate>();
  Result<ChatTemplate> parsed = Parse(config.chat_template, config);
  if (!parsed.has_value()) return parsed.error().WithContext(folder);
  return std::optional<ChatTemplate>(*std::move(parsed));
}

Result<std::string> ChatTemplate::Render(const ChatRequest& request) const {
  TemplateValue::Dict variables;
  for (const auto& [name, token] : config_.special_tokens) {
    variables.emplace_back(name, TemplateValue(token));
  }
  if (!request.kwargs.empty()) {
    ASSIGN_OR_RETURN(const TemplateValue kwargs,
                     ParseField(request.kwargs, "chat_template_kwargs"));
    if (kwargs.dict() == nullptr) {
      return InvalidArgument("chat_template_kwargs: expected an object, got {}", kwargs.KindName());
    }
    for (const auto& [name, value] : *kwargs.dict()) SetEntry(name, value, &variables);
  }
  ASSIGN_OR_RETURN(TemplateValue messages, ParseMessages(request.messages));
  ASSIGN_OR_RETURN(TemplateValue tools, ParseTools(request.tools));
  SetEntry("messages", std::move(messages), &variables);
  SetEntry("tools", std::move(tools), &variables);
  SetEntry("documents", TemplateValue::MakeNone(), &variables);
  SetEntry("add_generation_prompt", TemplateValue(request.add_generation_prompt), &variables);
  Result<std::string> text = RenderTemplate(nodes_, std::move(variables), request.now);
  if (!text.has_value()) return text.error().WithContext("chat template");
  return text;
}

}  // namespace octavo
