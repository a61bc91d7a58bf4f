#pragma once
// HttpListener: HTTP/1.1 on a TCP port. Parsing, keep-alive, chunked streams, and noticing when a
// peer leaves; what the requests mean is the handler's business.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "octavo/base/status.h"
#include "octavo/server/http.h"
#include "octavo/server/io_loop.h"

namespace octavo {

struct ListenOptions {
  std::string host = "127.0.0.1";
  int port = 30000;                             // 0: any free one.
  int64_t body_bytes_max = int64_t{256} << 20;  // Beyond: 413.
  uint32_t header_bytes_max = 64 << 10;         // Beyond: 431.
  int64_t num_connections_max = 65536;          // Beyond: closed at once.
  double idle_seconds = 120.0;                  // Of a connection without a request.
  double header_seconds = 60.0;                 // For the whole head of a request.
  double stall_seconds = 120.0;                 // Without a byte moving, either way.
};

using HttpHandler = std::function<void(HttpRequest request, const WriterPtr& writer)>;

// Whether HttpListener::Open could listen there at this moment, with its errors: to be asked before
// the minutes that a model takes to load.
Status CheckAddressIsFree(const std::string& host, int port);

// One thread: the io thread, apart from Open and port(). `loop` must outlive it and be stopped
// before it is destroyed.
class HttpListener {
 public:
  // Binds and listens; connections are accepted once the loop runs. Also raises the soft limit of
  // open files to the hard one. Errors: kUnavailable for a port in use, kInvalidArgument for a host
  // or port that cannot be.
  static Result<std::unique_ptr<HttpListener>> Open(const ListenOptions& options, IoLoop* loop,
                                                    HttpHandler handler);
  ~HttpListener();

  int port() const;
  // No new connections from here on, and idle ones are closed; requests in flight go on and close
  // their connections when answered.
  void StopAccepting();
  // Connections that have a request in flight.
  int64_t num_busy() const;

 private:
  struct Impl;
  explicit HttpListener(std::shared_ptr<Impl> impl);
  std::shared_ptr<Impl> impl_;
};

}  // namespace octavo
