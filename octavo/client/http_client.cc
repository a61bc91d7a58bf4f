#include "octavo/client/http_client.h"

#include <algorithm>
#include <boost/asio/connect.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core/error.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http.hpp>
#include <charconv>
#include <chrono>
#include <nlohmann/json.hpp>
#include <thread>
#include <utility>

namespace octavo {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using tcp = asio::ip::tcp;
using Clock = std::chrono::steady_clock;
using boost::system::error_code;

// A kept connection is reused only this soon after its last reply: servers of the dialect close
// idle ones after 5 s at the earliest.
constexpr auto kReuseWithin = std::chrono::seconds(2);

constexpr size_t kReadBytes = size_t{64} << 10;

// Between two attempts; each is twice as long as the one before.
constexpr double kFirstPauseSeconds = 0.05;
constexpr double kLongestPauseSeconds = 2.0;

Clock::duration Seconds(double seconds) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

// Where a call was when it failed, for its message.
Status TransportError(const HttpUrl& url, const HttpCall& call, std::string_view doing,
                      double timeout_s, const error_code& error) {
  if (error == beast::error::timeout) {
    return Unavailable("{} {}{}: timed out while {} (nothing for {} s)", call.method,
                       url.ToString(), call.target, doing, timeout_s);
  }
  if (error == http::error::end_of_stream || error == http::error::partial_message ||
      error == asio::error::eof) {
    return Unavailable("{} {}{}: the server closed the connection while {}", call.method,
                       url.ToString(), call.target, doing);
  }
  if (error.category() == http::make_error_code(http::error::bad_version).category()) {
    return Corrupt("{} {}{}: the reply is not HTTP ({})", call.method, url.ToString(), call.target,
                   error.message());
  }
  return Unavailable("{} {}{}: {} while {}", call.method, url.ToString(), call.target,
                     error.message(), doing);
}

}  // namespace

std::string HttpUrl::ToString() const {
  const bool is_v6 = host.find(':') != std::string::npos;
  return fmt::format("http://{}{}{}:{}{}", is_v6 ? "[" : "", host, is_v6 ? "]" : "", port, prefix);
}

Result<HttpUrl> ParseHttpUrl(std::string_view text) {
  constexpr std::string_view kScheme = "http://";
  if (text.starts_with("https://")) {
    return Unsupported("url '{}': https is not built; use http://", text);
  }
  if (!text.starts_with(kScheme)) {
    return InvalidArgument("url '{}': expected http://HOST[:PORT]", text);
  }
  std::string_view rest = text.substr(kScheme.size());
  HttpUrl url;
  if (const size_t slash = rest.find('/'); slash != std::string_view::npos) {
    url.prefix = rest.substr(slash);
    while (url.prefix.ends_with('/')) {
      url.prefix.pop_back();
    }
    rest = rest.substr(0, slash);
  }
  std::string_view port;
  bool has_port = false;
  if (rest.starts_with('[')) {
    const size_t close = rest.find(']');
    if (close == std::string_view::npos) {
      return InvalidArgument("url '{}': '[' without ']'", text);
    }
    url.host = rest.substr(1, close - 1);
    rest = rest.substr(close + 1);
    has_port = rest.starts_with(':');
    if (!rest.empty() && !has_port) {
      return InvalidArgument("url '{}': expected ':PORT' after ']', got '{}'", text, rest);
    }
    port = has_port ? rest.substr(1) : "";
  } else {
    const size_t colon = rest.find(':');
    has_port = colon != std::string_view::npos;
    url.host = rest.substr(0, colon);
    port = has_port ? rest.substr(colon + 1) : "";
  }
  if (url.host.empty()) {
    return InvalidArgument("url '{}': no host", text);
  }
  if (has_port) {
    int number = 0;
    const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), number);
    if (error != std::errc() || end != port.data() + port.size() || number < 1 || number > 65535) {
      return InvalidArgument("url '{}': expected a port in 1..65535, got '{}'", text, port);
    }
    url.port = std::to_string(number);
  }
  return url;
}

