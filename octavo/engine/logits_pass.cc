#include "octavo/engine/logits_pass.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "octavo/base/float_env.h"
#include "octavo/base/function_ref.h"
#include "octavo/base/status.h"
#include "octavo/base/thread_pool.h"
#include "octavo/engine/logprobs.h"
#include "octavo/engine/request.h"
#include "octavo/engine/row_scan.h"
#include "octavo/engine/sampler.h"
#include "octavo/engine/sequence.h"
#include "octavo/kernels/math.h"
#include "octavo/model/model.h"

namespace octavo {
namespace {

constexpr int64_t kLogitsBytes = int64_t{64} << 20;
constexpr int64_t kMinRows = 16;

}  // namespace

int64_t MaxLogitRows(int64_t vocab_size, int64_t max_tokens) {
  const int64_t fitting = kLogitsBytes / (vocab_size * int64_t{sizeof(float)});
  return std::min(std::max(fitting, kMinRows), max_tokens);
}

LogitsPass::LogitsPass(Model* model, int64_t max_rows, std::vector<int32_t> eos_token_ids)
    : model_(*model),
      vocab_size_(model->spec().vocab_size),
      eos_token_ids_(std::move(eos_token_ids)),
      logits_(static_cast<size_t>(max_rows * vocab_size_)),
      results_(static_cast<size_t>(max_rows)) {
  rows_.reserve(static_cast<size_t>(max_rows));
  const auto num_workers = static_cast<size_t>(model_.backend().pool().num_threads());
  scratch_.reserve(num_workers);
  for (size_t i = 0; i < num_workers; ++i) {
    scratch_.emplace_back(vocab_size_);
  }
}

std::span<float> LogitsPass::Row(size_t row_idx) {
  const auto width = static_cast<size_t>(vocab_size_);
  return std::span(logits_).subspan(row_idx * width, width);
}

// One row from logits to its result, while it is in this core's cache.
void LogitsPass::Evaluate(const RowTask& task, size_t row_idx, SamplerScratch* scratch) {
  RowResult& result = results_[row_idx];
  result.top.clear();
  result.ids.clear();
  const Sequence& sequence = *task.sequence;
  const Request& request = sequence.request;
  const std::span<float> row = Row(row_idx);
  RowMax scanned = ScanMax(row, scratch->block_max);
  result.finite = scanned.finite;
  const TransformArgs transform = {.params = &request.sampling,
                                   .generated = sequence.generated(),
                                   .eos_token_ids = eos_token_ids_};
  if (result.finite && task.sample && ChangesLogits(transform)) {
    TransformLogits(transform, row, scratch);
    scanned = ScanMax(row, scratch->block_max);
  }
  RowStats stats = {.max = scanned.max, .block_max = scratch->block_max};
  const bool wants_logprob = request.return_logprob;
  const bool wants_sum = wants_logprob || DrawsFromWeights(request.sampling);
  if (result.finite && wants_sum) {
    stats.sum = ScanSum(row, stats.max, scratch->block_sum);
    stats.block_sum = scratch->block_sum;
  }
  // A penalty or a tiny temperature may have overflowed a finite row.
  result.finite = result.finite && std::isfinite(stats.max) && std::isfinite(stats.sum);
  if (!result.finite) {
    return;
  }
  result.chosen.id = task.sample ? SampleToken({.params = &request.sampling,
                                                .seed = sequence.seed,
                                                .position = task.position,
                                                .row = row,
                                                .stats = stats},
                                               scratch)
                                 : sequence.tokens[static_cast<size_t>(task.position)];
  if (!wants_logprob) {
    return;
  }
  const LogprobRow logprobs = {
      .row = row, .max = stats.max, .log_sum = LogF32(stats.sum), .block_max = stats.block_max};
  result.chosen.logprob = logprobs.At(result.chosen.id);
  if (request.top_logprobs_num > 0) {
    result.top = TopLogprobs(logprobs, request.top_logprobs_num, scratch);
  }
  if (!request.token_ids_logprob.empty()) {
    result.ids = LogprobsOf(logprobs, request.token_ids_logprob);
  }
}

Status LogitsPass::Run(std::span<const RowTask> tasks, const ModelWeights& weights,
                       FunctionRef<void(const RowTask&, RowResult&)> deliver) {
  ThreadPool& pool = model_.backend().pool();
  while (!tasks.empty()) {
    const size_t count = std::min(tasks.size(), results_.size());
    const std::span<const RowTask> slice = tasks.first(count);
    const auto num_rows = static_cast<int64_t>(count);
    rows_.clear();
    for (const RowTask& task : slice) {
      rows_.push_back(task.row);
    }
    const std::span<float> logits =
        std::span(logits_).first(count * static_cast<size_t>(vocab_size_));
    RETURN_IF_ERROR(model_.Logits(rows_, weights, logits));
    // Flushes subnormals on every thread alike, as the ops do.
    pool.ParallelFor(num_rows, [&](int64_t begin, int64_t end, int worker) {
      const ScopedFlushSubnormals guard;
      for (int64_t i = begin; i < end; ++i) {
        const auto row_idx = static_cast<size_t>(i);
        Evaluate(slice[row_idx], row_idx, &scratch_[static_cast<size_t>(worker)]);
      }
    });
    for (size_t i = 0; i < count; ++i) {
      deliver(slice[i], results_[i]);
    }
    tasks = tasks.subspan(count);
  }
  return OkStatus();
}

}  // namespace octavo
