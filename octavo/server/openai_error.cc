#include "octavo/server/openai_error.h"

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>

#include "octavo/base/status.h"
#include "octavo/server/http.h"
#include "octavo/server/json_writer.h"

namespace octavo {

HttpResponse OpenAiError(const Status& status) {
  switch (status.code()) {
    case StatusCode::kCorrupt:
    case StatusCode::kExhausted:
    case StatusCode::kUnavailable:
    case StatusCode::kInternal:
      return RequestError(status);
    default:
      break;
  }
  JsonWriter json;
  json.BeginObject().Field("object", "error").Field("message", status.message());
  json.Field("type", "BadRequestError").Key("param").Null().Field("code", 400).EndObject();
  return JsonResponse(json.Take(), 400);
}

Status CheckJsonMediaType(std::string_view content_type) {
  std::string type(content_type.substr(0, content_type.find(';')));
  std::ranges::transform(type, type.begin(), [](char c) {
    return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  });
  const size_t last = type.find_last_not_of(" \t");
  type.resize(last == std::string::npos ? 0 : last + 1);
  if (type != "application/json") {
    return Corrupt("Content-Type: expected application/json, got \"{}\"",
                   content_type.substr(0, 128));
  }
  return OkStatus();
}

}  // namespace octavo
