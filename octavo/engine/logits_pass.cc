#include "octavo/engine/logits_pass.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "octavo/base/float_env.h"
#include "octavo/base/function_ref.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/engine/logprobs.h"
#include "octavo/engine/sampler.h"
#include "octavo/kernels/math.h"
#include "octavo/model/model.h"

namespace octavo {
namespace {

constexpr int64_t kLogitsBytes = int64_t{64} << 20;
constexpr int64_t kMinRows = 16;

bool AllFinite(std::span<const float> row) {
  constexpr uint32_t kExponent = 0x7F800000U;
  uint32_t num_bad = 0;
  for (const float x : row) {
    num_bad += (std::bit_cast<uint32_t>(x) & kExponent) == kExponent ? 1U : 0U;
  }
  return num_bad == 0;
}

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
      max_(static_cast<size_t>(max_rows)),
      sum_(static_cast<size_t>(max_rows)),
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

// Checks a raw row and brings it to the distribution that its logprobs are of.
void LogitsPass::Prepare(const RowTask& task, size_t row_idx, SamplerScratch* scratch) {
  const std::span<float> row = Row(row_idx);
  results_[row_idx].finite = AllFinite(row);
  if (!results_[row_idx].finite) {
    std::ranges::fill(row, 0.0F);  // Keeps NaN out of the statistics.
    return;
  }
  if (task.sample) {
    TransformLogits({.params = &task.sequence->request.sampling,
                     .generated = task.sequence->generated(),
                     .eos_token_ids = eos_token_ids_},
                    row, scratch);
  }
}

void LogitsPass::Evaluate(const RowTask& task, size_t row_idx, SamplerScratch* scratch) {
  RowResult& result = results_[row_idx];
  result.top.clear();
  result.ids.clear();
  // A penalty or a tiny temperature may have overflowed a finite row.
  result.finite = result.finite && std::isfinite(max_[row_idx]) && std::isfinite(sum_[row_idx]);
  if (!result.finite) {
    return;
  }
  const Sequence& sequence = *task.sequence;
  const Request& request = sequence.request;
  const LogprobRow logprobs = {
      .row = Row(row_idx), .max = max_[row_idx], .log_sum = LogF32(sum_[row_idx])};
  result.chosen.id = task.sample ? SampleToken({.params = &request.sampling,
                                                .seed = sequence.seed,
                                                .position = task.position,
                                                .row = logprobs.row,
                                                .max = logprobs.max},
                                               scratch)
                                 : sequence.tokens[static_cast<size_t>(task.position)];
  result.chosen.logprob = logprobs.At(result.chosen.id);
  if (request.return_logprob && request.top_logprobs_num > 0) {
    result.top = TopLogprobs(logprobs, request.top_logprobs_num, scratch);
  }
  if (request.return_logprob && !request.token_ids_logprob.empty()) {
    result.ids = LogprobsOf(logprobs, request.token_ids_logprob);
  }
}

Status LogitsPass::Run(std::span<const RowTask> tasks, const ModelWeights& weights,
                       FunctionRef<void(const RowTask&, RowResult&)> deliver) {
  ThreadPool& pool = model_.backend().pool();
  while (!tasks.empty()) {
    const size_t count = std::min(tasks.size(), max_.size());
    const std::span<const RowTask> slice = tasks.first(count);
    const auto num_rows = static_cast<int64_t>(count);
    rows_.clear();
    for (const RowTask& task : slice) {
      rows_.push_back(task.row);
    }
    const std::span<float> logits =
        std::span(logits_).first(count * static_cast<size_t>(vocab_size_));
    RETURN_IF_ERROR(model_.Logits(rows_, weights, logits));
    // Both passes flush subnormals on every thread alike, as the ops do.
    pool.ParallelFor(num_rows, [&](int64_t begin, int64_t end, int worker) {
      const ScopedFlushSubnormals guard;
      for (int64_t i = begin; i < end; ++i) {
        const auto row_idx = static_cast<size_t>(i);
        Prepare(slice[row_idx], row_idx, &scratch_[static_cast<size_t>(worker)]);
      }
    });
    RETURN_IF_ERROR(
        model_.backend().SoftmaxStats({.x = {.dtype = DType::kF32,
                                             .data = reinterpret_cast<std::byte*>(logits.data()),
                                             .rows = num_rows,
                                             .cols = vocab_size_,
                                             .stride = vocab_size_},
                                       .max = std::span(max_).first(count),
                                       .sum = std::span(sum_).first(count)}));
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
