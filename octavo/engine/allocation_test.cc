// Method: allocations are counted (allocation_counter_for_test.h) while the core steps. Steps in
// which every sequence decodes must not allocate, with and without logprobs, penalties and filters,
// and across page borders; a step that delivers an output must, so that the counter is known to
// count. Every kind of block in every format, and with a KV cache in FP8, in brief.

#include <gtest/gtest.h>

#include <cstdint>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/allocation_counter_for_test.h"
#include "octavo/base/buffer.h"
#include "octavo/base/tensor.h"
#include "octavo/engine/engine.h"
#include "octavo/engine/engine_core.h"
#include "octavo/engine/request.h"
#include "octavo/engine/test_support.h"
#include "octavo/formats/format.h"
#include "octavo/kernels/matrix.h"
#include "octavo/kernels/ops.h"
#include "octavo/model/model_for_test.h"

namespace octavo {
namespace {

// Allocations of `count` steps.
int64_t CountSteps(EngineCore& core, int count) {
  int64_t counted = 0;
  for (int i = 0; i < count; ++i) {
    bool ran = false;
    counted += CountAllocations([&] {
      core.AtBoundary();
      ran = core.Step();
    });
    EXPECT_TRUE(ran);
  }
  return counted;
}

Request Decoding(uint64_t seed) {
  Request request;
  request.input_ids = RandomIds(seed, 10 + static_cast<int64_t>(seed));
  request.sampling.max_new_tokens = 200;
  request.sampling.ignore_eos = true;
  request.return_logprob = true;
  if (seed % 2 == 1) {
    request.sampling.top_p = 0.9F;
    request.sampling.top_k = 20;
    request.sampling.frequency_penalty = 0.5F;
    request.sampling.logit_bias = {{3, 1.0F}};
    request.sampling.temperature = 0.8F;
  }
  return request;
}

class DecodeSteps : public testing::TestWithParam<bool> {};

TEST_P(DecodeSteps, AllocateNothing) {
  HarnessOptions options;
  options.cpu = GetParam();
  options.num_threads = 2;
  Harness harness(options);
  for (uint64_t seed = 0; seed < 8; ++seed) {
    harness.Add(Decoding(seed));
  }
  harness.Steps(10);  // All prompts are in, and every buffer has been used.
  EXPECT_EQ(CountSteps(harness.core(), 150), 0);  // Four or five page borders each.
}

// A pool for half of what the sequences come to: each step border may retract and resume.
TEST_P(DecodeSteps, AllocateNothingWhenTheyRetractAndResume) {
  HarnessOptions options;
  options.cpu = GetParam();
  options.num_threads = 2;
  options.engine.max_total_tokens = 24 * kPageTokens;
  Harness harness(options);
  for (uint64_t seed = 0; seed < 8; ++seed) {
    harness.Add(Decoding(seed));
  }
  harness.Steps(10);
  EXPECT_EQ(CountSteps(harness.core(), 180), 0);
  EXPECT_GT(harness.core().scheduler().num_retractions(), 3);
}

// Samples of one prompt that all come back at once: cached pages, a copied tail, waiting.
TEST_P(DecodeSteps, AllocateNothingWhenAGroupResumes) {
  HarnessOptions options;
  options.cpu = GetParam();
  options.num_threads = 2;
  options.spec = TinyMoeSpec();
  options.engine.return_routed_experts = true;
  Harness harness(options);
  for (uint64_t seed = 0; seed < 8; ++seed) {
    Request request = Decoding(seed);
    request.input_ids = RandomIds(1, 100);
    request.return_routed_experts = true;
    harness.Add(std::move(request));
  }
  harness.Steps(10);
  const int64_t computed = harness.core().totals().computed_tokens;
  harness.core().Pause(PauseMode::kRetract);
  harness.core().Continue();
  EXPECT_EQ(CountSteps(harness.core(), 20), 0);
  EXPECT_LT(harness.core().totals().computed_tokens - computed, 8 * 60);  // Not 8 prompts anew.
  // Once more with everything to compute again: one prefill, and seven that wait for it.
  harness.core().Swap({.weights = harness.NewWeights({}),
                       .version = "v1",
                       .in_flight = InFlight::kRetract,
                       .done = nullptr});
  harness.Steps(1);  // Reports the swap.
  EXPECT_EQ(CountSteps(harness.core(), 20), 0);
}

// Every kind of draw and of logprob without lists.
TEST_P(DecodeSteps, AllocateNothingHoweverTheyDraw) {
  HarnessOptions options;
  options.cpu = GetParam();
  Harness harness(options);
  for (uint64_t seed = 0; seed < 24; ++seed) {
    Request request = Decoding(2 * seed);
    request.return_logprob = seed % 2 == 0;
    request.sampling.temperature = seed % 3 == 0 ? 0.0F : 0.7F;
    request.sampling.top_p = seed % 4 == 1 ? 0.6F : 1.0F;
    request.sampling.min_p = seed % 5 == 2 ? 0.1F : 0.0F;
    request.sampling.top_k = seed % 6 == 3 ? 40 : -1;
    request.sampling.min_new_tokens = seed % 7 == 4 ? 100 : 0;
    harness.Add(std::move(request));
  }
  harness.Steps(10);
  EXPECT_EQ(CountSteps(harness.core(), 40), 0);
}

TEST_P(DecodeSteps, TheCounterSeesAnOutputBeingDelivered) {
  HarnessOptions options;
  options.cpu = GetParam();
  Harness harness(options);
  Request streaming = Decoding(0);
  streaming.stream = true;
  harness.Add(std::move(streaming));
  harness.Steps(2);
  EXPECT_GT(CountSteps(harness.core(), 1), 0);
}

TEST(DecodeStepsCounter, SeesABufferBeingMade) {
  const auto count = [](int64_t num_bytes) {
    return CountAllocations([&] { const Buffer some = Buffer::AllocateHost(num_bytes).value(); });
  };
  EXPECT_GT(count(64), 0);
  EXPECT_EQ(count(int64_t{4} << 20) > 0, kCountsMappings);
}

INSTANTIATE_TEST_SUITE_P(Engine, DecodeSteps, testing::Bool(),
                         [](const auto& info) { return info.param ? "Cpu" : "Reference"; });

// --- Every kind of block in every format --------------------------------------------------------

class DecodeStepsOf : public testing::TestWithParam<const char*> {};

// Across a page border, and through a retraction of all.
TEST_P(DecodeStepsOf, EveryFormatAllocateNothing) {
  std::vector<NamedTestFormat> formats(std::begin(kTestQuantizedFormats),
                                       std::end(kTestQuantizedFormats));
  formats.push_back({"Bf16", kTestBf16});
  formats.push_back({"Fp8", kTestFp8});
  formats.push_back({"Nvfp4Batch", {WeightFormat::kNvfp4, InputForm::kNvfp4Batch}});
  formats.push_back({"Fp8Cache", {.kv_dtype = DType::kF8E4m3}});
  formats.push_back({"Mxfp8Fp8Cache", {WeightFormat::kMxfp8, InputForm::kMxfp8, DType::kF8E4m3}});
  for (const auto& [name, format] : formats) {
    HarnessOptions options;
    options.cpu = true;
    options.spec = RandomSpec(GetParam());
    options.weights.format = format;
    options.engine.kv_cache_dtype = format.kv_dtype;
    options.engine.max_total_tokens = 1024;
    Harness harness(options);
    for (uint64_t seed = 0; seed < 3; ++seed) {
      harness.Add(Decoding(seed));
    }
    harness.Steps(5);
    EXPECT_EQ(CountSteps(harness.core(), 20), 0) << name;  // Prompts of 10 to 12 tokens.
    harness.core().Pause(PauseMode::kRetract);
    harness.core().Continue();
    EXPECT_EQ(CountSteps(harness.core(), 5), 0) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Engine, DecodeStepsOf,
                         testing::Values("Qwen3ForCausalLM", "Qwen3MoeForCausalLM",
                                         "DeepseekV3ForCausalLM"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace octavo
