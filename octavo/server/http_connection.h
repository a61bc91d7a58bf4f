#pragma once
// One HTTP/1.1 connection: reads requests one after another within the limits, hands them to the
// handler and writes what the handler answers.

#include <chrono>
#include <cstdint>
#include <memory>
#include <unordered_set>
#include <vector>

#include "octavo/server/http.h"
#include "octavo/server/http_limits.h"

namespace boost::asio {
// NOLINTBEGIN(readability-identifier-naming): Asio's
class any_io_executor;
template <typename Protocol, typename Executor>
class basic_stream_socket;
namespace ip {
class tcp;
}
// NOLINTEND(readability-identifier-naming)
}  // namespace boost::asio

namespace octavo {

using TcpSocket =
    boost::asio::basic_stream_socket<boost::asio::ip::tcp, boost::asio::any_io_executor>;

// What the listener knows of a connection. One thread: the io thread.
class HttpConnection {
 public:
  virtual ~HttpConnection() = default;
  // Ends what waits for the peer when its time is over.
  virtual void Expire(std::chrono::steady_clock::time_point now) = 0;
  // Closes now, or after the answer to the request in flight.
  virtual void CloseIfIdle() = 0;
  // Gives the socket what was pushed since the last time.
  virtual void Flush() = 0;
};

// What the connections of one listener share. One thread: the io thread.
struct HttpConnections {
  HttpLimits limits;
  HttpHandler handler;
  bool accepting = true;   // False: no connection is kept after the answer that it waits for.
  int64_t num_busy = 0;    // Connections with a request in flight.
  int64_t body_bytes = 0;  // Received of the bodies that are being read.
  std::unordered_set<HttpConnection*> open = {};
  // Those with something to flush. What handlers write while they take in a step of the engine is
  // one write per connection, after the last of them.
  std::vector<std::weak_ptr<HttpConnection>> unflushed = {};
};

// Serves `socket` until either side closes it. On the io thread.
void ServeConnection(TcpSocket socket, std::shared_ptr<HttpConnections> all);

}  // namespace octavo
