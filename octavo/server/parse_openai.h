#pragma once
// The bodies of POST /v1/completions and POST /v1/chat/completions: the same engine requests as
// /generate makes, and how the answer is to look.

#include <cstdint>
#include <ctime>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/server/parse_generate.h"
#include "octavo/server/parse_sampling.h"
#include "octavo/server/server.h"

namespace octavo {

enum class OpenAiKind { kCompletions, kChat };

// What the parser must know about the server; the pointers and views outlive the call.
struct OpenAiContext {
  GenerateContext generate = {};
  const ServerText* text = nullptr;
  const Result<SamplingFields>* chat_defaults = nullptr;  // ReadChatDefaults.
  std::string served_name = {};                           // For requests that name no model.
  int64_t now_unix_s = 0;
  std::tm now = {};  // Local time, for templates that ask.
};

// How the answer of one call is to look.
struct OpenAiAnswer {
  OpenAiKind kind = OpenAiKind::kCompletions;
  std::string id = {};     // Ends the whole call in /abort_request.
  std::string model = {};  // As the request names it; nothing depends on it.
  int64_t created_unix_s = 0;
  int64_t num_samples = 1;  // Choices of each prompt.
  bool logprobs = false;
  int64_t top_logprobs_num = 0;
  bool include_usage = false;           // A stream's last chunk has the usage of all.
  bool continuous_usage_stats = false;  // Each chunk has that of its choice so far.
  bool return_meta_info = false;
  bool return_routed_experts = false;
  std::vector<std::string> echo = {};  // The prompts' texts, to begin the choices with; or none.
};

struct ParsedOpenAi {
  ParsedGenerate call;
  OpenAiAnswer answer;
};

// Unknown keys are ignored, and null equals absent. Errors: kCorrupt for a body that is not JSON, a
// value of the wrong type, or a prompt or messages missing; kInvalidArgument and kUnsupported for
// what is refused. Each message names the field as the client spells it.
Result<ParsedOpenAi> ParseOpenAi(std::string_view body, OpenAiKind kind,
                                 const OpenAiContext& context);

}  // namespace octavo
