// Method: a core stepped by hand gives its memory back and takes it again in every state that it
// can be in; what it computes afterwards is compared, bit for bit, with an undisturbed run.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/engine/engine.h"
#include "octavo/engine/histogram.h"
#include "octavo/engine/request.h"
#include "octavo/engine/sequence.h"
#include "octavo/engine/test_support.h"
#include "octavo/model/model.h"

namespace octavo {
namespace {

using testing::HasSubstr;

constexpr MemoryParts kKvCache = {.kv_cache = true};
constexpr MemoryParts kWeights = {.weights = true};
constexpr MemoryParts kAll = {.kv_cache = true, .weights = true};

void Swap(Harness& harness, std::unique_ptr<ModelWeights> weights, const std::string& version) {
  harness.core().Swap({.weights = std::move(weights),
                       .version = version,
                       .in_flight = InFlight::kDrain,
                       .done = nullptr});
}

TEST(ReleaseMemory, GivesTheWeightsAwayAndTakesThemBackByASwap) {
  Harness harness;
  const Collected expected = harness.Run(Sampled(1, 40, 12));
  for (int cycle = 0; cycle < 3; ++cycle) {
    Result<std::unique_ptr<ModelWeights>> weights = harness.core().ReleaseMemory(kAll);
    ASSERT_TRUE(weights.has_value()) << weights.error().message();
    ASSERT_EQ((*weights)->matrices.size(), harness.spec().weights.size());
    EXPECT_TRUE(harness.core().weights().matrices.empty());
    EXPECT_TRUE(harness.core().kv_released());
    EXPECT_EQ(harness.core().prefix_cache().num_cached(), 0);
    EXPECT_TRUE(harness.core().ResumeMemory(kKvCache).ok());
    Swap(harness, *std::move(weights), "v0");
    EXPECT_EQ(harness.core().weight_state(), WeightState::kLive);
    harness.core().CheckInvariants();
    ExpectSame(harness.Run(Sampled(1, 40, 12)), expected);
  }
}

TEST(ReleaseMemory, MayBeRepeatedInAnyOrder) {
  Harness harness;
  EXPECT_TRUE(harness.core().ResumeMemory(kAll).ok());  // Nothing is released.
  Result<std::unique_ptr<ModelWeights>> weights = harness.core().ReleaseMemory(kWeights);
  ASSERT_TRUE(weights.has_value());
  for (const MemoryParts parts : {kWeights, MemoryParts{}, kAll, kKvCache, kAll}) {
    const Result<std::unique_ptr<ModelWeights>> again = harness.core().ReleaseMemory(parts);
    ASSERT_TRUE(again.has_value());
    EXPECT_EQ(*again, nullptr);
  }
  EXPECT_TRUE(harness.core().ResumeMemory(kWeights).ok());
  EXPECT_EQ(harness.core().weight_state(), WeightState::kVoid);
  EXPECT_TRUE(harness.core().kv_released());
  EXPECT_TRUE(harness.core().ResumeMemory(kAll).ok());
  EXPECT_TRUE(harness.core().ResumeMemory(kAll).ok());
  EXPECT_FALSE(harness.core().kv_released());
  EXPECT_EQ(harness.core().weight_state(), WeightState::kVoid);
}

TEST(ReleaseMemory, RefusesWhileARequestHoldsPagesOrIsAboutTo) {
  Harness harness;
  harness.Add(Sampled(1, 20, 30));
  EXPECT_THAT(harness.core().ReleaseMemory(kKvCache).error().message(), HasSubstr("1 queued"));
  harness.Steps(3);
  EXPECT_EQ(harness.core().ReleaseMemory(kAll).error().code(), StatusCode::kUnavailable);
  harness.core().Pause(PauseMode::kInPlace);
  EXPECT_THAT(harness.core().ReleaseMemory(kWeights).error().message(), HasSubstr("1 running"));
  EXPECT_EQ(harness.core().weight_state(), WeightState::kLive);
  EXPECT_FALSE(harness.core().kv_released());
  harness.core().Pause(PauseMode::kRetract);
  EXPECT_TRUE(harness.core().ReleaseMemory(kKvCache).has_value());
}

TEST(ReleaseMemory, HoldsRequestsUntilBothPartsAreThere) {
  const Collected expected = Harness().Run(Sampled(1, 40, 12));
  Harness harness;
  std::unique_ptr<ModelWeights> weights = *harness.core().ReleaseMemory(kAll);
  const auto sink = harness.Add(Sampled(1, 40, 12));
  const auto expect_held = [&] {
    EXPECT_FALSE(harness.core().HasRunnable());
    EXPECT_FALSE(harness.Step());
    EXPECT_FALSE(sink->finished());
  };
  expect_held();
  std::optional<Status> flushed;
  harness.core().Flush(EngineClock::now(), [&](const Status& status) { flushed = status; });
  EXPECT_TRUE(flushed.has_value() && flushed->ok());
  harness.core().Pause(PauseMode::kAbort);  // What is held is not aborted.
  harness.core().Continue();
  harness.core().Pause(PauseMode::kAbort);
  harness.core().Continue();
  expect_held();
  EXPECT_TRUE(harness.core().ResumeMemory(kAll).ok());
  expect_held();  // Resumed, but void.
  Swap(harness, std::move(weights), "v0");
  harness.RunAll();
  ExpectSame(sink->Get(), expected);
}

TEST(ReleaseMemory, WhatWasRetractedBeforeGoesOnAfterwards) {
  const Collected expected = Harness().Run(Sampled(1, 40, 30));
  Harness harness;
  const auto sink = harness.Add(Sampled(1, 40, 30));
  harness.Steps(10);
  harness.core().Pause(PauseMode::kRetract);
  std::unique_ptr<ModelWeights> weights = *harness.core().ReleaseMemory(kAll);
  harness.core().Continue();
  EXPECT_FALSE(harness.Step());
  EXPECT_TRUE(harness.core().ResumeMemory(kAll).ok());
  Swap(harness, std::move(weights), "v1");  // A drain does not wait for what cannot run.
  harness.RunAll();
  ExpectSame(sink->Get(), expected);
  EXPECT_EQ(sink->Get().all.versions.size(), 2U);
}

TEST(ReleaseMemory, AnAbortReachesWhatIsHeld) {
  Harness harness;
  ASSERT_TRUE(harness.core().ReleaseMemory(kAll).has_value());
  const auto sink = harness.Add(Sampled(1, 40, 12));
  harness.core().AbortAll();
  EXPECT_EQ(sink->Get().all.finish.type, FinishType::kAbort);
  EXPECT_EQ(harness.num_in_flight(), 0);
}

TEST(ReleaseMemory, ADrainDoesNotWaitForMemoryThatNobodyBringsBack) {
  Harness harness;
  ASSERT_TRUE(harness.core().ReleaseMemory(kAll).has_value());
  const auto sink = harness.Add(Sampled(1, 40, 12));
  bool drained = false;
  harness.core().Drain([&] { drained = true; });
  EXPECT_TRUE(drained);
  EXPECT_EQ(sink->Get().all.finish.type, FinishType::kAbort);
}

TEST(ReleaseMemory, KeepsThePagesOfRoutedExperts) {
  HarnessOptions options;
  options.spec = TinyMoeSpec();
  options.engine.return_routed_experts = true;
  Harness harness(options);
  Request request = Sampled(1, 40, 12);
  request.return_routed_experts = true;
  const Collected expected = harness.Run(std::move(request));
  EXPECT_TRUE(harness.core().ReleaseMemory(kKvCache).has_value());
  EXPECT_TRUE(harness.core().ResumeMemory(kKvCache).ok());
  Request again = Sampled(1, 40, 12);
  again.return_routed_experts = true;
  const Collected actual = harness.Run(std::move(again));
  ExpectSame(actual, expected);
  EXPECT_EQ(actual.all.routed_experts, expected.all.routed_experts);
}

TEST(VoidWeights, HoldsRequestsAndForgetsThePrefixes) {
  Harness harness;
  const Collected expected = harness.Run(Sampled(1, 70, 4));
  Result<std::unique_ptr<ModelWeights>> old =
      harness.core().VoidWeights(harness.NewWeights({.seed = 9}));
  ASSERT_TRUE(old.has_value());
  const auto sink = harness.Add(Sampled(1, 70, 4));
  EXPECT_FALSE(harness.Step());
  Swap(harness, *std::move(old), "v0");
  harness.RunAll();
  ExpectSame(sink->Get(), expected);
  EXPECT_EQ(sink->Get().all.cached_tokens, 0);
  harness.Add(Sampled(2, 10, 10));
  harness.Steps(2);
  EXPECT_EQ(harness.core().VoidWeights(harness.NewWeights({.seed = 9})).error().code(),
            StatusCode::kUnavailable);
}

// --- Latencies -----------------------------------------------------------------------------------

TEST(Histogram, CountsAValueInTheFirstBucketThatHoldsIt) {
  static constexpr double kBounds[] = {1.0, 2.0, 4.0};
  Histogram histogram{kBounds};
  for (const double value : {0.0, 1.0, 1.5, 2.0, 4.0, 4.5, 100.0}) {
    histogram.Observe(value);
  }
  // A bound belongs to its bucket: le means less or equal.
  EXPECT_EQ(histogram.bucket_count(0), 2);  // 0, 1
  EXPECT_EQ(histogram.bucket_count(1), 2);  // 1.5, 2
  EXPECT_EQ(histogram.bucket_count(2), 1);  // 4
  EXPECT_EQ(histogram.bucket_count(3), 2);  // 4.5, 100
  EXPECT_EQ(histogram.count(), 7);
  EXPECT_EQ(histogram.sum(), 113.0);
}

TEST(Latencies, CountEachRequestAndEachTokenOnce) {
  Harness harness;
  harness.Run(Sampled(1, 300, 10));  // Its prompt takes several steps.
  Request scored = Sampled(2, 20, 0);
  scored.logprob_start_len = 0;
  harness.Run(std::move(scored));
  const EngineLatencies& latencies = harness.core().latencies();
  EXPECT_EQ(latencies.queue.count(), 2);
  EXPECT_EQ(latencies.first_token.count(), 1);
  EXPECT_EQ(latencies.inter_token.count(), 9);
  EXPECT_EQ(latencies.end_to_end.count(), 2);
  EXPECT_GE(latencies.end_to_end.sum(), latencies.first_token.sum() + latencies.inter_token.sum());

  const auto retracted = harness.Add(Sampled(3, 20, 10));
  harness.Steps(4);
  harness.core().Pause(PauseMode::kRetract);
  harness.core().Continue();
  harness.RunAll();
  EXPECT_EQ(latencies.queue.count(), 3);
  EXPECT_EQ(latencies.inter_token.count(), 18);

  harness.Add(Sampled(4, 20, 10));
  harness.Steps(4);
  harness.core().AbortAll();
  EXPECT_EQ(latencies.first_token.count(), 3);
  EXPECT_EQ(latencies.end_to_end.count(), 3);  // An abort says nothing about latency.
}

}  // namespace
}  // namespace octavo
