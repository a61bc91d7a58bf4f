// /v1/completions and /v1/chat/completions.

#include "octavo/base/status.h"
#include "octavo/server/application.h"
#include "octavo/server/http.h"

namespace octavo {

void Application::Completions(const HttpRequest& /*request*/, const WriterPtr& writer) {
  writer->Send(RequestError(Unsupported("Completions is not built")));
}

void Application::ChatCompletions(const HttpRequest& /*request*/, const WriterPtr& writer) {
  writer->Send(RequestError(Unsupported("ChatCompletions is not built")));
}

}  // namespace octavo
