// HTTP over Asio coroutines, parsed by Beast.
//
// While a request is being answered one read stays posted on its connection: it ends with the first
// byte of the next request, or with the peer's leaving, which aborts the work.

#include "octavo/server/http_connection.h"

#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "octavo/base/log.h"
#include "octavo/server/http.h"
#include "octavo/server/http_limits.h"
#include "octavo/server/http_wire.h"

namespace octavo {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using tcp = asio::ip::tcp;
using Clock = std::chrono::steady_clock;
using ErrorCode = boost::system::error_code;
using Parser = http::request_parser<http::string_body>;

constexpr size_t kReadBytes = 4 << 10;  // Small: every idle connection holds one.
// What one write takes along of small pieces that wait behind each other.
constexpr size_t kWriteBytes = 64 << 10;
// A peer that is gone without a word (no FIN, no RST) is noticed after 60 + 4 * 15 seconds.
constexpr int kProbeAfterSeconds = 60;
constexpr int kProbeEverySeconds = 15;
constexpr int kProbes = 4;

Clock::duration ToClock(double seconds) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
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

// Small packets leave at once, and the kernel asks silent peers whether they are there: a request
// may be held for hours while generation is paused.
void SetSocketOptions(tcp::socket& socket) {
  ErrorCode ignored;
  (void)socket.set_option(tcp::no_delay(true), ignored);
  (void)socket.set_option(tcp::socket::keep_alive(true), ignored);
  const auto set = [&](int option, int value) {
    (void)setsockopt(socket.native_handle(), IPPROTO_TCP, option, &value, sizeof(value));
  };
  set(TCP_KEEPIDLE, kProbeAfterSeconds);
  set(TCP_KEEPINTVL, kProbeEverySeconds);
  set(TCP_KEEPCNT, kProbes);
  (void)socket.non_blocking(true, ignored);  // Flush takes what the socket takes now.
}

HttpResponse BadRequest(std::string_view reason) {
  return ObjectError(fmt::format("bad HTTP request: {}", reason), 400);
}

// What the limits and RFC 9112 say about a head that was parsed; nullopt: it is good.
std::optional<HttpResponse> RefuseHead(const Parser& parser, const HttpLimits& limits) {
  const auto& message = parser.get();
  if (std::distance(message.begin(), message.end()) > limits.header_fields_max) {
    return ObjectError(
        fmt::format("request header: expected at most {} fields", limits.header_fields_max), 431);
  }
  // A coding that we do not undo would leave the end of the body to guesses.
  const auto coding = message.find(http::field::transfer_encoding);
  if (coding != message.end() && !beast::iequals(coding->value(), "chunked")) {
    return BadRequest("Transfer-Encoding: expected chunked");
  }
  return std::nullopt;
}

// The answer to a request that could not be read; nullopt when there is nobody to answer.
std::optional<HttpResponse> AnswerTo(const ErrorCode& error, const HttpLimits& limits) {
  if (error == http::error::body_limit) {
    return ObjectError(
        fmt::format("request body: expected at most {} bytes", limits.body_bytes_max), 413);
  }
  if (error == http::error::header_limit || error == http::error::buffer_overflow) {
    return ObjectError(
        fmt::format("request header: expected at most {} bytes", limits.header_bytes_max), 431);
  }
  if (error == http::error::end_of_stream || error == http::error::partial_message ||
      error.category() != make_error_code(http::error::bad_method).category()) {
    return std::nullopt;
  }
  return BadRequest(error.message());
}

class Writer;

// Lives as long as its coroutine or a read that is posted on its socket.
class Connection final : public HttpConnection, public std::enable_shared_from_this<Connection> {
 public:
  Connection(tcp::socket socket, std::shared_ptr<HttpConnections> all)
      : socket_(std::move(socket)),
        wake_(socket_.get_executor()),
        all_(std::move(all)),
        // Heads, chunk heads and trailers are parsed in here, so it bounds them all.
        buffer_(static_cast<size_t>(all_->limits.header_bytes_max) + kWriteBytes) {
    all_->open.insert(this);
  }
  ~Connection() override { all_->open.erase(this); }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  static asio::awaitable<void> Run(std::shared_ptr<Connection> self) {
    SetSocketOptions(self->socket_);
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

  void Expire(Clock::time_point now) override {
    if (now >= due_) {
      ClearDeadline();
      expired_ = true;
      ErrorCode ignored;
      (void)socket_.cancel(ignored);
    }
  }
  void CloseIfIdle() override {
    exchange_.keep_alive = false;
    if (!busy_) {
      Close();
    }
  }
  void Flush() override;

  // --- The writer's side ---

  void Push(std::string bytes, bool is_last) {
    if (sealed_) {
      return;
    }
    pending_bytes_ += static_cast<int64_t>(bytes.size());
    // Small pieces are one write: a head and its body are one packet.
    if (!outbox_.empty() && outbox_.back().size() + bytes.size() <= kWriteBytes) {
      outbox_.back() += bytes;
    } else {
      outbox_.push_back(std::move(bytes));
    }
    sealed_ = is_last;
    if (pending_bytes_ > all_->limits.pending_bytes_max) {
      LOG(WARNING, "http peer takes nothing, given up peer={} pending_bytes={}", peer_,
          pending_bytes_);
      Close();
    }
    ScheduleFlush();
  }
  int64_t pending_bytes() const { return pending_bytes_; }
  const Exchange& exchange() const { return exchange_; }
  void set_on_gone(std::function<void()> callback) { on_gone_ = std::move(callback); }
  uint64_t serial() const { return serial_; }
  void CloseAfterThis() { exchange_.keep_alive = false; }

 private:
  // Why a request was not read whole: an answer, or none when the peer is gone.
  struct Failure {
    std::optional<HttpResponse> answer;
  };

  void Wake() { wake_.cancel(); }
  asio::awaitable<void> Woken() {
    ErrorCode ignored;
    wake_.expires_at(asio::steady_timer::time_point::max());
    co_await wake_.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
  }

  void Close() {
    ErrorCode ignored;
    ClearDeadline();
    (void)socket_.shutdown(tcp::socket::shutdown_both, ignored);
    (void)socket_.close(ignored);
  }

  // From then on Expire ends what waits for the peer.
  void SetDeadline(double seconds) { due_ = Clock::now() + ToClock(seconds); }
  void ClearDeadline() { due_ = Clock::time_point::max(); }

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
    SetDeadline(all_->limits.idle_seconds);
    while (buffer_.size() == 0 && !peer_gone_) {
      co_await Woken();
    }
    ClearDeadline();
    co_return !peer_gone_;
  }

