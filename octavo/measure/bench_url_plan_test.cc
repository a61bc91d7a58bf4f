// Method: draws against values that numpy 2.4 itself gave for the same seeds and calls; bodies
// against those that bench_serving.py sends.

#include "octavo/measure/bench_url_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>
#include <vector>

#include "octavo/measure/numpy_random.h"

namespace octavo {
namespace {

using testing::DoubleNear;
using testing::ElementsAre;
using Json = nlohmann::json;

TEST(NumpyRandom, DrawsWhatNumpyDraws) {
  // np.random.seed(1); np.random.randint(0, 10, size=10)
  NumpyRandom one(1);
  std::vector<int64_t> draws;
  for (int i = 0; i < 10; ++i) {
    draws.push_back(one.Integer(0, 10));
  }
  EXPECT_THAT(draws, ElementsAre(5, 8, 9, 5, 0, 0, 1, 7, 6, 9));
  // np.random.seed(0); np.random.exponential(1.0, 2)
  NumpyRandom zero(0);
  EXPECT_THAT(zero.Exponential(1.0), DoubleNear(0.7958745, 1e-7));
  EXPECT_THAT(zero.Exponential(2.0), DoubleNear(2 * 1.2559308, 1e-6));
}

TEST(NumpyRandom, ARangeOfOneTakesNothingFromTheGenerator) {
  NumpyRandom random(1);
  EXPECT_EQ(random.Integer(7, 8), 7);
  EXPECT_EQ(random.Integer(0, 10), 5);  // The first draw of the test above.
}

TEST(PlanRequests, DrawsInTheOrderOfTheOriginal) {
  // np.random.seed(1); randint(256, 1025, 3); randint(32, 129, 3); randint(0, 690, 3);
  // exponential(1 / 4) three times.
  const std::vector<PlannedRequest> plan = PlanRequests({.num_prompts = 3,
                                                         .input_len = 1024,
                                                         .output_len = 128,
                                                         .range_ratio = 0.25,
                                                         .request_rate = 4.0,
                                                         .seed = 1,
                                                         .vocab_size = 690});
  ASSERT_EQ(plan.size(), 3u);
  EXPECT_THAT((std::vector{plan[0].input_len, plan[1].input_len, plan[2].input_len}),
              ElementsAre(293, 491, 328));
  EXPECT_THAT((std::vector{plan[0].output_len, plan[1].output_len, plan[2].output_len}),
              ElementsAre(41, 107, 37));
  EXPECT_THAT((std::vector{plan[0].offset, plan[1].offset, plan[2].offset}),
              ElementsAre(144, 129, 583));
  EXPECT_EQ(plan[0].send_after_s, 0.0);
  EXPECT_THAT(plan[1].send_after_s, DoubleNear(0.1059941204517687, 1e-9));
  EXPECT_THAT(plan[2].send_after_s, DoubleNear(0.1059941204517687 + 0.12636313542768712, 1e-9));
  EXPECT_THAT(plan[2].gap_s, DoubleNear(0.19348994371518932, 1e-9));
}

TEST(PlanRequests, KeepsLengthsInTheirRange) {
  PlanOptions options = {.num_prompts = 500, .input_len = 20, .output_len = 7, .vocab_size = 10};
  for (const double ratio : {0.0, 0.5, 1.0}) {
    options.range_ratio = ratio;
    for (const PlannedRequest& request : PlanRequests(options)) {
      EXPECT_GE(request.input_len, ratio == 0.0 ? 1 : ratio == 0.5 ? 10 : 20);
      EXPECT_LE(request.input_len, 20);
      EXPECT_GE(request.output_len, ratio == 0.0 ? 1 : ratio == 0.5 ? 3 : 7);
      EXPECT_LE(request.output_len, 7);
      EXPECT_LT(request.offset, 10);
      EXPECT_EQ(request.send_after_s, 0.0);  // All at once.
    }
  }
  options.num_special_tokens = 100;  // More than a prompt is long: one id is left.
  EXPECT_EQ(PlanRequests(options)[0].input_len, 1);
}

TEST(PromptIds, CountUpModuloTheVocabulary) {
  const PlannedRequest request = {.input_len = 600, .offset = 45};
  const std::vector<int32_t> ids = PromptIds(request, 3, 50);
  ASSERT_EQ(ids.size(), 600u);
  EXPECT_EQ(ids[0], 48);
  for (size_t j = 0; j < ids.size(); ++j) {
    EXPECT_EQ(ids[j], static_cast<int32_t>((48 + j) % 50));
  }
}

TEST(BenchBody, IsThatOfTheOriginal) {
  const BenchPrompt ids = {.ids = {5, 6}};
  EXPECT_EQ(BenchBody(BenchBackend::kNative, ids, 9, "m"),
            R"({"input_ids":[5,6],"sampling_params":{"temperature":0.0,"max_new_tokens":9,)"
            R"("ignore_eos":true},"stream":true,"lora_path":null,"return_logprob":false,)"
            R"("return_routed_experts":false,"logprob_start_len":-1})");
  EXPECT_EQ(BenchBody(BenchBackend::kCompletions, ids, 9, "m"),
            R"({"model":"m","prompt":[5,6],"best_of":1,"max_tokens":9,"stream":true,)"
            R"("temperature":0.0,"ignore_eos":true})");
  const Tokenizer tokenizer = Tokenizer::LoadFolder("models/abacus-dense").value();
  const BenchPrompt text = {.ids = tokenizer.Encode("Tom's \"3\" pens"), .tokenizer = &tokenizer};
  EXPECT_EQ(Json::parse(BenchBody(BenchBackend::kNative, text, 9, "m"))["text"],
            "Tom's \"3\" pens");
  EXPECT_EQ(BenchBody(BenchBackend::kChat, text, 9, "m"),
            R"({"model":"m","messages":[{"role":"user","content":"Tom's \"3\" pens"}],)"
            R"("max_completion_tokens":9,"stream":true,"temperature":0.0,"ignore_eos":true})");
}

}  // namespace
}  // namespace octavo
