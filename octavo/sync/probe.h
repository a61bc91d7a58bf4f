#pragma once
// The canary of a weight update: weights that are sealed and not yet live score sequences of the
// trainer, and the update is refused when its logprobs are not the trainer's.
//
// They are scored by an engine of their own, one sequence at a time, with the recipe, the kernels
// and the chunks of the serving one: what it says is, bit for bit, what the server will say of the
// same sequences after the commit.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/model/model.h"
#include "octavo/sync/serving.h"

namespace octavo {

// A sequence and what the trainer says of its end.
struct ProbeSequence {
  std::vector<int32_t> input_ids;
  // Natural logarithms, at temperature 1, of the last logprobs.size() of input_ids, each given all
  // ids before it; so at least one id has none.
  std::vector<double> logprobs;

  int64_t first_scored() const { return static_cast<int64_t>(input_ids.size() - logprobs.size()); }
};

// Bounds of |trainer - engine|; absent: not asked for.
struct ProbeLimits {
  std::optional<double> max_dlogp = {};       // Of every token.
  std::optional<double> max_mean_dlogp = {};  // Of the mean over all tokens.
};

// With d = trainer - engine of each token.
struct ProbeFigures {
  int64_t num_sequences = 0;
  int64_t num_tokens = 0;
  double mean_dlogp = 0.0;  // Mean of |d|.
  double max_dlogp = 0.0;   // Largest |d|, and where it stands:
  int64_t sequence = 0;     // Counted from 0.
  int64_t position = 0;     // Into its input_ids.
  int32_t token_id = 0;
  double expected = 0.0;  // The trainer's.
  double got = 0.0;       // The engine's.
  // Mean of exp(d) - 1 - d: of tokens that the engine sampled, an estimate of
  // KL(engine || trainer).
  double k3 = 0.0;
};

// What scoring takes beside the weights, at most.
struct ProbeBudget {
  int64_t kv_bytes = 0;          // Of the longest sequence.
  int64_t activation_bytes = 0;  // Buffers of a forward pass, logits included.
  std::optional<int64_t> available_bytes;

  int64_t TotalBytes() const { return kv_bytes + activation_bytes; }
  // "84 MiB: 20 kv, 64 activations; available: 812 MiB".
  std::string Text() const;
};

// Errors: kInvalidArgument naming the sequence: no logprobs, as many as ids, one that is not finite
// or above 0, an id outside the vocabulary, a sequence longer than the served context.
Status CheckProbe(const Serving& serving, std::span<const ProbeSequence> sequences);

// Errors: kExhausted, with the figures, when the available memory does not hold it.
Result<ProbeBudget> PlanProbe(const Serving& serving, std::span<const ProbeSequence> sequences);

// Logprobs of every sequence, shaped like ProbeSequence::logprobs, under `weights`, which are as
// they were afterwards, also after an error. Needs half of the processors, as staging does.
// Errors: those of CheckProbe and PlanProbe; kCorrupt naming the sequence whose logits are not
// finite.
Result<std::vector<std::vector<float>>> ScoreProbe(const Serving& serving,
                                                   std::span<const ProbeSequence> sequences,
                                                   std::unique_ptr<ModelWeights>* weights);

// `scores` are ScoreProbe's of `sequences`. A pure function.
ProbeFigures CompareProbe(std::span<const ProbeSequence> sequences,
                          std::span<const std::vector<float>> scores);

// Errors: kInvalidArgument with the figures, when a bound is passed.
Status CheckLimits(const ProbeFigures& figures, const ProbeLimits& limits);

}  // namespace octavo
