// /tokenize and /detokenize.

#include "octavo/base/status.h"
#include "octavo/server/application.h"
#include "octavo/server/http.h"

namespace octavo {

void Application::Tokenize(const HttpRequest& /*request*/, const WriterPtr& writer) {
  writer->Send(RequestError(Unsupported("Tokenize is not built")));
}

void Application::Detokenize(const HttpRequest& /*request*/, const WriterPtr& writer) {
  writer->Send(RequestError(Unsupported("Detokenize is not built")));
}

}  // namespace octavo
