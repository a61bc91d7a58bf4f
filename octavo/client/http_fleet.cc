// One coroutine sends, one serves each call; the io_context of RunFleet runs them all.

#include "octavo/client/http_fleet.h"

#include <sys/resource.h>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/connect.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core/error.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http.hpp>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "octavo/base/status.h"
#include "octavo/client/http_client.h"

namespace octavo {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using tcp = asio::ip::tcp;
using Clock = std::chrono::steady_clock;
using boost::system::error_code;

constexpr size_t kReadBytes = size_t{16} << 10;

Clock::duration Seconds(double seconds) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

void RaiseFileLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
    limit.rlim_cur = limit.rlim_max;
    (void)setrlimit(RLIMIT_NOFILE, &limit);
  }
}

class Fleet {
 public:
  Fleet(const HttpUrl& url, std::string_view target, const FleetOptions& options,
        FleetScript& script)
      : url_(url), target_(target), options_(options), script_(script), slot_free_(io_) {}

  Status Run() {
    error_code error;
    tcp::resolver resolver(io_);
    endpoints_ = resolver.resolve(url_.host, url_.port, error);
    if (error) {
      return Unavailable("{}: resolving the host: {}", url_.ToString(), error.message());
    }
    start_ = Clock::now();
    asio::co_spawn(io_, SendAll(), asio::detached);
    io_.run();
    return OkStatus();
  }

 private:
  asio::awaitable<void> SendAll() {
    asio::steady_timer timer(io_);
    error_code ignored;
    for (int64_t i = 0; i < options_.num_calls; ++i) {
      timer.expires_at(start_ + Seconds(script_.SendAfter(i)));
      if (timer.expiry() > Clock::now()) {
        co_await timer.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
      }
      while (options_.in_flight_max > 0 && num_in_flight_ >= options_.in_flight_max) {
        slot_free_.expires_at(Clock::time_point::max());
        co_await slot_free_.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
      }
      ++num_in_flight_;
      asio::co_spawn(io_, Serve(i), asio::detached);
    }
  }

  asio::awaitable<void> Serve(int64_t call_idx) {
    const Status status = co_await Exchange(call_idx);
    script_.OnEnd(call_idx, status);
    --num_in_flight_;
    slot_free_.cancel();
  }

  asio::awaitable<Status> Exchange(int64_t call_idx) {
    const std::string body = script_.Body(call_idx);
    beast::tcp_stream stream(io_);
    script_.OnSend(call_idx);
    error_code error;
    stream.expires_after(Seconds(options_.timeouts.connect_s));
    (void)co_await stream.async_connect(endpoints_,
                                        asio::redirect_error(asio::use_awaitable, error));
    if (error) {
      co_return Failure("connecting", error);
    }
    error_code ignored;
    (void)stream.socket().set_option(tcp::no_delay(true), ignored);
    http::request<http::span_body<const char>> request = Request(body);
    stream.expires_after(Seconds(options_.timeouts.idle_s));
    co_await http::async_write(stream, request, asio::redirect_error(asio::use_awaitable, error));
    if (error) {
      co_return Failure("sending the request", error);
    }
    co_return co_await Receive(stream, call_idx, body);
  }

  http::request<http::span_body<const char>> Request(std::string_view body) const {
    http::request<http::span_body<const char>> request;
    request.version(11);
    request.method(http::verb::post);
    request.target(url_.prefix + target_);
    request.set(http::field::host, url_.host + ":" + url_.port);
    request.set(http::field::user_agent, "octavo");
    if (!url_.api_key.empty()) {
      request.set(http::field::authorization, "Bearer " + url_.api_key);
    }
    request.set(http::field::content_type, "application/json");
    request.body() = {body.data(), body.size()};
    request.content_length(body.size());
    return request;
  }

  asio::awaitable<Status> Receive(beast::tcp_stream& stream, int64_t call_idx,
                                  std::string_view body) {
    http::response_parser<http::string_body> parser;
    parser.body_limit(boost::none);
    beast::flat_buffer buffer;
    buffer.reserve(kReadBytes);
    while (!parser.is_done()) {
      error_code error;
      stream.expires_after(Seconds(options_.timeouts.idle_s));
      co_await http::async_read_some(stream, buffer, parser,
                                     asio::redirect_error(asio::use_awaitable, error));
      if (error) {
        co_return Failure("waiting for the reply", error);
      }
      std::string& piece = parser.get().body();
      if (parser.is_header_done() && parser.get().result_int() == 200 && !piece.empty()) {
        script_.OnPiece(call_idx, piece);
        piece.clear();
      }
    }
    if (const int status = static_cast<int>(parser.get().result_int()); status != 200) {
      const HttpCall call = {.method = "POST",
                             .target = target_,
                             .content_type = "application/json",
                             .body = std::as_bytes(std::span(body))};
      co_return StatusOfReply(url_, call, {status, std::move(parser.get().body())});
    }
    co_return OkStatus();
  }

  Status Failure(std::string_view doing, const error_code& error) const {
    return Unavailable("POST {}{}: {} while {}", url_.ToString(), target_,
                       error == beast::error::timeout ? "timed out" : error.message(), doing);
  }

  const HttpUrl& url_;
  const std::string target_;
  const FleetOptions& options_;
  FleetScript& script_;
  asio::io_context io_{1};
  asio::steady_timer slot_free_;  // Cancelled to wake the sender.
  tcp::resolver::results_type endpoints_;
  Clock::time_point start_;
  int64_t num_in_flight_ = 0;
};

}  // namespace

Status RunFleet(const HttpUrl& url, std::string_view target, const FleetOptions& options,
                FleetScript& script) {
  RaiseFileLimit();
  Fleet fleet(url, target, options, script);
  return fleet.Run();
}

}  // namespace octavo