bool IsApiKey(std::string_view text) {
  return std::ranges::all_of(text, [](char c) { return c > ' ' && c <= '~'; });
}

struct HttpClient::Impl {
  Impl(HttpUrl server, const HttpTimeouts& limits)
      : url(std::move(server)), timeouts(limits), stream(io) {}

  HttpUrl url;
  HttpTimeouts timeouts;
  asio::io_context io{1};
  beast::tcp_stream stream;
  beast::flat_buffer buffer;
  bool is_open = false;
  bool has_connected = false;  // Once.
  Clock::time_point last_use;

  // Runs one asynchronous operation to its end under `limit_s`; only those obey a timeout.
  template <typename StartFn>
  error_code Await(double limit_s, StartFn start) {
    error_code outcome;
    stream.expires_after(Seconds(limit_s));
    start([&outcome](const error_code& error, auto&&...) { outcome = error; });
    io.restart();
    io.run();
    stream.expires_never();
    return outcome;
  }

  void Close() {
    error_code ignored;
    stream.socket().shutdown(tcp::socket::shutdown_both, ignored);
    stream.socket().close(ignored);
    buffer.clear();
    is_open = false;
  }

  Status Connect(const HttpCall& call) {
    if (is_open && Clock::now() - last_use < kReuseWithin) {
      return OkStatus();
    }
    Close();
    error_code error;
    tcp::resolver resolver(io);
    const auto endpoints = resolver.resolve(url.host, url.port, error);
    if (error) {
      return TransportError(url, call, "resolving the host", timeouts.connect_s, error);
    }
    error = Await(timeouts.connect_s,
                  [&](auto handler) { stream.async_connect(endpoints, std::move(handler)); });
    if (error) {
      Close();
      return TransportError(url, call, "connecting", timeouts.connect_s, error);
    }
    stream.socket().set_option(tcp::no_delay(true), error);
    is_open = true;
    has_connected = true;
    return OkStatus();
  }

  Status Send(const HttpCall& call) {
    http::request<http::span_body<const char>> request;
    request.version(11);
    request.method_string(std::string(call.method));
    request.target(url.prefix + std::string(call.target));
    request.set(http::field::host, url.host + ":" + url.port);
    request.set(http::field::user_agent, "octavo");
    if (!url.api_key.empty()) {
      request.set(http::field::authorization, "Bearer " + url.api_key);
    }
    if (!call.content_type.empty()) {
      request.set(http::field::content_type, std::string(call.content_type));
    }
    request.body() = {reinterpret_cast<const char*>(call.body.data()), call.body.size()};
    if (call.method != "GET" || !call.body.empty()) {
      request.content_length(call.body.size());
    }
    http::request_serializer<http::span_body<const char>> serializer(request);
    while (!serializer.is_done()) {
      const error_code error = Await(timeouts.idle_s, [&](auto handler) {
        http::async_write_some(stream, serializer, std::move(handler));
      });
      if (error) {
        return TransportError(url, call, "sending the request", timeouts.idle_s, error);
      }
    }
    return OkStatus();
  }

  Result<HttpReply> Receive(const HttpCall& call) {
    http::response_parser<http::string_body> parser;
    parser.body_limit(boost::none);
    while (!parser.is_done()) {
      buffer.reserve(kReadBytes);
      const error_code error = Await(timeouts.idle_s, [&](auto handler) {
        http::async_read_some(stream, buffer, parser, std::move(handler));
      });
      if (error) {
        Close();
        return TransportError(url, call, "waiting for the reply", timeouts.idle_s, error);
      }
    }
    if (!parser.get().keep_alive()) {
      Close();
    }
    last_use = Clock::now();
    return HttpReply{static_cast<int>(parser.get().result_int()), std::move(parser.get().body())};
  }

  // Whether the same call may have another end.
  bool IsBroken(const Result<HttpReply>& reply) const {
    if (reply.has_value()) {
      return reply->status == 408 || reply->status == 422;
    }
    return reply.error().code() == StatusCode::kCorrupt || has_connected;
  }

