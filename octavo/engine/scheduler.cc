#include "octavo/engine/scheduler.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/check.h"
#include "octavo/engine/page_pool.h"
#include "octavo/engine/prefix_cache.h"
#include "octavo/engine/sequence.h"
#include "octavo/kernels/ops.h"

namespace octavo {
namespace {

bool Older(const std::unique_ptr<Sequence>& a, const std::unique_ptr<Sequence>& b) {
  return a->arrival < b->arrival;
}

// Where `arrival` belongs, looked for from the young end: what arrives and what is admitted is
// nearly always the youngest.
SequenceList::iterator PlaceFromBack(SequenceList* list, int64_t arrival) {
  auto place = list->end();
  while (place != list->begin() && (*std::prev(place))->arrival > arrival) {
    --place;
  }
  return place;
}

// The same from the old end: what is retracted is older than nearly all that wait.
SequenceList::iterator PlaceFromFront(SequenceList* list, int64_t arrival) {
  auto place = list->begin();
  while (place != list->end() && (*place)->arrival < arrival) {
    ++place;
  }
  return place;
}

// Prefix-cache hits may cover this many tokens: never the last one, whose logits are needed, and
// nothing beyond the first position that has to be scored (docs/api.md).
int64_t MaxCachedTokens(const Sequence& sequence) {
  const int64_t most = sequence.num_tokens() - 1;
  if (sequence.scores_input() && !sequence.scored) {
    return std::min(most, sequence.request.logprob_start_len);
  }
  return most;
}

// The page at page_idx of the sequence, `num_tokens` of it.
PrefixCache::PageKey KeyOf(const Sequence& sequence, int64_t page_idx, int64_t num_tokens) {
  return {.extra_key = sequence.request.extra_key,
          .parent = page_idx == 0 ? -1 : sequence.pages[static_cast<size_t>(page_idx - 1)],
          .tokens = std::span(sequence.tokens)
                        .subspan(static_cast<size_t>(page_idx * kPageTokens),
                                 static_cast<size_t>(num_tokens))};
}

// The prompt's tail, what lies between its last full page and its last token: its page, and how
// many tokens it has there (PrefixCache::NameTail).
struct Tail {
  int64_t page_idx = 0;
  int64_t num_tokens = 0;
};
Tail TailOf(const Sequence& sequence) {
  const int64_t end = sequence.prompt_len - 1;
  return {.page_idx = end / kPageTokens, .num_tokens = end % kPageTokens};
}

}  // namespace

void ReserveOutput(Sequence* sequence, int64_t expert_row_size) {
  sequence->pages.reserve(static_cast<size_t>(NumPagesFor(sequence->max_tokens())));
  sequence->tokens.reserve(static_cast<size_t>(sequence->max_tokens()));
  const auto num_new = static_cast<size_t>(sequence->max_tokens() - sequence->prompt_len);
  sequence->output.new_ids.reserve(num_new);
  sequence->output.versions.reserve(1);
  if (sequence->request.return_logprob) {
    sequence->output.new_logprobs.reserve(num_new);
  }
  if (sequence->request.return_routed_experts) {
    sequence->output.routed_experts.reserve(
        static_cast<size_t>(sequence->max_tokens() * expert_row_size));
  }
}

Scheduler::Scheduler(const SchedulerOptions& options, PagePool* pool, PrefixCache* cache)
    : options_(options), pool_(*pool), cache_(*cache) {
  CHECK(options.max_running > 0);
  CHECK(options.max_running <= options.chunk_tokens);
  plan_.token_ids.reserve(static_cast<size_t>(options.chunk_tokens));
  plan_.positions.reserve(static_cast<size_t>(options.chunk_tokens));
  plan_.segments.reserve(static_cast<size_t>(options.max_running));
  plan_.sequences.reserve(static_cast<size_t>(options.max_running));
  prefills_.reserve(static_cast<size_t>(options.max_running));
}

void Scheduler::Enqueue(std::unique_ptr<Sequence> sequence) {
  Sequence* queued = sequence.get();
  const bool is_new = by_rid_.emplace(queued->request.rid, queued).second;
  CHECK(is_new);
  queued->place = queue_.insert(PlaceFromBack(&queue_, queued->arrival), std::move(sequence));
}

const StepPlan& Scheduler::Plan(Admission admission, EngineClock::time_point now) {
  plan_.token_ids.clear();
  plan_.positions.clear();
  plan_.segments.clear();
  plan_.sequences.clear();
  prefills_.clear();
  PlanDecodes();
  PlanPrefills();
  PlanAdmissions(admission, now);
  return plan_;
}

void Scheduler::AddSegment(Sequence* sequence, int64_t num_tokens) {
  const int64_t first = sequence->num_computed;
  plan_.segments.push_back({.first_row = static_cast<int64_t>(plan_.token_ids.size()),
                            .num_rows = num_tokens,
                            .first_position = first,
                            .page_table = sequence->pages});
  plan_.sequences.push_back(sequence);
  for (int64_t position = first; position < first + num_tokens; ++position) {
    plan_.token_ids.push_back(sequence->tokens[static_cast<size_t>(position)]);
    plan_.positions.push_back(static_cast<int32_t>(position));
  }
}

// Makes room for the token at position num_computed, retracting younger sequences as it must.
// False when `sequence` itself was the youngest and went.
bool Scheduler::EnsureNextPage(Sequence* sequence) {
  if (NumPagesFor(sequence->num_computed + 1) <= static_cast<int64_t>(sequence->pages.size())) {
    return true;
  }
  while (true) {
    const int32_t page = cache_.AllocatePage();
    if (page >= 0) {
      sequence->pages.push_back(page);
      return true;
    }
    Sequence* youngest = running_.back().get();
    Retract(youngest);
    if (youngest == sequence) {
      return false;
    }
  }
}

void Scheduler::PlanDecodes() {
  // Retraction takes from the end of running_, so an iterator stays valid while its sequence stays.
  for (auto place = running_.begin(); place != running_.end(); ++place) {
    Sequence* sequence = place->get();
    if (sequence->num_pending() != 1) {
      continue;
    }
    if (!EnsureNextPage(sequence)) {
      return;  // It was the last.
    }
    AddSegment(sequence, 1);
  }
}

void Scheduler::PlanPrefills() {
  for (const std::unique_ptr<Sequence>& sequence : running_) {
    if (sequence->num_pending() > 1 && budget() > 0) {
      AddSegment(sequence.get(), std::min(sequence->num_pending(), budget()));
    }
    NotePrefill(*sequence);
  }
}

// --- Groups -------------------------------------------------------------------------------------

// Remembers a running sequence for those that may wait for it.
void Scheduler::NotePrefill(const Sequence& sequence) {
  const bool computes_prefix =
      sequence.num_pending() > 1 || sequence.num_computed < sequence.prompt_len;
  if (!computes_prefix || sequence.mixed || !cache_.enabled()) {
    return;
  }
  Prefill prefill = {.sequence = &sequence};
  const int64_t page_idx = sequence.num_computed / kPageTokens;
  if ((page_idx + 1) * kPageTokens <= sequence.num_tokens()) {
    prefill.page_hash = cache_.Hash(KeyOf(sequence, page_idx, kPageTokens));
  }
  if (const Tail tail = TailOf(sequence);
      tail.page_idx == page_idx && sequence.num_computed < sequence.prompt_len - 1) {
    prefill.tail_hash = cache_.Hash(KeyOf(sequence, page_idx, tail.num_tokens));
  }
  prefills_.push_back(prefill);
}

// The running sequence that computes what `sequence`, which holds its cached pages, needs next;
// null when nobody does.
const Sequence* Scheduler::FindPrefill(const Sequence& sequence) const {
  const auto page_idx = static_cast<int64_t>(sequence.pages.size());
  const int64_t max_cached = MaxCachedTokens(sequence);
  uint64_t page_hash = 0;
  uint64_t tail_hash = 0;
  if (prefills_.empty()) {
    return nullptr;
  }
  if ((page_idx + 1) * kPageTokens <= max_cached) {
    page_hash = cache_.Hash(KeyOf(sequence, page_idx, kPageTokens));
  }
  if (const Tail tail = TailOf(sequence);
      tail.page_idx == page_idx && tail.num_tokens > 0 && sequence.prompt_len - 1 <= max_cached) {
    tail_hash = cache_.Hash(KeyOf(sequence, page_idx, tail.num_tokens));
  }
  // 0 stands for "none"; two different names with one hash cost a wait in vain.
  for (const Prefill& prefill : prefills_) {
    if ((page_hash != 0 && prefill.page_hash == page_hash) ||
        (tail_hash != 0 && prefill.tail_hash == tail_hash)) {
      return prefill.sequence;
    }
  }
  return nullptr;
}

bool Scheduler::StillWaits(Sequence* sequence) const {
  if (sequence->waits_for < 0) {
    return false;
  }
  const bool waits = std::ranges::any_of(prefills_, [&](const Prefill& prefill) {
    return prefill.sequence->arrival == sequence->waits_for &&
           prefill.sequence->num_computed < sequence->waits_until;
  });
  if (!waits) {
    sequence->waits_for = -1;
  }
  return waits;
}

// Takes the prompt's tail over from a page that begins with it.
void Scheduler::CopyTail(Sequence* sequence) {
  const Tail tail = TailOf(*sequence);
  if (sequence->num_computed != tail.page_idx * kPageTokens ||
      sequence->prompt_len - 1 > MaxCachedTokens(*sequence)) {
    return;
  }
  const int32_t source = cache_.FindTail(KeyOf(*sequence, tail.page_idx, tail.num_tokens));
  if (source >= 0) {
    pool_.CopyPage(source, sequence->pages[static_cast<size_t>(tail.page_idx)]);
    sequence->num_computed += tail.num_tokens;
  }
}

// --- Admission ----------------------------------------------------------------------------------

// How many versions the prefix of a sequence may lie behind. A retraction promises that the KV is
// computed again, and scoring that all logprobs come from one version.
int64_t Scheduler::MaxBehind(const Sequence& sequence) const {
  const Request& request = sequence.request;
  if (sequence.started || sequence.scores_input() || request.version_demand.any()) {
    return 0;
  }
  return request.stale_prefix_versions.value_or(options_.stale_prefix_versions);
}

// Takes all pages of the sequence's present tokens, cached ones first; unless it is admitted, takes
// none.
Scheduler::Outcome Scheduler::TryAdmit(Sequence* sequence) {
  // Each running sequence may soon need one page more; without that reserve, an admission would
  // be followed by its own retraction.
  const int64_t num_needed = NumPagesFor(sequence->num_tokens()) + num_running();
  const int64_t max_cached = MaxCachedTokens(*sequence);
  if (num_needed - max_cached / kPageTokens > cache_.num_available()) {
    CHECK(!running_.empty());  // Alone, every validated sequence fits.
    return Outcome::kNoRoom;
  }
  if (!sequence->started) {
    ReserveOutput(sequence, pool_.experts().row_size());
  }
  const int64_t behind = cache_.Match({.extra_key = sequence->request.extra_key,
                                       .tokens = sequence->tokens,
                                       .max_tokens = max_cached,
                                       .max_behind = MaxBehind(*sequence)},
                                      &sequence->pages);
  const Sequence* prefill = behind == 0 ? FindPrefill(*sequence) : nullptr;
  if (prefill != nullptr) {
    const auto [mine, theirs] = std::ranges::mismatch(sequence->tokens, prefill->tokens);
    const auto num_common = static_cast<int64_t>(mine - sequence->tokens.begin());
    const int64_t num_shared = std::min(num_common, max_cached);
    sequence->waits_for = prefill->arrival;
    sequence->waits_until = num_shared >= prefill->prompt_len - 1
                                ? std::max(prefill->prompt_len, num_shared)
                                : num_shared / kPageTokens * kPageTokens;
    ReleasePages(sequence);
    return Outcome::kWaits;
  }
  const auto num_hits = static_cast<int64_t>(sequence->pages.size());
  if (num_needed - num_hits > cache_.num_available()) {
    CHECK(!running_.empty());
    ReleasePages(sequence);
    return Outcome::kNoRoom;
  }
  for (int64_t i = num_hits; i < NumPagesFor(sequence->num_tokens()); ++i) {
    sequence->pages.push_back(cache_.AllocatePage());
  }
  sequence->num_computed = num_hits * kPageTokens;
  sequence->mixed = behind > 0;
  CopyTail(sequence);
  return Outcome::kAdmitted;
}

// Moves an admitted sequence over to those that run, and into the plan.
void Scheduler::Start(Sequence* sequence, EngineClock::time_point now) {
  if (sequence->started) {
    --num_started_in_queue_;
  } else {
    sequence->started = true;
    sequence->first_scheduled = now;
    sequence->output.cached_tokens = sequence->num_computed;
    sequence->output.cached_tokens_stale = sequence->mixed ? sequence->num_computed : 0;
  }
  num_used_tokens_ += sequence->num_computed;
  sequence->running = true;
  running_.splice(PlaceFromBack(&running_, sequence->arrival), queue_, sequence->place);
  NotePrefill(*sequence);
  AddSegment(sequence, std::min(sequence->num_pending(), budget()));
}

void Scheduler::PlanAdmissions(Admission admission, EngineClock::time_point now) {
  int64_t num_waiting = 0;  // Passed over: as many as could run at all, so that a step stays short.
  int64_t num_started_left = num_started_in_queue_;
  auto place = queue_.begin();
  while (place != queue_.end() && budget() > 0 && num_running() < options_.max_running &&
         num_waiting < options_.max_running) {
    Sequence* sequence = place->get();
    ++place;
    if (admission == Admission::kStartedOnly) {
      if (num_started_left == 0) {
        return;
      }
      if (!sequence->started) {
        continue;
      }
      --num_started_left;
    }
    if (StillWaits(sequence)) {
      ++num_waiting;
      continue;
    }
    const Outcome outcome = TryAdmit(sequence);
    if (outcome == Outcome::kNoRoom) {
      return;
    }
    if (outcome == Outcome::kWaits) {
      ++num_waiting;
    } else {
      Start(sequence, now);
    }
  }
}

// --- After a step -------------------------------------------------------------------------------

// Offers the pages that have become full to the cache. `num_before`: tokens computed before.
void Scheduler::InsertFullPages(Sequence* sequence, int64_t num_before) {
  const int64_t end = sequence->num_computed / kPageTokens;
  for (int64_t page_idx = num_before / kPageTokens; page_idx < end; ++page_idx) {
    int32_t& page = sequence->pages[static_cast<size_t>(page_idx)];
    page = cache_.Insert(KeyOf(*sequence, page_idx, kPageTokens), page);
  }
}

void Scheduler::CommitPlan() {
  for (size_t i = 0; i < plan_.sequences.size(); ++i) {
    Sequence& sequence = *plan_.sequences[i];
    const int64_t num_before = sequence.num_computed;
    sequence.num_computed += plan_.segments[i].num_rows;
    num_used_tokens_ += plan_.segments[i].num_rows;
    if (sequence.mixed) {
      continue;
    }
    InsertFullPages(&sequence, num_before);
    if (num_before < sequence.prompt_len && sequence.num_computed >= sequence.prompt_len) {
      const Tail tail = TailOf(sequence);
      cache_.NameTail(KeyOf(sequence, tail.page_idx, tail.num_tokens),
                      sequence.pages[static_cast<size_t>(tail.page_idx)]);
    }
  }
}

void Scheduler::ReleasePages(Sequence* sequence) {
  while (!sequence->pages.empty()) {
    cache_.ReleasePage(sequence->pages.back());
    sequence->pages.pop_back();
  }
  num_used_tokens_ -= sequence->num_computed;
  sequence->num_computed = 0;
}

void Scheduler::Retract(Sequence* sequence) {
  CHECK(sequence->running);
  KeepExperts(sequence);
  ReleasePages(sequence);
  RestartScoring(*sequence);
  sequence->mixed = false;  // What is computed again comes from one version.
  sequence->running = false;
  ++sequence->output.num_retractions;
  ++num_retractions_;
  ++num_started_in_queue_;
  queue_.splice(PlaceFromFront(&queue_, sequence->arrival), running_, sequence->place);
}

std::unique_ptr<Sequence> Scheduler::Remove(Sequence* sequence) {
  ReleasePages(sequence);
  by_rid_.erase(sequence->request.rid);
  if (!sequence->running && sequence->started) {
    --num_started_in_queue_;
  }
  std::unique_ptr<Sequence> taken = std::move(*sequence->place);
  (sequence->running ? running_ : queue_).erase(sequence->place);
  return taken;
}

void Scheduler::KeepExperts(Sequence* sequence) const {
  const int64_t start = sequence->request.routed_experts_start_len;
  if (!sequence->request.return_routed_experts || sequence->num_computed <= start) {
    return;
  }
  std::vector<int32_t>& kept = sequence->output.routed_experts;
  const auto size =
      static_cast<size_t>((sequence->num_computed - start) * pool_.experts().row_size());
  kept.resize(std::max(kept.size(), size));
  pool_.experts().Read(sequence->pages, start, sequence->num_computed, std::span(kept).first(size));
}

void Scheduler::Distrust(const Sequence& sequence) {
  if (const Tail tail = TailOf(sequence);
      tail.page_idx < static_cast<int64_t>(sequence.pages.size())) {
    cache_.UnnameTail(sequence.pages[static_cast<size_t>(tail.page_idx)]);
  }
}

Sequence* Scheduler::Find(std::string_view rid) const {
  const auto found = by_rid_.find(rid);
  return found != by_rid_.end() ? found->second : nullptr;
}

// --- Invariants ---------------------------------------------------------------------------------

void Scheduler::CheckSequences() const {
  int64_t num_used = 0;
  int64_t num_started = 0;
  for (const std::unique_ptr<Sequence>& sequence : running_) {
    CHECK(sequence->running);
    CHECK(sequence->started);
    CHECK(sequence->num_computed <= sequence->num_tokens());
    CHECK(NumPagesFor(sequence->num_computed) <= static_cast<int64_t>(sequence->pages.size()));
    num_used += sequence->num_computed;
  }
  for (const std::unique_ptr<Sequence>& sequence : queue_) {
    CHECK(!sequence->running);
    CHECK(sequence->pages.empty());
    CHECK(sequence->num_computed == 0);
    num_started += sequence->started ? 1 : 0;
  }
  CHECK(num_used == num_used_tokens_);
  CHECK(num_started == num_started_in_queue_);
  CHECK(by_rid_.size() == running_.size() + queue_.size());
}

void Scheduler::CheckInvariants() const {
  pool_.CheckInvariants();
  cache_.CheckInvariants();
  CHECK(num_running() <= options_.max_running);
  CHECK(std::ranges::is_sorted(running_, Older));
  CHECK(std::ranges::is_sorted(queue_, Older));
  CheckSequences();
  std::vector<int32_t> num_refs(static_cast<size_t>(pool_.num_pages()), 0);
  for (const std::unique_ptr<Sequence>& sequence : running_) {
    for (const int32_t page : sequence->pages) {
      ++num_refs[static_cast<size_t>(page)];
    }
  }
  for (size_t page = 0; page < num_refs.size(); ++page) {
    const auto id = static_cast<int32_t>(page);
    CHECK(pool_.ref_count(id) == num_refs[page] + (cache_.IsCached(id) ? 1 : 0));
  }
}

}  // namespace octavo
