#pragma once
// Scheduler: which tokens of which sequences the next step runs.
//
// Continuous batching with chunked prefill. A step has a budget of tokens: sequences that decode
// take one each, first; what is left goes to prefills that have begun, oldest first, and then to
// new ones from the queue, strictly in order of arrival. A sequence gets all pages of its present
// tokens when it is admitted and one more whenever it outgrows them. When none is left, the
// youngest running sequence is retracted: it gives its pages back and waits at the front of the
// queue with everything it has produced, and its KV is computed again later. The oldest sequence
// is never retracted for another and fits the pool alone, so somebody always gets on.

#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "octavo/engine/page_pool.h"
#include "octavo/engine/prefix_cache.h"
#include "octavo/engine/sequence.h"
#include "octavo/kernels/ops.h"

namespace octavo {

struct SchedulerOptions {
  int64_t chunk_tokens = 0;  // Tokens of one step.
  int64_t max_running = 0;   // Sequences with pages; at most chunk_tokens.
};

// The next step: consecutive tokens of some sequences, flattened. Entries of `segments` and
// `sequences` correspond.
struct StepPlan {
  std::vector<int32_t> token_ids;  // [tokens]
  std::vector<int32_t> positions;  // [tokens]
  std::vector<Segment> segments;
  std::vector<Sequence*> sequences;
};

// Which queued sequences may start.
enum class Admission {
  kAll,
  kStartedOnly,  // Those that ran before and were retracted.
};

// One thread. Sequences stay where they are in memory until they are taken out.
class Scheduler {
 public:
  // `pool` and `cache` must outlive the scheduler.
  Scheduler(const SchedulerOptions& options, PagePool* pool, PrefixCache* cache);

  // Puts a sequence into the queue, by its arrival.
  void Enqueue(std::unique_ptr<Sequence> sequence);

  // Forms the next step; it stays valid until the next call that changes the scheduler. An empty
  // plan means that nothing can run. Allocates nothing for sequences that decode.
  const StepPlan& Plan(Admission admission, EngineClock::time_point now);
  // Books the planned tokens as computed and offers full pages to the prefix cache. Call once
  // after the step has run.
  void CommitPlan();

  // Gives a running sequence's pages back and queues it again.
  void Retract(Sequence* sequence);
  // Takes a sequence out for good and gives its pages back.
  std::unique_ptr<Sequence> Remove(Sequence* sequence);

  // Both by arrival, oldest first.
  const std::vector<std::unique_ptr<Sequence>>& running() const { return running_; }
  const std::deque<std::unique_ptr<Sequence>>& queue() const { return queue_; }
  // Null when no sequence has this rid.
  Sequence* Find(std::string_view rid) const;
  // Queued sequences that ran before.
  int64_t NumStartedInQueue() const;
  // Tokens whose KV is held by running sequences.
  int64_t NumUsedTokens() const;
  int64_t num_retractions() const { return num_retractions_; }

  // CHECKs that pages, references, queue and running list agree with each other.
  void CheckInvariants() const;

 private:
  bool EnsureNextPage(Sequence* sequence);
  bool TryAdmit(Sequence* sequence);
  void PlanDecodes();
  void PlanPrefills();
  void PlanAdmissions(Admission admission, EngineClock::time_point now);
  void AddSegment(Sequence* sequence, int64_t num_tokens);
  void ReleasePages(Sequence* sequence);
  int64_t budget() const {
    return options_.chunk_tokens - static_cast<int64_t>(plan_.token_ids.size());
  }

  const SchedulerOptions options_;
  PagePool& pool_;
  PrefixCache& cache_;
  std::deque<std::unique_ptr<Sequence>> queue_;
  std::vector<std::unique_ptr<Sequence>> running_;
  StepPlan plan_;
  int64_t num_retractions_ = 0;
};

}  // namespace octavo
