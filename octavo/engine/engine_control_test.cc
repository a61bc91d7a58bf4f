// Method: a core stepped by hand, so that every pause, swap, flush, abort and drain meets the
// requests in a known state. What must not change is compared with an undisturbed run.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/engine/engine.h"
#include "octavo/engine/request.h"
#include "octavo/engine/sequence.h"
#include "octavo/engine/test_support.h"
#include "octavo/kernels/ops.h"
#include "octavo/model/model.h"

namespace octavo {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

Collected Undisturbed(uint64_t seed, int64_t prompt_len, int64_t max_new_tokens) {
  Harness harness;
  return harness.Run(Sampled(seed, prompt_len, max_new_tokens));
}

Status FlushNow(Harness& harness) {
  std::optional<Status> result;
  harness.core().Flush(EngineClock::now(), [&](Status status) { result = std::move(status); });
  EXPECT_TRUE(result.has_value());
  return result.value_or(OkStatus());
}

// What a swap called back with.
struct SwapOutcome {
  int num_calls = 0;
  SwapReport report;
  std::unique_ptr<ModelWeights> old_weights;
};

void Swap(Harness& harness, const TinyWeightOptions& weights, const std::string& version,
          InFlight in_flight, SwapOutcome* outcome) {
  harness.core().Swap({.weights = harness.NewWeights(weights),
                       .version = version,
                       .in_flight = in_flight,
                       .done = [outcome](SwapReport report, std::unique_ptr<ModelWeights> old) {
                         ++outcome->num_calls;
                         outcome->report = report;
                         outcome->old_weights = std::move(old);
                       }});
}

constexpr TinyWeightOptions kNewWeights = {.seed = 2};

// --- Abort --------------------------------------------------------------------------------------

TEST(Abort, ReachesARequestInEveryState) {
  HarnessOptions options;
  options.engine.max_running_requests = 2;
  options.engine.chunk_tokens = 16;
  Harness harness(options);
  Request decoding = Sampled(1, 4, 50);
  decoding.rid = "decoding";
  Request prefilling = Sampled(2, 200, 50);
  prefilling.rid = "prefilling";
  Request queued = Sampled(3, 10, 50);
  queued.rid = "queued";
  const auto first = harness.Add(std::move(decoding));
  const auto second = harness.Add(std::move(prefilling));
  const auto third = harness.Add(std::move(queued));
  harness.Steps(5);
  harness.core().Abort("queue");  // No rid begins to match.
  harness.core().Abort("queued");
  harness.core().Abort("prefilling");
  harness.core().Abort("decoding");
  harness.core().CheckInvariants();

  EXPECT_EQ(third->Get().all.finish.type, FinishType::kAbort);
  EXPECT_THAT(third->Get().all.finish.message, StartsWith("Abort before prefill"));
  EXPECT_EQ(third->Get().all.prompt_tokens, 10);
  EXPECT_EQ(second->Get().all.finish.type, FinishType::kAbort);
  EXPECT_TRUE(second->Get().all.new_ids.empty());
  const Collected partial = first->Get();
  EXPECT_EQ(partial.all.finish.type, FinishType::kAbort);
  EXPECT_EQ(partial.all.new_ids.size(), 5U);
  EXPECT_EQ(partial.all.new_logprobs.size(), 5U);
  EXPECT_EQ(partial.all.completion_tokens, 5);
  EXPECT_EQ(harness.num_in_flight(), 0);
  EXPECT_FALSE(harness.Step());
  EXPECT_EQ(harness.core().totals().aborted, 3);
}

TEST(Abort, OfWhatHasJustFinishedChangesNothing) {
  Harness harness;
  Request request = Sampled(1, 20, 3);
  request.rid = "done";
  const auto sink = harness.Add(std::move(request));
  const auto other = harness.Add(Sampled(2, 20, 10));
  harness.Steps(3);
  EXPECT_EQ(sink->Get().all.finish.type, FinishType::kLength);
  harness.core().Abort("done");
  harness.RunAll();
  EXPECT_EQ(sink->Get().num_final, 1);
  EXPECT_EQ(sink->Get().all.finish.type, FinishType::kLength);
  EXPECT_EQ(harness.core().totals().aborted, 0);
  ExpectSame(other->Get(), Undisturbed(2, 20, 10));
}

TEST(Abort, OfOneThatWaitsForItsGroupLeavesTheOthers) {
  HarnessOptions options;
  options.engine.chunk_tokens = 16;
  options.engine.max_running_requests = 16;
  Harness harness(options);
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int i = 0; i < 4; ++i) {
    Request request = Sampled(1, 100, 10);
    request.rid = "sample" + std::to_string(i);
    sinks.push_back(harness.Add(std::move(request)));
  }
  harness.Steps(2);
  harness.core().Abort("sample2");
  EXPECT_THAT(sinks[2]->Get().all.finish.message, StartsWith("Abort before prefill"));
  harness.RunAll();
  ExpectSame(sinks[3]->Get(), Undisturbed(1, 100, 10));
  EXPECT_EQ(harness.core().totals().computed_tokens, 100 + 2 + 3 * 9);
}

