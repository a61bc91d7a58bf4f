#pragma once
// What the scheduler's tests share: a scheduler on a pool that only counts, whose steps are booked
// as if they had run.

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "octavo/engine/page_pool.h"
#include "octavo/engine/prefix_cache.h"
#include "octavo/engine/scheduler.h"
#include "octavo/engine/sequence.h"

namespace octavo {

// `count` ids from `first` on.
inline std::vector<int32_t> Ids(int32_t first, int64_t count) {
  std::vector<int32_t> ids;
  ids.reserve(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    ids.push_back(first + static_cast<int32_t>(i));
  }
  return ids;
}

// Drives a scheduler without a model.
class SchedulerTest : public testing::Test {
 protected:
  void Make(int64_t num_pages, const SchedulerOptions& options) {
    pool_.emplace(num_pages);
    cache_.emplace(&*pool_, true);
    scheduler_.emplace(options, &*pool_, &*cache_);
  }

  Sequence* Add(const std::vector<int32_t>& prompt, int64_t max_new_tokens) {
    auto sequence = std::make_unique<Sequence>();
    sequence->arrival = next_arrival_++;
    sequence->request.rid = std::to_string(sequence->arrival);
    sequence->request.sampling.max_new_tokens = max_new_tokens;
    sequence->tokens = prompt;
    sequence->prompt_len = static_cast<int64_t>(prompt.size());
    sequence->scored = true;
    Sequence* added = sequence.get();
    scheduler_->Enqueue(std::move(sequence));
    return added;
  }

  // One step: a token for every sequence whose last token ran; ends those that are done.
  const StepPlan& Step(Admission admission = Admission::kAll) {
    const StepPlan& plan = scheduler_->Plan(admission, {});
    scheduler_->CheckInvariants();
    scheduler_->CommitPlan();
    for (Sequence* sequence : plan.sequences) {
      if (sequence->num_pending() == 0) {
        sequence->tokens.push_back(static_cast<int32_t>(sequence->num_tokens()));
      }
    }
    scheduler_->CheckInvariants();
    return plan;
  }

  std::vector<int64_t> Arrivals(const StepPlan& plan) const {
    std::vector<int64_t> arrivals;
    arrivals.reserve(plan.sequences.size());
    for (const Sequence* sequence : plan.sequences) {
      arrivals.push_back(sequence->arrival);
    }
    return arrivals;
  }

  std::optional<PagePool> pool_;
  std::optional<PrefixCache> cache_;
  std::optional<Scheduler> scheduler_;
  int64_t next_arrival_ = 0;
};

}  // namespace octavo
