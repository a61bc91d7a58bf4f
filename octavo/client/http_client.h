#pragma once
// A small HTTP/1.1 client: one keep-alive connection, calls that block until the reply or a
// timeout, and one clear error for whatever went wrong. No TLS.

#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "octavo/base/status.h"

namespace octavo {

// http://HOST[:PORT][/PREFIX]; the prefix is put before every target.
struct HttpUrl {
  std::string host;  // Without the brackets of an IPv6 literal.
  std::string port = "80";
  std::string prefix;  // "" or "/a/b"; never ends in '/'.
  // Sent with every call as "Authorization: Bearer KEY"; empty: none is. IsApiKey.
  std::string api_key = {};

  // "http://HOST:PORT/PREFIX", without the key: what error messages call the server.
  std::string ToString() const;
};

// Errors: kInvalidArgument (no http://, no host, a port that is none), kUnsupported (https).
Result<HttpUrl> ParseHttpUrl(std::string_view text);

// Whether `text` can stand in a header: printable ASCII without spaces.
bool IsApiKey(std::string_view text);

struct HttpTimeouts {
  double connect_s = 10.0;
  // Longest wait without one byte of progress. A server that computes sends nothing meanwhile, so
  // this bounds a request's own duration: raise it for outputs that take longer.
  double idle_s = 600.0;
  // A call that breaks is made again, with pauses that grow, for this long after it broke first:
  // when the connection fails (but not the first one of all, when nobody listens there), the reply
  // is not HTTP, or the server says that the request came too slowly (408) or damaged (422). 0:
  // nothing is sent twice. Only for calls that do no more when they are made twice.
  double retry_s = 0.0;
};

struct HttpCall {
  std::string_view method = "GET";
  std::string_view target = "/";         // Path and query, as sent.
  std::string_view content_type = "";    // Not sent when empty.
  std::span<const std::byte> body = {};  // Must live until the call returns.
};

struct HttpReply {
  int status = 0;
  std::string body;
};

// One thread at a time. Move-only.
class HttpClient {
 public:
  explicit HttpClient(HttpUrl url, const HttpTimeouts& timeouts = {});
  HttpClient(HttpClient&&) noexcept;
  HttpClient& operator=(HttpClient&&) noexcept;
  ~HttpClient();

  const HttpUrl& url() const;

  // Any complete reply is a value, whatever its status. A kept connection that was idle for more
  // than 2 s is replaced first, so that a server's idle timeout is never raced; nothing is sent
  // twice unless HttpTimeouts::retry_s says so.
  // Errors: kUnavailable (refused, reset, closed early, timed out, unknown host), kCorrupt (not
  // HTTP). The message names method, server and target.
  Result<HttpReply> Call(const HttpCall& call);

  // From now on a call that breaks is made again for at most this long.
  void LimitRetries(double retry_s);

  // Closes the connection; the next call opens another.
  void Close();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// GET and POST of JSON text that expect 200; the body of the reply.
// Errors: those of Call, and for another status kInvalidArgument (4xx), kNotFound (404),
// kUnavailable (409, 503) or kInternal, with the message that the server gave.
Result<std::string> GetText(HttpClient& client, std::string_view target);
Result<std::string> PostJson(HttpClient& client, std::string_view target, std::string_view json);

// The error for a reply that is not 200: names the call, the status and the server's own message
// (the "message" of any of the error bodies that SGLang's dialect has, else the body's start).
Status StatusOfReply(const HttpUrl& url, const HttpCall& call, const HttpReply& reply);

}  // namespace octavo