TEST(Abort, WorksWhilePaused) {
  Harness harness;
  const auto frozen = harness.Add(Sampled(1, 20, 50));
  harness.Steps(3);
  harness.core().Pause(PauseMode::kInPlace);
  Request request = Sampled(2, 20, 50);
  request.rid = "held";
  const auto held = harness.Add(std::move(request));
  harness.core().Abort("held");
  EXPECT_TRUE(held->finished());
  EXPECT_FALSE(frozen->finished());
  harness.core().AbortAll();
  EXPECT_TRUE(frozen->finished());
  EXPECT_TRUE(harness.core().paused());
}

TEST(Abort, OfARetractedRequestReturnsWhatItHad) {
  Harness harness;
  Request request = Sampled(1, 20, 50);
  request.rid = "r";
  const auto sink = harness.Add(std::move(request));
  harness.Steps(7);
  harness.core().Pause(PauseMode::kRetract);
  harness.core().Abort("r");
  EXPECT_EQ(sink->Get().all.new_ids.size(), 7U);
  EXPECT_THAT(sink->Get().all.finish.message, testing::Not(StartsWith("Abort before prefill")));
}

// --- Pause and continue -------------------------------------------------------------------------

TEST(Pause, AbortReturnsPartialsAndHoldsWhatComesLater) {
  Harness harness;
  const auto running = harness.Add(Sampled(1, 20, 50));
  harness.Steps(4);
  const auto queued = harness.Add(Sampled(2, 20, 50));
  harness.core().Pause(PauseMode::kAbort);
  EXPECT_EQ(running->Get().all.finish.type, FinishType::kAbort);
  EXPECT_EQ(running->Get().all.new_ids.size(), 4U);
  EXPECT_EQ(queued->Get().all.finish.type, FinishType::kAbort);

  const auto held = harness.Add(Sampled(3, 20, 30));
  EXPECT_FALSE(harness.Step());
  harness.core().Pause(PauseMode::kAbort);  // Idempotent: a held request never gets an error.
  EXPECT_FALSE(held->finished());
  harness.core().Continue();
  harness.RunAll();
  ExpectSame(held->Get(), Undisturbed(3, 20, 30));
}

TEST(Pause, RetractKeepsTokensAndGivesPagesBack) {
  Harness harness;
  const auto sink = harness.Add(Sampled(1, 40, 30));
  harness.Steps(10);
  harness.core().Pause(PauseMode::kRetract);
  harness.core().CheckInvariants();
  EXPECT_EQ(harness.core().scheduler().running().size(), 0U);
  EXPECT_EQ(harness.core().scheduler().queue().size(), 1U);
  EXPECT_FALSE(harness.Step());
  EXPECT_TRUE(FlushNow(harness).ok());  // Paused, and nobody holds pages.
  harness.core().Continue();
  harness.RunAll();
  EXPECT_EQ(sink->Get().all.num_retractions, 1);
  ExpectSame(sink->Get(), Undisturbed(1, 40, 30));
}

TEST(Pause, InPlaceFreezesAndResumesWithItsPages) {
  Harness harness;
  const auto sink = harness.Add(Sampled(1, 40, 30));
  harness.Steps(10);
  const int64_t used = harness.core().scheduler().num_used_tokens();
  harness.core().Pause(PauseMode::kInPlace);
  EXPECT_FALSE(harness.Step());
  EXPECT_EQ(harness.core().scheduler().num_used_tokens(), used);
  EXPECT_EQ(FlushNow(harness).code(), StatusCode::kUnavailable);
  harness.core().Continue();
  harness.RunAll();
  EXPECT_EQ(sink->Get().all.num_retractions, 0);
  ExpectSame(sink->Get(), Undisturbed(1, 40, 30));
}

