// /v1/completions and /v1/chat/completions.

#include <chrono>
#include <ctime>
#include <memory>
#include <utility>

#include "octavo/base/status.h"
#include "octavo/server/answer_shape.h"
#include "octavo/server/application.h"
#include "octavo/server/http.h"
#include "octavo/server/info.h"
#include "octavo/server/openai_error.h"
#include "octavo/server/parse_openai.h"
#include "octavo/server/render_openai.h"

namespace octavo {

OpenAiContext Application::MakeOpenAiContext() {
  const std::time_t now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  std::tm local = {};
  localtime_r(&now, &local);
  return {.generate = MakeGenerateContext(),
          .text = &text_,
          .chat_defaults = &chat_defaults_,
          .served_name = ServedModelName(Info()),
          .now_unix_s = now,
          .now = local};
}

void Application::RunOpenAi(const HttpRequest& request, OpenAiKind kind, const WriterPtr& writer) {
  if (draining_) {
    return writer->Send(OpenAiError(Unavailable("the server is stopping")));
  }
  if (const Status status = CheckJsonMediaType(request.content_type); !status.ok()) {
    return writer->Send(OpenAiError(status));
  }
  Result<ParsedOpenAi> parsed = ParseOpenAi(request.body, kind, MakeOpenAiContext());
  if (!parsed.has_value()) {
    return writer->Send(OpenAiError(parsed.error()));
  }
  RunCall({.parsed = std::move(parsed->call),
           .shape = MakeOpenAiShape(std::move(parsed->answer), tokenizer_),
           .refuse = OpenAiError},
          writer);
}

void Application::Completions(const HttpRequest& request, const WriterPtr& writer) {
  RunOpenAi(request, OpenAiKind::kCompletions, writer);
}

void Application::ChatCompletions(const HttpRequest& request, const WriterPtr& writer) {
  RunOpenAi(request, OpenAiKind::kChat, writer);
}

}  // namespace octavo
