// Method: figures against values worked out by hand; scores of weights that are not live, in every
// format, against those of the engine that has them live, bit for bit.

#include "octavo/sync/probe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/check.h"
#include "octavo/base/status.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/engine/engine.h"
#include "octavo/engine/request.h"
#include "octavo/formats/format.h"
#include "octavo/model/model.h"
#include "octavo/policy/precision_table.h"
#include "octavo/sync/serving.h"
#include "octavo/sync/test_util.h"
#include "octavo/sync/weight_update.h"

namespace octavo {
namespace {

using testing::HasSubstr;
using testing_util::kBase;
using testing_util::kTrained;
using testing_util::Serve;
using testing_util::WaitingSink;

TEST(CompareProbe, GivesMeanLargestAndK3) {
  const std::vector<ProbeSequence> sequences = {{.input_ids = {7, 8, 9}, .logprobs = {-1.0, -2.0}},
                                                {.input_ids = {4, 5, 6}, .logprobs = {-0.5}}};
  // d = trainer - engine: 0.25, 0, -0.5.
  const std::vector<std::vector<float>> scores = {{-1.25F, -2.0F}, {0.0F}};
  const ProbeFigures figures = CompareProbe(sequences, scores);
  EXPECT_EQ(figures.num_sequences, 2);
  EXPECT_EQ(figures.num_tokens, 3);
  EXPECT_DOUBLE_EQ(figures.mean_dlogp, 0.25);
  EXPECT_DOUBLE_EQ(figures.max_dlogp, 0.5);
  EXPECT_EQ(figures.sequence, 1);
  EXPECT_EQ(figures.position, 2);
  EXPECT_EQ(figures.token_id, 6);
  EXPECT_DOUBLE_EQ(figures.expected, -0.5);
  EXPECT_DOUBLE_EQ(figures.got, 0.0);
  // Tolerance: rounding of three terms in FP64.
  EXPECT_NEAR(figures.k3, (std::exp(0.25) - 1.25 + std::exp(-0.5) - 0.5) / 3, 1e-15);
}

TEST(CheckLimits, HoldsTheLargestAndTheMeanApart) {
  const ProbeFigures figures{
      .num_sequences = 1, .num_tokens = 4, .mean_dlogp = 0.25, .max_dlogp = 0.5};
  EXPECT_TRUE(CheckLimits(figures, {}).ok());
  EXPECT_TRUE(CheckLimits(figures, {.max_dlogp = 0.5, .max_mean_dlogp = 0.25}).ok());
  EXPECT_THAT(CheckLimits(figures, {.max_dlogp = 0.49}).message(), HasSubstr("max_dlogp = 0.49"));
  EXPECT_THAT(CheckLimits(figures, {.max_mean_dlogp = 0.24}).message(),
              HasSubstr("max_mean_dlogp = 0.24"));
}

TEST(CheckProbe, NamesWhatCannotBeScored) {
  const auto serving = Serve(kTrained);
  const auto refusal = [&](ProbeSequence sequence) {
    const std::vector<ProbeSequence> all = {{.input_ids = {3, 4}, .logprobs = {-1.0}},
                                            std::move(sequence)};
    return CheckProbe(*serving, all).message();
  };
  EXPECT_EQ(refusal({.input_ids = {3, 4}, .logprobs = {0.0}}), "");
  EXPECT_THAT(refusal({.input_ids = {3, 4}, .logprobs = {}}), HasSubstr("sequences[1]"));
  EXPECT_THAT(refusal({.input_ids = {3}, .logprobs = {-1.0}}), HasSubstr("first has none"));
  EXPECT_THAT(refusal({.input_ids = {3, 1 << 20}, .logprobs = {-1.0}}), HasSubstr("input_ids[1]"));
  EXPECT_THAT(refusal({.input_ids = {3, 4}, .logprobs = {std::nan("")}}), HasSubstr("logprobs[0]"));
  EXPECT_THAT(refusal({.input_ids = std::vector<int32_t>(5000, 3), .logprobs = {-1.0}}),
              HasSubstr("context length"));
  EXPECT_THAT(CheckProbe(*serving, {}).message(), HasSubstr("none"));
}

// What the live weights say of the last ids.
std::vector<float> LiveScores(Engine& engine, const ProbeSequence& sequence) {
  Request request;
  request.rid = "live";
  request.input_ids = sequence.input_ids;
  request.sampling.max_new_tokens = 0;
  request.return_logprob = true;
  request.logprob_start_len = sequence.first_scored() - 1;
  const auto sink = std::make_shared<WaitingSink>();
  request.sink = sink;
  CHECK(engine.Submit(std::move(request)).ok());
  std::vector<float> scores;
  for (const auto& [logprob, id] : sink->Wait().input_logprobs) {
    if (logprob.has_value()) {
      scores.push_back(*logprob);
    }
  }
  return scores;
}

class ProbeOfFormat : public testing::TestWithParam<WeightFormat> {};

TEST_P(ProbeOfFormat, GivesTheBitsOfTheEngineAfterTheCommit) {
  ServingOptions options;
  options.model_dir = kBase;
  options.policy = PolicyOptions{.format = GetParam()};
  options.num_threads = 1;
  options.engine.max_total_tokens = 8192;
  options.engine.chunk_tokens = 48;  // The long sequence comes in three chunks.
  const auto started = StartServing(options);
  ASSERT_TRUE(started.has_value()) << started.error().message();
  Serving& serving = **started;
  std::vector<ProbeSequence> sequences = {{.input_ids = {9, 8, 7, 6}, .logprobs = {-1.0, -1.0}}};
  sequences.emplace_back();
  for (int32_t i = 0; i < 120; ++i) {
    sequences.back().input_ids.push_back(3 + i * 5 % 600);
  }
  sequences.back().logprobs.assign(119, -2.0);

  const auto checkpoint = Checkpoint::Open(kTrained);
  const auto id = serving.updater->Begin("1");
  ASSERT_TRUE(id.has_value());
  for (const StoredTensor& tensor : checkpoint->tensors()) {
    ASSERT_TRUE(serving.updater->Put(*id, tensor.name, tensor.view).ok());
  }
  ASSERT_TRUE(serving.updater->Seal(*id).ok());
  std::vector<std::vector<float>> scores;
  const auto use = [&](std::unique_ptr<ModelWeights>* weights) -> Status {
    ASSIGN_OR_RETURN(scores, ScoreProbe(serving, sequences, weights));
    return OkStatus();
  };
  ASSERT_TRUE(serving.updater->TrySealed(*id, use).ok());
  EXPECT_NE(scores[1], LiveScores(*serving.engine, sequences[1]));  // Others are live.
  ASSERT_TRUE(serving.updater->Commit(*id, InFlight::kRetract).has_value());
  for (size_t i = 0; i < sequences.size(); ++i) {
    EXPECT_EQ(scores[i], LiveScores(*serving.engine, sequences[i]));
  }
}

INSTANTIATE_TEST_SUITE_P(All, ProbeOfFormat,
                         testing::Values(WeightFormat::kBf16, WeightFormat::kFp8,
                                         WeightFormat::kMxfp8, WeightFormat::kNvfp4));

TEST(TrySealed, AFailureIsWhatTheCommitIsRefusedWithUntilATrialSucceeds) {
  const auto serving = Serve(kBase);
  const auto checkpoint = Checkpoint::Open(kTrained);
  WeightUpdater& updater = *serving->updater;
  const auto id = updater.Begin("1");
  ASSERT_TRUE(id.has_value());
  const auto pass = [](std::unique_ptr<ModelWeights>*) { return OkStatus(); };
  const auto fail = [](std::unique_ptr<ModelWeights>*) { return InvalidArgument("wrong by 3"); };
  EXPECT_THAT(updater.TrySealed(*id, pass).message(), HasSubstr("seal it"));
  for (const StoredTensor& tensor : checkpoint->tensors()) {
    ASSERT_TRUE(updater.Put(*id, tensor.name, tensor.view).ok());
  }
  ASSERT_TRUE(updater.Seal(*id).ok());
  EXPECT_FALSE(updater.TrySealed(*id, fail).ok());
  EXPECT_THAT(updater.Commit(*id, InFlight::kRetract).error().message(), HasSubstr("wrong by 3"));
  EXPECT_EQ(serving->engine->Stats().weight_version, "0");
  EXPECT_TRUE(updater.TrySealed(*id, pass).ok());
  EXPECT_TRUE(updater.Commit(*id, InFlight::kRetract).has_value());
}

}  // namespace
}  // namespace octavo