TEST(Pause, ASecondOneMayTightenTheFirst) {
  Harness harness;
  const auto sink = harness.Add(Sampled(1, 40, 30));
  harness.Steps(5);
  harness.core().Pause(PauseMode::kInPlace);
  harness.core().Pause(PauseMode::kRetract);
  EXPECT_TRUE(harness.core().scheduler().running().empty());
  harness.core().Pause(PauseMode::kAbort);
  EXPECT_EQ(sink->Get().all.finish.type, FinishType::kAbort);
  EXPECT_EQ(sink->Get().all.new_ids.size(), 5U);
}

// --- Flush --------------------------------------------------------------------------------------

TEST(Flush, DropsThePrefixCacheOfAnIdleEngine) {
  Harness harness;
  harness.Run(Sampled(1, 100, 4));
  EXPECT_GT(harness.core().prefix_cache().num_cached(), 0);
  EXPECT_TRUE(FlushNow(harness).ok());
  EXPECT_EQ(harness.core().prefix_cache().num_cached(), 0);
  harness.core().CheckInvariants();
  EXPECT_EQ(harness.Run(Sampled(1, 100, 4)).all.cached_tokens, 0);
}

TEST(Flush, IsRefusedWhileAnythingRunsOrWaits) {
  Harness harness;
  harness.Add(Sampled(1, 20, 10));
  EXPECT_EQ(FlushNow(harness).code(), StatusCode::kUnavailable);  // Queued, not paused.
  harness.Steps(2);
  const Status running = FlushNow(harness);
  EXPECT_EQ(running.code(), StatusCode::kUnavailable);
  EXPECT_THAT(running.message(), HasSubstr("1 running"));
  harness.RunAll();
  EXPECT_TRUE(FlushNow(harness).ok());
}

TEST(Flush, WaitsForItsTimeoutAndNoSecondOneWaitsBesideIt) {
  Harness harness;
  harness.Add(Sampled(1, 20, 10));
  harness.Steps(1);
  std::optional<Status> first;
  std::optional<Status> second;
  const auto later = EngineClock::now() + std::chrono::hours(1);
  harness.core().Flush(later, [&](Status status) { first = std::move(status); });
  EXPECT_FALSE(first.has_value());
  EXPECT_EQ(harness.core().NextDeadline(), later);
  harness.core().Flush(later, [&](Status status) { second = std::move(status); });
  EXPECT_EQ(second->code(), StatusCode::kUnavailable);
  EXPECT_THAT(second->message(), HasSubstr("another flush"));
  harness.RunAll();
  ASSERT_TRUE(first.has_value());
  EXPECT_TRUE(first->ok());

  harness.Add(Sampled(1, 20, 10));
  harness.Steps(1);
  std::optional<Status> late;
  harness.core().Flush(EngineClock::now() + std::chrono::milliseconds(1),
                       [&](Status status) { late = std::move(status); });
  while (!late.has_value()) {
    harness.core().AtBoundary();
  }
  EXPECT_EQ(late->code(), StatusCode::kUnavailable);
}

// --- Swap ---------------------------------------------------------------------------------------

TEST(Swap, RetractKeepsTokensAndGoesOnUnderTheNewWeights) {
  Harness harness;
  const auto sink = harness.Add(Sampled(1, 40, 30));
  const auto queued = harness.Add(Sampled(2, 10, 5));
  harness.Steps(10);
  const std::vector<int32_t> before = harness.core().scheduler().Find("r0")->tokens;
  SwapOutcome outcome;
  Swap(harness, kNewWeights, "v1", InFlight::kRetract, &outcome);
  EXPECT_EQ(outcome.num_calls, 0);  // Reported when the next step begins.
  harness.RunAll();

  EXPECT_EQ(outcome.num_calls, 1);
  EXPECT_NE(outcome.old_weights, nullptr);
  EXPECT_EQ(outcome.report.in_flight, 1);  // The second had finished.
  EXPECT_EQ(outcome.report.retracted, 1);
  EXPECT_EQ(outcome.report.aborted, 0);
  EXPECT_GE(outcome.report.pause_ms, 0.0);
  EXPECT_TRUE(queued->finished());

  const RequestOutput& output = sink->Get().all;
  ASSERT_EQ(output.versions.size(), 2U);
  EXPECT_EQ(output.versions[0].version, "v0");
  EXPECT_EQ(output.versions[0].num_tokens, 10);
  EXPECT_EQ(output.versions[1].version, "v1");
  EXPECT_EQ(output.versions[1].num_tokens, 20);
  EXPECT_EQ(output.weight_version, "v1");
  EXPECT_EQ(output.num_retractions, 1);

  // The tail is what a fresh engine with the new weights generates from prompt and kept tokens.
  HarnessOptions options;
  options.weights = kNewWeights;
  Harness fresh(options);
  Request rest = Sampled(1, 40, 20);
  rest.input_ids = before;
  const Collected expected = fresh.Run(std::move(rest));
  EXPECT_EQ(std::vector<int32_t>(output.new_ids.begin() + 10, output.new_ids.end()),
            expected.all.new_ids);
}

