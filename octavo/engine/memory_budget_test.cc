// Method: budgets worked out by hand; a token of the pool is 1000 bytes, a page has 32 tokens.

#include "octavo/engine/memory_budget.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <optional>
#include <string>

#include "octavo/base/status.h"

namespace octavo {
namespace {

using testing::HasSubstr;

PoolBudgetArgs Args() {
  return {.context_length = 1000,
          .max_running = 10,
          .token_bytes = 1000,
          .available_bytes = 100'000'000};
}

int64_t Tokens(const PoolBudgetArgs& args) {
  const Result<PoolBudget> budget = ChoosePool(args);
  EXPECT_TRUE(budget.has_value()) << budget.error().message();
  return budget.has_value() ? budget->tokens : 0;
}

std::string Error(const PoolBudgetArgs& args, StatusCode code) {
  const Result<PoolBudget> budget = ChoosePool(args);
  EXPECT_FALSE(budget.has_value());
  if (budget.has_value()) {
    return "";
  }
  EXPECT_EQ(budget.error().code(), code);
  return budget.error().message();
}

TEST(ChoosePool, GivesEveryRunningSequenceHalfAContext) {
  EXPECT_EQ(Tokens(Args()), 5024);  // 10 * 500 in whole pages.
  PoolBudgetArgs args = Args();
  args.max_running = 2;
  EXPECT_EQ(Tokens(args), 4000);  // Four whole contexts, the larger.
}

TEST(ChoosePool, TakesNoMoreThanThirtyPercent) {
  PoolBudgetArgs args = Args();
  args.available_bytes = 10'000'000;
  EXPECT_EQ(Tokens(args), 2976);  // 3000 in whole pages.
}

TEST(ChoosePool, TakesTheFractionThatItIsGiven) {
  PoolBudgetArgs args = Args();
  args.memory_fraction = 0.5;
  EXPECT_EQ(Tokens(args), 49984);  // 50000, though ten sequences cannot use it.
  EXPECT_THAT(ChoosePool(args)->rule, HasSubstr("0.50"));
}

TEST(ChoosePool, TakesAbsoluteSizes) {
  PoolBudgetArgs args = Args();
  args.pool_bytes = 1'000'000;
  EXPECT_EQ(Tokens(args), 992);
  args.pool_bytes = 0;
  args.max_total_tokens = 70;
  EXPECT_EQ(Tokens(args), 64);
  args.available_bytes = std::nullopt;
  EXPECT_EQ(Tokens(args), 64);
}

TEST(ChoosePool, RefusesWhatDoesNotFit) {
  PoolBudgetArgs args = Args();
  args.max_total_tokens = 200'000;
  EXPECT_THAT(Error(args, StatusCode::kExhausted), HasSubstr("200000 tokens"));
  args = Args();
  args.available_bytes = 50'000;
  EXPECT_THAT(Error(args, StatusCode::kExhausted), HasSubstr("32 tokens"));
  args.available_bytes = std::nullopt;
  EXPECT_THAT(Error(args, StatusCode::kExhausted), HasSubstr("cannot be read"));
}

TEST(ChoosePool, RefusesSizesOutOfRangeAndMoreThanOne) {
  PoolBudgetArgs args = Args();
  args.max_total_tokens = 31;
  EXPECT_THAT(Error(args, StatusCode::kInvalidArgument), HasSubstr("max_total_tokens"));
  args = Args();
  args.pool_bytes = -1;
  EXPECT_THAT(Error(args, StatusCode::kInvalidArgument), HasSubstr("kv_cache_bytes"));
  for (const double fraction : {-0.1, 1.1, std::numeric_limits<double>::quiet_NaN()}) {
    args = Args();
    args.memory_fraction = fraction;
    EXPECT_THAT(Error(args, StatusCode::kInvalidArgument), HasSubstr("kv_cache_fraction"));
  }
  args = Args();
  args.memory_fraction = 0.1;
  args.max_total_tokens = 64;
  EXPECT_THAT(Error(args, StatusCode::kInvalidArgument), HasSubstr("expected one of"));
}

TEST(AvailableMemoryBytes, IsSomethingOnThisSystem) {
  const Result<int64_t> bytes = AvailableMemoryBytes();
  ASSERT_TRUE(bytes.has_value());
  EXPECT_GT(*bytes, 0);
}

}  // namespace
}  // namespace octavo
