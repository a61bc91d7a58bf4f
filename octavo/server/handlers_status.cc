// The status page.

#include "octavo/server/application.h"
#include "octavo/server/http.h"

namespace octavo {

void Application::StatusPage(const WriterPtr& writer) {
  writer->Send(TextResponse("Octavo is running"));
}

}  // namespace octavo