TEST(Swap, NeverServesAnOldPrefix) {
  Harness harness;
  harness.Run(Sampled(1, 100, 4));
  SwapOutcome outcome;
  Swap(harness, kNewWeights, "v1", InFlight::kRetract, &outcome);
  EXPECT_FALSE(harness.Step());
  EXPECT_EQ(outcome.num_calls, 1);  // An idle engine reports at once.
  EXPECT_EQ(outcome.report.in_flight, 0);
  HarnessOptions options;
  options.weights = kNewWeights;
  Harness fresh(options);
  const Collected actual = harness.Run(Sampled(1, 100, 4));
  EXPECT_EQ(actual.all.cached_tokens, 0);
  ExpectSame(actual, fresh.Run(Sampled(1, 100, 4)));
}

TEST(Swap, DrainWaitsForTheStartedAndHoldsTheNew) {
  Harness harness;
  const auto started = harness.Add(Sampled(1, 40, 30));
  harness.Steps(10);
  SwapOutcome outcome;
  Swap(harness, kNewWeights, "v1", InFlight::kDrain, &outcome);
  const auto held = harness.Add(Sampled(2, 20, 10));
  harness.Steps(20);
  EXPECT_TRUE(started->finished());
  EXPECT_FALSE(held->finished());
  harness.RunAll();
  EXPECT_EQ(outcome.num_calls, 1);
  EXPECT_EQ(outcome.report.in_flight, 0);
  ExpectSame(started->Get(), Undisturbed(1, 40, 30));
  ASSERT_EQ(held->Get().all.versions.size(), 1U);
  EXPECT_EQ(held->Get().all.versions[0].version, "v1");
}

TEST(Swap, DrainFinishesWhatWasRetractedByAFullPool) {
  HarnessOptions options;
  options.engine.max_total_tokens = 5 * kPageTokens;
  Harness harness(options);
  const auto first = harness.Add(Sampled(1, 40, 50));
  const auto second = harness.Add(Sampled(2, 40, 50));
  while (harness.core().scheduler().num_retractions() == 0) {
    ASSERT_TRUE(harness.Step());
  }
  SwapOutcome outcome;
  Swap(harness, kNewWeights, "v1", InFlight::kDrain, &outcome);
  harness.RunAll();
  EXPECT_EQ(outcome.num_calls, 1);
  ExpectSame(first->Get(), Undisturbed(1, 40, 50));
  ExpectSame(second->Get(), Undisturbed(2, 40, 50));
}

TEST(Swap, AbortReturnsPartialsOfTheStartedOnly) {
  HarnessOptions options;
  options.engine.max_running_requests = 1;
  Harness harness(options);
  const auto started = harness.Add(Sampled(1, 40, 30));
  const auto queued = harness.Add(Sampled(2, 20, 10));
  harness.Steps(10);
  SwapOutcome outcome;
  Swap(harness, kNewWeights, "v1", InFlight::kAbort, &outcome);
  harness.RunAll();
  EXPECT_EQ(outcome.report.in_flight, 1);
  EXPECT_EQ(outcome.report.aborted, 1);
  EXPECT_EQ(started->Get().all.finish.type, FinishType::kAbort);
  EXPECT_EQ(started->Get().all.new_ids.size(), 10U);
  EXPECT_EQ(queued->Get().all.finish.type, FinishType::kLength);
  EXPECT_EQ(queued->Get().all.weight_version, "v1");
}