  // True when the connection can carry another request.
  asio::awaitable<bool> ServeOne();
  // nullopt: the request is whole.
  asio::awaitable<std::optional<Failure>> ReadRequest(Parser& parser);
  asio::awaitable<ErrorCode> ReadHead(Parser& parser);
  asio::awaitable<std::optional<Failure>> ReadBody(Parser& parser);
  Failure FailureOf(const ErrorCode& error) const;
  asio::awaitable<ErrorCode> WriteAll(std::string_view bytes);
  void ScheduleFlush();
  asio::awaitable<bool> WriteAnswer();
  asio::awaitable<void> Linger();
  void Dispatch(Parser& parser);
  void SendNow(const HttpResponse& response);

  tcp::socket socket_;
  asio::steady_timer wake_;  // Cancelled to wake the coroutine.
  const std::shared_ptr<HttpConnections> all_;
  std::string peer_;
  beast::flat_buffer buffer_;
  Clock::time_point due_ = Clock::time_point::max();
  bool expired_ = false;
  bool reading_ = false;
  bool peer_gone_ = false;
  bool busy_ = false;  // A request is in flight.

  Exchange exchange_;
  uint64_t serial_ = 0;  // Of the exchange: a late writer of an earlier one is told apart by it.
  // What the socket has not taken; of the first piece, from first_sent_ on.
  std::deque<std::string> outbox_;
  size_t first_sent_ = 0;
  int64_t pending_bytes_ = 0;
  bool flush_due_ = false;    // Flush will be called.
  bool socket_full_ = false;  // Or broken: the coroutine writes until the outbox is empty.
  bool sealed_ = true;        // The answer is complete in the outbox.
  std::function<void()> on_gone_;
};

// The handlers' end. Holds the connection weakly, so that an engine that is slow to finish an
// aborted request keeps no socket open.
class Writer final : public ResponseWriter {
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
        connection->CloseAfterThis();  // HTTP/1.0 has no chunks: the connection's end is the end.
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
      connection->Push(chunked_ ? FormatChunk(std::move(bytes)) : std::move(bytes), false);
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

// --- Reading ---

Connection::Failure Connection::FailureOf(const ErrorCode& error) const {
  if (expired_) {
    return {ObjectError("the request did not come in time", 408)};
  }
  return {AnswerTo(error, all_->limits)};
}

asio::awaitable<ErrorCode> Connection::ReadHead(Parser& parser) {
  ErrorCode error;
  SetDeadline(all_->limits.header_seconds);
  co_await http::async_read_header(socket_, buffer_, parser,
                                   asio::redirect_error(asio::use_awaitable, error));
  ClearDeadline();
  co_return error;
}

asio::awaitable<std::optional<Connection::Failure>> Connection::ReadBody(Parser& parser) {
  const HttpLimits& limits = all_->limits;
  const Clock::time_point start = Clock::now();
  ErrorCode error;
  int64_t received = 0;
  std::optional<Failure> failure;
  parser.eager(true);  // Reading the head has turned it off: many small chunks are one step.
  while (!failure.has_value() && !parser.is_done()) {
    due_ = start +
           ToClock(limits.body_seconds + static_cast<double>(received) /
                                             static_cast<double>(limits.body_bytes_per_second_min));
    const size_t num_bytes = co_await http::async_read_some(
        socket_, buffer_, parser, asio::redirect_error(asio::use_awaitable, error));
    received += static_cast<int64_t>(num_bytes);
    all_->body_bytes += static_cast<int64_t>(num_bytes);
    if (error) {
      failure = FailureOf(error);
    } else if (all_->body_bytes > limits.all_bodies_bytes_max) {
      failure = Failure{ObjectError("too many bytes of request bodies are on their way", 503)};
    }
  }
  all_->body_bytes -= received;
  ClearDeadline();
  co_return failure;
}

asio::awaitable<std::optional<Connection::Failure>> Connection::ReadRequest(Parser& parser) {
  ErrorCode error = co_await ReadHead(parser);
  if (error) {
    co_return FailureOf(error);
  }
  if (std::optional<HttpResponse> refusal = RefuseHead(parser, all_->limits)) {
    co_return Failure{std::move(refusal)};
  }
  if (parser.is_done()) {
    co_return std::nullopt;
  }
  if (beast::iequals(parser.get()[http::field::expect], "100-continue")) {
    error = co_await WriteAll("HTTP/1.1 100 Continue\r\n\r\n");
    if (error) {
      co_return Failure{};
    }
  }
  co_return co_await ReadBody(parser);
}

void Connection::Dispatch(Parser& parser) {
  auto& message = parser.get();
  const auto target = SplitTarget(View(message.target()));
  if (!target.has_value()) {
    return SendNow(BadRequest("malformed target"));
  }
  HttpRequest request{.method = ToMethod(message.method()),
                      .path = target->first,
                      .query = target->second,
                      .authorization = std::string(View(message[http::field::authorization])),
                      .content_type = std::string(View(message[http::field::content_type])),
                      .peer = peer_,
                      .body = std::move(message.body())};
  all_->handler(std::move(request), std::make_shared<Writer>(shared_from_this()));
}

asio::awaitable<bool> Connection::ServeOne() {
  busy_ = true;
  ++all_->num_busy;
  ++serial_;
  sealed_ = false;
  std::optional<Parser> parser(std::in_place);
  parser->body_limit(static_cast<uint64_t>(all_->limits.body_bytes_max));
  parser->header_limit(static_cast<uint32_t>(all_->limits.header_bytes_max));
  const std::optional<Failure> failure = co_await ReadRequest(*parser);
  bool has_answer = true;
  if (!failure.has_value()) {
    exchange_ = {.keep_alive = parser->get().keep_alive() && all_->accepting,
                 .http_1_0 = parser->get().version() < 11,
                 .is_head = parser->get().method() == http::verb::head};
    Dispatch(*parser);
  } else {
    exchange_ = {};
    has_answer = failure->answer.has_value();
    if (has_answer) {
      SendNow(*failure->answer);
    }
  }
  parser.reset();  // The body has moved on; its memory is not held while the request runs.
  const bool answered = has_answer && co_await WriteAnswer();
  if (answered && failure.has_value()) {
    co_await Linger();
  }
  on_gone_ = nullptr;
  outbox_.clear();
  first_sent_ = 0;
  pending_bytes_ = 0;
  socket_full_ = false;
  sealed_ = true;
  ++serial_;
  busy_ = false;
  --all_->num_busy;
  const bool goes_on = answered && exchange_.keep_alive && all_->accepting;
  co_return goes_on;
}

// --- Writing ---

void Connection::SendNow(const HttpResponse& response) {
  Writer(shared_from_this()).Send(response);
}

asio::awaitable<ErrorCode> Connection::WriteAll(std::string_view bytes) {
  ErrorCode error;
  size_t written = 0;
  while (!error && written < bytes.size()) {
    SetDeadline(all_->limits.write_stall_seconds);
    const auto rest = asio::buffer(bytes.data() + written, bytes.size() - written);
    written +=
        co_await socket_.async_write_some(rest, asio::redirect_error(asio::use_awaitable, error));
  }
  ClearDeadline();
  co_return error;
}

void Connection::ScheduleFlush() {
  if (std::exchange(flush_due_, true)) {
    return;
  }
  all_->unflushed.push_back(weak_from_this());
  if (all_->unflushed.size() == 1) {
    asio::post(socket_.get_executor(), [all = all_] {
      for (const auto& weak : std::exchange(all->unflushed, {})) {
        if (const std::shared_ptr<HttpConnection> connection = weak.lock()) {
          connection->Flush();
        }
      }
    });
  }
}

// Straight into the socket: a stream's chunk costs one system call and no turn of the coroutine,
// which is woken at the end of the answer or when the peer is slow.
void Connection::Flush() {
  flush_due_ = false;
  ErrorCode error;
  while (!socket_full_ && !outbox_.empty()) {
    const std::string& first = outbox_.front();
    const size_t sent = socket_.write_some(
        asio::buffer(first.data() + first_sent_, first.size() - first_sent_), error);
    socket_full_ = static_cast<bool>(error);
    first_sent_ += sent;
    pending_bytes_ -= static_cast<int64_t>(sent);
    if (first_sent_ == first.size()) {
      outbox_.pop_front();
      first_sent_ = 0;
    }
  }
  if (sealed_ || socket_full_ || peer_gone_) {
    Wake();
  }
}

// Waits until the outbox is sealed and empty, and writes it when Flush could not. False when the
// peer left first.
asio::awaitable<bool> Connection::WriteAnswer() {
  PostRead();
  while (!(sealed_ && outbox_.empty())) {
    if (outbox_.empty() && peer_gone_) {
      break;
    }
    if (outbox_.empty() || !socket_full_) {
      co_await Woken();
      continue;
    }
    const std::string bytes = std::move(outbox_.front());
    outbox_.pop_front();
    const std::string_view rest = std::string_view(bytes).substr(std::exchange(first_sent_, 0));
    const ErrorCode error = co_await WriteAll(rest);
    pending_bytes_ -= static_cast<int64_t>(rest.size());
    if (error) {
      peer_gone_ = true;
      break;
    }
    socket_full_ = !outbox_.empty();
  }
  const bool is_complete = sealed_ && outbox_.empty() && !peer_gone_;
  if (peer_gone_ && !(sealed_ && outbox_.empty()) && on_gone_) {
    std::exchange(on_gone_, nullptr)();
  }
  co_return is_complete;
}

// Takes what the peer still sends: closing over unread bytes resets the connection, and the answer
// may be lost with it. Source: RFC 9112, section 9.6.
asio::awaitable<void> Connection::Linger() {
  ErrorCode ignored;
  (void)socket_.shutdown(tcp::socket::shutdown_send, ignored);
  SetDeadline(all_->limits.linger_seconds);
  while (!peer_gone_) {
    if (!reading_) {
      buffer_.clear();
    }
    PostRead();
    co_await Woken();
  }
}

}  // namespace

void ServeConnection(TcpSocket socket, std::shared_ptr<HttpConnections> all) {
  const asio::any_io_executor executor = socket.get_executor();
  auto connection = std::make_shared<Connection>(std::move(socket), std::move(all));
  asio::co_spawn(executor, Connection::Run(std::move(connection)), asio::detached);
}

}  // namespace octavo
