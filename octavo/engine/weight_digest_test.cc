// Method: a core stepped by hand under weights whose digests the test gave them. What a reply says
// of its weights is compared with what was live when each of its tokens was sampled.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "octavo/base/hash.h"
#include "octavo/engine/engine.h"
#include "octavo/engine/request.h"
#include "octavo/engine/test_support.h"
#include "octavo/model/model.h"

namespace octavo {
namespace {

constexpr TinyWeightOptions kNewWeights = {.seed = 2};

Hash128 DigestNamed(std::string_view name) { return HashText(name); }

void SwapTo(Harness& harness, std::string_view digest, const std::string& version,
            InFlight in_flight) {
  std::unique_ptr<ModelWeights> weights = harness.NewWeights(kNewWeights);
  weights->digest = DigestNamed(digest);
  harness.core().Swap({.weights = std::move(weights),
                       .version = version,
                       .in_flight = in_flight,
                       .done = [](SwapReport, std::unique_ptr<ModelWeights>) {}});
}

Request Greedy(int64_t prompt_len, int64_t max_new_tokens) {
  Request request;
  request.input_ids = RandomIds(1, prompt_len);
  request.sampling.max_new_tokens = max_new_tokens;
  request.sampling.temperature = 0.0F;
  request.sampling.ignore_eos = true;
  return request;
}

TEST(WeightDigest, StandsBesideTheVersionOfEverySpan) {
  Harness harness;
  const auto sink = harness.Add(Greedy(20, 8));
  harness.Steps(3);
  SwapTo(harness, "one", "v1", InFlight::kRetract);
  harness.RunAll();

  const RequestOutput output = sink->Get().all;
  ASSERT_EQ(output.versions.size(), 2U);
  EXPECT_EQ(output.versions[0].version, "v0");
  EXPECT_FALSE(output.versions[0].digest.has_value());  // Nobody sealed the first weights.
  EXPECT_EQ(output.versions[1].version, "v1");
  EXPECT_EQ(output.versions[1].digest, DigestNamed("one"));
  EXPECT_EQ(output.versions[0].num_tokens + output.versions[1].num_tokens, 8);
  EXPECT_EQ(output.weight_digest, DigestNamed("one"));
  EXPECT_FALSE(output.mixed_context);  // Retracted: all KV came from the new weights.
}

TEST(WeightDigest, EndsASpanAlsoUnderTheSameLabel) {
  Harness harness;
  SwapTo(harness, "one", "same", InFlight::kRetract);
  const auto sink = harness.Add(Greedy(20, 8));
  harness.Steps(3);
  SwapTo(harness, "two", "same", InFlight::kRetract);
  harness.RunAll();

  const RequestOutput output = sink->Get().all;
  ASSERT_EQ(output.versions.size(), 2U);
  EXPECT_EQ(output.versions[0].digest, DigestNamed("one"));
  EXPECT_EQ(output.versions[1].digest, DigestNamed("two"));
}

TEST(WeightDigest, IsKeptByANewLabel) {
  Harness harness;
  SwapTo(harness, "one", "v1", InFlight::kRetract);
  const auto sink = harness.Add(Greedy(20, 8));
  harness.Steps(3);
  harness.core().SetWeightVersion("v2");
  harness.RunAll();

  const RequestOutput output = sink->Get().all;
  ASSERT_EQ(output.versions.size(), 2U);
  EXPECT_EQ(output.versions[1].version, "v2");
  EXPECT_EQ(output.versions[1].digest, DigestNamed("one"));
}

TEST(WeightDigest, IsToldOfARequestThatOnlyScores) {
  Harness harness;
  SwapTo(harness, "one", "v1", InFlight::kRetract);
  Request request = Greedy(20, 0);
  request.return_logprob = true;
  request.logprob_start_len = 0;
  const RequestOutput output = harness.Run(std::move(request)).all;
  EXPECT_TRUE(output.versions.empty());
  EXPECT_EQ(output.weight_version, "v1");
  EXPECT_EQ(output.weight_digest, DigestNamed("one"));
}

// The prompt's KV is old and every token new: the spans alone would call it a reply of "v1".
TEST(MixedContext, IsToldWhenTheSwapCameBeforeTheFirstToken) {
  HarnessOptions options;
  options.engine.chunk_tokens = 16;
  Harness harness(options);
  const auto sink = harness.Add(Greedy(40, 8));
  harness.Steps(1);
  SwapTo(harness, "one", "v1", InFlight::kInPlace);
  harness.RunAll();

  const RequestOutput output = sink->Get().all;
  ASSERT_EQ(output.versions.size(), 1U);
  EXPECT_EQ(output.versions[0].version, "v1");
  EXPECT_TRUE(output.mixed_context);
}

TEST(MixedContext, IsRememberedAfterALaterRetraction) {
  Harness harness;
  const auto sink = harness.Add(Greedy(20, 12));
  harness.Steps(3);
  SwapTo(harness, "one", "v1", InFlight::kInPlace);
  harness.Steps(3);
  SwapTo(harness, "two", "v2", InFlight::kRetract);
  harness.RunAll();
  EXPECT_TRUE(sink->Get().all.mixed_context);
}

}  // namespace
}  // namespace octavo
