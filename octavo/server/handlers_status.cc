// The status page.

#include <fmt/format.h>

#include <string>

#include "octavo/server/application.h"
#include "octavo/server/http.h"
#include "octavo/server/status_page.h"

namespace octavo {

// The same for everybody, browsers and probes: the page holds no figure of its own, so it is open.
void Application::StatusPage(const WriterPtr& writer) {
  writer->Send({.status = 200,
                .content_type = "text/html; charset=utf-8",
                .body = std::string(StatusPageHtml()),
                .more_headers =
                    fmt::format("Content-Security-Policy: {}\r\nX-Content-Type-Options: nosniff\r\n"
                                "Referrer-Policy: no-referrer\r\nCache-Control: no-cache\r\n",
                                StatusPageCsp())});
}

}  // namespace octavo
