#pragma once
// What the serving benchmark sends: lengths, prompts and sending times, drawn as SGLang's
// bench_serving.py draws them in its random-ids mode, so that one seed means one traffic.

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/text/tokenizer.h"

namespace octavo {

// Which endpoint is asked, and in whose words.
enum class BenchBackend {
  kNative,       // POST /generate
  kCompletions,  // POST /v1/completions
  kChat,         // POST /v1/chat/completions
};

struct PlanOptions {
  int64_t num_prompts = 1000;
  int64_t input_len = 1024;   // Tokens, at most.
  int64_t output_len = 1024;  // Tokens, at most.
  double range_ratio = 0.0;   // Lengths are uniform in [max(floor(len * ratio), 1), len].
  // Requests a second on average, with exponential gaps; infinite: all at once.
  double request_rate = std::numeric_limits<double>::infinity();
  uint32_t seed = 1;
  int64_t num_special_tokens =
      0;                   // What the server puts around a text; input lengths shrink by it.
  int64_t vocab_size = 0;  // Ids are below this.
};

struct PlannedRequest {
  int64_t input_len = 0;
  int64_t output_len = 0;
  int64_t offset = 0;         // Of the first id.
  double send_after_s = 0.0;  // From the start of the run.
  // To the next request. The run waits for that of the last one too: so does the original, and its
  // throughputs are over that time.
  double gap_s = 0.0;
};

// The draws come in this order: all input lengths, all output lengths, all offsets, the gaps.
std::vector<PlannedRequest> PlanRequests(const PlanOptions& options);

// Id j of request i is (offset + i + j) mod vocab_size.
std::vector<int32_t> PromptIds(const PlannedRequest& request, int64_t request_idx,
                               int64_t vocab_size);

struct BenchPrompt {
  std::vector<int32_t> ids;
  // Absent: the ids are sent. Otherwise their text.
  const Tokenizer* tokenizer = nullptr;
};

// The body of a streamed request that runs to exactly `output_len` tokens. A chat prompt is always
// text. `model` is the served name, which the OpenAI endpoints are told.
std::string BenchBody(BenchBackend backend, const BenchPrompt& prompt, int64_t output_len,
                      const std::string& model);

}  // namespace octavo
