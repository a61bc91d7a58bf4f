// HTTP over Asio coroutines, parsed by Beast. One thread runs all of it.
//
// While a request is being answered one read stays posted on its connection: it ends with the first
// byte of the next request, or with the peer's leaving, which aborts the work.

#include "octavo/server/http_listener.h"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <sys/resource.h>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <ctime>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_set>
#include <utility>

#include "octavo/base/log.h"
#include "octavo/base/status.h"
#include "octavo/server/http.h"
#include "octavo/server/io_loop.h"

namespace octavo {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using tcp = asio::ip::tcp;
using ErrorCode = boost::system::error_code;
using Seconds = std::chrono::duration<double>;

constexpr int kBacklog = 4096;
constexpr size_t kReadBytes = 4 << 10;  // Small: every idle connection holds one.
// A stream whose peer takes nothing is given up at this size.
constexpr int64_t kPendingBytesMax = int64_t{512} << 20;

std::chrono::steady_clock::duration ToClock(double seconds) {
  return std::chrono::duration_cast<std::chrono::steady_clock::duration>(Seconds(seconds));
}

std::string_view ReasonPhrase(int status) {
  return {http::obsolete_reason(static_cast<http::status>(status)).data(),
          http::obsolete_reason(static_cast<http::status>(status)).size()};
}

std::string_view View(beast::string_view text) { return {text.data(), text.size()}; }

HttpMethod ToMethod(http::verb verb) {
  switch (verb) {
    case http::verb::get:
      return HttpMethod::kGet;
    case http::verb::post:
      return HttpMethod::kPost;
    case http::verb::put:
      return HttpMethod::kPut;
    default:
      return HttpMethod::kOther;
  }
}

// "127.0.0.1:51234"; "?" when it has left already.
std::string PeerName(const tcp::socket& socket) {
  ErrorCode error;
  const tcp::endpoint peer = socket.remote_endpoint(error);
  return error ? "?" : fmt::format("{}:{}", peer.address().to_string(), peer.port());
}

// What the connection must know about the request that it is answering.
struct Exchange {
  bool keep_alive = false;
  bool http_1_0 = false;
  bool is_head = false;
};

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

}  // namespace

struct HttpListener::Impl : std::enable_shared_from_this<HttpListener::Impl> {
  class Connection;
  class Writer;

  Impl(const ListenOptions& options_in, IoLoop* loop, HttpHandler handler_in)
      : options(options_in),
        handler(std::move(handler_in)),
        acceptor(loop->context()),
        retry_timer(loop->context()) {}

  Status Bind();
  static asio::awaitable<void> AcceptLoop(std::shared_ptr<Impl> self);

  const ListenOptions options;
  const HttpHandler handler;
  tcp::acceptor acceptor;
  asio::steady_timer retry_timer;
  int port = 0;
  bool accepting = true;
  int64_t num_busy = 0;
  std::unordered_set<Connection*> connections;
};

// --- One connection ---

