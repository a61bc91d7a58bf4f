// Method: a core stepped by hand. Requests that demand a version are sent alone and in a batch and
// meet swaps while they wait, run and are retracted; every token they keep must be of a version
// that meets the demand.

#include "octavo/engine/version_demand.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/engine/engine.h"
#include "octavo/engine/request.h"
#include "octavo/engine/test_support.h"

namespace octavo {
namespace {

using testing::HasSubstr;

using Kind = VersionDemand::Kind;

constexpr TinyWeightOptions kNewWeights = {.seed = 2};

Request Demanding(Kind kind, const std::string& version, Request request) {
  request.version_demand = {.kind = kind, .version = version};
  return request;
}

void SwapTo(Harness& harness, const std::string& version, InFlight in_flight,
            SwapReport* report = nullptr) {
  harness.core().Swap({.weights = harness.NewWeights(kNewWeights),
                       .version = version,
                       .in_flight = in_flight,
                       .done = [report](SwapReport made, std::unique_ptr<ModelWeights>) {
                         if (report != nullptr) {
                           *report = made;
                         }
                       }});
}

TEST(VersionDemand, ComparesNumbersAsNumbersAndLabelsAsText) {
  const VersionDemand none;
  EXPECT_TRUE(none.IsMet("anything"));
  const VersionDemand exact = {.kind = Kind::kExact, .version = "7"};
  EXPECT_TRUE(exact.IsMet("7"));
  EXPECT_FALSE(exact.IsMet("07"));
  EXPECT_FALSE(exact.IsMet("8"));
  EXPECT_EQ(exact.Conflict("8"), "weight version: demanded exactly 7, 8 is live");
  const VersionDemand minimum = {.kind = Kind::kMinimum, .version = "9"};
  EXPECT_TRUE(minimum.IsMet("9"));
  EXPECT_TRUE(minimum.IsMet("10"));  // Not as text.
  EXPECT_FALSE(minimum.IsMet("8"));
  EXPECT_FALSE(minimum.IsMet("9.1"));
  EXPECT_FALSE(minimum.IsMet("default"));
  EXPECT_FALSE(minimum.IsMet(""));
  EXPECT_EQ(minimum.Conflict("8"), "weight version: demanded at least 9, 8 is live");
  EXPECT_EQ(VersionNumber("18446744073709551615"), UINT64_MAX);
  for (const char* label : {"18446744073709551616", "-1", "+1", " 1", "1 ", "", "0x1"}) {
    EXPECT_FALSE(VersionNumber(label).has_value()) << label;
  }
}

TEST(Demand, IsJudgedWhenTheRequestArrives) {
  Harness harness;
  harness.core().SetWeightVersion("4");
  const auto met = harness.Add(Demanding(Kind::kExact, "4", Sampled(1, 20, 5)));
  const auto high = harness.Add(Demanding(Kind::kMinimum, "5", Sampled(2, 20, 5)));
  const auto other = harness.Add(Demanding(Kind::kExact, "3", Sampled(3, 20, 5)));
  const auto low = harness.Add(Demanding(Kind::kMinimum, "4", Sampled(4, 20, 5)));
  harness.core().CheckInvariants();
  for (const auto& refused : {high, other}) {
    const RequestOutput output = refused->Get().all;
    EXPECT_EQ(output.finish.type, FinishType::kVersionConflict);
    EXPECT_EQ(output.weight_version, "4");
    EXPECT_EQ(output.completion_tokens, 0);
    EXPECT_EQ(output.prompt_tokens, 20);
  }
  EXPECT_THAT(high->Get().all.finish.message, HasSubstr("at least 5, 4 is live"));
  EXPECT_EQ(harness.core().totals().version_conflicts, 2);
  EXPECT_EQ(harness.core().totals().aborted, 0);
  harness.RunAll();
  EXPECT_EQ(met->Get().all.finish.type, FinishType::kLength);
  EXPECT_EQ(low->Get().all.finish.type, FinishType::kLength);
  EXPECT_EQ(harness.num_in_flight(), 0);
}

TEST(Demand, ChangesNoBitOfThoseThatMeetIt) {
  Harness harness;
  const Collected plain = harness.Run(Sampled(1, 40, 20));
  Harness other;
  ExpectSame(other.Run(Demanding(Kind::kExact, "v0", Sampled(1, 40, 20))), plain);
}

// In a batch with one that demands nothing and one that a later version satisfies.
TEST(Demand, IsJudgedAgainAtASwapInEveryMode) {
  for (const InFlight in_flight :
       {InFlight::kRetract, InFlight::kInPlace, InFlight::kAbort, InFlight::kDrain}) {
    HarnessOptions options;
    options.engine.max_running_requests = 3;
    Harness harness(options);
    harness.core().SetWeightVersion("4");
    const auto exact = harness.Add(Demanding(Kind::kExact, "4", Sampled(1, 40, 30)));
    const auto minimum = harness.Add(Demanding(Kind::kMinimum, "4", Sampled(2, 40, 30)));
    const auto free = harness.Add(Sampled(3, 40, 30));
    const auto queued = harness.Add(Demanding(Kind::kExact, "4", Sampled(4, 40, 30)));
    harness.Steps(10);
    SwapReport report;
    SwapTo(harness, "5", in_flight, &report);
    harness.core().CheckInvariants();
    harness.RunAll();

    // Nothing had started of the queued one, and what it demands will not come back.
    EXPECT_EQ(queued->Get().all.finish.type, FinishType::kVersionConflict);
    EXPECT_EQ(queued->Get().all.completion_tokens, 0);
    EXPECT_EQ(queued->Get().all.weight_version, "5");
    const RequestOutput output = exact->Get().all;
    for (const VersionSpan& span : output.versions) {
      EXPECT_EQ(span.version, "4");
    }
    EXPECT_FALSE(output.mixed_context);
    if (in_flight == InFlight::kDrain) {
      EXPECT_EQ(output.finish.type, FinishType::kLength);
    } else if (in_flight == InFlight::kAbort) {
      EXPECT_EQ(output.finish.type, FinishType::kAbort);
    } else {
      EXPECT_EQ(output.finish.type, FinishType::kVersionConflict);
      EXPECT_EQ(output.weight_version, "4");  // Of its last token.
      EXPECT_EQ(output.completion_tokens, 10);
      EXPECT_EQ(output.new_logprobs.size(), 10U);
      EXPECT_EQ(minimum->Get().all.versions.size(), 2U);
      EXPECT_EQ(minimum->Get().all.finish.type, FinishType::kLength);
      EXPECT_EQ(free->Get().all.finish.type, FinishType::kLength);
      EXPECT_EQ(report.in_flight, 3);
      EXPECT_EQ(report.aborted, 2);  // The running and the queued one.
      EXPECT_EQ(report.retracted, in_flight == InFlight::kRetract ? 2 : 0);
    }
    EXPECT_EQ(harness.num_in_flight(), 0);
  }
}

// What a demand ends goes on with the same bits when it is sent again with what it has.
TEST(Demand, LeavesTheOthersOfABatchAsTheyWere) {
  Harness quiet;
  const auto alone = quiet.Add(Sampled(3, 40, 30));
  quiet.Steps(10);
  SwapTo(quiet, "5", InFlight::kRetract);
  quiet.RunAll();
  Harness harness;
  const auto free = harness.Add(Sampled(3, 40, 30));
  harness.Add(Demanding(Kind::kExact, "v0", Sampled(1, 40, 30)));
  harness.Steps(10);
  SwapTo(harness, "5", InFlight::kRetract);
  harness.RunAll();
  ExpectSame(free->Get(), alone->Get());
}

TEST(Demand, OfAHeldRequestIsJudgedWhenTheSwapComes) {
  Harness harness;
  harness.core().SetWeightVersion("4");
  const auto running = harness.Add(Demanding(Kind::kExact, "4", Sampled(1, 40, 30)));
  harness.Steps(5);
  harness.core().Pause(PauseMode::kRetract);
  const auto held = harness.Add(Demanding(Kind::kMinimum, "4", Sampled(2, 40, 10)));
  const auto early = harness.Add(Demanding(Kind::kMinimum, "5", Sampled(3, 40, 10)));
  EXPECT_TRUE(early->finished());  // At once, not when version 5 comes: the client asks again.
  EXPECT_FALSE(held->finished());
  SwapTo(harness, "5", InFlight::kRetract);
  EXPECT_EQ(running->Get().all.finish.type, FinishType::kVersionConflict);
  EXPECT_EQ(running->Get().all.completion_tokens, 5);
  harness.core().Continue();
  harness.RunAll();
  EXPECT_EQ(held->Get().all.finish.type, FinishType::kLength);
  EXPECT_EQ(held->Get().all.versions.at(0).version, "5");
}

TEST(Demand, IsJudgedAgainWhenTheVersionIsRenamed) {
  Harness harness;
  const auto exact = harness.Add(Demanding(Kind::kExact, "v0", Sampled(1, 40, 30)));
  const auto free = harness.Add(Sampled(2, 40, 30));
  harness.Steps(5);
  harness.core().SetWeightVersion("v0");  // To what it was: nothing ends.
  EXPECT_FALSE(exact->finished());
  harness.core().SetWeightVersion("renamed");
  EXPECT_EQ(exact->Get().all.finish.type, FinishType::kVersionConflict);
  harness.RunAll();
  EXPECT_EQ(free->Get().all.finish.type, FinishType::kLength);
}

TEST(Demand, IsCheckedForWhatItCanBe) {
  Harness harness;
  const Request request = Demanding(Kind::kMinimum, "latest", Sampled(1, 20, 5));
  Request named = Sampled(1, 20, 5);
  named.rid = "r";
  named.version_demand = request.version_demand;
  const Status status = ValidateRequest(named, harness.core().limits());
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("min_weight_version"));
}

}  // namespace
}  // namespace octavo
