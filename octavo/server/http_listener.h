#pragma once
// HttpListener: HTTP/1.1 on a TCP port. Parsing, keep-alive, chunked streams, limits, and noticing
// when a peer leaves; what the requests mean is the handler's business.

#include <cstdint>
#include <memory>
#include <string>

#include "octavo/base/status.h"
#include "octavo/server/http.h"
#include "octavo/server/http_limits.h"
#include "octavo/server/io_loop.h"

namespace octavo {

struct ListenOptions {
  std::string host = "127.0.0.1";
  int port = 30000;  // 0: any free one.
  HttpLimits limits = {};
};

// Whether HttpListener::Open could listen there at this moment, with its errors: to be asked before
// the minutes that a model takes to load.
Status CheckAddressIsFree(const std::string& host, int port);

// One thread: the io thread, apart from Open, port() and is_loopback(). `loop` must outlive it and
// be stopped before it is destroyed.
class HttpListener {
 public:
  // Binds and listens; connections are accepted once the loop runs. Also raises the soft limit of
  // open files to the hard one. Errors: kUnavailable for a port in use, kInvalidArgument for a host
  // or port that cannot be, or a limit that is not positive, by name.
  static Result<std::unique_ptr<HttpListener>> Open(const ListenOptions& options, IoLoop* loop,
                                                    HttpHandler handler);
  ~HttpListener();

  int port() const;
  // Nobody but this machine can reach it.
  bool is_loopback() const;
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