// Lives as long as its coroutine or a read that is posted on its socket.
class HttpListener::Impl::Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(tcp::socket socket, std::shared_ptr<Impl> owner)
      : socket_(std::move(socket)),
        wake_(socket_.get_executor()),
        deadline_(socket_.get_executor()),
        owner_(std::move(owner)) {
    owner_->connections.insert(this);
  }
  ~Connection() { owner_->connections.erase(this); }

  static asio::awaitable<void> Run(std::shared_ptr<Connection> self) {
    ErrorCode ignored;
    (void)self->socket_.set_option(tcp::no_delay(true), ignored);
    self->peer_ = PeerName(self->socket_);
    bool goes_on = true;
    while (goes_on) {
      goes_on = co_await self->AwaitBytes();
      if (goes_on) {
        goes_on = co_await self->ServeOne();
      }
    }
    self->Close();
  }

  // --- The writer's side ---

  void Push(std::string bytes, bool is_last) {
    if (sealed_) {
      return;
    }
    pending_bytes_ += static_cast<int64_t>(bytes.size());
    outbox_.push_back(std::move(bytes));
    sealed_ = is_last;
    if (pending_bytes_ > kPendingBytesMax) {
      LOG(WARNING, "http peer takes nothing, given up peer={} pending_bytes={}", peer_,
          pending_bytes_);
      Close();
    }
    Wake();
  }
  int64_t pending_bytes() const { return pending_bytes_; }
  const Exchange& exchange() const { return exchange_; }
  bool peer_gone() const { return peer_gone_; }
  void set_on_gone(std::function<void()> callback) { on_gone_ = std::move(callback); }
  uint64_t serial() const { return serial_; }

  void CloseIfIdle() {
    exchange_.keep_alive = false;
    if (!busy_) {
      Close();
    }
  }
  void FinishSoon() { exchange_.keep_alive = false; }

 private:
  using Parser = http::request_parser<http::string_body>;

  void Wake() { wake_.cancel(); }

  void Close() {
    ErrorCode ignored;
    deadline_.cancel();
    (void)socket_.shutdown(tcp::socket::shutdown_both, ignored);
    (void)socket_.close(ignored);
  }

  // Closes the socket, and so ends what waits for it, unless it is set again within `seconds`.
  void SetDeadline(double seconds) {
    deadline_.expires_after(ToClock(seconds));
    deadline_.async_wait([weak = weak_from_this()](const ErrorCode& error) {
      if (const std::shared_ptr<Connection> self = weak.lock(); self != nullptr && !error) {
        self->Close();
      }
    });
  }
  void ClearDeadline() { deadline_.cancel(); }

  // Keeps one read posted until it brings bytes or the end.
  void PostRead() {
    if (reading_ || peer_gone_ || buffer_.size() > 0) {
      return;
    }
    reading_ = true;
    buffer_.shrink_to_fit();
    socket_.async_read_some(buffer_.prepare(kReadBytes),
                            [self = shared_from_this()](const ErrorCode& error, size_t num_bytes) {
                              self->reading_ = false;
                              self->buffer_.commit(num_bytes);
                              self->peer_gone_ = static_cast<bool>(error);
                              self->Wake();
                            });
  }

  // True once a request begins; false when the peer left or was idle for too long.
  asio::awaitable<bool> AwaitBytes() {
    PostRead();
    SetDeadline(owner_->options.idle_seconds);
    while (buffer_.size() == 0 && !peer_gone_) {
      ErrorCode ignored;
      wake_.expires_at(asio::steady_timer::time_point::max());
      co_await wake_.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
    }
    ClearDeadline();
    co_return !peer_gone_;
  }

  asio::awaitable<bool> ServeOne();
  asio::awaitable<ErrorCode> ReadRequest(Parser& parser);
  asio::awaitable<ErrorCode> WriteAll(const std::string& bytes);
  asio::awaitable<bool> WriteAnswer();
  void Dispatch(Parser& parser);
  static std::optional<HttpResponse> ReadFailure(const ErrorCode& error);
  void SendNow(const HttpResponse& response);

  tcp::socket socket_;
  asio::steady_timer wake_;      // Cancelled to wake the coroutine.
  asio::steady_timer deadline_;  // Closes the socket.
  const std::shared_ptr<Impl> owner_;
  std::string peer_;
  beast::flat_buffer buffer_;
  bool reading_ = false;
  bool peer_gone_ = false;
  bool busy_ = false;  // A request is in flight.

  Exchange exchange_;
  uint64_t serial_ = 0;  // Of the exchange: a late writer of an earlier one is told apart by it.
  std::deque<std::string> outbox_;
  int64_t pending_bytes_ = 0;
  bool sealed_ = true;  // The answer is complete in the outbox.
  std::function<void()> on_gone_;
};

// The handlers' end. Holds the connection weakly, so that an engine that is slow to finish an
// aborted request keeps no socket open.
class HttpListener::Impl::Writer final : public ResponseWriter {
 public:
  explicit Writer(const std::shared_ptr<Connection>& connection)
      : connection_(connection), serial_(connection->serial()) {}

  void Send(HttpResponse response) override {
    if (const std::shared_ptr<Connection> connection = Live()) {
      const std::string allow =
          response.allow.empty() ? std::string() : fmt::format("Allow: {}\r\n", response.allow);
      connection->Push(FormatHead(response.status, response.content_type, connection->exchange(),
                                  fmt::format("{}{}Content-Length: {}\r\n", allow,
                                              response.more_headers, response.body.size())),
                       response.body.empty() || connection->exchange().is_head);
      connection->Push(std::move(response.body), true);
    }
  }

  void StartStream() override {
    if (const std::shared_ptr<Connection> connection = Live()) {
      chunked_ = !connection->exchange().http_1_0;
      if (!chunked_) {
        connection->FinishSoon();  // HTTP/1.0 has no chunks: the end of the connection is the end.
      }
      connection->Push(FormatHead(200, "text/event-stream", connection->exchange(),
                                  chunked_ ? "Cache-Control: no-cache\r\n"
                                             "Transfer-Encoding: chunked\r\n"
                                           : "Cache-Control: no-cache\r\n"),
                       false);
    }
  }

