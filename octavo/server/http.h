#pragma once
// HTTP as the handlers see it: a request, a response, and the way a response leaves. No socket and
// no library type is in sight, so every handler runs in a test without either.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/status.h"

namespace octavo {

enum class HttpMethod : uint8_t { kGet, kPost, kPut, kOther };

struct HttpRequest {
  HttpMethod method = HttpMethod::kGet;
  std::string path = {};   // Percent-decoded, without the query.
  std::string query = {};  // As sent, without '?'.
  std::string authorization = {};
  std::string content_type = {};
  std::string peer = {};  // "ADDRESS:PORT".
  std::string body = {};
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::string body = {};
  std::string allow = {};         // The Allow header of a 405; empty otherwise.
  std::string more_headers = {};  // Whole lines, each "Name: value\r\n".
};

// The way out of one exchange. One thread: the io thread. Either Send once, or StartStream, any
// number of Write and Finish. After the peer has gone every call is a no-op.
class ResponseWriter {
 public:
  virtual ~ResponseWriter() = default;
  virtual void Send(HttpResponse response) = 0;
  // 200, text/event-stream.
  virtual void StartStream() = 0;
  virtual void Write(std::string bytes) = 0;
  virtual void Finish() = 0;
  // Bytes written here that the socket has not taken yet.
  virtual int64_t PendingBytes() const = 0;
  // `callback` runs at most once, when the peer leaves before the answer is complete.
  virtual void OnPeerGone(std::function<void()> callback) = 0;
};
using WriterPtr = std::shared_ptr<ResponseWriter>;

using HttpHandler = std::function<void(HttpRequest request, const WriterPtr& writer)>;

// "/a%20b?x=1" or "http://host/a%20b?x=1" -> {"/a b", "x=1"}; nullopt when malformed.
std::optional<std::pair<std::string, std::string>> SplitTarget(std::string_view target);

// First value of `key` in a query string, percent-decoded ('+' is a space); nullopt when absent.
std::optional<std::string> QueryValue(std::string_view query, std::string_view key);

// "data: JSON\n\n".
inline constexpr std::string_view kSseBegin = "data: ";
inline constexpr std::string_view kSseEnd = "\n\n";
std::string SseEvent(std::string_view json);

// --- Responses -----------------------------------------------------------------------------------

HttpResponse JsonResponse(std::string json, int status = 200);
HttpResponse TextResponse(std::string text, int status = 200);
// No body at all.
HttpResponse EmptyResponse(int status = 200);

// {"object":"error","message":S,"type":TYPE,"param":null,"code":CODE}; type is "Bad Request" for
// 400 and the status in digits otherwise.
HttpResponse ObjectError(std::string_view message, int status);
// {"error":{"message":S}}
HttpResponse PlainError(std::string_view message, int status = 400);
// {"detail":S}
HttpResponse DetailError(std::string_view detail, int status);

// How /generate and the control endpoints answer an error: kCorrupt (a malformed body) is a 400 in
// the object form, other bad input a 400 {"error":{"message"}}, overload a 503, our bug a 500.
HttpResponse RequestError(const Status& status);
// How the weight endpoints answer an update that failed, whatever its code: 400
// {"success":false,"message":S}, plus "num_paused_requests":0 when `with_paused`.
HttpResponse WeightError(const Status& status, bool with_paused);
// {"success": true, "message"}: of a weight call, ours or SGLang's, that has nothing more to say.
HttpResponse WeightSuccess(std::string_view message);
// The native calls under /octavo/v1: {"success":false,"message":S} with 400, 404 for kNotFound, 409
// for kUnavailable, 503 for kExhausted, 500 for kInternal.
HttpResponse NativeError(const Status& status);

}  // namespace octavo
