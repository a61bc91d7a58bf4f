#pragma once
// The status page at GET /, as it is built into the program from octavo/server/web. Static: what it
// shows it asks of the endpoints (docs/api.md), from the browser and with the browser's key.

#include <string_view>

namespace octavo {

// One HTML text with its style and its script.
std::string_view StatusPageHtml();

// The Content-Security-Policy to send it with: this style, this script, calls to this server.
std::string_view StatusPageCsp();

}  // namespace octavo
