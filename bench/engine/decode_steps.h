#pragma once
// Decode steps of a batch at one position, over and over: forward pass, logits, sampling at
// temperature 1, with and without logprobs.

#include <cstdint>
#include <memory>
#include <vector>

#include "octavo/engine/logits_pass.h"
#include "octavo/engine/page_pool.h"
#include "octavo/engine/request.h"
#include "octavo/engine/sequence.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/ops.h"
#include "octavo/model/model.h"
#include "octavo/model/spec/model_spec.h"

namespace octavo {

struct DecodeShape {
  int64_t batch = 0;
  int64_t context = 0;  // Tokens that a step's attention reads, its own included.
};

// What the pages of such steps take, in every layer.
int64_t KvBytesOf(const ModelSpec& spec, const Backend& backend, const DecodeShape& shape);

// One thread, which flushes subnormals (float_env.h). `backend` must outlive it.
class DecodeSteps {
 public:
  // Takes the pages and touches them all: what a page costs the first time is not a step's.
  DecodeSteps(const ModelSpec& spec, Backend& backend, const DecodeShape& shape);

  // Seconds of one step with weights packed for a backend of the same kind.
  double Step(const ModelWeights& weights, bool return_logprob);

 private:
  std::unique_ptr<Model> model_;
  PagePool pool_;
  std::vector<Sequence> sequences_;
  LogitsPass pass_;
  std::vector<int32_t> token_ids_;
  std::vector<int32_t> positions_;
  std::vector<Segment> segments_;
  std::vector<RowTask> tasks_;
  std::vector<TokenLogprob> logprobs_;
};

}  // namespace octavo
