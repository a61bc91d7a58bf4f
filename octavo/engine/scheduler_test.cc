// Method: PagePool, PrefixCache and Scheduler without a model: steps are booked as if they had run,
// and every reference count is checked after each of them. A random walk then mixes arrivals,
// steps, endings and retractions on a pool that is far too small.

#include "octavo/engine/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <set>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/random.h"
#include "octavo/engine/page_pool.h"
#include "octavo/engine/prefix_cache.h"
#include "octavo/engine/scheduler_for_test.h"
#include "octavo/engine/sequence.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/ops.h"
#include "octavo/model/spec/model_spec.h"

namespace octavo {
namespace {

using testing::ElementsAre;

// --- PagePool -----------------------------------------------------------------------------------

TEST(PagePool, HandsOutEachPageOnceAndTakesItBack) {
  PagePool pool(3);
  std::set<int32_t> pages;
  for (int i = 0; i < 3; ++i) {
    pages.insert(pool.Allocate());
  }
  EXPECT_EQ(pages, (std::set<int32_t>{0, 1, 2}));
  EXPECT_EQ(pool.Allocate(), -1);
  pool.AddRef(1);
  EXPECT_EQ(pool.Release(1), 1);
  EXPECT_EQ(pool.num_free(), 0);
  EXPECT_EQ(pool.Release(1), 0);
  EXPECT_EQ(pool.Allocate(), 1);
  pool.CheckInvariants();
}

TEST(PagePool, ZeroesPagesWhenTheyAreHandedOut) {
  ModelSpec spec;
  spec.num_layers = 2;
  spec.num_kv_heads = 1;
  spec.head_dim = 32;
  const std::unique_ptr<Backend> backend = MakeReferenceBackend(Recipe::kServing, 1);
  PagePool pool(2);
  ASSERT_TRUE(pool.AllocateMemory(spec, *backend).ok());
  ASSERT_EQ(pool.layers().size(), 2U);
  const int32_t page = pool.Allocate();
  for (const KvLayer& layer : pool.layers()) {
    std::fill_n(layer.pages + page * layer.page_bytes, layer.page_bytes, std::byte{0xFF});
  }
  pool.Release(page);
  ASSERT_EQ(pool.Allocate(), page);
  for (const KvLayer& layer : pool.layers()) {
    const std::byte* begin = layer.pages + page * layer.page_bytes;
    EXPECT_TRUE(std::all_of(begin, begin + layer.page_bytes,
                            [](std::byte b) { return b == std::byte{0}; }));
  }
}

TEST(PagePoolDeathTest, RefusesToReleaseAFreePage) {
  PagePool pool(1);
  EXPECT_DEATH(pool.Release(0), "count > 0");
}

// --- PrefixCache --------------------------------------------------------------------------------

// Allocates and inserts the full pages of `tokens`, as a sequence that computed them would.
std::vector<int32_t> InsertAll(PrefixCache& cache, std::string_view extra_key,
                               const std::vector<int32_t>& tokens) {
  std::vector<int32_t> pages;
  for (size_t at = 0; at + kPageTokens <= tokens.size(); at += kPageTokens) {
    const int32_t page = cache.AllocatePage();
    EXPECT_GE(page, 0);
    pages.push_back(cache.Insert({.extra_key = extra_key,
                                  .parent = pages.empty() ? -1 : pages.back(),
                                  .tokens = std::span(tokens).subspan(at, kPageTokens)},
                                 page));
  }
  return pages;
}

void ReleaseAll(PrefixCache& cache, std::vector<int32_t> pages) {
  for (; !pages.empty(); pages.pop_back()) {
    cache.ReleasePage(pages.back());
  }
}

std::vector<int32_t> Hits(PrefixCache& cache, std::string_view extra_key,
                          const std::vector<int32_t>& tokens) {
  std::vector<int32_t> pages;
  cache.Match(
      {.extra_key = extra_key, .tokens = tokens, .max_tokens = static_cast<int64_t>(tokens.size())},
      &pages);
  const std::vector<int32_t> found = pages;
  ReleaseAll(cache, pages);
  cache.CheckInvariants();
  return found;
}

TEST(PrefixCache, FindsTheLongestRunOfFullPages) {
  PagePool pool(8);
  PrefixCache cache(&pool, true);
  const std::vector<int32_t> pages = InsertAll(cache, "", Ids(0, 96));
  ReleaseAll(cache, pages);
  EXPECT_EQ(Hits(cache, "", Ids(0, 96)), pages);
  EXPECT_EQ(Hits(cache, "", Ids(0, 95)), (std::vector<int32_t>{pages[0], pages[1]}));
  EXPECT_EQ(Hits(cache, "", Ids(0, 31)), (std::vector<int32_t>{}));
  std::vector<int32_t> other = Ids(0, 96);
  other[40] = 7;
  EXPECT_EQ(Hits(cache, "", other), (std::vector<int32_t>{pages[0]}));
  EXPECT_EQ(Hits(cache, "", Ids(32, 64)), (std::vector<int32_t>{}));  // Right tokens, wrong place.
}

TEST(PrefixCache, KeepsExtraKeysApart) {
  PagePool pool(8);
  PrefixCache cache(&pool, true);
  const std::vector<int32_t> a = InsertAll(cache, "a", Ids(0, 64));
  EXPECT_EQ(Hits(cache, "b", Ids(0, 64)), (std::vector<int32_t>{}));
  EXPECT_EQ(Hits(cache, "a", Ids(0, 64)), a);
}

TEST(PrefixCache, GivesTheTwinOfAPageInsertedTwice) {
  PagePool pool(8);
  PrefixCache cache(&pool, true);
  const std::vector<int32_t> first = InsertAll(cache, "", Ids(0, 64));
  const std::vector<int32_t> second = InsertAll(cache, "", Ids(0, 64));
  EXPECT_EQ(first, second);
  EXPECT_EQ(pool.num_free(), 6);
  EXPECT_EQ(pool.ref_count(first[0]), 3);  // Two sequences and the cache.
  cache.CheckInvariants();
}

TEST(PrefixCache, EvictsTheLeastRecentlyUsedLeafFirst) {
  PagePool pool(4);
  PrefixCache cache(&pool, true);
  const std::vector<int32_t> old = InsertAll(cache, "", Ids(0, 64));
  const std::vector<int32_t> young = InsertAll(cache, "", Ids(500, 64));
  ReleaseAll(cache, old);
  ReleaseAll(cache, young);
  EXPECT_EQ(cache.num_available(), 4);
  EXPECT_EQ(cache.AllocatePage(), old[1]);  // The leaf of the older chain.
  EXPECT_EQ(Hits(cache, "", Ids(0, 64)), (std::vector<int32_t>{old[0]}));  // Touched: young again.
  EXPECT_EQ(cache.AllocatePage(), young[1]);
  EXPECT_EQ(cache.AllocatePage(), young[0]);
  EXPECT_EQ(cache.AllocatePage(), old[0]);
  EXPECT_EQ(cache.AllocatePage(), -1);
  cache.CheckInvariants();
}

TEST(PrefixCache, NeverCrossesAGeneration) {
  PagePool pool(4);
  PrefixCache cache(&pool, true);
  const std::vector<int32_t> held = InsertAll(cache, "", Ids(0, 32));
  ReleaseAll(cache, InsertAll(cache, "", Ids(500, 64)));
  EXPECT_EQ(pool.num_free(), 1);
  cache.BumpGeneration();
  EXPECT_EQ(pool.num_free(), 3);  // What nobody held is free at once.
  EXPECT_EQ(pool.ref_count(held[0]), 1);
  EXPECT_EQ(Hits(cache, "", Ids(0, 32)), (std::vector<int32_t>{}));
  cache.ReleasePage(held[0]);
  EXPECT_EQ(pool.num_free(), 4);
  cache.CheckInvariants();
}

TEST(PrefixCache, IsInertWhenDisabled) {
  PagePool pool(4);
  PrefixCache cache(&pool, false);
  ReleaseAll(cache, InsertAll(cache, "", Ids(0, 64)));
  EXPECT_EQ(pool.num_free(), 4);
  EXPECT_EQ(Hits(cache, "", Ids(0, 64)), (std::vector<int32_t>{}));
}

// --- Scheduler ----------------------------------------------------------------------------------

TEST_F(SchedulerTest, PutsDecodesFirstAndFillsUpWithChunks) {
  Make(100, {.chunk_tokens = 10, .max_running = 4});
  Add(Ids(0, 4), 8);
  Add(Ids(100, 20), 8);
  const StepPlan& first = Step();
  EXPECT_THAT(Arrivals(first), ElementsAre(0, 1));
  EXPECT_EQ(first.segments[0].num_rows, 4);
  EXPECT_EQ(first.segments[1].num_rows, 6);
  EXPECT_EQ(first.segments[1].first_row, 4);
  const StepPlan& second = Step();
  EXPECT_EQ(second.segments[0].num_rows, 1);  // Sequence 0 decodes.
  EXPECT_EQ(second.segments[0].first_position, 4);
  EXPECT_EQ(second.segments[1].num_rows, 9);
  EXPECT_EQ(second.segments[1].first_position, 6);
  EXPECT_THAT(second.positions, ElementsAre(4, 6, 7, 8, 9, 10, 11, 12, 13, 14));
  EXPECT_EQ(second.token_ids[1], 106);
  const StepPlan& third = Step();
  EXPECT_EQ(third.segments[1].num_rows, 5);
}

TEST_F(SchedulerTest, AdmitsInOrderOfArrivalWithoutOvertaking) {
  Make(4, {.chunk_tokens = 128, .max_running = 8});
  Add(Ids(0, 60), 4);     // Two pages.
  Add(Ids(1000, 90), 4);  // Three pages: does not fit beside the first.
  Add(Ids(2000, 10), 4);  // Would fit, but must wait.
  EXPECT_THAT(Arrivals(Step()), ElementsAre(0));
  EXPECT_EQ(scheduler_->queue().size(), 2U);
}

TEST_F(SchedulerTest, RunsNoMoreThanMaxRunning) {
  Make(100, {.chunk_tokens = 64, .max_running = 3});
  for (int i = 0; i < 5; ++i) {
    Add(Ids(i * 100, 4), 8);
  }
  EXPECT_THAT(Arrivals(Step()), ElementsAre(0, 1, 2));
  EXPECT_THAT(Arrivals(Step()), ElementsAre(0, 1, 2));
}

TEST_F(SchedulerTest, RetractsTheYoungestAndPutsItInFront) {
  Make(6, {.chunk_tokens = 128, .max_running = 8});
  Sequence* first = Add(Ids(0, 31), 100);
  Sequence* second = Add(Ids(1000, 31), 100);
  Sequence* third = Add(Ids(2000, 31), 100);
  Add(Ids(3000, 40), 10);
  while (third->output.num_retractions == 0) {
    Step();
    ASSERT_LT(first->num_tokens(), 100);
  }
  EXPECT_EQ(first->output.num_retractions, 0);
  EXPECT_EQ(second->output.num_retractions, 0);
  EXPECT_EQ(scheduler_->queue().front().get(), third);
  EXPECT_GT(third->num_generated(), 30);  // Its tokens stayed.
  EXPECT_TRUE(third->pages.empty());
  // When there is room again it goes on where it was.
  const int64_t kept = third->num_tokens();
  scheduler_->Remove(first);
  scheduler_->Remove(second);
  Step();
  EXPECT_EQ(third->num_tokens(), kept + 1);
}

TEST_F(SchedulerTest, StartedOnlyAdmitsWhatRanBefore) {
  Make(100, {.chunk_tokens = 64, .max_running = 4});
  Sequence* old = Add(Ids(0, 4), 8);
  Step();
  scheduler_->Retract(old);
  Add(Ids(100, 4), 8);
  EXPECT_THAT(Arrivals(Step(Admission::kStartedOnly)), ElementsAre(0));
  EXPECT_THAT(Arrivals(Step(Admission::kStartedOnly)), ElementsAre(0));
  EXPECT_THAT(Arrivals(Step(Admission::kAll)), ElementsAre(0, 1));
}

TEST_F(SchedulerTest, AScoredPromptUsesNoMoreOfTheCacheThanItMay) {
  Make(100, {.chunk_tokens = 256, .max_running = 4});
  Sequence* first = Add(Ids(0, 128), 8);
  Step();
  scheduler_->Remove(first);
  const auto cached = [&](int64_t start_len) {
    Sequence* sequence = Add(Ids(0, 128), 8);
    sequence->request.return_logprob = true;
    sequence->request.logprob_start_len = start_len;
    sequence->scored = start_len < 0;
    Step();
    const int64_t tokens = sequence->output.cached_tokens;
    scheduler_->Remove(sequence);
    return tokens;
  };
  EXPECT_EQ(cached(-1), 127);  // Never the last token.
  EXPECT_EQ(cached(128), 127);
  EXPECT_EQ(cached(127), 127);
  EXPECT_EQ(cached(126), 96);  // The tail is taken whole or not at all.
  EXPECT_EQ(cached(64), 64);
  EXPECT_EQ(cached(63), 32);
  EXPECT_EQ(cached(0), 0);
}

TEST_F(SchedulerTest, AMixedSequenceNeverEntersTheCache) {
  Make(100, {.chunk_tokens = 256, .max_running = 4});
  Sequence* sequence = Add(Ids(0, 40), 200);
  Step();
  EXPECT_EQ(cache_->num_cached(), 1);
  sequence->mixed = true;
  cache_->BumpGeneration();
  for (int i = 0; i < 70; ++i) {
    Step();
  }
  EXPECT_EQ(cache_->num_cached(), 0);
  scheduler_->Retract(sequence);
  EXPECT_FALSE(sequence->mixed);
  Step();
  EXPECT_EQ(cache_->num_cached(), 3);  // 111 tokens, computed anew.
}

TEST_F(SchedulerTest, SurvivesARandomWalkOnATinyPool) {
  for (uint64_t seed = 0; seed < 8; ++seed) {
    Make(14, {.chunk_tokens = 24, .max_running = 6});
    std::vector<Sequence*> alive;
    int64_t num_ended = 0;
    for (uint64_t i = 0; i < 1500; ++i) {
      const std::array<uint32_t, 4> draw = Philox(seed, i);
      if (draw[0] % 8 == 0 && alive.size() < 20) {
        // Few first tokens, so that prefixes are shared.
        alive.push_back(Add(Ids(static_cast<int32_t>(draw[1] % 3) * 1000, 1 + draw[2] % 150),
                            1 + draw[3] % 120));
      } else if (draw[0] % 97 == 1 && !scheduler_->running().empty()) {
        const auto chosen = static_cast<std::ptrdiff_t>(draw[1] % scheduler_->running().size());
        scheduler_->Retract(std::next(scheduler_->running().begin(), chosen)->get());
        scheduler_->CheckInvariants();
      } else if (draw[0] % 211 == 2) {
        while (!scheduler_->running().empty()) {
          scheduler_->Retract(scheduler_->running().back().get());
        }
        cache_->BumpGeneration();
        scheduler_->CheckInvariants();
      }
      Step();
      std::erase_if(alive, [&](Sequence* sequence) {
        if (sequence->num_generated() < sequence->request.sampling.max_new_tokens) {
          return false;
        }
        EXPECT_NE(scheduler_->Remove(sequence), nullptr);
        ++num_ended;
        return true;
      });
      scheduler_->CheckInvariants();
    }
    EXPECT_GT(num_ended, 20);
  }
}

}  // namespace
}  // namespace octavo
