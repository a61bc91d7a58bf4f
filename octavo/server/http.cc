#include "octavo/server/http.h"

#include <fmt/format.h>

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "octavo/base/status.h"
#include "octavo/server/json_writer.h"

namespace octavo {
namespace {

int HexDigit(char c) {
  if (c >= '0' && c <= '9') {
    return c - '0';
  }
  if (c >= 'a' && c <= 'f') {
    return c - 'a' + 10;
  }
  if (c >= 'A' && c <= 'F') {
    return c - 'A' + 10;
  }
  return -1;
}

// nullopt for a broken escape.
std::optional<std::string> PercentDecode(std::string_view text, bool plus_is_space) {
  std::string decoded;
  decoded.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%') {
      if (i + 2 >= text.size() || HexDigit(text[i + 1]) < 0 || HexDigit(text[i + 2]) < 0) {
        return std::nullopt;
      }
      decoded += static_cast<char>(HexDigit(text[i + 1]) * 16 + HexDigit(text[i + 2]));
      i += 2;
    } else {
      decoded += plus_is_space && text[i] == '+' ? ' ' : text[i];
    }
  }
  return decoded;
}

std::string SuccessFalse(std::string_view message, bool with_paused) {
  JsonWriter json;
  json.BeginObject().Field("success", false).Field("message", message);
  if (with_paused) {
    json.Field("num_paused_requests", 0);
  }
  json.EndObject();
  return json.Take();
}

int NativeStatus(StatusCode code) {
  switch (code) {
    case StatusCode::kNotFound:
      return 404;
    case StatusCode::kUnavailable:
      return 409;
    case StatusCode::kExhausted:
      return 503;
    case StatusCode::kInternal:
      return 500;
    default:
      return 400;
  }
}

}  // namespace

std::optional<std::pair<std::string, std::string>> SplitTarget(std::string_view target) {
  if (const size_t scheme = target.find("://");
      scheme != std::string_view::npos && !target.starts_with('/')) {
    const size_t slash = target.find('/', scheme + 3);
    target = slash == std::string_view::npos ? std::string_view("/") : target.substr(slash);
  }
  if (!target.starts_with('/')) {
    return std::nullopt;
  }
  target = target.substr(0, target.find('#'));
  const size_t mark = target.find('?');
  std::optional<std::string> path = PercentDecode(target.substr(0, mark), false);
  if (!path.has_value()) {
    return std::nullopt;
  }
  const std::string_view query =
      mark == std::string_view::npos ? std::string_view() : target.substr(mark + 1);
  return std::pair(*std::move(path), std::string(query));
}

std::optional<std::string> QueryValue(std::string_view query, std::string_view key) {
  while (!query.empty()) {
    const size_t end = query.find('&');
    const std::string_view pair = query.substr(0, end);
    query = end == std::string_view::npos ? std::string_view() : query.substr(end + 1);
    const size_t equals = pair.find('=');
    const std::optional<std::string> name = PercentDecode(pair.substr(0, equals), true);
    if (name.has_value() && *name == key) {
      return PercentDecode(
          equals == std::string_view::npos ? std::string_view() : pair.substr(equals + 1), true);
    }
  }
  return std::nullopt;
}

std::string SseEvent(std::string_view json) {
  std::string event;
  event.reserve(kSseBegin.size() + json.size() + kSseEnd.size());
  event += kSseBegin;
  event += json;
  event += kSseEnd;
  return event;
}

HttpResponse JsonResponse(std::string json, int status) {
  return {.status = status, .body = std::move(json)};
}

HttpResponse TextResponse(std::string text, int status) {
  return {.status = status, .content_type = "text/plain; charset=utf-8", .body = std::move(text)};
}

HttpResponse EmptyResponse(int status) { return {.status = status, .content_type = {}}; }

HttpResponse ObjectError(std::string_view message, int status) {
  JsonWriter json;
  json.BeginObject().Field("object", "error").Field("message", message);
  json.Field("type", status == 400 ? std::string("Bad Request") : fmt::format("{}", status));
  json.Key("param").Null().Field("code", status).EndObject();
  return JsonResponse(json.Take(), status);
}

HttpResponse PlainError(std::string_view message, int status) {
  JsonWriter json;
  json.BeginObject().Key("error").BeginObject().Field("message", message).EndObject().EndObject();
  return JsonResponse(json.Take(), status);
}

HttpResponse DetailError(std::string_view detail, int status) {
  JsonWriter json;
  json.BeginObject().Field("detail", detail).EndObject();
  return JsonResponse(json.Take(), status);
}

HttpResponse RequestError(const Status& status) {
  switch (status.code()) {
    case StatusCode::kCorrupt:
      return ObjectError(status.message(), 400);
    case StatusCode::kExhausted:
    case StatusCode::kUnavailable:
      return ObjectError(status.message(), 503);
    case StatusCode::kInternal:
      return ObjectError(status.message(), 500);
    default:
      return PlainError(status.message());
  }
}

HttpResponse WeightError(const Status& status, bool with_paused) {
  return JsonResponse(SuccessFalse(status.message(), with_paused), 400);
}

HttpResponse WeightSuccess(std::string_view message) {
  JsonWriter json;
  json.BeginObject().Field("success", true).Field("message", message).EndObject();
  return JsonResponse(json.Take());
}

HttpResponse NativeError(const Status& status) {
  return JsonResponse(SuccessFalse(status.message(), false), NativeStatus(status.code()));
}

}  // namespace octavo
