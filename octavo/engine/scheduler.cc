#include "octavo/engine/scheduler.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
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

// Inserts by arrival. Both lists are nearly always touched at one end, where this is cheap.
template <typename List>
void InsertByArrival(List* list, std::unique_ptr<Sequence> sequence) {
  const auto place = std::upper_bound(list->begin(), list->end(), sequence, Older);
  list->insert(place, std::move(sequence));
}

// Takes `sequence` out of `list`; null when it is not there.
template <typename List>
std::unique_ptr<Sequence> TakeFrom(List* list, const Sequence* sequence) {
  const auto place = std::ranges::find_if(
      *list, [&](const std::unique_ptr<Sequence>& held) { return held.get() == sequence; });
  if (place == list->end()) {
    return nullptr;
  }
  std::unique_ptr<Sequence> taken = std::move(*place);
  list->erase(place);
  return taken;
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

}  // namespace

Scheduler::Scheduler(const SchedulerOptions& options, PagePool* pool, PrefixCache* cache)
    : options_(options), pool_(*pool), cache_(*cache) {
  CHECK(options.max_running > 0);
  CHECK(options.max_running <= options.chunk_tokens);
  running_.reserve(static_cast<size_t>(options.max_running));
  plan_.token_ids.reserve(static_cast<size_t>(options.chunk_tokens));
  plan_.positions.reserve(static_cast<size_t>(options.chunk_tokens));
  plan_.segments.reserve(static_cast<size_t>(options.max_running));
  plan_.sequences.reserve(static_cast<size_t>(options.max_running));
}

void Scheduler::Enqueue(std::unique_ptr<Sequence> sequence) {
  InsertByArrival(&queue_, std::move(sequence));
}

const StepPlan& Scheduler::Plan(Admission admission, EngineClock::time_point now) {
  plan_.token_ids.clear();
  plan_.positions.clear();
  plan_.segments.clear();
  plan_.sequences.clear();
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
  // Retraction takes from the end of running_, so an index stays valid while it is inside.
  for (size_t i = 0; i < running_.size(); ++i) {
    Sequence* sequence = running_[i].get();
    if (sequence->num_pending() == 1 && EnsureNextPage(sequence)) {
      AddSegment(sequence, 1);
    }
  }
}

void Scheduler::PlanPrefills() {
  for (const std::unique_ptr<Sequence>& sequence : running_) {
    if (sequence->num_pending() > 1 && budget() > 0) {
      AddSegment(sequence.get(), std::min(sequence->num_pending(), budget()));
    }
  }
}

// Takes all pages of the sequence's present tokens, cached ones first; on failure takes none.
bool Scheduler::TryAdmit(Sequence* sequence) {
  // Each running sequence may soon need one page more; without that reserve, an admission would
  // be followed by its own retraction.
  const auto reserve = static_cast<int64_t>(running_.size());
  const int64_t num_needed = NumPagesFor(sequence->num_tokens());
  sequence->pages.reserve(static_cast<size_t>(NumPagesFor(
      sequence->prompt_len + std::max<int64_t>(sequence->request.sampling.max_new_tokens, 1))));
  cache_.Match(sequence->request.extra_key, sequence->tokens, MaxCachedTokens(*sequence),
               &sequence->pages);
  const auto num_hits = static_cast<int64_t>(sequence->pages.size());
  if (num_needed - num_hits + reserve > cache_.num_available()) {
    CHECK(!running_.empty());  // Alone, every validated sequence fits.
    ReleasePages(sequence);
    return false;
  }
  while (static_cast<int64_t>(sequence->pages.size()) < num_needed) {
    sequence->pages.push_back(cache_.AllocatePage());
  }
  sequence->num_computed = num_hits * kPageTokens;
  return true;
}

void Scheduler::PlanAdmissions(Admission admission, EngineClock::time_point now) {
  while (!queue_.empty() && budget() > 0 &&
         static_cast<int64_t>(running_.size()) < options_.max_running) {
    Sequence* sequence = queue_.front().get();
    if (admission == Admission::kStartedOnly && !sequence->started) {
      return;
    }
    if (!TryAdmit(sequence)) {
      return;
    }
    if (!sequence->started) {
      sequence->started = true;
      sequence->first_scheduled = now;
      sequence->output.cached_tokens = sequence->num_computed;
    }
    std::unique_ptr<Sequence> taken = std::move(queue_.front());
    queue_.pop_front();
    InsertByArrival(&running_, std::move(taken));
    AddSegment(sequence, std::min(sequence->num_pending(), budget()));
  }
}

