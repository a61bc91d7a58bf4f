// /metrics.

#include <string>

#include "octavo/engine/engine.h"
#include "octavo/server/application.h"
#include "octavo/server/http.h"
#include "octavo/server/metrics.h"

namespace octavo {

void Application::Metrics(const WriterPtr& writer) {
  HttpResponse response = TextResponse(MetricsText(
      {.info = Info(), .latencies = serving_->engine->Latencies(), .http = http_counts_.get()}));
  response.content_type = std::string(MetricsWriter::kContentType);
  writer->Send(std::move(response));
}

}  // namespace octavo
