// Method: samples of one prompt that come together, counted in rows of forward passes: the prompt
// is computed once, and each further sample computes its last token. Bits are compared with the
// same request alone. Then everything that can happen to the one that computes.

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "octavo/engine/engine.h"
#include "octavo/engine/request.h"
#include "octavo/engine/test_support.h"
#include "octavo/kernels/ops.h"

namespace octavo {
namespace {

constexpr int64_t kNewTokens = 40;

Request Sample(const std::vector<int32_t>& prompt, int64_t seed) {
  return Sampling(prompt, seed, kNewTokens);
}

std::vector<std::shared_ptr<RecordingSink>> AddGroup(Harness& harness,
                                                     const std::vector<int32_t>& prompt,
                                                     int64_t size) {
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  sinks.reserve(static_cast<size_t>(size));
  for (int64_t i = 0; i < size; ++i) {
    sinks.push_back(harness.Add(Sample(prompt, i)));
  }
  return sinks;
}

void ExpectBitsAlone(const Collected& actual, const std::vector<int32_t>& prompt, int64_t seed) {
  Harness alone;
  const Collected expected = alone.Run(Sample(prompt, seed));
  EXPECT_EQ(actual.all.new_ids, expected.all.new_ids) << seed;
  EXPECT_EQ(Bits(actual.all.new_logprobs), Bits(expected.all.new_logprobs)) << seed;
}

// Rows of decode steps: the first new token needs none of its own.
int64_t DecodeRows(int64_t num_samples) { return num_samples * (kNewTokens - 1); }

TEST(Group, ComputesItsPromptOnce) {
  for (const int64_t length : {1, 2, 20, 32, 33, 64, 127, 128, 129, 300}) {
    for (const int64_t size : {8, 64}) {
      Harness harness;
      const std::vector<int32_t> prompt = RandomIds(static_cast<uint64_t>(length), length);
      const auto sinks = AddGroup(harness, prompt, size);
      harness.RunAll();
      EXPECT_EQ(harness.core().totals().computed_tokens, length + size - 1 + DecodeRows(size))
          << length << " " << size;
      for (size_t i = 0; i < sinks.size(); ++i) {
        EXPECT_EQ(sinks[i]->Get().all.cached_tokens, i == 0 ? 0 : length - 1);
      }
      EXPECT_NE(sinks[0]->Get().all.new_ids, sinks[1]->Get().all.new_ids);
      ExpectBitsAlone(sinks[0]->Get(), prompt, 0);
      ExpectBitsAlone(sinks[1]->Get(), prompt, 1);
      ExpectBitsAlone(sinks.back()->Get(), prompt, size - 1);
    }
  }
}

TEST(Group, ComputesItsPromptOnceWhenItTakesManySteps) {
  HarnessOptions options;
  options.engine.chunk_tokens = 24;  // Chunks end inside pages.
  options.engine.max_running_requests = 24;
  Harness harness(options);
  const std::vector<int32_t> prompt = RandomIds(1, 300);
  const auto sinks = AddGroup(harness, prompt, 8);
  harness.RunAll();
  EXPECT_EQ(harness.core().totals().computed_tokens, 300 + 7 + DecodeRows(8));
  ExpectBitsAlone(sinks[7]->Get(), prompt, 7);
}

TEST(Group, LargerThanWhatMayRunStillSharesItsPrompt) {
  HarnessOptions options;
  options.engine.max_running_requests = 3;
  Harness harness(options);
  const std::vector<int32_t> prompt = RandomIds(1, 100);
  const auto sinks = AddGroup(harness, prompt, 16);
  harness.RunAll();
  EXPECT_EQ(harness.core().totals().computed_tokens, 100 + 15 + DecodeRows(16));
  ExpectBitsAlone(sinks[15]->Get(), prompt, 15);
}

TEST(Group, SharesTheFullPagesOfACommonBeginning) {
  Harness harness;
  std::vector<int32_t> prompt = RandomIds(1, 64);
  prompt.resize(84);
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int64_t i = 0; i < 8; ++i) {
    prompt[64] = static_cast<int32_t>(i);
    sinks.push_back(harness.Add(Sample(prompt, i)));
  }
  harness.RunAll();
  EXPECT_EQ(harness.core().totals().computed_tokens, 84 + 7 * 20 + DecodeRows(8));
  prompt[64] = 5;
  ExpectBitsAlone(sinks[5]->Get(), prompt, 5);
}

TEST(Group, SharesNothingWhereItMayNot) {
  const std::vector<int32_t> prompt = RandomIds(1, 100);
  {
    HarnessOptions options;
    options.engine.prefix_cache = false;
    Harness harness(options);
    AddGroup(harness, prompt, 4);
    harness.RunAll();
    EXPECT_EQ(harness.core().totals().computed_tokens, 400 + DecodeRows(4));
  }
  {
    Harness harness;  // Every position is scored, so every position is computed.
    for (int64_t i = 0; i < 4; ++i) {
      Request request = Sample(prompt, i);
      request.logprob_start_len = 0;
      harness.Add(std::move(request));
    }
    harness.RunAll();
    EXPECT_EQ(harness.core().totals().computed_tokens, 400 + DecodeRows(4));
  }
  {
    Harness harness;
    for (int64_t i = 0; i < 4; ++i) {
      Request request = Sample(prompt, i);
      request.extra_key = i % 2 == 0 ? "a" : "b";
      harness.Add(std::move(request));
    }
    harness.RunAll();
    EXPECT_EQ(harness.core().totals().computed_tokens, 200 + 2 + DecodeRows(4));
  }
}

TEST(Group, LetsOthersPassWhileItWaits) {
  HarnessOptions options;
  options.engine.chunk_tokens = 64;
  Harness harness(options);
  AddGroup(harness, RandomIds(1, 120), 8);
  harness.Add(Sample(RandomIds(2, 10), 100));
  harness.Steps(2);  // The leader's 120 tokens, and in the second step what is left of the budget.
  EXPECT_EQ(harness.core().scheduler().running().size(), 2U);
  EXPECT_EQ(harness.core().scheduler().running().back()->request.rid, "r8");
  harness.Steps(1);
  EXPECT_EQ(harness.core().scheduler().running().size(), 9U);
}

// --- What happens to the one that computes ------------------------------------------------------

// A group whose leader has computed 96 of 200 tokens.
struct HalfWay {
  HalfWay() : harness(Options()), prompt(RandomIds(1, 200)) {
    sinks = AddGroup(harness, prompt, 8);
    harness.Steps(3);
    EXPECT_EQ(harness.core().totals().computed_tokens, 96);
  }
  static HarnessOptions Options() {
    HarnessOptions options;
    options.engine.chunk_tokens = 32;
    options.engine.max_running_requests = 32;
    return options;
  }
  Harness harness;
  std::vector<int32_t> prompt;
  std::vector<std::shared_ptr<RecordingSink>> sinks;
};

TEST(GroupLeader, WhenAbortedAnotherGoesOnWhereItStopped) {
  HalfWay half;
  half.harness.core().Abort("r0");
  half.harness.RunAll();
  EXPECT_EQ(half.harness.core().totals().computed_tokens, 200 + 6 + DecodeRows(7));
  ExpectBitsAlone(half.sinks[1]->Get(), half.prompt, 1);
  ExpectBitsAlone(half.sinks[7]->Get(), half.prompt, 7);
}

TEST(GroupLeader, WhenAllLeadersGoTheLastFinishesAlone) {
  HalfWay half;
  for (int i = 0; i < 7; ++i) {
    half.harness.core().Abort("r" + std::to_string(i));
  }
  half.harness.RunAll();
  EXPECT_EQ(half.harness.core().totals().computed_tokens, 200 + DecodeRows(1));
  ExpectBitsAlone(half.sinks[7]->Get(), half.prompt, 7);
}

TEST(GroupLeader, WhenRetractedTheGroupGoesOnFromItsPages) {
  HalfWay half;
  half.harness.core().Pause(PauseMode::kRetract);
  half.harness.core().Continue();
  half.harness.RunAll();
  EXPECT_EQ(half.harness.core().totals().computed_tokens, 200 + 7 + DecodeRows(8));
  ExpectBitsAlone(half.sinks[0]->Get(), half.prompt, 0);
  ExpectBitsAlone(half.sinks[7]->Get(), half.prompt, 7);
}

TEST(GroupLeader, WhenFrozenTheGroupWaitsWithIt) {
  HalfWay half;
  half.harness.core().Pause(PauseMode::kInPlace);
  EXPECT_FALSE(half.harness.Step());
  half.harness.core().Continue();
  half.harness.RunAll();
  EXPECT_EQ(half.harness.core().totals().computed_tokens, 200 + 7 + DecodeRows(8));
  ExpectBitsAlone(half.sinks[7]->Get(), half.prompt, 7);
}

TEST(GroupLeader, WhenItsWeightsGoInPlaceTheOthersBeginAnew) {
  HalfWay half;
  const TinyWeightOptions weights = {.seed = 2};
  half.harness.core().Swap({.weights = half.harness.NewWeights(weights),
                            .version = "v1",
                            .in_flight = InFlight::kInPlace,
                            .done = nullptr});
  half.harness.RunAll();
  // The leader's KV spans two versions and is nobody else's; the second computes it all again.
  EXPECT_EQ(half.harness.core().totals().computed_tokens, 200 + 200 + 6 + DecodeRows(8));
  HarnessOptions options;
  options.weights = weights;
  Harness fresh(options);
  const Collected expected = fresh.Run(Sample(half.prompt, 7));
  EXPECT_EQ(half.sinks[7]->Get().all.new_ids, expected.all.new_ids);
  EXPECT_EQ(Bits(half.sinks[7]->Get().all.new_logprobs), Bits(expected.all.new_logprobs));
}

TEST(Group, OnAPoolThatIsTooSmallLosesNothing) {
  HarnessOptions options;
  options.engine.max_total_tokens = 8 * kPageTokens;  // One sample needs five pages in the end.
  Harness harness(options);
  const std::vector<int32_t> prompt = RandomIds(1, 100);
  const auto sinks = AddGroup(harness, prompt, 8);
  harness.RunAll();
  EXPECT_GT(harness.core().scheduler().num_retractions(), 0);
  for (size_t i = 0; i < sinks.size(); ++i) {
    ExpectBitsAlone(sinks[i]->Get(), prompt, static_cast<int64_t>(i));
  }
}

// A page that begins with a prompt's tail may hold later tokens of another request. They are
// masked, but a masked NaN would still be a NaN.
TEST(Group, NeverCopiesAPageWithPoisonInIt) {
  HarnessOptions options;
  options.weights.poisoned_token = 42;
  Harness harness(options);
  const std::vector<int32_t> prompt = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16,
                                       1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  ASSERT_EQ(static_cast<int64_t>(prompt.size()), kPageTokens - 1);
  const auto clean = [&] {
    Request request = Sample(prompt, 1);
    request.sampling.logit_bias = {{42, -1000.0F}};
    return request;
  };
  Request bad = Sample(prompt, 0);
  bad.sampling.logit_bias = {{42, 1000.0F}};  // Its first token fills the page.
  EXPECT_EQ(harness.Run(std::move(bad)).all.finish.type, FinishType::kError);
  const Collected actual = harness.Run(clean());
  EXPECT_EQ(actual.all.finish.type, FinishType::kLength);
  Harness alone(options);
  EXPECT_EQ(Bits(actual.all.new_logprobs), Bits(alone.Run(clean()).all.new_logprobs));
}

}  // namespace
}  // namespace octavo
