#pragma once
// LogitsPass: what one step wants from its logits - prompt logprobs and sampled tokens - computed
// in slices, so that memory is bounded however many rows are wanted.

#include <cstdint>
#include <span>
#include <vector>

#include "octavo/base/function_ref.h"
#include "octavo/base/status.h"
#include "octavo/engine/logprobs.h"
#include "octavo/engine/sampler.h"
#include "octavo/engine/sequence.h"
#include "octavo/model/model.h"

namespace octavo {

// Rows of logits computed together: at most 64 MiB of them, at least 16, at most `max_tokens`.
int64_t MaxLogitRows(int64_t vocab_size, int64_t max_tokens);

// One row of the last Forward whose logits somebody wants.
struct RowTask {
  Sequence* sequence = nullptr;
  int32_t row = 0;
  int64_t position = 0;  // Of the token that the row predicts.
  bool sample = false;   // Draw that token; else score the prompt's token at `position`.
};

struct RowResult {
  bool finite = true;             // False: a logit was NaN or infinite, and the rest means nothing.
  TokenLogprob chosen;            // The token drawn or scored; its logprob, if asked for.
  std::vector<TokenLogprob> top;  // If the request has top_logprobs_num.
  std::vector<TokenLogprob> ids;  // If the request has token_ids_logprob.
};

// One thread; spreads rows over the backend's pool, and the results do not depend on how.
class LogitsPass {
 public:
  // `model` must outlive the pass. max_rows as in the model's ModelLimits::max_logit_rows.
  LogitsPass(Model* model, int64_t max_rows, std::vector<int32_t> eos_token_ids);

  // Calls `deliver` on each task, in order, with its result. Tasks whose sequence was finished by
  // an earlier delivery are the receiver's to skip. Allocates only for requested lists.
  // Errors: those of Model::Logits.
  Status Run(std::span<const RowTask> tasks, const ModelWeights& weights,
             FunctionRef<void(const RowTask&, RowResult&)> deliver);

 private:
  std::span<float> Row(size_t row_idx);
  void Evaluate(const RowTask& task, size_t row_idx, SamplerScratch* scratch);

  Model& model_;
  const int64_t vocab_size_;
  const std::vector<int32_t> eos_token_ids_;
  std::vector<float> logits_;  // [max_rows, vocab]
  std::vector<int32_t> rows_;  // capacity max_rows
  std::vector<RowResult> results_;
  std::vector<SamplerScratch> scratch_;  // One a worker.
};

}  // namespace octavo
