// Method: pages of one generation are overwritten with NaN bytes once the next is live. What reads
// none of them gives the bits of an engine that never had them; what is allowed to read them fails,
// so the poison is seen to work.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/engine/engine.h"
#include "octavo/engine/request.h"
#include "octavo/engine/test_support.h"
#include "octavo/kernels/ops.h"

namespace octavo {
namespace {

using testing::HasSubstr;

TinyWeightOptions Weights(uint64_t seed) { return {.seed = seed}; }

// `behind`: EngineOptions::stale_prefix_versions.
HarnessOptions Options(int64_t behind, uint64_t weights_seed = 1) {
  HarnessOptions options;
  options.engine.stale_prefix_versions = behind;
  options.weights = Weights(weights_seed);
  return options;
}

void Swap(Harness& harness, uint64_t weights_seed, InFlight in_flight = InFlight::kRetract) {
  harness.core().Swap({.weights = harness.NewWeights(Weights(weights_seed)),
                       .version = "v" + std::to_string(weights_seed),
                       .in_flight = in_flight,
                       .done = nullptr});
}

// Every byte of the pool: 0xFFFF is a NaN in BF16. Nothing that was written so far survives.
void PoisonAllPages(Harness& harness) {
  for (const KvLayer& layer : harness.core().page_pool().layers()) {
    std::memset(layer.pages, 0xFF, static_cast<size_t>(layer.page_bytes * layer.num_pages));
  }
}

// The same request, on an engine that has had no other weights and no other request.
Collected Fresh(uint64_t weights_seed, Request request) {
  Harness harness(Options(0, weights_seed));
  return harness.Run(std::move(request));
}

// --- No KV of generation g is read under g + 1 --------------------------------------------------

TEST(Generations, ReadNoKvOfTheOneBefore) {
  for (const InFlight in_flight : {InFlight::kRetract, InFlight::kAbort, InFlight::kDrain}) {
    Harness harness(Options(0));
    harness.Run(Sampled(1, 100, 20));  // Fills the prefix cache.
    const auto running = harness.Add(Sampled(2, 70, 40));
    if (in_flight != InFlight::kDrain) {
      harness.Steps(10);
    } else {
      harness.RunAll();
    }
    const std::vector<int32_t> kept = running->finished()
                                          ? std::vector<int32_t>()
                                          : harness.core().scheduler().Find("r1")->tokens;
    Swap(harness, 2, in_flight);
    harness.core().AtBoundary();
    ASSERT_TRUE(harness.core().scheduler().running().empty());
    PoisonAllPages(harness);
    harness.RunAll();

    EXPECT_NE(running->Get().all.finish.type, FinishType::kError);
    const Collected again = harness.Run(Sampled(1, 100, 20));
    EXPECT_EQ(again.all.cached_tokens, 0);
    EXPECT_FALSE(again.all.mixed_context);
    ExpectSame(again, Fresh(2, Sampled(1, 100, 20)));
    if (in_flight == InFlight::kRetract) {
      // What was retracted goes on as if all it had were a prompt.
      Request rest = Sampled(2, 70, 30);
      rest.input_ids = kept;
      const Collected expected = Fresh(2, std::move(rest));
      const std::vector<int32_t>& ids = running->Get().all.new_ids;
      EXPECT_EQ(std::vector<int32_t>(ids.end() - 30, ids.end()), expected.all.new_ids);
    }
  }
}

// The same KV bytes under a swap that changes no weight: every bit stays.
TEST(Generations, OfEqualWeightsGiveEqualBits) {
  Harness harness(Options(0));
  const Collected before = harness.Run(Sampled(1, 100, 20));
  const auto running = harness.Add(Sampled(2, 70, 40));
  harness.Steps(10);
  Swap(harness, 1);
  harness.RunAll();
  ExpectSame(harness.Run(Sampled(1, 100, 20)), before);
  ExpectSame(running->Get(), Fresh(1, Sampled(2, 70, 40)));
}

// --- The switch ---------------------------------------------------------------------------------

TEST(StalePrefix, IsReadWhereTheServerAllowsIt) {
  Harness harness(Options(1));
  harness.Run(Sampled(1, 100, 4));
  Swap(harness, 2);
  const Collected stale = harness.Run(Sampled(1, 100, 4));
  EXPECT_EQ(stale.all.cached_tokens, 96);
  EXPECT_EQ(stale.all.cached_tokens_stale, 96);
  EXPECT_TRUE(stale.all.mixed_context);
  EXPECT_EQ(harness.core().totals().stale_cached_tokens, 96);
  EXPECT_EQ(stale.all.versions.at(0).version, "v2");
  // Other bits than those of the new weights alone: that is what the switch costs.
  EXPECT_NE(Bits(stale.all.new_logprobs), Bits(Fresh(2, Sampled(1, 100, 4)).all.new_logprobs));
}

TEST(StalePrefix, WouldShowPoison) {
  Harness harness(Options(1));
  harness.Run(Sampled(1, 100, 4));
  Swap(harness, 2);
  harness.core().AtBoundary();
  PoisonAllPages(harness);
  EXPECT_EQ(harness.Run(Sampled(1, 100, 4)).all.finish.type, FinishType::kError);
}

TEST(StalePrefix, IsNeverInsertedUnderTheNewGeneration) {
  Harness harness(Options(1));
  harness.Run(Sampled(1, 100, 4));
  Swap(harness, 2);
  const int64_t cached = harness.core().prefix_cache().num_cached();
  harness.Run(Sampled(1, 100, 60));  // Fills pages of its own behind the stale ones.
  EXPECT_EQ(harness.core().prefix_cache().num_cached(), cached);
  Swap(harness, 3);
  // The pages of the first generation are two behind now, and gone.
  EXPECT_EQ(harness.core().prefix_cache().num_cached(), 0);
  const Collected fresh = harness.Run(Sampled(1, 100, 4));
  EXPECT_EQ(fresh.all.cached_tokens, 0);
  ExpectSame(fresh, Fresh(3, Sampled(1, 100, 4)));
}

TEST(StalePrefix, GivesWayToOneOfTheLiveWeights) {
  Harness harness(Options(2));
  harness.Run(Sampled(1, 100, 4));
  Swap(harness, 2);
  Request exact = Sampled(1, 100, 4);
  exact.stale_prefix_versions = 0;
  const Collected computed = harness.Run(std::move(exact));  // The request's own word.
  EXPECT_EQ(computed.all.cached_tokens, 0);
  EXPECT_FALSE(computed.all.mixed_context);
  ExpectSame(computed, Fresh(2, Sampled(1, 100, 4)));
  const Collected hit = harness.Run(Sampled(1, 100, 4));  // As long, and newer.
  EXPECT_EQ(hit.all.cached_tokens, 96);
  EXPECT_EQ(hit.all.cached_tokens_stale, 0);
  EXPECT_FALSE(hit.all.mixed_context);
  ExpectSame(hit, computed);
}

TEST(StalePrefix, OfSeveralGenerationsTheLongestServes) {
  Harness harness(Options(2));
  harness.Run(Sampled(1, 100, 4));  // Three pages.
  Swap(harness, 2);
  Request shorter = Sampled(1, 100, 4);
  shorter.input_ids.resize(40);  // One page of the second generation.
  shorter.stale_prefix_versions = 0;
  harness.Run(std::move(shorter));
  Swap(harness, 3);
  EXPECT_EQ(harness.Run(Sampled(1, 100, 4)).all.cached_tokens_stale, 96);
  Request newest = Sampled(1, 100, 4);
  newest.stale_prefix_versions = 1;
  EXPECT_EQ(harness.Run(std::move(newest)).all.cached_tokens_stale, 32);
}

// Requests whose promises a stale prefix would break compute it anew, poison or not.
TEST(StalePrefix, IsKeptFromWhoDemandsScoresOrWasRetracted) {
  Request demanding = Sampled(1, 100, 4);
  demanding.version_demand = {.kind = VersionDemand::Kind::kExact, .version = "v2"};
  Request scoring = Sampled(1, 100, 4);
  scoring.logprob_start_len = 98;
  for (Request* request : {&demanding, &scoring}) {
    Harness harness(Options(1));
    harness.Run(Sampled(1, 100, 4));
    Swap(harness, 2);
    harness.core().AtBoundary();
    PoisonAllPages(harness);
    const Collected output = harness.Run(std::move(*request));
    EXPECT_EQ(output.all.cached_tokens, 0);
    EXPECT_EQ(output.all.finish.type, FinishType::kLength);
  }
  Harness harness(Options(1));
  const auto running = harness.Add(Sampled(1, 100, 40));
  harness.Steps(10);
  Swap(harness, 2);
  harness.core().AtBoundary();
  PoisonAllPages(harness);
  harness.RunAll();
  EXPECT_EQ(running->Get().all.finish.type, FinishType::kLength);
  EXPECT_FALSE(running->Get().all.mixed_context);
}

TEST(StalePrefix, IsForgottenByAFlushAndEvictedLikeAnyOther) {
  Harness harness(Options(1));
  harness.Run(Sampled(1, 100, 4));
  Swap(harness, 2);
  std::optional<Status> flushed;
  harness.core().Flush(EngineClock::now(), [&](Status status) { flushed = std::move(status); });
  ASSERT_TRUE(flushed.has_value() && flushed->ok());
  EXPECT_EQ(harness.Run(Sampled(1, 100, 4)).all.cached_tokens, 0);

  HarnessOptions small = Options(1);
  small.engine.max_total_tokens = 8 * kPageTokens;
  Harness full(small);
  full.Run(Sampled(1, 100, 4));
  Swap(full, 2);
  full.Run(Sampled(5, 200, 4));  // Needs seven of eight pages: the first of the chain stays.
  EXPECT_EQ(full.Run(Sampled(1, 100, 4)).all.cached_tokens_stale, 32);
}

// Sequences that are frozen in place hold old pages while generations pass.
TEST(StalePrefix, OutlivesAFrozenRequestThatHoldsIt) {
  Harness harness(Options(1));
  const auto running = harness.Add(Sampled(1, 100, 60));
  harness.Steps(10);
  Swap(harness, 2, InFlight::kInPlace);
  harness.Steps(3);
  Swap(harness, 3, InFlight::kInPlace);
  harness.Steps(3);
  Swap(harness, 4, InFlight::kInPlace);
  harness.RunAll();
  EXPECT_EQ(running->Get().all.versions.size(), 4U);
  EXPECT_TRUE(running->Get().all.mixed_context);
  EXPECT_EQ(harness.core().prefix_cache().num_cached(), 0);
}

TEST(StalePrefix, IsRefusedBeyondWhatTheServerKeeps) {
  Harness harness(Options(1));
  Request request = Sampled(1, 20, 4);
  request.rid = "r";
  request.stale_prefix_versions = 2;
  const Status status = ValidateRequest(request, harness.core().limits());
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("--stale-prefix-versions"));
}

// --- Versions of tokens -------------------------------------------------------------------------

// Three swaps while a request runs: each token knows its version, whichever way it went on.
TEST(Versions, OfTokensFollowEverySwap) {
  for (const InFlight in_flight : {InFlight::kRetract, InFlight::kInPlace}) {
    Harness harness(Options(0));
    Request request = Sampled(1, 40, 40);
    request.stream = true;
    request.stream_interval = 3;
    const auto sink = harness.Add(std::move(request));
    for (const uint64_t version : {2U, 3U, 4U}) {
      harness.Steps(7);
      Swap(harness, version, in_flight);
    }
    harness.RunAll();
    const RequestOutput output = sink->Get().all;
    ASSERT_EQ(output.versions.size(), 4U);
    int64_t num_tokens = 0;
    for (const VersionSpan& span : output.versions) {
      num_tokens += span.num_tokens;
    }
    EXPECT_EQ(num_tokens, 40);
    EXPECT_EQ(output.versions[0].version, "v0");
    EXPECT_EQ(output.versions[0].num_tokens, 7);
    EXPECT_EQ(output.versions[1].num_tokens, 7);
    EXPECT_EQ(output.versions[3].version, "v4");
    EXPECT_EQ(output.weight_version, "v4");
    EXPECT_EQ(output.mixed_context, in_flight == InFlight::kInPlace);
  }
}

}  // namespace
}  // namespace octavo