TEST(Swap, InPlaceKeepsTheKvAndKeepsItOutOfTheCache) {
  Harness harness;
  const auto sink = harness.Add(Sampled(1, 60, 60));
  harness.Steps(10);
  SwapOutcome outcome;
  Swap(harness, kNewWeights, "v1", InFlight::kInPlace, &outcome);
  harness.RunAll();
  EXPECT_EQ(outcome.report.in_flight, 1);
  EXPECT_EQ(outcome.report.retracted, 0);
  EXPECT_EQ(sink->Get().all.num_retractions, 0);
  ASSERT_EQ(sink->Get().all.versions.size(), 2U);
  EXPECT_EQ(harness.core().prefix_cache().num_cached(), 0);
  harness.core().CheckInvariants();
}

TEST(Swap, RestartsScoringThatWasNotFinished) {
  for (const InFlight in_flight : {InFlight::kRetract, InFlight::kInPlace}) {
    HarnessOptions options;
    options.engine.chunk_tokens = 16;
    Harness harness(options);
    Request score = Sampled(1, 100, 3);
    score.logprob_start_len = 0;
    score.top_logprobs_num = 2;
    const auto sink = harness.Add(std::move(score));
    harness.Steps(3);
    SwapOutcome outcome;
    Swap(harness, kNewWeights, "v1", in_flight, &outcome);
    harness.RunAll();
    options.weights = kNewWeights;
    Harness fresh(options);
    Request same = Sampled(1, 100, 3);
    same.logprob_start_len = 0;
    same.top_logprobs_num = 2;
    const Collected expected = fresh.Run(std::move(same));
    EXPECT_EQ(sink->Get().all.input_logprobs, expected.all.input_logprobs);
    EXPECT_EQ(sink->Get().all.input_top_logprobs.size(), 100U);
    ExpectSame(sink->Get(), expected);
    ASSERT_EQ(sink->Get().all.versions.size(), 1U);
  }
}

TEST(Swap, WhilePausedHappensAtOnce) {
  Harness harness;
  const auto sink = harness.Add(Sampled(1, 40, 30));
  harness.Steps(10);
  harness.core().Pause(PauseMode::kInPlace);
  SwapOutcome outcome;
  Swap(harness, kNewWeights, "v1", InFlight::kDrain, &outcome);
  EXPECT_FALSE(harness.Step());
  EXPECT_EQ(outcome.num_calls, 1);
  EXPECT_EQ(harness.core().weight_version(), "v1");
  EXPECT_FALSE(sink->finished());
  harness.core().Continue();
  harness.RunAll();
  EXPECT_EQ(sink->Get().all.versions.size(), 2U);
}

TEST(SetWeightVersion, RelabelsTheTokensToComeAndAbortsNothing) {
  Harness harness;
  const auto sink = harness.Add(Sampled(1, 40, 30));
  harness.Steps(10);
  harness.core().SetWeightVersion("renamed");
  harness.RunAll();
  ASSERT_EQ(sink->Get().all.versions.size(), 2U);
  EXPECT_EQ(sink->Get().all.versions[1].version, "renamed");
  ExpectSame(sink->Get(), Undisturbed(1, 40, 30));
}

// --- Drain and shutdown -------------------------------------------------------------------------

TEST(Drain, FinishesEverythingEvenWhenPaused) {
  Harness harness;
  const auto first = harness.Add(Sampled(1, 40, 30));
  harness.Steps(3);
  const auto second = harness.Add(Sampled(2, 40, 30));
  harness.core().Pause(PauseMode::kRetract);
  bool drained = false;
  harness.core().Drain([&] { drained = true; });
  EXPECT_FALSE(drained);
  harness.RunAll();
  EXPECT_TRUE(drained);
  EXPECT_EQ(first->Get().all.finish.type, FinishType::kLength);
  EXPECT_EQ(second->Get().all.finish.type, FinishType::kLength);
}

TEST(Shutdown, EndsEverythingAndAnswersEveryWaiter) {
  Harness harness;
  const auto sink = harness.Add(Sampled(1, 40, 30));
  harness.Steps(3);
  SwapOutcome outcome;
  Swap(harness, kNewWeights, "v1", InFlight::kDrain, &outcome);
  std::optional<Status> flushed;
  harness.core().Flush(EngineClock::now() + std::chrono::hours(1),
                       [&](Status status) { flushed = std::move(status); });
  harness.core().Shutdown();
  EXPECT_EQ(sink->Get().all.finish.type, FinishType::kAbort);
  EXPECT_EQ(sink->Get().num_final, 1);
  EXPECT_EQ(outcome.num_calls, 1);
  EXPECT_TRUE(flushed.has_value());
}

}  // namespace
}  // namespace octavo
