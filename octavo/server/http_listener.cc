// Binding, accepting, and the clock of the connections. One thread runs all of it.

#include "octavo/server/http_listener.h"

#include <sys/resource.h>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "octavo/base/log.h"
#include "octavo/base/status.h"
#include "octavo/server/http.h"
#include "octavo/server/http_connection.h"
#include "octavo/server/http_limits.h"
#include "octavo/server/io_loop.h"

namespace octavo {
namespace {

namespace asio = boost::asio;
using tcp = asio::ip::tcp;
using ErrorCode = boost::system::error_code;

constexpr int kBacklog = 4096;
constexpr std::chrono::milliseconds kAcceptRetry(50);
// How late a connection may learn that its time is over. One timer for all: setting one for each
// write would cost more than the write.
constexpr std::chrono::milliseconds kSweepPeriod(250);

// Every limit is positive: zero would mean "nothing may pass" here and "no bound" elsewhere.
Status CheckLimits(const HttpLimits& limits) {
  struct Entry {
    std::string_view name;
    double value;
  };
  const Entry entries[] = {
      {"body_bytes_max", static_cast<double>(limits.body_bytes_max)},
      {"all_bodies_bytes_max", static_cast<double>(limits.all_bodies_bytes_max)},
      {"header_bytes_max", static_cast<double>(limits.header_bytes_max)},
      {"header_fields_max", static_cast<double>(limits.header_fields_max)},
      {"connections_max", static_cast<double>(limits.connections_max)},
      {"idle_seconds", limits.idle_seconds},
      {"header_seconds", limits.header_seconds},
      {"body_seconds", limits.body_seconds},
      {"body_bytes_per_second_min", static_cast<double>(limits.body_bytes_per_second_min)},
      {"write_stall_seconds", limits.write_stall_seconds},
      {"pending_bytes_max", static_cast<double>(limits.pending_bytes_max)},
      {"linger_seconds", limits.linger_seconds},
  };
  for (const Entry& entry : entries) {
    if (!(entry.value > 0.0)) {
      return InvalidArgument("{}: expected more than 0, got {}", entry.name, entry.value);
    }
  }
  return OkStatus();
}

// Binds and listens.
Status ListenOn(const std::string& host, int port, tcp::acceptor& acceptor) {
  if (port < 0 || port > 65535) {
    return InvalidArgument("port: expected 0 to 65535, got {}", port);
  }
  ErrorCode error;
  asio::ip::address address = asio::ip::make_address(host, error);
  if (error) {
    tcp::resolver resolver(acceptor.get_executor());
    const auto found = resolver.resolve(host, "", error);
    if (error || found.empty()) {
      return InvalidArgument("host {}: expected an address of this machine: {}", host,
                             error.message());
    }
    address = found.begin()->endpoint().address();
  }
  const tcp::endpoint endpoint(address, static_cast<uint16_t>(port));
  if (acceptor.open(endpoint.protocol(), error); !error) {
    (void)acceptor.set_option(tcp::acceptor::reuse_address(true), error);
    (void)acceptor.bind(endpoint, error);
  }
  if (!error) {
    (void)acceptor.listen(kBacklog, error);
  }
  if (error == asio::error::address_in_use) {
    return Unavailable("port {} on {} is in use by another process", port, host);
  }
  if (error) {
    return InvalidArgument("cannot listen on {} port {}: {}", host, port, error.message());
  }
  return OkStatus();
}

void RaiseFileLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
    limit.rlim_cur = limit.rlim_max;
    (void)setrlimit(RLIMIT_NOFILE, &limit);
  }
}

}  // namespace

struct HttpListener::Impl : std::enable_shared_from_this<HttpListener::Impl> {
  explicit Impl(IoLoop* loop)
      : acceptor(loop->context()), retry_timer(loop->context()), sweep_timer(loop->context()) {}

  static asio::awaitable<void> AcceptLoop(std::shared_ptr<Impl> self);
  void Sweep();

  const std::shared_ptr<HttpConnections> all = std::make_shared<HttpConnections>();
  tcp::acceptor acceptor;
  asio::steady_timer retry_timer;
  asio::steady_timer sweep_timer;
  int port = 0;
  bool is_loopback = false;
};

asio::awaitable<void> HttpListener::Impl::AcceptLoop(std::shared_ptr<Impl> self) {
  HttpConnections& all = *self->all;
  while (all.accepting) {
    ErrorCode error;
    tcp::socket socket =
        co_await self->acceptor.async_accept(asio::redirect_error(asio::use_awaitable, error));
    if (!all.accepting) {
      co_return;
    }
    if (error) {  // Out of files or memory: those in flight will give some back.
      LOG(WARNING, "http accept failed error={}", error.message());
      ErrorCode ignored;
      self->retry_timer.expires_after(kAcceptRetry);
      co_await self->retry_timer.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
      continue;
    }
    if (static_cast<int64_t>(all.open.size()) < all.limits.connections_max) {
      ServeConnection(std::move(socket), self->all);
    }  // Else the socket is closed here.
  }
}

// Lets the connections look at the clock, for as long as the listener lives.
void HttpListener::Impl::Sweep() {
  sweep_timer.expires_after(kSweepPeriod);
  sweep_timer.async_wait([weak = weak_from_this()](const ErrorCode& error) {
    const std::shared_ptr<Impl> self = weak.lock();
    if (self == nullptr || error) {
      return;
    }
    const auto now = std::chrono::steady_clock::now();
    for (HttpConnection* connection : self->all->open) {
      connection->Expire(now);  // Only posts: `open` stays as it is.
    }
    self->Sweep();
  });
}

Status CheckAddressIsFree(const std::string& host, int port) {
  asio::io_context context;
  tcp::acceptor acceptor(context);
  return ListenOn(host, port, acceptor);
}

Result<std::unique_ptr<HttpListener>> HttpListener::Open(const ListenOptions& options, IoLoop* loop,
                                                         HttpHandler handler) {
  RETURN_IF_ERROR(CheckLimits(options.limits));
  RaiseFileLimit();
  auto impl = std::make_shared<Impl>(loop);
  impl->all->limits = options.limits;
  impl->all->handler = std::move(handler);
  RETURN_IF_ERROR(ListenOn(options.host, options.port, impl->acceptor));
  ErrorCode ignored;
  const tcp::endpoint endpoint = impl->acceptor.local_endpoint(ignored);
  impl->port = endpoint.port();
  impl->is_loopback = endpoint.address().is_loopback();
  asio::co_spawn(loop->context(), Impl::AcceptLoop(impl), asio::detached);
  impl->Sweep();
  return std::unique_ptr<HttpListener>(new HttpListener(std::move(impl)));
}

HttpListener::HttpListener(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
HttpListener::~HttpListener() = default;

int HttpListener::port() const { return impl_->port; }
bool HttpListener::is_loopback() const { return impl_->is_loopback; }
int64_t HttpListener::num_busy() const { return impl_->all->num_busy; }

void HttpListener::StopAccepting() {
  impl_->all->accepting = false;
  ErrorCode ignored;
  (void)impl_->acceptor.close(ignored);
  // Closing ends no connection at once, so `open` stays as it is.
  for (HttpConnection* connection : impl_->all->open) {
    connection->CloseIfIdle();
  }
}

}  // namespace octavo