void Scheduler::CommitPlan() {
  for (size_t i = 0; i < plan_.sequences.size(); ++i) {
    Sequence& sequence = *plan_.sequences[i];
    const int64_t first_full = sequence.num_computed / kPageTokens;
    sequence.num_computed += plan_.segments[i].num_rows;
    if (sequence.mixed) {
      continue;
    }
    const int64_t end_full = sequence.num_computed / kPageTokens;
    for (int64_t page_idx = first_full; page_idx < end_full; ++page_idx) {
      int32_t& page = sequence.pages[static_cast<size_t>(page_idx)];
      page = cache_.Insert(
          {.extra_key = sequence.request.extra_key,
           .parent = page_idx == 0 ? -1 : sequence.pages[static_cast<size_t>(page_idx - 1)],
           .tokens = std::span(sequence.tokens)
                         .subspan(static_cast<size_t>(page_idx * kPageTokens), kPageTokens)},
          page);
    }
  }
}

void Scheduler::ReleasePages(Sequence* sequence) {
  while (!sequence->pages.empty()) {
    cache_.ReleasePage(sequence->pages.back());
    sequence->pages.pop_back();
  }
  sequence->num_computed = 0;
}

void Scheduler::Retract(Sequence* sequence) {
  std::unique_ptr<Sequence> taken = TakeFrom(&running_, sequence);
  CHECK(taken != nullptr);
  ReleasePages(sequence);
  RestartScoring(*sequence);
  sequence->mixed = false;  // What is computed again comes from one version.
  ++sequence->output.num_retractions;
  ++num_retractions_;
  InsertByArrival(&queue_, std::move(taken));
}

std::unique_ptr<Sequence> Scheduler::Remove(Sequence* sequence) {
  ReleasePages(sequence);
  std::unique_ptr<Sequence> taken = TakeFrom(&running_, sequence);
  return taken != nullptr ? std::move(taken) : TakeFrom(&queue_, sequence);
}

Sequence* Scheduler::Find(std::string_view rid) const {
  for (const std::unique_ptr<Sequence>& sequence : running_) {
    if (sequence->request.rid == rid) {
      return sequence.get();
    }
  }
  for (const std::unique_ptr<Sequence>& sequence : queue_) {
    if (sequence->request.rid == rid) {
      return sequence.get();
    }
  }
  return nullptr;
}

int64_t Scheduler::NumStartedInQueue() const {
  return std::ranges::count_if(
      queue_, [](const std::unique_ptr<Sequence>& sequence) { return sequence->started; });
}

int64_t Scheduler::NumUsedTokens() const {
  int64_t num_tokens = 0;
  for (const std::unique_ptr<Sequence>& sequence : running_) {
    num_tokens += sequence->num_computed;
  }
  return num_tokens;
}

void Scheduler::CheckInvariants() const {
  pool_.CheckInvariants();
  cache_.CheckInvariants();
  CHECK(static_cast<int64_t>(running_.size()) <= options_.max_running);
  CHECK(std::ranges::is_sorted(running_, Older));
  CHECK(std::ranges::is_sorted(queue_, Older));
  std::vector<int32_t> num_refs(static_cast<size_t>(pool_.num_pages()), 0);
  for (const std::unique_ptr<Sequence>& sequence : running_) {
    const auto num_pages = static_cast<int64_t>(sequence->pages.size());
    CHECK(sequence->started);
    CHECK(sequence->num_computed <= sequence->num_tokens());
    CHECK(NumPagesFor(sequence->num_computed) <= num_pages);
    for (const int32_t page : sequence->pages) {
      ++num_refs[static_cast<size_t>(page)];
    }
  }
  for (const std::unique_ptr<Sequence>& sequence : queue_) {
    CHECK(sequence->pages.empty());
    CHECK(sequence->num_computed == 0);
  }
  for (size_t page = 0; page < num_refs.size(); ++page) {
    const auto id = static_cast<int32_t>(page);
    CHECK(pool_.ref_count(id) == num_refs[page] + (cache_.IsCached(id) ? 1 : 0));
  }
}

}  // namespace octavo
