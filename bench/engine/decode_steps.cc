#include "bench/engine/decode_steps.h"

#include <cstddef>
#include <cstdint>

#include "bench/engine/rollout_bench.h"
#include "octavo/base/status.h"
#include "octavo/engine/logits_pass.h"
#include "octavo/engine/page_pool.h"
#include "octavo/engine/sequence.h"
#include "octavo/kernels/backend.h"
#include "octavo/model/model.h"
#include "octavo/model/spec/model_spec.h"

namespace octavo {

int64_t KvBytesOf(const ModelSpec& spec, const Backend& backend, const DecodeShape& shape) {
  return spec.num_layers * backend.KvPageBytes(KvShapeOf(spec)) * shape.batch *
         NumPagesFor(shape.context);
}

DecodeSteps::DecodeSteps(const ModelSpec& spec, Backend& backend, const DecodeShape& shape)
    : model_(Must(MakeModel(spec, &backend,
                            {.max_tokens = shape.batch,
                             .max_logit_rows = shape.batch,
                             .max_context = shape.context + 1}))),
      pool_(shape.batch * NumPagesFor(shape.context)),
      sequences_(static_cast<size_t>(shape.batch)),
      pass_(model_.get(), shape.batch, {}) {
  Must(pool_.AllocateMemory(spec, backend));
  for (size_t i = 0; i < sequences_.size(); ++i) {
    Sequence& sequence = sequences_[i];
    sequence.seed = i;
    sequence.tokens = {1};
    sequence.prompt_len = 1;
    for (int64_t page = 0; page < NumPagesFor(shape.context); ++page) {
      sequence.pages.push_back(pool_.Allocate());  // Zeroes it.
    }
    token_ids_.push_back(static_cast<int32_t>(i));
    positions_.push_back(static_cast<int32_t>(shape.context - 1));
    segments_.push_back({.first_row = static_cast<int64_t>(i),
                         .num_rows = 1,
                         .first_position = shape.context - 1,
                         .page_table = sequence.pages});
    tasks_.push_back({.sequence = &sequence,
                      .row = static_cast<int32_t>(i),
                      .position = shape.context,
                      .sample = true});
  }
}

double DecodeSteps::Step(const ModelWeights& weights, bool return_logprob) {
  for (Sequence& sequence : sequences_) {
    sequence.request.return_logprob = return_logprob;
  }
  logprobs_.clear();
  const double start = Now();
  Must(model_->Forward({.token_ids = token_ids_, .positions = positions_, .segments = segments_},
                       weights, pool_.layers()));
  Must(pass_.Run(tasks_, weights, [&](const RowTask& /*task*/, RowResult& result) {
    if (return_logprob) {
      logprobs_.push_back(result.chosen);
    }
  }));
  return Now() - start;
}

}  // namespace octavo
