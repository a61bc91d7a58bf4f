#pragma once
// The sender's side of a canary: a file of the trainer's sequences, scored by the sealed weights of
// one server before they go live (POST /octavo/v1/update/probe, docs/api.md).

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "octavo/base/status.h"
#include "octavo/client/http_client.h"

namespace octavo {

struct Probe {
  std::string sequences_json;  // A list, as the call takes it.
  int64_t num_sequences = 0;
  // Bounds of |trainer - engine| of a token and of the mean; absent: nothing is refused for it.
  std::optional<double> max_dlogp = {};
  std::optional<double> max_mean_dlogp = {};
};

// Of one server; docs/api.md has the formulas.
struct ProbeReport {
  int64_t num_sequences = 0;
  int64_t num_tokens = 0;
  double mean_dlogp = 0.0;
  double max_dlogp = 0.0;
  double k3 = 0.0;
};

// Reads JSON lines of {"input_ids": [...], "logprobs": [...], "prompt_len": N}; blank lines are
// passed over. Errors: those of ReadTextFile; kCorrupt naming the line; kInvalidArgument for a file
// without any.
Result<Probe> ReadProbeFile(const std::string& path);

// Errors: those of PostJson, and so the server's message with the figures when a bound is passed.
Result<ProbeReport> RunProbe(HttpClient& client, std::string_view update_id, const Probe& probe);

}  // namespace octavo