  void Write(std::string bytes) override {
    if (const std::shared_ptr<Connection> connection = Live()) {
      connection->Push(
          chunked_ ? fmt::format("{:x}\r\n{}\r\n", bytes.size(), bytes) : std::move(bytes), false);
    }
  }

  void Finish() override {
    if (const std::shared_ptr<Connection> connection = Live()) {
      connection->Push(chunked_ ? "0\r\n\r\n" : "", true);
    }
  }

  int64_t PendingBytes() const override {
    const std::shared_ptr<Connection> connection = Live();
    return connection == nullptr ? 0 : connection->pending_bytes();
  }

  void OnPeerGone(std::function<void()> callback) override {
    if (const std::shared_ptr<Connection> connection = Live()) {
      connection->set_on_gone(std::move(callback));
    }
  }

 private:
  std::shared_ptr<Connection> Live() const {
    std::shared_ptr<Connection> connection = connection_.lock();
    return connection != nullptr && connection->serial() == serial_ ? connection : nullptr;
  }

  std::weak_ptr<Connection> connection_;
  const uint64_t serial_;
  bool chunked_ = false;
};

// The answer to a request that could not be read; nullopt when there is nobody to answer.
std::optional<HttpResponse> HttpListener::Impl::Connection::ReadFailure(const ErrorCode& error) {
  if (error == http::error::body_limit) {
    return ObjectError("request body too large", 413);
  }
  if (error == http::error::header_limit) {
    return ObjectError("request header too large", 431);
  }
  if (error == http::error::end_of_stream || error == http::error::partial_message ||
      error.category() != make_error_code(http::error::bad_method).category()) {
    return std::nullopt;
  }
  return ObjectError(fmt::format("bad HTTP request: {}", error.message()), 400);
}

asio::awaitable<ErrorCode> HttpListener::Impl::Connection::ReadRequest(Parser& parser) {
  ErrorCode error;
  SetDeadline(owner_->options.header_seconds);
  co_await http::async_read_header(socket_, buffer_, parser,
                                   asio::redirect_error(asio::use_awaitable, error));
  if (!error && !parser.is_done()) {
    const auto expect = parser.get().find(http::field::expect);
    if (expect != parser.get().end() && beast::iequals(expect->value(), "100-continue")) {
      const std::string go_on = "HTTP/1.1 100 Continue\r\n\r\n";
      error = co_await WriteAll(go_on);
    }
  }
  while (!error && !parser.is_done()) {
    SetDeadline(owner_->options.stall_seconds);  // Slow is fine, silent is not.
    co_await http::async_read_some(socket_, buffer_, parser,
                                   asio::redirect_error(asio::use_awaitable, error));
  }
  ClearDeadline();
  co_return error;
}

asio::awaitable<ErrorCode> HttpListener::Impl::Connection::WriteAll(const std::string& bytes) {
  ErrorCode error;
  size_t written = 0;
  while (!error && written < bytes.size()) {
    SetDeadline(owner_->options.stall_seconds);
    const auto rest = asio::buffer(bytes.data() + written, bytes.size() - written);
    written +=
        co_await socket_.async_write_some(rest, asio::redirect_error(asio::use_awaitable, error));
  }
  ClearDeadline();
  co_return error;
}

void HttpListener::Impl::Connection::SendNow(const HttpResponse& response) {
  Writer(shared_from_this()).Send(response);
}

void HttpListener::Impl::Connection::Dispatch(Parser& parser) {
  auto& message = parser.get();
  const auto target = SplitTarget(View(message.target()));
  if (!target.has_value()) {
    return SendNow(ObjectError("bad HTTP request: malformed target", 400));
  }
  HttpRequest request{.method = ToMethod(message.method()),
                      .path = target->first,
                      .query = target->second,
                      .authorization = std::string(View(message[http::field::authorization])),
                      .content_type = std::string(View(message[http::field::content_type])),
                      .peer = peer_,
                      .body = std::move(message.body())};
  owner_->handler(std::move(request), std::make_shared<Writer>(shared_from_this()));
}

