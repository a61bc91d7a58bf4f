// Method: the KV cache in FP8. Bits are its own, and they obey promise 5 as those of BF16 do:
// alone, in a group, from the cache, retracted.

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "octavo/base/tensor.h"
#include "octavo/engine/engine.h"
#include "octavo/engine/request.h"
#include "octavo/engine/test_support.h"
#include "octavo/kernels/ops.h"
#include "octavo/model/model.h"

namespace octavo {
namespace {

class KvDtype : public testing::TestWithParam<bool> {
 protected:
  static HarnessOptions Options(DType dtype) {
    HarnessOptions options;
    options.cpu = GetParam();
    options.num_threads = 2;
    options.engine.kv_cache_dtype = dtype;
    return options;
  }
  static Request Sample(int64_t length, int64_t seed) {
    Request request;
    request.input_ids = RandomIds(static_cast<uint64_t>(length), length);
    request.sampling.max_new_tokens = 40;
    request.sampling.ignore_eos = true;
    request.sampling.seed = seed;
    request.return_logprob = true;
    return request;
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
    for (int64_t seed = 0; seed < 6; ++seed) {
      sinks.push_back(harness.Add(Sample(length, seed)));
    }
    harness.RunAll();
    const Collected actual = sinks[5]->Get();
    EXPECT_EQ(actual.all.cached_tokens, length - 1);
    EXPECT_EQ(actual.all.new_ids, expected.all.new_ids);
    EXPECT_EQ(Bits(actual.all.new_logprobs), Bits(expected.all.new_logprobs));
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

// Scales are made with the tokens: new weights leave none of the old ones, in no kind of swap that
// keeps requests.
TEST_P(KvDtype, Fp8HasNoScalesOfOldWeights) {
  constexpr TinyWeightOptions kNewWeights = {.seed = 2};
  HarnessOptions fresh_options = Options(DType::kF8E4m3);
  fresh_options.weights = kNewWeights;
  Harness fresh(fresh_options);
  const Collected expected = fresh.Run(Sample(70, 5));
  Harness harness(Options(DType::kF8E4m3));
  harness.Run(Sample(70, 4));  // Leaves its pages in the cache.
  harness.core().Swap({.weights = harness.NewWeights(kNewWeights),
                       .version = "v1",
                       .in_flight = InFlight::kRetract,
                       .done = [](SwapReport, std::unique_ptr<ModelWeights>) {}});
  const Collected actual = harness.Run(Sample(70, 5));
  EXPECT_EQ(actual.all.cached_tokens, 0);
  EXPECT_EQ(actual.all.new_ids, expected.all.new_ids);
  EXPECT_EQ(Bits(actual.all.new_logprobs), Bits(expected.all.new_logprobs));
}

INSTANTIATE_TEST_SUITE_P(Engine, KvDtype, testing::Bool(),
                         [](const auto& info) { return info.param ? "Cpu" : "Reference"; });

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
