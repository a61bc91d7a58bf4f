// Method: the KV cache in FP8. Bits are its own, and they obey promise 5 as those of BF16 do:
// alone, in a group, from the cache, retracted. After a swap, with requests in flight or not, all
// that the new weights computed alone has the bits of a cold engine that never had other weights.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/engine/engine.h"
#include "octavo/engine/request.h"
#include "octavo/engine/rid_registry.h"
#include "octavo/engine/test_support.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/ops.h"
#include "octavo/model/model.h"
#include "octavo/model/model_for_test.h"

namespace octavo {
namespace {

// One prompt for each length.
Request Sample(int64_t length, int64_t seed) {
  return Sampling(RandomIds(static_cast<uint64_t>(length), length), seed, 40);
}

class KvDtype : public testing::TestWithParam<bool> {
 protected:
  static HarnessOptions Options(DType dtype) {
    HarnessOptions options;
    options.cpu = GetParam();
    options.num_threads = 2;
    options.engine.kv_cache_dtype = dtype;
    return options;
  }
};

TEST_P(KvDtype, Fp8GivesTheSameBitsAloneAndInCompany) {
  for (const int64_t length : {15, 33, 100}) {
    Harness alone(Options(DType::kF8E4m3));
    const Collected expected = alone.Run(Sample(length, 5));
    HarnessOptions options = Options(DType::kF8E4m3);
    options.engine.max_total_tokens = 10 * kPageTokens;  // Two or three samples at once.
    Harness harness(options);
    std::vector<std::shared_ptr<RecordingSink>> sinks;
    sinks.reserve(6);
    for (int64_t seed = 0; seed < 6; ++seed) {
      sinks.push_back(harness.Add(Sample(length, seed)));
    }
    harness.RunAll();
    const Collected actual = sinks[5]->Get();
    EXPECT_EQ(actual.all.cached_tokens, length - 1);
    ExpectSame(actual, expected);
  }
}

TEST_P(KvDtype, Fp8HasBitsOfItsOwnAndHalfTheMemory) {
  Harness fp8(Options(DType::kF8E4m3));
  Harness bf16(Options(DType::kBf16));
  EXPECT_NE(Bits(fp8.Run(Sample(100, 5)).all.new_logprobs),
            Bits(bf16.Run(Sample(100, 5)).all.new_logprobs));
  const Backend& backend = bf16.core().backend();
  const int64_t bf16_bytes = backend.KvPageBytes(KvShapeOf(bf16.spec(), DType::kBf16));
  const int64_t fp8_bytes = backend.KvPageBytes(KvShapeOf(bf16.spec(), DType::kF8E4m3));
  // Codes of one byte, and a scale of one for each token, head and K or V.
  EXPECT_LT(fp8_bytes, bf16_bytes * 6 / 10);
}

INSTANTIATE_TEST_SUITE_P(Engine, KvDtype, testing::Bool(),
                         [](const auto& info) { return info.param ? "Cpu" : "Reference"; });

// --- Swaps --------------------------------------------------------------------------------------

struct SwapCase {
  std::string name;
  const char* architecture = nullptr;
  bool cpu = false;
};

// Scales are made with the tokens: new weights leave none of the old ones, in no kind of swap that
// keeps requests.
class Fp8CacheSwap : public testing::TestWithParam<SwapCase> {
 protected:
  static constexpr int kStepsBefore = 9;  // Of 40 tokens.