  Result<HttpReply> ExchangeUntil(const HttpCall& call) {
    Result<HttpReply> reply = Exchange(call);
    if (timeouts.retry_s <= 0.0) {
      return reply;
    }
    const Clock::time_point deadline = Clock::now() + Seconds(timeouts.retry_s);
    double pause_s = kFirstPauseSeconds;
    while (IsBroken(reply) && Clock::now() + Seconds(pause_s) < deadline) {
      std::this_thread::sleep_for(Seconds(pause_s));
      pause_s = std::min(2.0 * pause_s, kLongestPauseSeconds);
      Close();
      reply = Exchange(call);
    }
    return reply;
  }

  Result<HttpReply> Exchange(const HttpCall& call) {
    RETURN_IF_ERROR(Connect(call));
    const Status sent = Send(call);
    if (sent.ok()) {
      return Receive(call);
    }
    // A server that refuses a body answers before it has read all of it, then closes: its answer
    // says more than the broken pipe.
    Result<HttpReply> refusal = Receive(call);
    Close();
    return refusal.has_value() ? std::move(refusal) : Result<HttpReply>(sent);
  }
};

HttpClient::HttpClient(HttpUrl url, const HttpTimeouts& timeouts)
    : impl_(std::make_unique<Impl>(std::move(url), timeouts)) {}
HttpClient::HttpClient(HttpClient&&) noexcept = default;
HttpClient& HttpClient::operator=(HttpClient&&) noexcept = default;
HttpClient::~HttpClient() = default;

const HttpUrl& HttpClient::url() const { return impl_->url; }

Result<HttpReply> HttpClient::Call(const HttpCall& call) { return impl_->ExchangeUntil(call); }

void HttpClient::LimitRetries(double retry_s) {
  impl_->timeouts.retry_s = std::min(impl_->timeouts.retry_s, retry_s);
}

void HttpClient::Close() { impl_->Close(); }

namespace {

// The message of {"error":{"message":S}}, {"error":S}, {"message":S} or {"detail":S}; else the
// start of the body.
std::string ServerMessage(const std::string& body) {
  constexpr size_t kShown = 300;
  const auto json = nlohmann::json::parse(body, nullptr, /*allow_exceptions=*/false);
  if (json.is_object()) {
    const nlohmann::json* scope = &json;
    if (const auto error = json.find("error"); error != json.end()) {
      if (error->is_string()) {
        return error->get<std::string>();
      }
      scope = error->is_object() ? &*error : scope;
    }
    for (const char* key : {"message", "detail"}) {
      if (const auto text = scope->find(key); text != scope->end() && text->is_string()) {
        return text->get<std::string>();
      }
    }
  }
  return body.size() <= kShown ? body : body.substr(0, kShown) + "...";
}

StatusCode CodeOfHttp(int status) {
  switch (status) {
    case 404:
      return StatusCode::kNotFound;
    case 409:  // Another update is open.
    case 503:
      return StatusCode::kUnavailable;
    default:
      return status >= 400 && status < 500 ? StatusCode::kInvalidArgument : StatusCode::kInternal;
  }
}

Result<std::string> CallForText(HttpClient& client, const HttpCall& call) {
  ASSIGN_OR_RETURN(HttpReply reply, client.Call(call));
  if (reply.status != 200) {
    return StatusOfReply(client.url(), call, reply);
  }
  return std::move(reply.body);
}

}  // namespace

Status StatusOfReply(const HttpUrl& url, const HttpCall& call, const HttpReply& reply) {
  return {CodeOfHttp(reply.status),
          fmt::format("{} {}{}: status {}: {}", call.method, url.ToString(), call.target,
                      reply.status, ServerMessage(reply.body))};
}

Result<std::string> GetText(HttpClient& client, std::string_view target) {
  return CallForText(client, {.method = "GET", .target = target});
}

Result<std::string> PostJson(HttpClient& client, std::string_view target, std::string_view json) {
  return CallForText(client, {.method = "POST",
                              .target = target,
                              .content_type = "application/json",
                              .body = std::as_bytes(std::span(json))});
}

}  // namespace octavo
