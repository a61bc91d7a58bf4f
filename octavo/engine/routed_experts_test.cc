// Method: the scheduler without a model: every planned token is recorded with experts that follow
// from its id and position, so that what a request gets back can be told from its tokens, wherever
// its pages came from - computed, cached, copied, computed again.

#include "octavo/engine/routed_experts.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "octavo/engine/scheduler.h"
#include "octavo/engine/scheduler_for_test.h"
#include "octavo/engine/sequence.h"
#include "octavo/kernels/ops.h"
#include "octavo/model/spec/model_spec.h"

namespace octavo {
namespace {

constexpr int64_t kLayers = 3;
constexpr int64_t kTopK = 2;

int32_t ExpertOf(int32_t token, int64_t position, int64_t i) {
  return static_cast<int32_t>((token * 31 + position * 7 + i) % 256);
}

class RoutedExpertsTest : public SchedulerTest {
 protected:
  void MakePool(int64_t num_pages, const SchedulerOptions& options) {
    Make(num_pages, options);
    ModelSpec spec;
    spec.num_layers = kLayers;
    spec.moe.top_k = kTopK;
    ASSERT_TRUE(pool_->AllocateExperts(spec).ok());
  }

  Sequence* AddAsking(const std::vector<int32_t>& prompt, int64_t max_new_tokens, int64_t start) {
    Sequence* sequence = Add(prompt, max_new_tokens);
    sequence->request.return_routed_experts = true;
    sequence->request.routed_experts_start_len = start;
    return sequence;
  }

  // Like Step, with a model that routes.
  void StepRouted() {
    const StepPlan& plan = scheduler_->Plan(Admission::kAll, {});
    std::vector<int32_t> experts;
    for (size_t row = 0; row < plan.token_ids.size(); ++row) {
      for (int64_t i = 0; i < kLayers * kTopK; ++i) {
        experts.push_back(ExpertOf(plan.token_ids[row], plan.positions[row], i));
      }
    }
    pool_->experts().Record(plan.segments, experts);
    scheduler_->CommitPlan();
    for (Sequence* sequence : plan.sequences) {
      if (sequence->num_pending() == 0) {
        sequence->tokens.push_back(static_cast<int32_t>(sequence->num_tokens()));
      }
    }
    scheduler_->CheckInvariants();
  }

  // Rows of positions [start, end) as the sequence's tokens make them.
  static std::vector<int32_t> Expected(const Sequence& sequence, int64_t start, int64_t end) {
    std::vector<int32_t> rows;
    for (int64_t position = start; position < end; ++position) {
      for (int64_t i = 0; i < kLayers * kTopK; ++i) {
        rows.push_back(ExpertOf(sequence.tokens[static_cast<size_t>(position)], position, i));
      }
    }
    return rows;
  }

  std::vector<int32_t> Kept(Sequence* sequence) {
    scheduler_->KeepExperts(sequence);
    return sequence->output.routed_experts;
  }
};

TEST_F(RoutedExpertsTest, CoverEveryPositionButTheLast) {
  MakePool(20, {.chunk_tokens = 24, .max_running = 4});
  Sequence* sequence = AddAsking(Ids(0, 50), 40, 0);
  for (int i = 0; i < 20; ++i) {
    StepRouted();
  }
  EXPECT_EQ(Kept(sequence), Expected(*sequence, 0, sequence->num_tokens() - 1));
}

TEST_F(RoutedExpertsTest, ComeFromTheCacheAndFromCopiedTailsToo) {
  MakePool(40, {.chunk_tokens = 128, .max_running = 4});
  scheduler_->Remove(AddAsking(Ids(0, 75), 40, 0));
  Sequence* first = AddAsking(Ids(0, 75), 40, 0);
  Sequence* second = AddAsking(Ids(0, 75), 40, 70);
  for (int i = 0; i < 5; ++i) {
    StepRouted();
  }
  EXPECT_EQ(second->output.cached_tokens, 74);
  EXPECT_EQ(Kept(first), Expected(*first, 0, first->num_tokens() - 1));
  EXPECT_EQ(Kept(second), Expected(*second, 70, second->num_tokens() - 1));
}

TEST_F(RoutedExpertsTest, OutliveARetraction) {
  MakePool(40, {.chunk_tokens = 32, .max_running = 4});
  Sequence* sequence = AddAsking(Ids(0, 75), 60, 10);
  for (int i = 0; i < 20; ++i) {
    StepRouted();
  }
  const int64_t num_computed = sequence->num_computed;
  scheduler_->Retract(sequence);
  // Aborted now, it has what it had.
  EXPECT_EQ(Kept(sequence), Expected(*sequence, 10, num_computed));
  cache_->BumpGeneration();  // Everything is computed again.
  StepRouted();
  EXPECT_EQ(sequence->num_computed, 32);
  EXPECT_EQ(Kept(sequence), Expected(*sequence, 10, num_computed));
  for (int i = 0; i < 10; ++i) {
    StepRouted();
  }
  EXPECT_EQ(Kept(sequence), Expected(*sequence, 10, sequence->num_tokens() - 1));
}

TEST_F(RoutedExpertsTest, AreNotKeptForThoseWhoDidNotAsk) {
  MakePool(10, {.chunk_tokens = 32, .max_running = 4});
  Sequence* sequence = Add(Ids(0, 20), 4);
  StepRouted();
  EXPECT_TRUE(Kept(sequence).empty());
}

TEST_F(RoutedExpertsTest, AreEmptyBeforeTheirStartIsComputed) {
  MakePool(10, {.chunk_tokens = 16, .max_running = 4});
  Sequence* sequence = AddAsking(Ids(0, 60), 4, 20);
  StepRouted();
  EXPECT_TRUE(Kept(sequence).empty());
}

}  // namespace
}  // namespace octavo