  static HarnessOptions Options(uint64_t weights_seed) {
    HarnessOptions options;
    options.spec = RandomSpec(GetParam().architecture);
    options.weights.seed = weights_seed;
    options.cpu = GetParam().cpu;
    options.engine.kv_cache_dtype = DType::kF8E4m3;
    options.engine.max_total_tokens = 2048;
    return options;
  }
  static void Swap(Harness& harness, uint64_t weights_seed, InFlight in_flight) {
    harness.core().Swap({.weights = harness.NewWeights(Options(weights_seed).weights),
                         .version = "v1",
                         .in_flight = in_flight,
                         .done = [](SwapReport, std::unique_ptr<ModelWeights>) {}});
  }
  // Of an engine that never had other weights.
  static Collected Cold(Request request, uint64_t weights_seed) {
    Harness harness(Options(weights_seed));
    return harness.Run(std::move(request));
  }
  // What `whole` got from its output `first` on is what a cold engine gives for all before it.
  static void ExpectRestAsCold(const Collected& whole, Request request, size_t first,
                               uint64_t weights_seed) {
    const auto at = static_cast<std::ptrdiff_t>(first);
    const auto& ids = whole.all.new_ids;
    const auto& logprobs = whole.all.new_logprobs;
    request.input_ids.insert(request.input_ids.end(), ids.begin(), ids.begin() + at);
    request.sampling.max_new_tokens -= static_cast<int64_t>(first);
    const Collected cold = Cold(std::move(request), weights_seed);
    EXPECT_EQ(std::vector<int32_t>(ids.begin() + at, ids.end()), cold.all.new_ids);
    EXPECT_EQ(Bits({logprobs.begin() + at, logprobs.end()}), Bits(cold.all.new_logprobs));
  }
};

TEST_P(Fp8CacheSwap, LeavesNothingInTheCacheOfAnIdleEngine) {
  for (const InFlight in_flight : {InFlight::kRetract, InFlight::kInPlace}) {
    Harness harness(Options(1));
    harness.Run(Sample(70, 4));  // Leaves its pages in the cache.
    Swap(harness, 2, in_flight);
    const Collected actual = harness.Run(Sample(70, 5));
    EXPECT_EQ(actual.all.cached_tokens, 0);
    ExpectSame(actual, Cold(Sample(70, 5), 2));
  }
}

// Two samples of one prompt, which share pages, and one of another.
TEST_P(Fp8CacheSwap, RetractedRequestsGoOnAsInAColdEngine) {
  Harness harness(Options(1));
  const auto first = harness.Add(Sample(70, 4));
  const auto second = harness.Add(Sample(70, 5));
  const auto other = harness.Add(Sample(33, 6));
  harness.Steps(kStepsBefore);
  Swap(harness, 2, InFlight::kRetract);
  harness.RunAll();
  const auto expect_rest_as_cold = [](const Collected& actual, Request request) {
    ASSERT_EQ(actual.all.versions.size(), 2U);
    const int64_t before = actual.all.versions[0].num_tokens;
    EXPECT_GT(before, 0);
    EXPECT_EQ(actual.all.num_retractions, 1);
    ExpectRestAsCold(actual, std::move(request), static_cast<size_t>(before), 2);
  };
  expect_rest_as_cold(first->Get(), Sample(70, 4));
  expect_rest_as_cold(second->Get(), Sample(70, 5));
  expect_rest_as_cold(other->Get(), Sample(33, 6));
}

// A context of both weights is nobody's but its own; what comes after it meets none of it.
TEST_P(Fp8CacheSwap, RequestsKeptInPlaceLeaveNothingToOthers) {
  Harness harness(Options(1));
  const auto kept = harness.Add(Sample(70, 4));
  harness.Steps(kStepsBefore);
  Swap(harness, 2, InFlight::kInPlace);
  const auto beside = harness.Add(Sample(70, 5));
  harness.RunAll();
  EXPECT_EQ(beside->Get().all.cached_tokens, 0);
  ExpectSame(beside->Get(), Cold(Sample(70, 5), 2));
  const Collected after = harness.Run(Sample(70, 6));
  EXPECT_EQ(after.all.cached_tokens, 69);  // Of the one beside, all under the new weights.
  ExpectSame(after, Cold(Sample(70, 6), 2));

  // The kept one: the old weights' bits up to the swap, and after it the same bits in company and
  // alone, which are neither weights' own.
  const Collected mixed = kept->Get();
  EXPECT_EQ(mixed.all.num_retractions, 0);
  Harness alone(Options(1));
  const auto sink = alone.Add(Sample(70, 4));
  alone.Steps(kStepsBefore);
  Swap(alone, 2, InFlight::kInPlace);
  alone.RunAll();
  ExpectSame(mixed, sink->Get());
  const Collected old = Cold(Sample(70, 4), 1);
  ASSERT_EQ(mixed.all.versions.size(), 2U);
  const auto before = static_cast<std::ptrdiff_t>(mixed.all.versions[0].num_tokens);
  const auto bits = Bits(mixed.all.new_logprobs);
  const auto old_bits = Bits(old.all.new_logprobs);
  EXPECT_TRUE(std::equal(bits.begin(), bits.begin() + before, old_bits.begin()));
  EXPECT_NE(bits, old_bits);
}

// With equal weights the mixed context is no other context: codes and scales stay where they are.
TEST_P(Fp8CacheSwap, KeptThroughSwapsToEqualWeightsAsUndisturbed) {
  for (const InFlight in_flight : {InFlight::kRetract, InFlight::kInPlace}) {
    Harness harness(Options(1));
    const auto sink = harness.Add(Sample(70, 4));
    harness.Add(Sample(33, 6));
    harness.Steps(kStepsBefore);
    Swap(harness, 1, in_flight);
    harness.RunAll();
    ExpectSame(sink->Get(), Cold(Sample(70, 4), 1));
  }
}

INSTANTIATE_TEST_SUITE_P(Engine, Fp8CacheSwap,
                         testing::Values(SwapCase{"DenseReference", "Qwen3ForCausalLM", false},
                                         SwapCase{"DenseCpu", "Qwen3ForCausalLM", true},
                                         SwapCase{"MlaReference", "DeepseekV3ForCausalLM", false},
                                         SwapCase{"MlaCpu", "DeepseekV3ForCausalLM", true}),
                         [](const auto& info) { return info.param.name; });

TEST(KvCacheDtype, IsRefusedByTheRecipeThatRoundsNothing) {
  const ModelSpec spec = TinySpec();
  RidRegistry rids;
  std::unique_ptr<Backend> backend = MakeReferenceBackend(Recipe::kFp32, 1);
  std::unique_ptr<ModelWeights> weights = TinyWeights(spec, *backend, {});
  EngineOptions options;
  options.kv_cache_dtype = DType::kF8E4m3;
  const Result<std::unique_ptr<EngineCore>> core =
      EngineCore::Create({.backend = std::move(backend),
                          .spec = &spec,
                          .weights = std::move(weights),
                          .eos_token_ids = {},
                          .weight_version = "0",
                          .options = options,
                          .rids = &rids,
                          .publish = nullptr});
  ASSERT_FALSE(core.has_value());
  EXPECT_EQ(core.error().code(), StatusCode::kUnsupported);
}

}  // namespace
}  // namespace octavo
