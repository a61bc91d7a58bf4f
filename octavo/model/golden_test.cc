// Method: the logits of the trained checkpoints models/abacus-{dense,moe,mla} against those that HF
// transformers computed for them in FP32 (tests/data/model/{dense,moe,mla}.safetensors: prompts,
// logits after every or some prompt positions, greedy continuations). Bounds and their definitions
// stand at each test; a last test breaks one weight block and sees the bound fail.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/kernels/backend.h"
#include "octavo/model/golden_for_test.h"
#include "octavo/model/model.h"
#include "octavo/model/model_for_test.h"
#include "octavo/model/spec/model_spec.h"

namespace octavo {
namespace {

// "dense", "moe" or "mla".
class Golden : public testing::TestWithParam<const char*> {
 protected:
  static ModelRunner Runner(std::unique_ptr<Backend> backend, const WeightOptions& options = {}) {
    return {std::move(backend), "models/abacus-" + std::string(GetParam()), options};
  }
  static std::vector<GoldenPrompt> Prompts() {
    return LoadGolden("tests/data/model/" + std::string(GetParam()) + ".safetensors");
  }
  // Of the difference from HF: seen in the test's properties.
  static void Record(const Mismatch& mismatch) {
    RecordProperty("max_abs_logit", std::to_string(mismatch.max_abs_logit));
    RecordProperty("kl_mean_e9", std::to_string(mismatch.kl_mean * 1e9));
    RecordProperty("dlogprob_mean_e6", std::to_string(mismatch.dlogprob_mean * 1e6));
  }
};

std::string CheckpointName(const testing::TestParamInfo<const char*>& info) { return info.param; }

// BF16 serving against FP32: mean KL <= 1e-5 and mean |dlogprob| <= 0.001 (the project's bar).
bool WithinBf16Bound(const Mismatch& mismatch) {
  return mismatch.kl_mean <= 1e-5 && mismatch.dlogprob_mean <= 0.001;
}

TEST_P(Golden, Fp32LogitsEqualTransformersWithin2e4) {
  ModelRunner runner = Runner(MakeReferenceBackend(Recipe::kFp32, 2));
  // 2e-4: both sides compute in FP32 and differ by the order of their sums alone.
  const Mismatch mismatch = Compare(runner, Prompts());
  Record(mismatch);
  EXPECT_LE(mismatch.max_abs_logit, 2e-4);
}

TEST_P(Golden, Fp32GreedyContinuationsEqualTransformers) {
  ModelRunner runner = Runner(MakeReferenceBackend(Recipe::kFp32, 2));
  for (const GoldenPrompt& prompt : Prompts()) {
    runner.ClearCache();
    std::vector<float> logits = runner.Run(prompt.ids);
    std::vector<int32_t> greedy;
    while (greedy.size() < prompt.greedy.size()) {
      const auto last = std::span(logits).last(static_cast<size_t>(runner.spec().vocab_size));
      const auto best = std::ranges::max_element(last) - last.begin();
      greedy.push_back(static_cast<int32_t>(best));
      logits = runner.Run(std::span(greedy).last(1));
    }
    ASSERT_FALSE(prompt.greedy.empty());
    EXPECT_EQ(greedy, prompt.greedy);
  }
}

TEST_P(Golden, Bf16ServingStaysWithinItsBound) {
  ModelRunner runner = Runner(MakeReferenceBackend(Recipe::kServing, 2));
  const Mismatch mismatch = Compare(runner, Prompts());
  Record(mismatch);
  EXPECT_LE(mismatch.kl_mean, 1e-5);
  EXPECT_LE(mismatch.dlogprob_mean, 0.001);
  // And it did round: FP32 would be a hundred times closer.
  EXPECT_GT(mismatch.max_abs_logit, 2e-3);
}

TEST_P(Golden, Fp8ServingOfAllLinearLayersStaysWithinItsBound) {
  ModelRunner runner = Runner(MakeReferenceBackend(Recipe::kServing, 2), {.format = kTestFp8});
  const Mismatch mismatch = Compare(runner, Prompts());
  Record(mismatch);
  EXPECT_LE(mismatch.kl_mean, 3e-4);
  EXPECT_FALSE(WithinBf16Bound(mismatch));  // It is FP8 that ran.
}

// The vector path gives the bits of the oracle, so one prompt is enough here; the ops themselves
// are compared in kernels.
TEST_P(Golden, CpuBackendGivesTheBitsOfTheServingRecipe) {
  const std::vector<int32_t> ids = Prompts()[0].ids;
  for (const TestFormat format : {kTestBf16, kTestFp8}) {
    Result<std::unique_ptr<Backend>> cpu = MakeCpuBackend(BestIsa(), 2);
    ASSERT_TRUE(cpu.has_value()) << cpu.error().message();
    ModelRunner fast = Runner(std::move(*cpu), {.format = format});
    ModelRunner oracle = Runner(MakeReferenceBackend(Recipe::kServing, 2), {.format = format});
    const std::vector<float> actual = fast.Run(ids);
    const std::vector<float> expected = oracle.Run(ids);
    ASSERT_EQ(std::memcmp(actual.data(), expected.data(), expected.size() * sizeof(float)), 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Abacus, Golden, testing::Values("dense", "moe", "mla"), CheckpointName);

// Seen to fail: one block of a middle layer is enough, on both counts. (The bound is a mean over
// 149 positions; of ten blocks tried, one hid below rounding: layer 3's first of up_proj, KL 4e-6.)
TEST(GoldenBound, BreaksWithOneBlockTimesOneAndAHalf) {
  ModelRunner runner(MakeReferenceBackend(Recipe::kServing, 2), "models/abacus-dense",
                     {.damaged_weight = "model.layers.3.self_attn.o_proj.weight"});
  const Mismatch mismatch = Compare(runner, LoadGolden("tests/data/model/dense.safetensors"));
  EXPECT_GT(mismatch.kl_mean, 1e-5);
  EXPECT_GT(mismatch.dlogprob_mean, 0.001);
}

// A spec that can be converted is not yet one that can be served: the message says what of it.
TEST(MakeModel, RefusesByNameWhatIsNotServed) {
  struct Case {
    const char* says;
    std::function<void(ModelSpec&)> change;
  };
  const Case cases[] = {
      {"serving GptOssForCausalLM", [](ModelSpec& s) { s.architecture = "GptOssForCausalLM"; }},
      {"serving : expected", [](ModelSpec& s) { s.architecture = ""; }},
  };
  std::unique_ptr<Backend> backend = MakeReferenceBackend(Recipe::kServing, 1);
  for (const Case& c : cases) {
    ModelSpec spec;
    spec.architecture = "Qwen3ForCausalLM";
    EXPECT_TRUE(CheckServable(spec).ok());
    c.change(spec);
    const Result<std::unique_ptr<Model>> model =
        MakeModel(spec, backend.get(), {.max_tokens = 1, .max_logit_rows = 1, .max_context = 1});
    ASSERT_FALSE(model.has_value()) << c.says;
    EXPECT_EQ(model.error().code(), StatusCode::kUnsupported);
    EXPECT_NE(model.error().message().find(c.says), std::string::npos) << model.error().message();
  }
}

}  // namespace
}  // namespace octavo
