#pragma once
// meta_info.replay: everything that makes a reply's tokens and logprobs again, bit for bit
// (docs/replay.md).
//
//   request          a complete body of POST /generate: prompt ids, every sampling parameter as it
//                    was in effect, the seed that was used, which logprobs were asked for
//   recipe           what was computed (RecipeId), and what it follows from: weight_format,
//                    policy_hash, kv_cache_dtype
//   weights          [{version, digest, tokens}]: whose tokens they are, in order
//   mixed_context    a token was sampled over KV of other weights than its own
//   depends_on_batch the recipe lets other requests of a step change this one's numbers

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "octavo/engine/request.h"
#include "octavo/server/json_writer.h"
#include "octavo/server/parse_generate.h"
#include "octavo/sync/serving.h"

namespace octavo {

// What all replies of one server have in common; const is thread-safe.
struct ReplayServer {
  std::string recipe;
  std::string weight_format;
  std::string policy_hash;
  std::string kv_cache_dtype;  // "bf16" or "fp8_e4m3".
  bool depends_on_batch = false;
};
ReplayServer MakeReplayServer(const Serving& serving);

// One sequence as it was asked for.
struct ReplayRequest {
  std::shared_ptr<const ReplayServer> server;
  std::vector<int32_t> input_ids;
  SamplingParams sampling;
  std::vector<std::string> stop;
  bool skip_special_tokens = true;
  bool no_stop_trim = false;
  bool return_logprob = false;
  int64_t logprob_start_len = -1;
  int64_t top_logprobs_num = 0;
  std::vector<int32_t> token_ids_logprob;
};
ReplayRequest MakeReplayRequest(const GenerateItem& item,
                                std::shared_ptr<const ReplayServer> server);

// Appends the object as one value. `last` is the last snapshot; of its lists only `versions` is
// read.
void WriteReplayRecord(const ReplayRequest& request, const RequestOutput& last, JsonWriter& json);

}  // namespace octavo
