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
//
// Groups: a sequence whose next page is just being computed by a running one - samples of one
// prompt that came together, above all - waits for that page and then shares it (PrefixCache). It
// is the one case in which the queue is overtaken, and it ends: what is waited for runs already,
// and a younger sequence with the same prefix waits behind. When the one that computes goes, the
// first that waits takes over where it stopped.
//
// What a step costs here follows from what it runs and from max_running, not from how many wait.

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "octavo/engine/page_pool.h"
#include "octavo/engine/prefix_cache.h"
#include "octavo/engine/sequence.h"
#include "octavo/kernels/ops.h"

namespace octavo {

struct SchedulerOptions {
  int64_t chunk_tokens = 0;  // Tokens of one step.
  int64_t max_running = 0;   // Sequences with pages; at most chunk_tokens.
  // EngineOptions::stale_prefix_versions.
  int64_t stale_prefix_versions = 0;
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
  // Copies the experts of the sequence's computed tokens into its output, if it asked for them.
  // Rows of an earlier version of the same tokens are replaced as far as they were computed again.
  void KeepExperts(Sequence* sequence) const;
  // Nobody shall copy from the sequence's pages: what it computed last may not be finite.
  void Distrust(const Sequence& sequence);

  // Both by arrival, oldest first.
  const SequenceList& running() const { return running_; }
  const SequenceList& queue() const { return queue_; }
  // Null when no sequence has this rid.
  Sequence* Find(std::string_view rid) const;
  // Queued sequences that ran before.
  int64_t num_started_in_queue() const { return num_started_in_queue_; }
  // Tokens whose KV is held by running sequences; those that share a page count each.
  int64_t num_used_tokens() const { return num_used_tokens_; }
  int64_t num_retractions() const { return num_retractions_; }

  // CHECKs that pages, references, queue and running list agree with each other.
  void CheckInvariants() const;

 private:
  // A running sequence that computes pages which others may share, and the names of what it
  // computes next: its next full page, and its prompt's tail.
  struct Prefill {
    const Sequence* sequence = nullptr;
    uint64_t page_hash = 0;
    uint64_t tail_hash = 0;
  };
  enum class Outcome { kAdmitted, kWaits, kNoRoom };

  bool EnsureNextPage(Sequence* sequence);
  int64_t MaxBehind(const Sequence& sequence) const;
  Outcome TryAdmit(Sequence* sequence);
  void Start(Sequence* sequence, EngineClock::time_point now);
  void PlanDecodes();
  void PlanPrefills();
  void PlanAdmissions(Admission admission, EngineClock::time_point now);
  void AddSegment(Sequence* sequence, int64_t num_tokens);
  void InsertFullPages(Sequence* sequence, int64_t num_before);
  void CopyTail(Sequence* sequence);
  void ReleasePages(Sequence* sequence);

  void NotePrefill(const Sequence& sequence);
  const Sequence* FindPrefill(const Sequence& sequence) const;
  bool StillWaits(Sequence* sequence) const;
  void CheckSequences() const;

  int64_t num_running() const { return static_cast<int64_t>(running_.size()); }
  int64_t budget() const {
    return options_.chunk_tokens - static_cast<int64_t>(plan_.token_ids.size());
  }

  const SchedulerOptions options_;
  PagePool& pool_;
  PrefixCache& cache_;
  SequenceList queue_;
  SequenceList running_;
  std::unordered_map<std::string_view, Sequence*> by_rid_;  // Keys live in the sequences.
  StepPlan plan_;
  std::vector<Prefill> prefills_;  // Of the step being planned; capacity max_running.
  int64_t num_started_in_queue_ = 0;
  int64_t num_used_tokens_ = 0;
  int64_t num_retractions_ = 0;
};

}  // namespace octavo
