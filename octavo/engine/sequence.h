#pragma once
// Sequence: one request on its way through the engine.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "octavo/engine/request.h"

namespace octavo {

using EngineClock = std::chrono::steady_clock;

struct Sequence;
// Sequences by arrival, oldest first. A list, so that moving one between two of them, or out of the
// middle of a long one, costs nothing and allocates nothing.
using SequenceList = std::list<std::unique_ptr<Sequence>>;

// Plain state; the scheduler owns it and moves it between queue and running list. One thread.
struct Sequence {
  Request request;      // Its input_ids have moved into `tokens`.
  int64_t arrival = 0;  // Order of submission; smaller is older.
  uint64_t seed = 0;

  std::vector<int32_t> tokens;  // Prompt, then output.
  int64_t prompt_len = 0;
  int64_t num_computed = 0;    // Tokens from the start whose KV is in `pages`.
  std::vector<int32_t> pages;  // Page table; empty while queued.

  // The scheduler's own: where it is, and whose prefill it waits for (Scheduler, groups).
  SequenceList::iterator place;
  bool running = false;
  int64_t waits_for = -1;   // Arrival of a running sequence; -1: nobody.
  int64_t waits_until = 0;  // What that one's num_computed has to reach.

  bool started = false;  // Has been scheduled at least once.
  bool held = false;     // Arrived while the engine was paused; a pause does not abort it.
  // Its KV is of other weights than those that compute its next token, in part or whole: it must
  // not enter the prefix cache.
  bool mixed = false;
  bool scored = false;  // input_logprobs of `output` are complete (or not asked for).

  RequestOutput output;  // What is new since the last snapshot, and the counts.
  int64_t tokens_at_snapshot = 0;
  EngineClock::time_point submitted;
  EngineClock::time_point first_scheduled;
  // What EngineLatencies has of it.
  bool queue_observed = false;
  int64_t tokens_observed = 0;
  EngineClock::time_point last_token;

  std::span<const int32_t> generated() const {
    return std::span(tokens).subspan(static_cast<size_t>(prompt_len));
  }
  int64_t num_tokens() const { return static_cast<int64_t>(tokens.size()); }
  int64_t num_generated() const { return num_tokens() - prompt_len; }
  // Tokens that the next steps must run before a new one can be sampled.
  int64_t num_pending() const { return num_tokens() - num_computed; }
  bool scores_input() const { return request.return_logprob && request.logprob_start_len >= 0; }
  // Most tokens that it can ever have.
  int64_t max_tokens() const {
    return prompt_len + std::max<int64_t>(request.sampling.max_new_tokens, 1);
  }
};

// Makes room for all that the sequence can ever produce, so that its later steps allocate nothing.
// Done when it starts: thousands that wait would hold memory for nothing.
// `expert_row_size`: layers * top_k, where routed experts are kept.
void ReserveOutput(Sequence* sequence, int64_t expert_row_size);

// Where prompt scoring stands after its KV was dropped: begun again from the start, so that all of
// a prompt's logprobs come from one version of the weights.
inline void RestartScoring(Sequence& sequence) {
  if (!sequence.scored) {
    sequence.output.input_logprobs.clear();
    sequence.output.input_top_logprobs.clear();
    sequence.output.input_ids_logprobs.clear();
  }
}

}  // namespace octavo