// True when the connection can carry another request.
asio::awaitable<bool> HttpListener::Impl::Connection::ServeOne() {
  busy_ = true;
  ++owner_->num_busy;
  ++serial_;
  sealed_ = false;
  std::optional<Parser> parser(std::in_place);
  parser->body_limit(static_cast<uint64_t>(owner_->options.body_bytes_max));
  parser->header_limit(owner_->options.header_bytes_max);
  parser->eager(true);
  const ErrorCode error = co_await ReadRequest(*parser);
  bool is_whole = !error;
  if (is_whole) {
    exchange_ = {.keep_alive = parser->get().keep_alive() && owner_->accepting,
                 .http_1_0 = parser->get().version() < 11,
                 .is_head = parser->get().method() == http::verb::head};
    Dispatch(*parser);
    parser.reset();  // The body has moved on; its memory is not held while the request runs.
  } else if (const std::optional<HttpResponse> response = ReadFailure(error)) {
    exchange_ = {};
    SendNow(*response);
    is_whole = true;
  }
  const bool answered = is_whole && co_await WriteAnswer();
  on_gone_ = nullptr;
  outbox_.clear();
  pending_bytes_ = 0;
  sealed_ = true;
  ++serial_;
  busy_ = false;
  --owner_->num_busy;
  co_return answered&& exchange_.keep_alive && owner_->accepting;
}

// Writes the outbox until it is sealed and empty. False when the peer left first.
asio::awaitable<bool> HttpListener::Impl::Connection::WriteAnswer() {
  PostRead();
  while (!(sealed_ && outbox_.empty())) {
    if (outbox_.empty()) {
      if (peer_gone_) {
        break;
      }
      ErrorCode ignored;
      wake_.expires_at(asio::steady_timer::time_point::max());
      co_await wake_.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
      continue;
    }
    const std::string bytes = std::move(outbox_.front());
    outbox_.pop_front();
    const ErrorCode error = co_await WriteAll(bytes);
    pending_bytes_ -= static_cast<int64_t>(bytes.size());
    if (error) {
      peer_gone_ = true;
      break;
    }
  }
  const bool is_complete = sealed_ && outbox_.empty() && !peer_gone_;
  if (peer_gone_ && !(sealed_ && outbox_.empty()) && on_gone_) {
    std::exchange(on_gone_, nullptr)();
  }
  co_return is_complete;
}

// --- The listener ---

namespace {

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

}  // namespace

Status CheckAddressIsFree(const std::string& host, int port) {
  asio::io_context context;
  tcp::acceptor acceptor(context);
  return ListenOn(host, port, acceptor);
}

Status HttpListener::Impl::Bind() {
  RETURN_IF_ERROR(ListenOn(options.host, options.port, acceptor));
  ErrorCode ignored;
  port = acceptor.local_endpoint(ignored).port();
  return OkStatus();
}

asio::awaitable<void> HttpListener::Impl::AcceptLoop(std::shared_ptr<Impl> self) {
  while (self->accepting) {
    ErrorCode error;
    tcp::socket socket =
        co_await self->acceptor.async_accept(asio::redirect_error(asio::use_awaitable, error));
    if (!self->accepting) {
      co_return;
    }
    if (error) {  // Out of files or memory: those in flight will give some back.
      LOG(WARNING, "http accept failed error={}", error.message());
      ErrorCode ignored;
      self->retry_timer.expires_after(std::chrono::milliseconds(50));
      co_await self->retry_timer.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
      continue;
    }
    if (static_cast<int64_t>(self->connections.size()) >= self->options.num_connections_max) {
      continue;  // Closes the socket.
    }
    std::shared_ptr<Connection> connection = std::make_shared<Connection>(std::move(socket), self);
    asio::co_spawn(self->acceptor.get_executor(), Connection::Run(std::move(connection)),
                   asio::detached);
  }
}

namespace {

void RaiseFileLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
    limit.rlim_cur = limit.rlim_max;
    (void)setrlimit(RLIMIT_NOFILE, &limit);
  }
}

}  // namespace

Result<std::unique_ptr<HttpListener>> HttpListener::Open(const ListenOptions& options, IoLoop* loop,
                                                         HttpHandler handler) {
  RaiseFileLimit();
  auto impl = std::make_shared<Impl>(options, loop, std::move(handler));
  RETURN_IF_ERROR(impl->Bind());
  asio::co_spawn(loop->context(), Impl::AcceptLoop(impl), asio::detached);
  return std::unique_ptr<HttpListener>(new HttpListener(std::move(impl)));
}

HttpListener::HttpListener(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
HttpListener::~HttpListener() = default;

int HttpListener::port() const { return impl_->port; }
int64_t HttpListener::num_busy() const { return impl_->num_busy; }

void HttpListener::StopAccepting() {
  impl_->accepting = false;
  ErrorCode ignored;
  (void)impl_->acceptor.close(ignored);
  for (Impl::Connection* connection : impl_->connections) {
    connection->CloseIfIdle();
  }
}

}  // namespace octavo
