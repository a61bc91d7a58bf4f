#include "octavo/convert/shard_run.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "octavo/base/check.h"
#include "octavo/base/file.h"
#include "octavo/base/function_ref.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/base/thread_pool.h"
#include "octavo/checkpoint/writer.h"
#include "octavo/convert/conversion_plan.h"
#include "octavo/convert/convert_step.h"
#include "octavo/convert/source.h"
#include "octavo/convert/transform.h"
#include "octavo/convert/write_behind.h"
#include "octavo/formats/quantize.h"

namespace octavo {
namespace {

// Source bytes of a batch: enough to keep all threads busy between two joins, and little enough to
// be cached between the pass that finds magnitudes and the one that encodes.
constexpr int64_t kBatchBytes = int64_t{64} << 20;

// The steps of the batch that begins at `first`.
std::span<const ConvertStep> BatchFrom(const std::vector<ConvertStep>& steps, size_t first) {
  int64_t bytes = 0;
  size_t end = first;
  while (end < steps.size() && (end == first || bytes + steps[end].bytes_in <= kBatchBytes)) {
    bytes += steps[end++].bytes_in;
  }
  return std::span(steps).subspan(first, end - first);
}

// Calls hint(bytes) for what the steps read.
void ForEachSourceRange(std::span<const ConvertStep> steps,
                        void (*hint)(std::span<const std::byte>)) {
  for (const ConvertStep& step : steps) {
    hint(step.source.codes.Bytes());
    if (step.source.scales.data != nullptr) {
      hint(step.source.scales.Bytes());
    }
  }
}

// Up to where the file is whole once the batch is written. Tensors that stand behind the others
// (writer.h) do not count, and at the end of the file Commit sees to the rest.
int64_t EndInFile(const ShardPlan& shard, std::span<const ConvertStep> batch,
                  const ShardWriter& writer) {
  const ConvertStep* end = batch.data() + batch.size();
  if (end == shard.steps.data() + shard.steps.size()) {
    return 0;
  }
  int64_t offset = 0;
  for (size_t i = end->first_header; i < shard.headers.size() && offset == 0; ++i) {
    const TensorHeader& header = shard.headers[i];
    const int64_t bytes = NumElements(header.shape) * DTypeBytes(header.dtype);
    offset = bytes > 0 && bytes % 8 == 0 ? writer.FileOffset(i) : 0;
  }
  return offset;
}

}  // namespace

ShardRunner::ShardRunner(const ConversionPlan& plan, ThreadPool& pool)
    : plan_(plan), pool_(pool), workers_(static_cast<size_t>(pool.num_threads())) {
  for (const ShardPlan& shard : plan.shards) {
    for (const ConvertStep& step : shard.steps) {
      if (step.row_idx >= 0) {
        const auto idx = static_cast<size_t>(step.row_idx);
        step_of_row_.resize(std::max(step_of_row_.size(), idx + 1));
        step_of_row_[idx] = &step;
      }
    }
  }
  set_of_row_.assign(step_of_row_.size(), -1);
  survives_.assign(step_of_row_.size(), false);
  amax_.resize(plan.amax_sets.size());
  for (size_t set_idx = 0; set_idx < plan.amax_sets.size(); ++set_idx) {
    for (const int row : plan.amax_sets[set_idx]) {
      set_of_row_[static_cast<size_t>(row)] = static_cast<int>(set_idx);
    }
  }
}

std::vector<ShardRunner::Job> ShardRunner::JobsOf(std::span<const ConvertStep> steps,
                                                  size_t first_idx) {
  std::vector<Job> jobs;
  for (size_t i = 0; i < steps.size(); ++i) {
    const ConvertStep& step = steps[i];
    std::vector<RowRange> pieces = PiecesOf(step.source.rows, step.source.cols);
    if (pieces.empty()) {
      pieces.push_back({});  // Of a weight without elements: its scales of one element remain.
    }
    for (const RowRange& rows : pieces) {
      jobs.push_back({.step = &step, .step_idx = first_idx + i, .rows = rows});
    }
  }
  return jobs;
}

Status ShardRunner::RunJobs(const std::vector<Job>& jobs,
                            FunctionRef<Status(const Job&, size_t, int)> body) {
  std::atomic<size_t> next = 0;
  std::mutex mutex;
  size_t failed_idx = std::numeric_limits<size_t>::max();  // Guarded by mutex.
  Status failure;                                          // Guarded by mutex.
  // Claimed in order, so that the first job that fails is always among those that ran.
  pool_.Run([&](int worker_idx) {
    for (size_t i = next.fetch_add(1); i < jobs.size(); i = next.fetch_add(1)) {
      Status status = body(jobs[i], i, worker_idx);
      if (!status.ok()) {
        next.store(jobs.size());
        const std::lock_guard lock(mutex);
        if (i < failed_idx) {
          failed_idx = i;
          failure = std::move(status);
        }
      }
    }
  });
  return failure;
}

void ShardRunner::FindAmax(const std::vector<int>& rows) {
  std::vector<Job> jobs;
  for (const int row : rows) {
    const ConvertStep* step = step_of_row_[static_cast<size_t>(row)];
    const std::vector<Job> more = JobsOf({step, 1}, 0);
    jobs.insert(jobs.end(), more.begin(), more.end());
  }
  std::vector<float> found(jobs.size());
  const Status status = RunJobs(jobs, [&](const Job& job, size_t job_idx, int worker_idx) {
    found[job_idx] =
        workers_[static_cast<size_t>(worker_idx)].Amax(*job.step, job.rows, plan_.direct);
    return OkStatus();
  });
  CHECK(status.ok());
  for (size_t i = 0; i < jobs.size(); ++i) {
    const int set_idx = set_of_row_[static_cast<size_t>(jobs[i].step->row_idx)];
    std::optional<float>& amax = amax_[static_cast<size_t>(set_idx)];
    amax = std::max(amax.value_or(0.0F), found[i]);
  }
}

void ShardRunner::FindSurvivors(std::span<const ConvertStep> steps) {
  std::vector<Job> jobs = JobsOf(steps, 0);
  std::erase_if(jobs,
                [](const Job& job) { return job.step->action != ConvertAction::kGroupsToBlocks; });
  std::vector<uint8_t> survive(jobs.size());
  const Status status = RunJobs(jobs, [&](const Job& job, size_t job_idx, int worker_idx) {
    StepWorker& worker = workers_[static_cast<size_t>(worker_idx)];
    survive[job_idx] = worker.CodesSurvive(*job.step, job.rows) ? 1 : 0;
    return OkStatus();
  });
  CHECK(status.ok());
  for (const Job& job : jobs) {
    survives_[static_cast<size_t>(job.step->row_idx)] = true;
  }
  for (size_t i = 0; i < jobs.size(); ++i) {
    const auto row = static_cast<size_t>(jobs[i].step->row_idx);
    survives_[row] = survives_[row] && survive[i] != 0;
  }
}

Status ShardRunner::Prepare(std::span<const ConvertStep> steps) {
  std::set<int> sets;
  for (const ConvertStep& step : steps) {
    const int set_idx = step.row_idx < 0 ? -1 : set_of_row_[static_cast<size_t>(step.row_idx)];
    if (set_idx >= 0 && !amax_[static_cast<size_t>(set_idx)].has_value()) {
      sets.insert(set_idx);
    }
  }
  std::vector<int> rows;
  for (const int set_idx : sets) {
    const std::vector<int>& members = plan_.amax_sets[static_cast<size_t>(set_idx)];
    rows.insert(rows.end(), members.begin(), members.end());
  }
  FindAmax(rows);
  FindSurvivors(steps);
  // A member in another file that holds NaN spoils the set: say so of that one.
  for (const int row : rows) {
    const auto idx = static_cast<size_t>(row);
    const float amax = *amax_[static_cast<size_t>(set_of_row_[idx])];
    if (!(amax <= std::numeric_limits<float>::max())) {
      const ConvertStep& step = *step_of_row_[idx];
      RETURN_IF_ERROR(SourceAmax(*step.row, step.source, {.direct = plan_.direct}).error());
    }
  }
  return OkStatus();
}

StepContext ShardRunner::ContextOf(const ConvertStep& step) const {
  StepContext context = {.direct = plan_.direct};
  if (step.row_idx >= 0) {
    const auto row = static_cast<size_t>(step.row_idx);
    context.codes_survive = survives_[row];
    if (set_of_row_[row] >= 0) {
      context.amax = *amax_[static_cast<size_t>(set_of_row_[row])];
    }
  }
  return context;
}

Result<std::vector<QuantizationError>> ShardRunner::Run(const ShardPlan& shard, ShardWriter& writer,
                                                        OnProgress progress) {
  std::vector<QuantizationError> errors(shard.steps.size());
  std::atomic<int64_t> bytes_done = 0;
  WriteBack write_back(writer);
  size_t first = 0;
  while (first < shard.steps.size()) {
    const std::span<const ConvertStep> batch = BatchFrom(shard.steps, first);
    const size_t end = first + batch.size();
    ForEachSourceRange(BatchFrom(shard.steps, end), WillRead);
    RETURN_IF_ERROR(Prepare(batch));
    const std::vector<Job> jobs = JobsOf(batch, first);
    std::vector<QuantizationError> job_errors(jobs.size());
    RETURN_IF_ERROR(RunJobs(jobs, [&](const Job& job, size_t job_idx, int worker_idx) -> Status {
      const ConvertStep& step = *job.step;
      const auto put = [&](size_t output_idx, int64_t offset, std::span<const std::byte> bytes) {
        return writer.WriteAt(step.first_header + output_idx, offset, bytes);
      };
      ASSIGN_OR_RETURN(job_errors[job_idx], workers_[static_cast<size_t>(worker_idx)].Run(
                                                step, ContextOf(step), job.rows, put));
      const int64_t bytes =
          step.source.rows == 0 ? 0 : step.bytes_in / step.source.rows * job.rows.count;
      const int64_t done = bytes_done.fetch_add(bytes) + bytes;
      if (worker_idx == 0) {
        progress(step, done);
      }
      return OkStatus();
    }));
    for (size_t i = 0; i < jobs.size(); ++i) {
      errors[jobs[i].step_idx] += job_errors[i];
    }
    ForEachSourceRange(batch, DoneReading);
    write_back.Advance(EndInFile(shard, batch, writer));
    first = end;
  }
  return errors;
}

}  // namespace octavo
