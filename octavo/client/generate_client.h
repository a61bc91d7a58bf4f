#pragma once
// POST /generate and the calls around it, in SGLang's dialect: plain structs in and out.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/function_ref.h"
#include "octavo/base/status.h"
#include "octavo/client/http_client.h"

namespace octavo {

// One sequence. The body that is sent names every sampling parameter, so that a server's own
// defaults never take part.
struct GenerateCall {
  std::string text;                // The prompt: this or input_ids, not both.
  std::vector<int32_t> input_ids;  // Sent when not empty.
  std::string rid;                 // Drawn by the server when empty.
  int64_t max_new_tokens = 128;
  int64_t min_new_tokens = 0;
  double temperature = 1.0;
  double top_p = 1.0;
  int64_t top_k = -1;
  double min_p = 0.0;
  bool ignore_eos = false;
  bool skip_special_tokens = true;
  bool no_stop_trim = false;
  std::vector<std::string> stop;
  std::optional<int64_t> seed;  // Sent as sampling_seed.
  bool return_logprob = false;
  int64_t logprob_start_len = -1;  // -1: output only.
};

struct ReplyLogprob {
  std::optional<double> logprob;  // Absent for the first scored prompt position.
  int32_t id = 0;
};

struct ReplyVersionSpan {
  std::string version;
  int64_t num_tokens = 0;
};

struct GenerateReply {
  std::string text;
  std::vector<int32_t> output_ids;
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;
  int64_t cached_tokens = 0;
  int64_t num_retractions = 0;
  std::string finish_type;     // "stop", "length", "abort"; empty in an unfinished chunk.
  std::string finish_message;  // Of an abort.
  std::string weight_version;
  std::vector<ReplyVersionSpan> weight_versions;  // Empty where the server does not send them.
  std::vector<ReplyLogprob> output_logprobs;      // If return_logprob.
  std::vector<ReplyLogprob> input_logprobs;
};

// The body of POST /generate; for tests and for reports.
std::string GenerateBody(const GenerateCall& call);

// Reads one object of /generate. Errors: kCorrupt naming the key.
Result<GenerateReply> ParseGenerateReply(std::string_view json);

// Errors: those of PostJson, and kCorrupt for a reply that is not one of /generate.
Result<GenerateReply> Generate(HttpClient& client, const GenerateCall& call);

struct ModelInfo {
  std::string model_path;
  std::string weight_version;
  std::string recipe;  // Of Octavo; empty for servers that do not send it.
  bool is_emulated = false;
  bool has_tokenizer = true;  // False where tokenizer_path is null: replies are ids without text.
};
// GET /get_model_info, the name that every server of the dialect answers.
Result<ModelInfo> GetModelInfo(HttpClient& client);
// vocab_size of GET /get_server_info, when it is there: Octavo sends it, SGLang does not.
Result<std::optional<int64_t>> GetVocabSize(HttpClient& client);

// Requests in flight, summed over the ranks of GET /v1/loads.
struct ServerLoad {
  int64_t num_running = 0;
  int64_t num_waiting = 0;
};
Result<ServerLoad> GetLoad(HttpClient& client);

// Splits a byte stream into the data of server-sent events. One thread.
class SseSplitter {
 public:
  // Calls `on_data` with the payload of each "data:" line that `piece` completes, in order; stops
  // and returns false once it returns false.
  bool Feed(std::string_view piece, FunctionRef<bool(std::string_view)> on_data);

 private:
  std::string line_;  // The start of a line whose end has not come.
};

}  // namespace octavo
