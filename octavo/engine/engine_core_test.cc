// Method: single requests on the tiny model: how they end, what is reported about them, and what
// each snapshot holds. Expected tokens come from a first greedy run of the same prompt.

#include "octavo/engine/engine_core.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/engine/engine.h"
#include "octavo/engine/request.h"
#include "octavo/engine/rid_registry.h"
#include "octavo/engine/test_support.h"
#include "octavo/kernels/backend.h"
#include "octavo/model/model.h"
#include "octavo/model/spec/model_spec.h"

namespace octavo {
namespace {

using testing::HasSubstr;

Request Greedy(int64_t prompt_len, int64_t max_new_tokens) {
  Request request;
  request.input_ids = RandomIds(11, prompt_len);
  request.sampling.max_new_tokens = max_new_tokens;
  request.sampling.temperature = 0.0F;
  request.sampling.ignore_eos = true;
  return request;
}

// What Greedy(20, 12) generates.
std::vector<int32_t> GreedyTokens() {
  Harness harness;
  return harness.Run(Greedy(20, 12)).all.new_ids;
}

// Index of the first token of `ids` that did not occur before it, from 3 on.
size_t FirstNewToken(const std::vector<int32_t>& ids) {
  for (size_t i = 3; i < ids.size(); ++i) {
    if (std::find(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(i), ids[i]) ==
        ids.begin() + static_cast<std::ptrdiff_t>(i)) {
      return i;
    }
  }
  ADD_FAILURE() << "the greedy run repeats itself; take another prompt seed";
  return 0;
}

// Matches when one id comes by.
class OneIdMatcher final : public StopMatcher {
 public:
  OneIdMatcher(int32_t id, std::vector<int32_t>* seen) : id_(id), seen_(*seen) {}
  std::optional<std::string> OnToken(int32_t id) override {
    seen_.push_back(id);
    return id == id_ ? std::optional<std::string>("STOP") : std::nullopt;
  }

