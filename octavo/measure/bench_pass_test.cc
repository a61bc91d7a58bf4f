// Method: a model of this file records what it is asked, so that the batches of a bench row can be
// compared with what an engine would run; counts of bytes and operations are worked out by hand on
// a model of two layers. Nothing here looks at a time.

#include "octavo/measure/bench_pass.h"

#include <fmt/core.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>

namespace octavo {
namespace {

using testing::ElementsAre;

ModelSpec TinySpec(bool is_tied) {
  ModelSpec spec;
  spec.architecture = "Qwen3ForCausalLM";
  spec.hidden_size = 4;
  spec.num_layers = 2;
  spec.num_heads = 2;
  spec.num_kv_heads = 1;
  spec.head_dim = 32;
  spec.vocab_size = 10;
  spec.tie_word_embeddings = is_tied;
  spec.weights.push_back({"embed", Role::kEmbedding, -1, {10, 4}});
  for (int layer = 0; layer < 2; ++layer) {
    spec.weights.push_back({"norm", Role::kNorm, layer, {4}});
    spec.weights.push_back({"up", Role::kMlpUp, layer, {6, 4}});
  }
  if (!is_tied) {
    spec.weights.push_back({"head", Role::kLmHead, -1, {10, 4}});
  }
  return spec;
}

// Records batches; computes nothing.
class RecordingModel final : public Model {
 public:
  struct Pass {
    std::vector<int32_t> ids;
    std::vector<int32_t> positions;
    std::vector<std::array<int64_t, 3>> segments;  // first_row, num_rows, first_position
    std::vector<int32_t> first_pages;
    std::vector<int32_t> logit_rows;
  };

  const ModelSpec& spec() const override { return spec_; }
  Backend& backend() override { return *backend_; }
  Status Forward(const ForwardBatch& batch, const ModelWeights&,
                 std::span<const KvLayer> kv) override {
    EXPECT_EQ(kv.size(), 2u);
    Pass& pass = passes.emplace_back();
    pass.ids.assign(batch.token_ids.begin(), batch.token_ids.end());
    pass.positions.assign(batch.positions.begin(), batch.positions.end());
    for (const Segment& segment : batch.segments) {
      pass.segments.push_back({segment.first_row, segment.num_rows, segment.first_position});
      pass.first_pages.push_back(segment.page_table[0]);
    }
    return OkStatus();
  }
  Status Logits(std::span<const int32_t> rows, const ModelWeights&,
                std::span<float> logits) override {
    EXPECT_EQ(logits.size(), rows.size() * 10);
    passes.back().logit_rows.assign(rows.begin(), rows.end());
    return OkStatus();
  }

  std::vector<Pass> passes;

