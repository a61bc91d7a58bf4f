#pragma once
// An answer as it stands on the wire: the head of a response, the chunks of a stream.

#include <string>
#include <string_view>

namespace octavo {

// What a connection must know about the request that it is answering.
struct Exchange {
  bool keep_alive = false;
  bool http_1_0 = false;
  bool is_head = false;
};

// Status line and header up to the blank line. `extra` is whole lines, each "Name: value\r\n"; an
// empty `content_type` gives no such line.
std::string FormatHead(int status, std::string_view content_type, const Exchange& exchange,
                       std::string_view extra);

// One chunk of a chunked body (RFC 9112, section 7.1). `bytes` is not empty: that would end it.
std::string FormatChunk(std::string bytes);

}  // namespace octavo
