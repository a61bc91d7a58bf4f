#pragma once
// Runs the steps of a conversion plan, file by file: pieces of many tensors at a time on all
// threads, so that narrow tensors keep them as busy as wide ones.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "octavo/base/function_ref.h"
#include "octavo/base/status.h"
#include "octavo/base/thread_pool.h"
#include "octavo/checkpoint/writer.h"
#include "octavo/convert/conversion_plan.h"
#include "octavo/convert/convert_step.h"
#include "octavo/convert/source.h"
#include "octavo/convert/write_behind.h"
#include "octavo/formats/quantize.h"

namespace octavo {

// Memory: a piece with its codes for each thread, whatever the size of the tensors; sources are
// read where they are mapped. One thread calls; the pool's take part.
class ShardRunner {
 public:
  // `progress` is called on the caller's thread with the step and the bytes done in this shard.
  using OnProgress = FunctionRef<void(const ConvertStep&, int64_t)>;

  // `plan` must outlive this.
  ShardRunner(const ConversionPlan& plan, ThreadPool& pool);

  // Writes the file's tensors into `writer`; gives the error of each step's encoding.
  // Errors: those of StepWorker::Run; of several, the first in the order of steps and rows.
  Result<std::vector<QuantizationError>> Run(const ShardPlan& shard, ShardWriter& writer,
                                             OnProgress progress);

 private:
  // One piece of one step.
  struct Job {
    const ConvertStep* step = nullptr;
    size_t step_idx = 0;  // Of the step in its shard.
    RowRange rows;
  };
  // What the steps of a batch need to know of whole weights.
  Status Prepare(std::span<const ConvertStep> steps);
  void FindAmax(const std::vector<int>& rows);
  void FindSurvivors(std::span<const ConvertStep> steps);
  StepContext ContextOf(const ConvertStep& step) const;
  Status RunJobs(const std::vector<Job>& jobs,
                 FunctionRef<Status(const Job&, size_t job_idx, int worker_idx)> body);
  static std::vector<Job> JobsOf(std::span<const ConvertStep> steps, size_t first_idx);

  const ConversionPlan& plan_;
  ThreadPool& pool_;
  std::vector<StepWorker> workers_;              // One a thread.
  std::vector<const ConvertStep*> step_of_row_;  // Null where the plan has none.
  std::vector<int> set_of_row_;                  // Into plan_.amax_sets; -1: none.
  std::vector<std::optional<float>> amax_;       // Of sets.
  std::vector<bool> survives_;                   // Of rows, for kGroupsToBlocks.
};

}  // namespace octavo
