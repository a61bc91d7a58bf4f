// Method: the scheduler alone, under arrivals that try to starve somebody: a stream of short
// requests beside long ones, groups that wait for each other, a pool that holds two of the long
// ones. After every step: nobody was overtaken but those who wait for a running prefill, and the
// oldest was not retracted. In the end everybody is done, within the steps that serving one after
// the other would take.

#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

#include "octavo/base/random.h"
#include "octavo/engine/scheduler.h"
#include "octavo/engine/scheduler_for_test.h"
#include "octavo/engine/sequence.h"

namespace octavo {
namespace {

class FairnessTest : public SchedulerTest {
 protected:
  // Steps, checks the order, and takes out what is done.
  void StepFairly() {
    std::map<int64_t, int64_t> retractions;
    for (const auto& sequence : scheduler_->running()) {
      retractions[sequence->arrival] = sequence->output.num_retractions;
    }
    Step();
    for (const auto& queued : scheduler_->queue()) {
      for (const auto& running : scheduler_->running()) {
        // A younger one runs that did not run before: the older must have been waiting.
        if (running->arrival > queued->arrival && !retractions.contains(running->arrival)) {
          EXPECT_GE(queued->waits_for, 0) << running->arrival << " overtook " << queued->arrival;
        }
      }
      const bool was_oldest = !retractions.empty() && retractions.begin()->first == queued->arrival;
      EXPECT_FALSE(was_oldest) << queued->arrival << " was the oldest and was retracted";
    }
    ++num_steps_;
    std::vector<Sequence*> done;
    for (const auto& sequence : scheduler_->running()) {
      if (sequence->num_generated() >= sequence->request.sampling.max_new_tokens) {
        done.push_back(sequence.get());
      }
    }
    for (Sequence* sequence : done) {
      done_at_[sequence->arrival] = num_steps_;
      EXPECT_NE(scheduler_->Remove(sequence), nullptr);
    }
  }

  int64_t num_steps_ = 0;
  std::map<int64_t, int64_t> done_at_;  // Arrival to step.
};

TEST_F(FairnessTest, AStreamOfShortRequestsDoesNotStarveALongOne) {
  Make(40, {.chunk_tokens = 64, .max_running = 16});
  for (int i = 0; i < 16; ++i) {
    Add(Ids(i * 1000, 40), 60);
  }
  StepFairly();
  const Sequence* longest = Add(Ids(100000, 900), 300);  // 38 of the 40 pages.
  const int64_t arrival = longest->arrival;
  // Two short ones a step, for ever: more than the engine can serve.
  for (int32_t i = 0; !done_at_.contains(arrival); ++i) {
    ASSERT_LT(num_steps_, 2000);
    Add(Ids(200000 + i * 1000, 10), 30);
    Add(Ids(200500 + i * 1000, 10), 30);
    StepFairly();
  }
}

TEST_F(FairnessTest, LongRequestsDoNotStarveShortOnes) {
  Make(64, {.chunk_tokens = 64, .max_running = 8});
  for (int32_t i = 0; i < 6; ++i) {
    Add(Ids(i * 10000, 800), 400);
    Add(Ids(i * 10000 + 5000, 5), 5);
  }
  while (done_at_.size() < 12) {
    ASSERT_LT(num_steps_, 6 * 500);
    StepFairly();
  }
  // Each short one is done soon after the long one before it could begin.
  for (int64_t arrival = 1; arrival < 12; arrival += 2) {
    EXPECT_LT(done_at_[arrival], done_at_[arrival - 1]);
  }
}

TEST_F(FairnessTest, AChainOfSharedBeginningsDoesNotHoldItsOldestBack) {
  Make(200, {.chunk_tokens = 32, .max_running = 8});
  // Each shares one page more with the first than the one before; the oldest shares the least, and
  // every step another arrives that shares it all.
  const std::vector<int32_t> first = Ids(0, 320);
  Add(first, 4);
  Sequence* oldest = nullptr;
  for (int32_t shared = 1; shared < 10; ++shared) {
    std::vector<int32_t> prompt = first;
    prompt[static_cast<size_t>(shared * 32)] = -1;
    Sequence* sequence = Add(prompt, 4);
    oldest = oldest == nullptr ? sequence : oldest;
  }
  const int64_t arrival = oldest->arrival;
  while (!done_at_.contains(arrival)) {
    // The leader's prefill, then its own: 20 steps of 32 tokens, and its decode.
    ASSERT_LT(num_steps_, 40);
    Add(first, 4);
    StepFairly();
  }
}

TEST_F(FairnessTest, EverybodyIsServedInARandomCrowd) {
  for (uint64_t seed = 0; seed < 6; ++seed) {
    Make(48, {.chunk_tokens = 40, .max_running = 12});
    done_at_.clear();
    num_steps_ = 0;
    next_arrival_ = 0;
    int64_t num_tokens = 0;
    for (uint64_t i = 0; i < 900; ++i) {
      const std::array<uint32_t, 4> draw = Philox(seed, i);
      if (draw[0] % 3 == 0) {
        const bool is_long = draw[1] % 5 == 0;
        const auto first = static_cast<int32_t>(draw[1] % 7 * 10000);
        const int64_t length = is_long ? 300 + draw[2] % 700 : 1 + draw[2] % 90;
        const int64_t num_new = is_long ? 1 + draw[3] % 400 : 1 + draw[3] % 40;
        for (uint32_t copy = 0; copy < (draw[0] % 9 == 0 ? 8U : 1U); ++copy) {
          Add(Ids(first, length), num_new);
          num_tokens += length + num_new;
        }
      }
      StepFairly();
    }
    // One after the other, a step computes at least a token.
    while (static_cast<int64_t>(done_at_.size()) < next_arrival_) {
      ASSERT_LT(num_steps_, num_tokens);
      StepFairly();
    }
    EXPECT_TRUE(scheduler_->running().empty());
    EXPECT_TRUE(scheduler_->queue().empty());
  }
}

}  // namespace
}  // namespace octavo
