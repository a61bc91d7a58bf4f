// The status page and /metrics.

#include "octavo/base/status.h"
#include "octavo/server/application.h"
#include "octavo/server/http.h"

namespace octavo {

void Application::StatusPage(const WriterPtr& writer) {
  writer->Send(TextResponse("Octavo is running"));
}

void Application::Metrics(const WriterPtr& writer) {
  writer->Send(RequestError(Unsupported("Metrics is not built")));
}

}  // namespace octavo
