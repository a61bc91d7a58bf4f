// Method: a tiny mixture of experts. The experts that a request gets back are those of one forward
// pass over its whole sequence, wherever its KV came from.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/engine/engine.h"
#include "octavo/engine/page_pool.h"
#include "octavo/engine/request.h"
#include "octavo/engine/test_support.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/ops.h"
#include "octavo/model/model.h"
#include "octavo/model/spec/model_spec.h"

namespace octavo {
namespace {

constexpr int64_t kNewTokens = 40;

HarnessOptions MoeOptions() {
  HarnessOptions options;
  options.spec = TinyMoeSpec();
  options.engine.return_routed_experts = true;
  return options;
}

Request Asking(const std::vector<int32_t>& prompt, int64_t seed, int64_t start) {
  Request request = Sampling(prompt, seed, kNewTokens);
  request.return_routed_experts = true;
  request.routed_experts_start_len = start;
  return request;
}

// Experts of positions [start, tokens - 1) by one forward pass: the last token was never fed.
std::vector<int32_t> ByOnePass(std::vector<int32_t> tokens, int64_t start,
                               const TinyWeightOptions& weight_options) {
  tokens.pop_back();
  const ModelSpec spec = TinyMoeSpec();
  const std::unique_ptr<Backend> backend = MakeReferenceBackend(Recipe::kServing, 1);
  const std::unique_ptr<ModelWeights> weights = TinyWeights(spec, *backend, weight_options);
  const auto num_tokens = static_cast<int64_t>(tokens.size());
  Result<std::unique_ptr<Model>> model = MakeModel(
      spec, backend.get(),
      {.max_tokens = num_tokens, .max_logit_rows = 1, .max_context = num_tokens + kPageTokens});
  EXPECT_TRUE(model.has_value());
  PagePool pool(NumPagesFor(num_tokens));
  EXPECT_TRUE(pool.AllocateMemory(spec, *backend).ok());
  std::vector<int32_t> pages;
  for (int64_t i = 0; i < pool.num_pages(); ++i) {
    pages.push_back(pool.Allocate());
  }
  std::vector<int32_t> positions(tokens.size());
  std::iota(positions.begin(), positions.end(), 0);
  const Segment segment = {
      .first_row = 0, .num_rows = num_tokens, .first_position = 0, .page_table = pages};
  EXPECT_TRUE(
      (*model)
          ->Forward(
              {.token_ids = tokens, .positions = positions, .segments = std::span(&segment, 1)},
              *weights, pool.layers())
          .ok());
  const std::span<const int32_t> experts = (*model)->RoutedExperts();
  const int64_t row_size = spec.num_layers * spec.moe.top_k;
  EXPECT_EQ(static_cast<int64_t>(experts.size()), num_tokens * row_size);
  const auto wanted = experts.subspan(static_cast<size_t>(start * row_size));
  return {wanted.begin(), wanted.end()};
}

void ExpectExperts(const Collected& result, std::vector<int32_t> prompt, int64_t start,
                   const TinyWeightOptions& weights = {}) {
  prompt.insert(prompt.end(), result.all.new_ids.begin(), result.all.new_ids.end());
  EXPECT_EQ(result.all.routed_experts, ByOnePass(prompt, start, weights));
}

TEST(RoutedExperts, CoverPromptAndOutputButTheLastToken) {
  for (const int64_t start : {0, 1, 49, 50}) {
    Harness harness(MoeOptions());
    const std::vector<int32_t> prompt = RandomIds(1, 50);
    const Collected result = harness.Run(Asking(prompt, 1, start));
    // 3 layers of 2 experts; the dense one has zeros.
    ASSERT_EQ(static_cast<int64_t>(result.all.routed_experts.size()),
              (50 + kNewTokens - 1 - start) * 6);
    ExpectExperts(result, prompt, start);
    for (size_t row = 0; row < result.all.routed_experts.size(); row += 6) {
      EXPECT_EQ(result.all.routed_experts[row + 2], 0);
      EXPECT_EQ(result.all.routed_experts[row + 3], 0);
      EXPECT_LT(result.all.routed_experts[row], result.all.routed_experts[row + 1]);
    }
  }
}

TEST(RoutedExperts, OfEverySampleOfAGroup) {
  Harness harness(MoeOptions());
  const std::vector<int32_t> prompt = RandomIds(1, 75);
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  sinks.reserve(8);
  for (int64_t i = 0; i < 8; ++i) {
    sinks.push_back(harness.Add(Asking(prompt, i, 0)));
  }
  harness.RunAll();
  for (const auto& sink : sinks) {
    ExpectExperts(sink->Get(), prompt, 0);
  }
  EXPECT_EQ(sinks[7]->Get().all.cached_tokens, 74);
}

TEST(RoutedExperts, AreRecapturedAfterARetraction) {
  HarnessOptions options = MoeOptions();
  options.engine.max_total_tokens = 7 * kPageTokens;
  Harness harness(options);
  const std::vector<int32_t> prompt = RandomIds(1, 75);
  const std::vector<int32_t> other = RandomIds(2, 75);
  const auto first = harness.Add(Asking(prompt, 1, 0));
  Request streaming = Asking(other, 2, 10);
  streaming.stream = true;  // Rows come whole, with the last output.
  const auto second = harness.Add(std::move(streaming));
  const auto third = harness.Add(Asking(prompt, 3, 20));
  harness.RunAll();
  EXPECT_GT(harness.core().scheduler().num_retractions(), 0);
  ExpectExperts(first->Get(), prompt, 0);
  ExpectExperts(second->Get(), other, 10);
  ExpectExperts(third->Get(), prompt, 20);
}

TEST(RoutedExperts, OfNewWeightsReplaceThoseOfOld) {
  Harness harness(MoeOptions());
  const std::vector<int32_t> prompt = RandomIds(1, 75);
  const auto sink = harness.Add(Asking(prompt, 1, 0));
  harness.Steps(10);
  const TinyWeightOptions weights = {.seed = 2};
  harness.core().Swap({.weights = harness.NewWeights(weights),
                       .version = "v1",
                       .in_flight = InFlight::kRetract,
                       .done = nullptr});
  harness.RunAll();
  ExpectExperts(sink->Get(), prompt, 0, weights);
}

TEST(RoutedExperts, OfAnAbortedRequestCoverWhatItHas) {
  Harness harness(MoeOptions());
  const std::vector<int32_t> prompt = RandomIds(1, 75);
  for (const bool is_retracted : {false, true}) {
    Request request = Asking(prompt, 1, 0);
    request.rid = "r";
    const auto sink = harness.Add(std::move(request));
    harness.Steps(10);
    if (is_retracted) {
      harness.core().Pause(PauseMode::kRetract);
    }
    harness.core().Abort("r");
    harness.core().Continue();
    EXPECT_EQ(sink->Get().all.new_ids.size(), 10U);
    ExpectExperts(sink->Get(), prompt, 0);
  }
  Request unstarted = Asking(prompt, 1, 0);
  unstarted.rid = "r";
  const auto sink = harness.Add(std::move(unstarted));
  harness.core().Abort("r");
  EXPECT_TRUE(sink->Get().all.routed_experts.empty());
}

TEST(RoutedExperts, ComeOnlyToThoseWhoAsk) {
  Harness harness(MoeOptions());
  Request request = Asking(RandomIds(1, 20), 1, 0);
  request.return_routed_experts = false;
  EXPECT_TRUE(harness.Run(std::move(request)).all.routed_experts.empty());
  HarnessOptions without = MoeOptions();
  without.engine.return_routed_experts = false;
  Harness plain(without);
  const Status refused = ValidateRequest(
      [] {
        Request asking = Asking(RandomIds(1, 20), 1, 0);
        asking.rid = "r";
        return asking;
      }(),
      plain.core().limits());
  EXPECT_THAT(refused.message(), testing::HasSubstr("return_routed_experts"));
}

}  // namespace
}  // namespace octavo
