// Method: the trained model in models/ answers real problems through the engine of this process.
// Accuracy is known from HF transformers (0.979 over 512 problems), so that a broken prompt,
// tokenizer, stop or forward pass shows; texts must not depend on how many requests run together.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "octavo/measure/eval.h"
#include "octavo/sync/serving.h"

namespace octavo {
namespace {

class EngineEval : public testing::Test {
 protected:
  void SetUp() override {
    ServingOptions options;
    options.model_dir = "models/abacus-dense";
    options.engine.max_total_tokens = 64 * 1024;
    auto serving = StartServing(options);
    ASSERT_TRUE(serving.has_value()) << serving.error().message();
    serving_ = std::move(*serving);
    auto tokenizer = Tokenizer::Load("models/abacus-dense/tokenizer.json");
    ASSERT_TRUE(tokenizer.has_value()) << tokenizer.error().message();
    tokenizer_ = std::make_unique<Tokenizer>(std::move(*tokenizer));
    generator_ = MakeEngineGenerator(serving_->engine.get(), tokenizer_.get());
  }

  std::unique_ptr<Serving> serving_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<TextGenerator> generator_;
};

TEST_F(EngineEval, TheTrainedModelSolvesItsProblems) {
  const auto problems = ReadProblems("data/abacus-test.jsonl").value();
  EvalOptions options;
  options.num_shots = 0;
  options.num_questions = 64;
  const auto report = RunEval(problems, *generator_, options);
  ASSERT_TRUE(report.has_value()) << report.error().message();
  // 0.979 - 4 standard errors of 64 questions (0.018).
  EXPECT_GE(report->accuracy, 0.90);
  EXPECT_EQ(report->invalid, 0.0);
  for (const EvalAnswer& answer : report->answers) {
    EXPECT_THAT(answer.text, testing::Not(testing::HasSubstr("Question")));
    EXPECT_GT(answer.completion_tokens, 0);
  }
}

TEST_F(EngineEval, TextsDoNotDependOnTheCompany) {
  const auto problems = ReadProblems("data/abacus-test.jsonl").value();
  EvalOptions options;
  options.num_shots = 2;
  options.num_questions = 12;
  options.parallel = 12;
  const EvalReport together = RunEval(problems, *generator_, options).value();
  options.parallel = 1;
  const EvalReport alone = RunEval(problems, *generator_, options).value();
  EXPECT_EQ(together.replies_digest, alone.replies_digest);
  for (size_t i = 0; i < alone.answers.size(); ++i) {
    EXPECT_EQ(together.answers[i].text, alone.answers[i].text) << "question " << i;
  }
}

TEST_F(EngineEval, ARefusedRequestNamesItsQuestion) {
  const auto problems = ReadProblems("data/abacus-test.jsonl").value();
  EvalOptions options;
  options.num_shots = 100;  // Longer than the context.
  options.num_questions = 1;
  const auto report = RunEval(problems, *generator_, options);
  ASSERT_FALSE(report.has_value());
  EXPECT_EQ(report.error().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(report.error().message(), testing::HasSubstr("question 0: "));
}

}  // namespace
}  // namespace octavo