 private:
  ModelSpec spec_ = TinySpec(/*is_tied=*/true);
  std::unique_ptr<Backend> backend_ = MakeReferenceBackend(Recipe::kServing, 1);
};

TEST(BenchPass, PrefillPacksPromptsIntoChunks) {
  RecordingModel model;
  const ModelWeights weights;
  BenchPass pass = BenchPass::Make(&model, &weights, {2, 5, 2, 4}).value();
  ASSERT_TRUE(pass.Prefill().has_value());
  // Ten prompt tokens in chunks of four: 0..3 of the first; 4 of it and 0..2 of the second; 3..4.
  using Rows = std::array<int64_t, 3>;
  ASSERT_EQ(model.passes.size(), 3u);
  EXPECT_THAT(model.passes[0].segments, ElementsAre(Rows{0, 4, 0}));
  EXPECT_THAT(model.passes[1].segments, ElementsAre(Rows{0, 1, 4}, Rows{1, 3, 0}));
  EXPECT_THAT(model.passes[2].segments, ElementsAre(Rows{0, 2, 3}));
  EXPECT_THAT(model.passes[1].positions, ElementsAre(4, 0, 1, 2));
  EXPECT_THAT(model.passes[1].first_pages, ElementsAre(0, 1));
  // Logits of the last prompt token of each sequence, and of no other.
  EXPECT_THAT(model.passes[0].logit_rows, ElementsAre());
  EXPECT_THAT(model.passes[1].logit_rows, ElementsAre(0));
  EXPECT_THAT(model.passes[2].logit_rows, ElementsAre(1));
}

TEST(BenchPass, DecodeStepsFollowThePrompt) {
  RecordingModel model;
  const ModelWeights weights;
  BenchPass pass = BenchPass::Make(&model, &weights, {2, 5, 2, 4}).value();
  ASSERT_TRUE(pass.DecodeStep(1).has_value());
  ASSERT_EQ(model.passes.size(), 1u);
  EXPECT_THAT(model.passes[0].positions, ElementsAre(6, 6));
  EXPECT_THAT(model.passes[0].logit_rows, ElementsAre(0, 1));
  for (const int32_t id : model.passes[0].ids) {
    EXPECT_GE(id, 0);
    EXPECT_LT(id, 10);
  }
}

TEST(LinearOps, CountsLinearLayersAndTheHeadWhereItRuns) {
  // Two layers of 6 x 4, a head of 10 x 4; two operations a weight.
  EXPECT_EQ(LinearOps(TinySpec(true), 1, 1), 2 * (2 * 24 + 40));
  EXPECT_EQ(LinearOps(TinySpec(false), 1, 1), 2 * (2 * 24 + 40));
  EXPECT_EQ(LinearOps(TinySpec(true), 100, 3), 2 * (100 * 2 * 24 + 3 * 40));
  EXPECT_EQ(LinearOps(TinySpec(true), 7, 0), 2 * 7 * 2 * 24);
}

// Every weight packed to 100 bytes, those of kMlpUp with 8 of scales.
ModelWeights HundredBytesEach(const ModelSpec& spec) {
  ModelWeights weights;
  for (const WeightSpec& weight : spec.weights) {
    PackedMatrix& matrix = weights.matrices.emplace_back();
    matrix.codes = Buffer::AllocateHost(100).value();
    if (weight.role == Role::kMlpUp) {
      matrix.scales = Buffer::AllocateHost(8).value();
    }
  }
  return weights;
}

TEST(StepWeightBytes, LeavesOutAnUntiedEmbedding) {
  for (const bool is_tied : {true, false}) {
    const ModelSpec spec = TinySpec(is_tied);
    const ModelWeights weights = HundredBytesEach(spec);
    // Tied: embedding (the head), 2 norms, 2 layers. Untied: the head stands for the embedding.
    EXPECT_EQ(StepWeightBytes(spec, StepWeightsOf(spec, weights), 7), 5 * 100 + 2 * 8);
  }
}

TEST(StepWeightBytes, ExpectsTheExpertsThatABatchChooses) {
  ModelSpec spec = TinySpec(/*is_tied=*/true);
  spec.moe.num_experts = 4;
  spec.moe.top_k = 1;
  for (int expert = 0; expert < 4; ++expert) {
    spec.weights.push_back({.name = fmt::format("experts.{}.up_proj.weight", expert),
                            .role = Role::kExpertUp,
                            .layer = 0,
                            .shape = {6, 4},
                            .expert = expert});
  }
  spec.weights.push_back(
      {.name = "mtp", .role = Role::kMlpUp, .layer = 2, .shape = {6, 4}, .is_mtp = true});
  const ModelWeights weights = HundredBytesEach(spec);
  const StepWeights parts = StepWeightsOf(spec, weights);
  EXPECT_EQ(parts.experts.size(), 4U);
  const double dense = 5 * 100 + 2 * 8;
  EXPECT_DOUBLE_EQ(StepWeightBytes(spec, parts, 1), dense + 100.0);
  EXPECT_DOUBLE_EQ(StepWeightBytes(spec, parts, 2), dense + 400.0 * (1.0 - 0.75 * 0.75));
  // One of four experts a token.
  EXPECT_EQ(LinearOps(spec, 10, 0), 2 * 10 * (2 * 24 + 24));
}

}  // namespace
}  // namespace octavo
