#pragma once
// Where the replies of an evaluation come from: a server, or an engine in this process.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/client/http_client.h"
#include "octavo/engine/engine.h"
#include "octavo/text/tokenizer.h"

namespace octavo {

struct TextRequest {
  std::string prompt;
  int64_t max_new_tokens = 512;
  double temperature = 0.0;
  double top_p = 1.0;
  std::vector<std::string> stop;  // The reply ends before the first of these.
};

struct TextReply {
  std::string text;
  int64_t completion_tokens = 0;  // The tokens of a matched stop included.
  std::string finish_type;        // "stop", "length" or "abort".
  std::string weight_version;
};

// Thread-safe: Generate is called from many threads, and blocks until the reply is complete.
class TextGenerator {
 public:
  virtual ~TextGenerator() = default;
  virtual Result<TextReply> Generate(const TextRequest& request) = 0;
};

// POST /generate on a fresh connection each, as SGLang's benchmark does.
std::unique_ptr<TextGenerator> MakeUrlGenerator(const HttpUrl& url, const HttpTimeouts& timeouts);

// The same text for the same request, without HTTP. Both must outlive the generator.
std::unique_ptr<TextGenerator> MakeEngineGenerator(Engine* engine, const Tokenizer* tokenizer);

}  // namespace octavo
