#pragma once
// Recorded replies, read back for `octavo replay`: JSON lines of what /generate or the chat
// endpoint answered to requests with return_replay (docs/replay.md).

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"

namespace octavo {

struct ReplayScore {
  std::optional<float> logprob;  // Absent: null, the first scored prompt position.
  int32_t id = 0;
};

// One list of meta_info, such as output_token_logprobs. A position holds one score, or several in
// the top_logprobs and ids_logprobs lists.
struct ReplayScores {
  std::string key;
  std::vector<std::vector<ReplayScore>> positions = {};
};

// What a replay must give again.
struct ReplyContent {
  std::vector<int32_t> output_ids = {};
  std::vector<ReplayScores> scores = {};  // Those that the reply has, inputs first.
  std::string finish_reason = {};         // As JSON; empty: not compared.
};

// A run of output tokens and the weights that made it.
struct ReplaySpan {
  std::string version = {};
  std::string digest = {};  // Empty: not recorded.
  int64_t num_tokens = 0;
};

struct RecordedReply {
  int64_t line = 0;   // In the file, from 1.
  int64_t index = 0;  // In the list or the choices of the line.
  std::string rid;
  std::string request;         // The body of POST /generate for this one sequence.
  std::string recipe;          // Empty: not recorded; so for the next two.
  std::string policy_hash;     // PrecisionTable::Hash.
  std::string kv_cache_dtype;  // "bf16", "fp8_e4m3".
  std::vector<ReplaySpan> weights;
  bool mixed_context = false;     // Sampled over KV of other weights than its own.
  bool depends_on_batch = false;  // Of the recipe.
  bool is_aborted = false;        // Ended by a client or an update; its tokens are a beginning.
  ReplyContent content;

  // "line 3", "line 3 [1]", with the rid when there is one.
  std::string Name() const;
};

// One line: a reply of /generate, a list of them, a reply of the OpenAI endpoints with meta_info in
// its choices, or {"request": ..., "response": one of these}. The request is needed only for a
// reply of a single prompt that has no meta_info.replay.
// Errors: kCorrupt and kInvalidArgument, naming the line and what it lacks.
Result<std::vector<RecordedReply>> ParseReplayLine(std::string_view json, int64_t line);

// Empty lines are passed over. Errors: those of ReadTextFile and ParseReplayLine, and
// kInvalidArgument for a file without a reply.
Result<std::vector<RecordedReply>> ReadReplayFile(const std::string& path);

// What a reply of /generate with return_replay says of itself: content and weights.
Result<RecordedReply> ParseReplayedReply(std::string_view json);

// The tokens [first, first + count) of a reply as a request of its own: the earlier ones become
// part of its prompt, which changes no bit of the later ones. Its content is what the replay must
// give. Errors: kUnsupported for penalties, which count the tokens generated before `first`.
Result<RecordedReply> PartOfReply(const RecordedReply& reply, int64_t first, int64_t count);

}  // namespace octavo
