#include "octavo/server/http_wire.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <boost/beast/http/status.hpp>
#include <charconv>
#include <cstddef>
#include <ctime>
#include <string>
#include <string_view>

namespace octavo {
namespace {

constexpr size_t kChunkHeadBytes = 18;  // 16 digits and a line end.

std::string_view ReasonPhrase(int status) {
  const auto phrase =
      boost::beast::http::obsolete_reason(static_cast<boost::beast::http::status>(status));
  return {phrase.data(), phrase.size()};
}

}  // namespace

std::string FormatHead(int status, std::string_view content_type, const Exchange& exchange,
                       std::string_view extra) {
  std::string head =
      fmt::format("HTTP/1.1 {} {}\r\nServer: octavo\r\nDate: {:%a, %d %b %Y %H:%M:%S} GMT\r\n",
                  status, ReasonPhrase(status), fmt::gmtime(std::time(nullptr)));
  if (!content_type.empty()) {
    head += fmt::format("Content-Type: {}\r\n", content_type);
  }
  head += extra;
  head += exchange.keep_alive ? "Connection: keep-alive\r\n\r\n" : "Connection: close\r\n\r\n";
  return head;
}

std::string FormatChunk(std::string bytes) {
  char head[kChunkHeadBytes];
  char* end = std::to_chars(head, head + kChunkHeadBytes, bytes.size(), /*base=*/16).ptr;
  *end++ = '\r';
  *end++ = '\n';
  bytes.insert(0, head, static_cast<size_t>(end - head));
  bytes += "\r\n";
  return bytes;
}

}  // namespace octavo
