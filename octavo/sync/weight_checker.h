#pragma once
// WeightChecker: does an update bring every weight back? Snapshot what is live, overwrite it with
// noise, update, compare.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/kernels/backend.h"
#include "octavo/model/model.h"
#include "octavo/sync/live_weights.h"
#include "octavo/sync/weight_file.h"
#include "octavo/sync/weight_plan.h"

namespace octavo {

struct WeightCheckOptions {
  // Weights whose HF name contains one of these are neither overwritten nor compared.
  std::vector<std::string> skip = {};
  // Quantized weights may differ by one step of their format, such as when others encoded them.
  bool allow_quant_error = false;
};

// How two states of one weight differ.
struct ValueDifference {
  int64_t num_values = 0;
  int64_t count = 0;  // Of values that differ.
  float max_abs = 0.0F;
};

// One caller at a time.
class WeightChecker {
 public:
  // `live` outlives it. The snapshot's file is where its backup would be.
  explicit WeightChecker(LiveWeights* live);

  // Keeps a copy of what is live, in place of an earlier one. It takes no memory. Errors: those of
  // LiveWeights::Read and WeightFile::Write.
  Status Snapshot();
  // Overwrites every weight with noise; input scales, which an update need not bring, stay.
  // Requests are held until an update is complete. Errors: kUnavailable when the weights are
  // released or a request is in flight; kExhausted.
  Status ResetTensors(const WeightCheckOptions& options);
  // Ok when what is live has the values of the snapshot. Errors: kCorrupt naming the weights that
  // differ, how many of their values do and by how much; kUnavailable when there is no snapshot or
  // the weights are released.
  Status Compare(const WeightCheckOptions& options);

 private:
  Result<ValueDifference> CompareMatrix(size_t row_idx, const ModelWeights& live,
                                        const WeightCheckOptions& options) const;
  bool IsSkipped(size_t row_idx, const WeightCheckOptions& options) const;

  LiveWeights& live_;
  const WeightPlan& plan_;
  const Backend& backend_;
  std::optional<WeightFile> snapshot_;
};

}  // namespace octavo
