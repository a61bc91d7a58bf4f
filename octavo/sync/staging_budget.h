#pragma once
// What an update will take of the memory, before it takes any.

#include <cstdint>
#include <optional>
#include <string>

#include "octavo/base/status.h"
#include "octavo/sync/weight_plan.h"

namespace octavo {

// Bytes beside the live weights.
struct StagingBudget {
  int64_t staged_bytes = 0;  // The second set of weights: as large as the first.
  // Copies that wait for the others of their set or for the rest of their rows; the bound.
  int64_t waiting_bytes = 0;
  int64_t scratch_bytes =
      0;  // The largest weight on its way: rounded to BF16, its codes, its parts.
  int64_t bucket_bytes = 0;  // What has been received and is not staged yet; the bound.
  std::optional<int64_t> available_bytes;  // That this process may still take; unknown if absent.

  int64_t TotalBytes() const { return staged_bytes + waiting_bytes + scratch_bytes + bucket_bytes; }
  // "812 MiB: 640 staged, 64 waiting, 44 scratch, 64 received; 20123 available".
  std::string Text() const;
};

struct StagingBudgetArgs {
  const WeightPlan* plan = nullptr;
  int64_t packed_bytes = 0;       // LiveBase::packed_bytes; of an update in place nothing.
  int64_t waiting_bytes_max = 0;  // At most this, whatever memory there is.
  int64_t bucket_bytes = 0;
  std::optional<int64_t> available_bytes;
};
// Sets that share a scale wait in what is left of the available memory, but at least the largest
// set, and the largest weight when it comes in rows, must have its place.
// Errors: kExhausted, with the figures, when the available memory does not hold it.
Result<StagingBudget> PlanStaging(const StagingBudgetArgs& args);

}  // namespace octavo
