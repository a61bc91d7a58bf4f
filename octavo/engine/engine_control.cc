// EngineCore between two steps: aborts, pauses, flushes, weight swaps, drains.

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <ratio>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/check.h"
#include "octavo/base/log.h"
#include "octavo/base/status.h"
#include "octavo/engine/engine.h"
#include "octavo/engine/engine_core.h"
#include "octavo/engine/request.h"
#include "octavo/engine/sequence.h"

namespace octavo {

// Partial output is kept. Clients tell an abort without any work by its first words
// (docs/api.md).
void EngineCore::AbortSequence(Sequence* sequence) {
  const bool worked = sequence->started || sequence->num_generated() > 0;
  sequence->output.finish = {.type = FinishType::kAbort,
                             .message = worked ? "Aborted" : "Abort before prefill"};
  ++totals_.aborted;
  Finish(sequence);
}

// The sequences for which `predicate` holds: running ones, then queued ones, each oldest first.
template <typename Predicate>
std::vector<Sequence*> EngineCore::Choose(Predicate predicate) const {
  std::vector<Sequence*> chosen;
  for (const SequenceList* list : {&scheduler_.running(), &scheduler_.queue()}) {
    for (const std::unique_ptr<Sequence>& sequence : *list) {
      if (predicate(*sequence)) {
        chosen.push_back(sequence.get());
      }
    }
  }
  return chosen;
}

// Aborts the sequences for which `predicate` holds; returns how many.
template <typename Predicate>
int64_t EngineCore::AbortIf(Predicate predicate) {
  const std::vector<Sequence*> chosen = Choose(predicate);
  for (Sequence* sequence : chosen) {
    AbortSequence(sequence);
  }
  return static_cast<int64_t>(chosen.size());
}

// Partial output is kept: its tokens are of weights that met the demand.
void EngineCore::EndVersionConflict(Sequence* sequence) {
  sequence->output.finish = {.type = FinishType::kVersionConflict,
                             .message = sequence->request.version_demand.Conflict(weight_version_)};
  ++totals_.version_conflicts;
  Finish(sequence);
}

// Ends what demands another version than the one that has just become live; returns how many.
int64_t EngineCore::EndVersionConflicts() {
  const std::vector<Sequence*> chosen = Choose([this](const Sequence& sequence) {
    return !sequence.request.version_demand.IsMet(weight_version_);
  });
  for (Sequence* sequence : chosen) {
    EndVersionConflict(sequence);
  }
  return static_cast<int64_t>(chosen.size());
}

void EngineCore::Abort(std::string_view rid) {
  if (Sequence* sequence = scheduler_.Find(rid); sequence != nullptr) {
    AbortSequence(sequence);
  }
}

void EngineCore::AbortAll() {
  AbortIf([](const Sequence&) { return true; });
}

void EngineCore::RetractAll() {
  while (!scheduler_.running().empty()) {
    scheduler_.Retract(scheduler_.running().back().get());
  }
}

void EngineCore::Pause(PauseMode mode) {
  if (mode == PauseMode::kAbort) {
    AbortIf([](const Sequence& sequence) { return !sequence.held; });
  } else if (mode == PauseMode::kRetract) {
    RetractAll();
  }
  paused_ = true;
}

void EngineCore::Continue() {
  paused_ = false;
  LiftHold();
}

// From here on what waits is like any other request in the queue.
void EngineCore::LiftHold() {
  if (held()) {
    return;
  }
  for (const std::unique_ptr<Sequence>& sequence : scheduler_.queue()) {
    sequence->held = false;
  }
}

// No request holds pages, and nobody is about to take some.
bool EngineCore::IsFlushable() const {
  return scheduler_.running().empty() && (held() || scheduler_.queue().empty());
}

bool EngineCore::TryFlush() {
  if (!IsFlushable()) {
    return false;
  }
  cache_.Clear();
  return true;
}

Status EngineCore::NotFlushable(std::string_view what) const {
  return Unavailable("{}: expected no request to hold KV pages, got {} running and {} queued", what,
                     scheduler_.running().size(), scheduler_.queue().size());
}

void EngineCore::Flush(EngineClock::time_point deadline, std::function<void(Status)> done) {
  if (TryFlush()) {
    done(OkStatus());
  } else if (!flushes_.empty()) {
    done(Unavailable("flush: another flush is waiting"));
  } else if (deadline <= EngineClock::now()) {
    done(NotFlushable("flush"));
  } else {
    flushes_.push_back({.deadline = deadline, .done = std::move(done)});
  }
}

void EngineCore::Swap(SwapRequest swap) {
  CHECK(swap.weights != nullptr);
  swaps_.push_back(std::move(swap));
  AtBoundary();
}

// A drain waits for everything that has begun. A held engine cannot get on, so there the swap is
// made at once and frozen requests go on in place, as the pause promised them (docs/api.md).
bool EngineCore::CanSwap(const SwapRequest& swap) const {
  return swap.in_flight != InFlight::kDrain || held() ||
         (scheduler_.running().empty() && scheduler_.num_started_in_queue() == 0);
}

// Running sequences keep their KV, which from now on spans two versions. Prompts that are not
// completely scored begin again, so that all their logprobs come from one version.
void EngineCore::KeepInPlace() {
  std::vector<Sequence*> unscored;
  for (const std::unique_ptr<Sequence>& sequence : scheduler_.running()) {
    sequence->mixed = true;
    if (!sequence->scored) {
      unscored.push_back(sequence.get());
    }
  }
  for (Sequence* sequence : unscored) {
    scheduler_.Retract(sequence);
  }
}

// Makes room for one more span in every output that has begun, so that the step that samples its
// next token allocates nothing.
void EngineCore::ExpectNewVersion() {
  for (const SequenceList* list : {&scheduler_.running(), &scheduler_.queue()}) {
    for (const std::unique_ptr<Sequence>& sequence : *list) {
      if (sequence->started) {
        sequence->output.versions.reserve(sequence->output.versions.size() + 1);
      }
    }
  }
}

void EngineCore::SetWeightVersion(std::string version) {
  ExpectNewVersion();
  weight_version_ = std::move(version);
  EndVersionConflicts();
}

void EngineCore::ApplySwap(SwapRequest swap) {
  MadeSwap made;
  made.pause_began = stepping_ ? last_step_end_ : EngineClock::now();
  made.report.in_flight =
      static_cast<int64_t>(scheduler_.running().size()) + scheduler_.num_started_in_queue();
  switch (swap.in_flight) {
    case InFlight::kRetract:
      RetractAll();
      break;
    case InFlight::kAbort:
      made.report.aborted = AbortIf([](const Sequence& sequence) { return sequence.started; });
      break;
    case InFlight::kDrain:
    case InFlight::kInPlace:
      KeepInPlace();
      break;
  }
  ExpectNewVersion();
  cache_.BumpGeneration();
  std::swap(weights_, swap.weights);
  weight_state_ = WeightState::kLive;
  weight_version_ = swap.version;
  made.report.aborted += EndVersionConflicts();
  made.report.retracted = scheduler_.num_started_in_queue();
  LiftHold();
  made.swap = std::move(swap);
  made_swaps_.push_back(std::move(made));
}

void EngineCore::ReportSwaps() {
  if (made_swaps_.empty()) {
    return;
  }
  std::vector<MadeSwap> made = std::move(made_swaps_);
  made_swaps_.clear();
  if (publish_ != nullptr) {
    publish_();
  }
  for (MadeSwap& one : made) {
    one.report.pause_ms =
        std::chrono::duration<double, std::milli>(EngineClock::now() - one.pause_began).count();
    LOG(INFO, "weights swapped version={} in_flight={} retracted={} aborted={} pause_ms={:.2f}",
        one.swap.version, one.report.in_flight, one.report.retracted, one.report.aborted,
        one.report.pause_ms);
    if (one.swap.done != nullptr) {
      one.swap.done(one.report, std::move(one.swap.weights));
    }
  }
}

Result<std::unique_ptr<ModelWeights>> EngineCore::VoidWeights(
    std::unique_ptr<ModelWeights> weights) {
  CHECK(weights != nullptr);
  if (!IsFlushable()) {
    return NotFlushable("weights");
  }
  cache_.BumpGeneration();
  weight_state_ = WeightState::kVoid;
  return std::exchange(weights_, std::move(weights));
}

Result<std::unique_ptr<ModelWeights>> EngineCore::ReleaseMemory(MemoryParts parts) {
  const bool kv_cache = parts.kv_cache && !kv_released_;
  const bool has_weights =
      weight_state_ == WeightState::kLive || weight_state_ == WeightState::kVoid;
  const bool weights = parts.weights && has_weights;
  if ((kv_cache || weights) && !IsFlushable()) {
    return NotFlushable("release");
  }
  if (kv_cache) {
    cache_.Clear();
    pool_.ReleaseMemory();
    kv_released_ = true;
  }
  std::unique_ptr<ModelWeights> released;
  if (weights) {
    released = std::exchange(weights_, std::make_unique<ModelWeights>());
    weight_state_ = WeightState::kReleased;
  }
  return released;
}

Status EngineCore::ResumeMemory(MemoryParts parts) {
  if (parts.kv_cache && kv_released_) {
    RETURN_IF_ERROR(pool_.ResumeMemory());
    kv_released_ = false;
  }
  if (parts.weights && weight_state_ == WeightState::kReleased) {
    weight_state_ = WeightState::kVoid;
  }
  LiftHold();
  return OkStatus();
}

void EngineCore::PoisonWeights() {
  CHECK(weight_state_ != WeightState::kLive);
  weight_state_ = WeightState::kPoisoned;
}

void EngineCore::Drain(std::function<void()> done) {
  drains_.push_back(std::move(done));
  AtBoundary();
}

void EngineCore::AtBoundary() {
  if (!drains_.empty() && held()) {
    Continue();  // Nobody may be left to lift the pause,
    if (held()) {
      AbortAll();  // nor to bring the memory back.
    }
  }
  while (!swaps_.empty() && CanSwap(swaps_.front())) {
    SwapRequest swap = std::move(swaps_.front());
    swaps_.pop_front();
    ApplySwap(std::move(swap));
  }
  for (size_t i = 0; i < flushes_.size();) {
    const bool flushed = TryFlush();
    if (!flushed && EngineClock::now() < flushes_[i].deadline) {
      ++i;
      continue;
    }
    const std::function<void(Status)> done = std::move(flushes_[i].done);
    flushes_.erase(flushes_.begin() + static_cast<std::ptrdiff_t>(i));
    done(flushed ? OkStatus() : Unavailable("flush: requests still hold KV pages at the timeout"));
  }
  if (!drains_.empty() && Idle()) {
    const std::vector<std::function<void()>> drains = std::exchange(drains_, {});
    for (const std::function<void()>& done : drains) {
      done();
    }
  }
}

void EngineCore::Shutdown() {
  AbortAll();
  AtBoundary();  // Nothing is in flight, so every waiting swap, flush and drain comes about.
  ReportSwaps();
  CHECK(swaps_.empty());
  CHECK(flushes_.empty());
}

bool EngineCore::HasRunnable() const { return !held() && !Idle(); }

EngineClock::time_point EngineCore::NextDeadline() const {
  EngineClock::time_point next = EngineClock::time_point::max();
  for (const PendingFlush& flush : flushes_) {
    next = std::min(next, flush.deadline);
  }
  return next;
}

}  // namespace octavo
