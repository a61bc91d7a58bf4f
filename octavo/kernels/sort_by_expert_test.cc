// Method: one case by hand, then the properties of the order over random choices: rows sorted by
// expert and then by slot, row_of_slot its inverse, offsets the counts.

#include "octavo/kernels/sort_by_expert.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "octavo/base/random.h"

namespace octavo {
namespace {

using ::testing::ElementsAre;

struct Order {
  std::vector<int32_t> source_rows;
  std::vector<int32_t> row_of_slot;
  std::vector<int32_t> offsets;
};

Order Sort(const std::vector<int32_t>& experts, int64_t top_k, size_t num_experts) {
  Order order{std::vector<int32_t>(experts.size(), -1), std::vector<int32_t>(experts.size(), -1),
              std::vector<int32_t>(num_experts + 1, -1)};
  SortByExpert({.experts = experts,
                .top_k = top_k,
                .source_rows = order.source_rows,
                .row_of_slot = order.row_of_slot,
                .offsets = order.offsets});
  return order;
}

TEST(SortByExpert, GroupsTokensByExpert) {
  // Token 0 goes to experts 1 and 3, token 1 to 0 and 3, token 2 to 1 and 3; nobody to 2.
  const Order order = Sort({1, 3, 0, 3, 1, 3}, 2, 4);
  EXPECT_THAT(order.offsets, ElementsAre(0, 1, 3, 3, 6));
  EXPECT_THAT(order.source_rows, ElementsAre(1, 0, 2, 0, 1, 2));
  EXPECT_THAT(order.row_of_slot, ElementsAre(1, 3, 0, 4, 2, 5));
}

TEST(SortByExpert, OfNoTokensGivesEmptyGroups) {
  EXPECT_THAT(Sort({}, 2, 3).offsets, ElementsAre(0, 0, 0, 0));
}

TEST(SortByExpert, IsAStableSortWithItsInverse) {
  for (const size_t num_experts : {size_t{1}, size_t{2}, size_t{7}, size_t{128}}) {
    for (const int64_t top_k : {1, 3, 8}) {
      for (const int64_t tokens : {1, 5, 100}) {
        std::vector<int32_t> experts(static_cast<size_t>(tokens * top_k));
        for (size_t i = 0; i < experts.size(); ++i) {
          experts[i] = static_cast<int32_t>(Philox(num_experts, i)[0] % num_experts);
        }
        const Order order = Sort(experts, top_k, num_experts);
        std::vector<size_t> slot_of_row(experts.size());
        std::vector<bool> is_taken(experts.size(), false);
        for (size_t slot = 0; slot < experts.size(); ++slot) {
          const auto row = static_cast<size_t>(order.row_of_slot[slot]);
          ASSERT_LT(row, experts.size());
          ASSERT_FALSE(is_taken[row]);
          is_taken[row] = true;
          slot_of_row[row] = slot;
          ASSERT_EQ(order.source_rows[row], static_cast<int32_t>(slot) / top_k);
          const auto expert = static_cast<size_t>(experts[slot]);
          ASSERT_GE(order.row_of_slot[slot], order.offsets[expert]);
          ASSERT_LT(order.row_of_slot[slot], order.offsets[expert + 1]);
        }
        for (size_t e = 0; e < num_experts; ++e) {
          const auto first = static_cast<size_t>(order.offsets[e]);
          const auto last = static_cast<size_t>(order.offsets[e + 1]);
          ASSERT_LE(first, last);
          ASSERT_TRUE(std::is_sorted(slot_of_row.begin() + static_cast<std::ptrdiff_t>(first),
                                     slot_of_row.begin() + static_cast<std::ptrdiff_t>(last)));
        }
        ASSERT_EQ(order.offsets.back(), static_cast<int32_t>(experts.size()));
      }
    }
  }
}

}  // namespace
}  // namespace octavo
