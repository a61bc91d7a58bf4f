// Method: an update of a real engine whose budget is read before and after buckets of a trainer's
// group that are larger than what Begin counted.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <string>

#include "octavo/base/status.h"
#include "octavo/sync/serving.h"
#include "octavo/sync/staging_budget.h"
#include "octavo/sync/test_util.h"
#include "octavo/sync/weight_update.h"

namespace octavo {
namespace {

using testing::HasSubstr;

TEST(CountBucket, RaisesTheBudgetOfTheOpenUpdate) {
  const std::unique_ptr<Serving> serving = testing_util::Serve(testing_util::kBase);
  WeightUpdater& updater = *serving->updater;
  EXPECT_TRUE(updater.CountBucket(int64_t{1} << 60).ok());  // No update, no budget.

  const Result<std::string> id = updater.Begin("");
  ASSERT_TRUE(id.has_value()) << id.error().message();
  const StagingBudget begun = updater.BudgetOf(*id).value();
  ASSERT_TRUE(updater.CountBucket(begun.bucket_bytes).ok());
  EXPECT_EQ(updater.BudgetOf(*id)->bucket_bytes, begun.bucket_bytes);
  ASSERT_TRUE(updater.CountBucket(begun.bucket_bytes + 1).ok());
  EXPECT_EQ(updater.BudgetOf(*id)->bucket_bytes, begun.bucket_bytes + 1);
  EXPECT_EQ(updater.BudgetOf(*id)->TotalBytes(), begun.TotalBytes() + 1);

  const Status refused = updater.CountBucket(int64_t{1} << 60);
  EXPECT_EQ(refused.code(), StatusCode::kExhausted);
  EXPECT_THAT(refused.message(), HasSubstr("1152921504606846976 bytes"));
  EXPECT_EQ(updater.BudgetOf(*id)->bucket_bytes, begun.bucket_bytes + 1);
  updater.Abort(*id);
}

}  // namespace
}  // namespace octavo
