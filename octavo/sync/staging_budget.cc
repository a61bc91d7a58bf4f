#include "octavo/sync/staging_budget.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/policy/precision_table.h"
#include "octavo/sync/weight_plan.h"

namespace octavo {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;

int64_t InMiB(int64_t bytes) { return (bytes + kMiB - 1) / kMiB; }

int64_t Bf16Bytes(const PrecisionRow& row) {
  return NumElements(row.shape) * DTypeBytes(DType::kBf16);
}

int64_t LargestWeightBytes(const PrecisionTable& table) {
  int64_t largest = 0;
  for (const PrecisionRow& row : table.rows) {
    largest = std::max(largest, Bf16Bytes(row));
  }
  return largest;
}

// All but the last member of a set wait.
int64_t LargestSetBytes(const WeightPlan& plan) {
  int64_t largest = 0;
  for (const std::vector<int>& set : plan.scale_sets) {
    int64_t bytes = 0;
    for (const int member : set) {
      bytes += Bf16Bytes(plan.table->rows[static_cast<size_t>(member)]);
    }
    largest = std::max(largest, set.size() > 1 ? bytes : 0);
  }
  return largest;
}

}  // namespace

std::string StagingBudget::Text() const {
  const std::string available =
      available_bytes.has_value() ? fmt::format("{} MiB", InMiB(*available_bytes)) : "unknown";
  return fmt::format("{} MiB: {} staged, {} waiting, {} scratch, {} received; available: {}",
                     InMiB(TotalBytes()), InMiB(staged_bytes), InMiB(waiting_bytes),
                     InMiB(scratch_bytes), InMiB(bucket_bytes), available);
}

Result<StagingBudget> PlanStaging(const StagingBudgetArgs& args) {
  const int64_t largest_bytes = LargestWeightBytes(*args.plan->table);
  const int64_t set_bytes = LargestSetBytes(*args.plan);
  StagingBudget budget{.staged_bytes = args.packed_bytes,
                       // A weight that comes in rows lies there until its last one.
                       .waiting_bytes = std::max(set_bytes, largest_bytes),
                       // A source is rounded to BF16 and encoded before its codes are packed;
                       // neither is larger than the weight in BF16.
                       .scratch_bytes = 2 * largest_bytes,
                       .bucket_bytes = args.bucket_bytes,
                       .available_bytes = args.available_bytes};
  if (args.available_bytes.has_value() && budget.TotalBytes() > *args.available_bytes) {
    return Exhausted(
        "the update needs {} bytes beside the live weights ({}), and {} are available: give the KV "
        "pool less (--mem-fraction-static, --max-total-tokens), or release it for the update",
        budget.TotalBytes(), budget.Text(), *args.available_bytes);
  }
  if (set_bytes > 0) {
    const int64_t left = args.available_bytes.value_or(INT64_MAX) - budget.TotalBytes();
    budget.waiting_bytes = std::max(budget.waiting_bytes,
                                    std::min(args.waiting_bytes_max, budget.waiting_bytes + left));
  }
  return budget;
}

}  // namespace octavo
