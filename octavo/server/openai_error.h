#pragma once
// How /v1/completions, /v1/chat/completions, /tokenize and /detokenize refuse.

#include <string_view>

#include "octavo/base/status.h"
#include "octavo/server/http.h"

namespace octavo {

// kCorrupt (a malformed body) is a 400 of type "Bad Request", other bad input one of type
// "BadRequestError", overload a 503, our bug a 500; all in the object form.
HttpResponse OpenAiError(const Status& status);

// kCorrupt unless the media type is application/json; parameters such as charset do not matter.
Status CheckJsonMediaType(std::string_view content_type);

}  // namespace octavo