 private:
  const int32_t id_;
  std::vector<int32_t>& seen_;
};

TEST(EngineCore, EndsAtTheBudgetWithOneSnapshot) {
  Harness harness;
  const Collected result = harness.Run(Greedy(20, 12));
  EXPECT_EQ(result.num_snapshots, 1);
  EXPECT_EQ(result.all.finish.type, FinishType::kLength);
  EXPECT_EQ(result.all.new_ids.size(), 12U);
  EXPECT_EQ(result.all.prompt_tokens, 20);
  EXPECT_EQ(result.all.completion_tokens, 12);
  EXPECT_EQ(result.all.cached_tokens, 0);
  EXPECT_EQ(result.all.weight_version, "v0");
  ASSERT_EQ(result.all.versions.size(), 1U);
  EXPECT_EQ(result.all.versions[0].num_tokens, 12);
  EXPECT_TRUE(result.all.new_logprobs.empty());
  EXPECT_GE(result.all.e2e_seconds, result.all.queue_seconds);
  EXPECT_EQ(harness.num_in_flight(), 0);
  EXPECT_EQ(harness.core().scheduler().num_used_tokens(), 0);
}

TEST(EngineCore, StopsAtAnEosTokenAndKeepsIt) {
  const std::vector<int32_t> tokens = GreedyTokens();
  const size_t at = FirstNewToken(tokens);
  HarnessOptions options;
  options.eos_token_ids = {tokens[at]};
  Harness harness(options);
  Request request = Greedy(20, 12);
  request.sampling.ignore_eos = false;
  const Collected result = harness.Run(std::move(request));
  EXPECT_EQ(result.all.finish.type, FinishType::kStopToken);
  EXPECT_EQ(result.all.finish.matched_token, tokens[at]);
  EXPECT_EQ(result.all.new_ids.size(), at + 1);
  EXPECT_EQ(harness.Run(Greedy(20, 12)).all.new_ids, tokens);  // ignore_eos goes on.
}

TEST(EngineCore, IgnoreEosAlsoTurnsOffStopIds) {
  const std::vector<int32_t> tokens = GreedyTokens();
  const size_t at = FirstNewToken(tokens);
  Harness harness;
  Request request = Greedy(20, 12);
  request.sampling.stop_token_ids = {tokens[at]};
  EXPECT_EQ(harness.Run(std::move(request)).all.finish.type, FinishType::kLength);
  Request stopping = Greedy(20, 12);
  stopping.sampling.stop_token_ids = {tokens[at]};
  stopping.sampling.ignore_eos = false;
  const Collected result = harness.Run(std::move(stopping));
  EXPECT_EQ(result.all.finish.type, FinishType::kStopToken);
  EXPECT_EQ(result.all.new_ids.size(), at + 1);
}

TEST(EngineCore, TestsTheBudgetThenIdsThenStrings) {
  const std::vector<int32_t> tokens = GreedyTokens();
  const size_t at = FirstNewToken(tokens);
  Harness harness;
  // The matching token is also the last of the budget: length wins, and the matcher never sees it.
  std::vector<int32_t> seen;
  Request budget = Greedy(20, static_cast<int64_t>(at) + 1);
  budget.sampling.ignore_eos = false;
  budget.sampling.stop_token_ids = {tokens[at]};
  budget.stop_matcher = std::make_unique<OneIdMatcher>(tokens[at], &seen);
  EXPECT_EQ(harness.Run(std::move(budget)).all.finish.type, FinishType::kLength);
  EXPECT_EQ(seen.size(), at);
  // Id and string together: the id wins.
  Request both = Greedy(20, 12);
  both.sampling.ignore_eos = false;
  both.sampling.stop_token_ids = {tokens[at]};
  both.stop_matcher = std::make_unique<OneIdMatcher>(tokens[at], &seen);
  EXPECT_EQ(harness.Run(std::move(both)).all.finish.type, FinishType::kStopToken);
  // The string alone, which ignore_eos leaves on.
  Request string = Greedy(20, 12);
  string.stop_matcher = std::make_unique<OneIdMatcher>(tokens[at], &seen);
  const Collected result = harness.Run(std::move(string));
  EXPECT_EQ(result.all.finish.type, FinishType::kStopString);
  EXPECT_EQ(result.all.finish.matched_string, "STOP");
  EXPECT_EQ(result.all.new_ids.size(), at + 1);
}

TEST(EngineCore, MinNewTokensKeepsStopsAway) {
  const std::vector<int32_t> tokens = GreedyTokens();
  HarnessOptions options;
  options.eos_token_ids = {tokens[0]};
  Harness harness(options);
  Request request = Greedy(20, 12);
  request.sampling.ignore_eos = false;
  request.sampling.min_new_tokens = 5;
  request.sampling.stop_token_ids = {tokens[1]};
  const Collected result = harness.Run(std::move(request));
  ASSERT_GE(result.all.new_ids.size(), 5U);
  for (size_t i = 0; i < 5; ++i) {
    EXPECT_NE(result.all.new_ids[i], tokens[0]);
    EXPECT_NE(result.all.new_ids[i], tokens[1]);
  }
}

TEST(EngineCore, StreamsEveryIntervalAndTheRestAtTheEnd) {
  Harness harness;
  Request request = Greedy(20, 11);
  request.stream = true;
  request.stream_interval = 4;
  request.return_logprob = true;
  request.logprob_start_len = 0;
  const std::shared_ptr<RecordingSink> sink = harness.Add(std::move(request));
  std::vector<size_t> lengths;
  while (harness.Step()) {
    if (lengths.empty() || sink->Get().all.new_ids.size() != lengths.back()) {
      lengths.push_back(sink->Get().all.new_ids.size());
    }
  }
  EXPECT_THAT(lengths, testing::ElementsAre(0, 4, 8, 11));
  const Collected result = sink->Get();
  EXPECT_EQ(result.num_snapshots, 3);
  EXPECT_EQ(result.num_final, 1);
  EXPECT_EQ(result.all.new_logprobs.size(), 11U);
  EXPECT_EQ(result.all.input_logprobs.size(), 20U);  // Once, not in every snapshot.
  EXPECT_EQ(result.all.versions[0].num_tokens, 11);
}

TEST(EngineCore, ReportsItsSeedAndReplaysFromIt) {
  Harness harness;
  Request request = Greedy(20, 30);
  request.sampling.temperature = 1.0F;
  const Collected first = harness.Run(std::move(request));
  EXPECT_GE(first.all.seed, 0);
  EXPECT_LT(first.all.seed, int64_t{1} << 53);
  Request again = Greedy(20, 30);
  again.sampling.temperature = 1.0F;
  again.sampling.seed = first.all.seed;
  EXPECT_EQ(harness.Run(std::move(again)).all.new_ids, first.all.new_ids);
  Request other = Greedy(20, 30);
  other.sampling.temperature = 1.0F;
  const Collected third = harness.Run(std::move(other));
  EXPECT_NE(third.all.seed, first.all.seed);
  EXPECT_NE(third.all.new_ids, first.all.new_ids);
}

// --- Logprobs -----------------------------------------------------------------------------------

TEST(EngineLogprobs, CoverThePromptFromTheStartAskedFor) {
  Harness harness;
  const std::vector<int32_t> prompt = RandomIds(11, 40);
  std::vector<std::pair<std::optional<float>, int32_t>> whole;
  for (const int64_t start : {int64_t{0}, int64_t{1}, int64_t{33}, int64_t{39}, int64_t{40}}) {
    Request request = Greedy(40, 1);
    request.return_logprob = true;
    request.logprob_start_len = start;
    const Collected result = harness.Run(std::move(request));
    const auto& entries = result.all.input_logprobs;
    ASSERT_EQ(entries.size(), static_cast<size_t>(40 - start));
    for (size_t i = 0; i < entries.size(); ++i) {
      EXPECT_EQ(entries[i].second, prompt[static_cast<size_t>(start) + i]);
      EXPECT_EQ(entries[i].first.has_value(), i != 0);
    }
    if (start == 0) {
      whole = entries;
    }
    for (size_t i = 1; i < entries.size(); ++i) {
      EXPECT_EQ(entries[i], whole[static_cast<size_t>(start) + i]);
    }
    EXPECT_LE(result.all.cached_tokens, start);
  }
}

TEST(EngineLogprobs, OfThePromptIgnoreTemperatureAndPenalties) {
  Harness harness;
  const auto score = [&](float temperature, float penalty) {
    Request request = Greedy(40, 3);
    request.sampling.temperature = temperature;
    request.sampling.repetition_penalty = penalty;
    request.sampling.logit_bias = {{5, temperature}};
    request.return_logprob = true;
    request.logprob_start_len = 0;
    return harness.Run(std::move(request)).all.input_logprobs;
  };
  EXPECT_EQ(score(0.3F, 1.7F), score(1.0F, 1.0F));
}

TEST(EngineLogprobs, OfTheOutputAreThoseOfTheTransformedRow) {
  Harness harness;
  // Three ids that carry all the mass; logprobs of the three must then sum to one.
  Request request = Greedy(20, 5);
  request.sampling.temperature = 0.5F;
  request.sampling.logit_bias = {{3, 300.0F}, {4, 300.0F}, {5, 300.0F}};
  request.return_logprob = true;
  request.token_ids_logprob = {3, 4, 5, 6};
  request.top_logprobs_num = 3;
  const Collected result = harness.Run(std::move(request));
  ASSERT_EQ(result.all.new_ids_logprobs.size(), 5U);
  for (size_t i = 0; i < 5; ++i) {
    double sum = 0.0;
    for (size_t j = 0; j < 3; ++j) {
      sum += std::exp(result.all.new_ids_logprobs[i][j].logprob);
    }
    EXPECT_NEAR(sum, 1.0, 1e-5);
    EXPECT_LT(result.all.new_ids_logprobs[i][3].logprob, -100.0F);
    ASSERT_EQ(result.all.new_top_logprobs[i].size(), 3U);
    EXPECT_TRUE(std::ranges::is_sorted(result.all.new_top_logprobs[i], std::greater<>(),
                                       &TokenLogprob::logprob));
    EXPECT_TRUE(result.all.new_ids[i] >= 3 && result.all.new_ids[i] <= 5);
  }
}

TEST(EngineLogprobs, ListsOfThePromptBeginWithAnEmptyEntry) {
  Harness harness;
  Request request = Greedy(20, 2);
  request.return_logprob = true;
  request.logprob_start_len = 4;
  request.top_logprobs_num = 2;
  request.token_ids_logprob = {7};
  const Collected result = harness.Run(std::move(request));
  ASSERT_EQ(result.all.input_top_logprobs.size(), 16U);
  ASSERT_EQ(result.all.input_ids_logprobs.size(), 16U);
  EXPECT_TRUE(result.all.input_top_logprobs[0].empty());
  EXPECT_TRUE(result.all.input_ids_logprobs[0].empty());
  EXPECT_EQ(result.all.input_top_logprobs[1].size(), 2U);
  EXPECT_EQ(result.all.input_ids_logprobs[1][0].id, 7);
}

TEST(EngineLogprobs, ABudgetOfZeroStillScoresTheNextToken) {
  Harness harness;
  Request score = Greedy(20, 0);
  score.return_logprob = true;
  score.logprob_start_len = 0;
  const Collected scored = harness.Run(std::move(score));
  EXPECT_EQ(scored.all.finish.type, FinishType::kLength);
  EXPECT_TRUE(scored.all.new_ids.empty());
  EXPECT_EQ(scored.all.completion_tokens, 0);
  EXPECT_EQ(scored.all.input_logprobs.size(), 20U);
  EXPECT_TRUE(scored.all.versions.empty());
  EXPECT_EQ(scored.all.weight_version, "v0");
  Request generate = Greedy(20, 1);
  generate.return_logprob = true;
  EXPECT_EQ(Bits(scored.all.new_logprobs), Bits(harness.Run(std::move(generate)).all.new_logprobs));

  const Collected plain = harness.Run(Greedy(20, 0));
  EXPECT_EQ(plain.all.finish.type, FinishType::kLength);
  EXPECT_TRUE(plain.all.new_logprobs.empty());
}

TEST(EngineLogprobs, AreNeverNonFinite) {
  Harness harness;
  Request request = Greedy(20, 4);
  request.sampling.ignore_eos = false;
  request.sampling.min_new_tokens = 4;
  request.sampling.temperature = 2e-6F;
  request.sampling.stop_token_ids = {9};
  request.return_logprob = true;
  request.token_ids_logprob = {2, 9};  // Masked.
  const Collected result = harness.Run(std::move(request));
  for (const auto& entries : result.all.new_ids_logprobs) {
    for (const TokenLogprob& entry : entries) {
      EXPECT_EQ(entry.logprob, -1e30F);
    }
  }
  for (const TokenLogprob& entry : result.all.new_logprobs) {
    EXPECT_TRUE(std::isfinite(entry.logprob));
  }
}

// --- Failures -----------------------------------------------------------------------------------

TEST(EngineFailure, ANanPoisonedRowEndsOnlyItsRequest) {
  HarnessOptions options;
  options.weights.poisoned_token = 42;
  const auto clean_request = [] {
    Request request = Greedy(0, 12);
    request.input_ids = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
    request.sampling.logit_bias = {{42, -1000.0F}};  // Never generates the poison itself.
    request.return_logprob = true;
    return request;
  };
  Harness alone(options);
  const Collected expected = alone.Run(clean_request());

  Harness harness(options);
  const std::shared_ptr<RecordingSink> before = harness.Add(clean_request());
  Request bad = Greedy(0, 12);
  bad.input_ids = {1, 2, 42, 4, 5};
  const std::shared_ptr<RecordingSink> poisoned = harness.Add(std::move(bad));
  Request bad_score = Greedy(0, 0);
  bad_score.input_ids = {1, 42, 42, 4, 5, 6};
  bad_score.return_logprob = true;
  bad_score.logprob_start_len = 0;
  const std::shared_ptr<RecordingSink> scored = harness.Add(std::move(bad_score));
  const std::shared_ptr<RecordingSink> after = harness.Add(clean_request());
  harness.RunAll();
  for (const auto& sink : {poisoned, scored}) {
    const RequestOutput output = sink->Get().all;
    EXPECT_EQ(output.finish.type, FinishType::kError);
    EXPECT_THAT(output.finish.message, HasSubstr("not finite"));
    for (const TokenLogprob& entry : output.new_logprobs) {
      EXPECT_TRUE(std::isfinite(entry.logprob));
    }
  }
  for (const auto& sink : {before, after}) {
    EXPECT_EQ(sink->Get().all.new_ids, expected.all.new_ids);
    EXPECT_EQ(Bits(sink->Get().all.new_logprobs), Bits(expected.all.new_logprobs));
  }
  // Pages that held NaN are handed out zeroed: a later request is as clean.
  const Collected later = harness.Run(clean_request());
  EXPECT_EQ(Bits(later.all.new_logprobs), Bits(expected.all.new_logprobs));
}

TEST(EngineCoreCreate, RefusesOptionsOutOfRange) {
  const ModelSpec spec = TinySpec();
  const auto error = [&](const EngineOptions& options) {
    RidRegistry rids;
    std::unique_ptr<Backend> backend = MakeReferenceBackend(Recipe::kServing, 1);
    std::unique_ptr<ModelWeights> weights = TinyWeights(spec, *backend, {});
    const Result<std::unique_ptr<EngineCore>> core =
        EngineCore::Create({.backend = std::move(backend),
                            .spec = &spec,
                            .weights = std::move(weights),
                            .eos_token_ids = {},
                            .weight_version = "0",
                            .options = options,
                            .rids = &rids,
                            .publish = nullptr});
    return core.has_value() ? std::string() : core.error().message();
  };
  EngineOptions options;
  options.max_total_tokens = 31;
  EXPECT_THAT(error(options), HasSubstr("max_total_tokens"));
  options = {};
  options.chunk_tokens = 0;
  EXPECT_THAT(error(options), HasSubstr("chunk_tokens"));
  options = {};
  options.max_running_requests = 0;
  EXPECT_THAT(error(options), HasSubstr("max_running_requests"));
  options = {};
  options.max_total_tokens = 64;
  options.kv_cache_fraction = 0.5;
  EXPECT_THAT(error(options), HasSubstr("kv_cache_fraction"));
  options = {};
  options.kv_cache_dtype = DType::kF16;
  EXPECT_THAT(error(options), HasSubstr("kv_cache_dtype"));
  options = {};
  options.return_routed_experts = true;
  EXPECT_THAT(error(options), HasSubstr("mixture of experts"));
  options = {};
  options.context_length = 4096;
  EXPECT_THAT(error(options), HasSubstr("context_length"));
}

}  // namespace
}  // namespace octavo
