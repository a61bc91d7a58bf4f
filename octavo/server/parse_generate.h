#pragma once
// The body of POST /generate, checked and spread out: one engine request a sequence.

#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/engine/request.h"
#include "octavo/text/tokenizer.h"

namespace octavo {

// Makes request ids: 32 hexadecimal digits, never the same twice. Thread-safe.
class RidSource {
 public:
  explicit RidSource(uint64_t seed) : seed_(seed) {}
  std::string Next();

 private:
  const uint64_t seed_;
  std::atomic<uint64_t> count_{0};
};

// What the parser must know about the server; the pointers outlive the call.
struct GenerateContext {
  const Tokenizer* tokenizer = nullptr;  // Null: prompts come as input_ids only.
  RidSource* rids = nullptr;
  int64_t vocab_size = 0;
  int64_t context_length = 0;     // Tokens of prompt and output together.
  int64_t pool_tokens = 0;        // Of the KV pool, which bounds them too; 0: not known.
  int64_t max_text_bytes = 0;     // No longer text can fit the context; 0: not checked.
  int64_t stream_interval = 1;    // For requests that name none.
  bool auto_truncate = false;     // Cut prompt or budget to the context instead of refusing.
  int64_t max_sequences = 65536;  // Of one call: prompts times n.
};

// One sequence of the call. `request` lacks only its stop matcher and its sink.
struct GenerateItem {
  Request request;
  std::vector<std::string> stop = {};
  bool skip_special_tokens = true;
  bool no_stop_trim = false;
};

struct ParsedGenerate {
  std::vector<GenerateItem> items = {};  // Prompt-major: p0s0, p0s1, p1s0, ...
  bool is_list = false;                  // A batch or n > 1: the answer is an array.
  bool stream = false;
  bool return_prompt_token_ids = false;
  bool return_text_in_logprobs = false;
  bool return_replay = false;
  bool shows_meta = true;  // The answer has meta_info, and in it the logprobs asked for.
  std::string batch_rid =
      {};  // The one rid of a batch, whose items are batch_rid_0, batch_rid_1, ...
};

// Errors: kCorrupt for a body that is not JSON or a value of the wrong type; kInvalidArgument and
// kUnsupported for what is refused. Each message names the field. Lengths against the KV pool are
// the engine's check (Engine::Validate).
Result<ParsedGenerate> ParseGenerate(std::string_view body, const GenerateContext& context);

}  // namespace octavo
