// /release_memory_occupation and /resume_memory_occupation.

#include "octavo/base/status.h"
#include "octavo/server/application.h"
#include "octavo/server/http.h"

namespace octavo {

void Application::ReleaseMemory(const HttpRequest& /*request*/, const WriterPtr& writer) {
  writer->Send(RequestError(Unsupported("ReleaseMemory is not built")));
}

void Application::ResumeMemory(const HttpRequest& /*request*/, const WriterPtr& writer) {
  writer->Send(RequestError(Unsupported("ResumeMemory is not built")));
}

}  // namespace octavo
