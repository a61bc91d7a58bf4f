#pragma once
// What a served model takes: which tensor belongs to which weight, in which form it is served, and
// which weights wait for each other. Data, made once for all updates.

#include <cstddef>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/kernels/matrix.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/model/spec/stacked_experts.h"
#include "octavo/policy/precision_table.h"
#include "octavo/sync/arithmetic.h"

namespace octavo {

// What a tensor of this name is to its weight.
struct PutTarget {
  static constexpr size_t kNoPart = static_cast<size_t>(-1);

  size_t row_idx = 0;
  size_t part_idx = kNoPart;  // In WeightPlan::parts of the row.
  bool is_weight = false;     // The weight's own name: it may come in BF16, F16 or F32.
};

// Const is thread-safe. `spec` and `table` outlive it.
struct WeightPlan {
  const ModelSpec* spec = nullptr;
  const PrecisionTable* table = nullptr;
  std::vector<InputForm> inputs;                     // Of each row.
  std::vector<std::vector<StoredTensorSpec>> parts;  // AcceptedTensorsOf each row.
  std::unordered_map<std::string, PutTarget> targets;
  std::unordered_map<std::string, StackedSource> stacked;  // Experts of a layer in one tensor.
  // A tied model may be sent its head; it must be the embedding. Empty: the head has a row.
  std::string tied_head;
  size_t embedding_idx = 0;

  // Rows that share a TensorScale and are encoded together, and the set of each row: -1 for none.
  std::vector<std::vector<int>> scale_sets;
  std::vector<int> scale_set_of;

  // Rows whose input is quantized once with one static scale, the largest of theirs: q/k/v,
  // q_a/kv_a, gate/up; of routed experts, gate and up of all of a layer, and down of all. Every row
  // of a static form is in exactly one set.
  std::vector<std::vector<int>> static_input_sets;
};

// Errors: those of InputFormsOf.
Result<std::unique_ptr<const WeightPlan>> MakeWeightPlan(const ModelSpec& spec,
                                                         const PrecisionTable& table,
                                                         const ArithmeticOptions& options);

// True for X.input_scale and X.input_global_scale.
bool IsInputScale(StoredPart part);
// The position of the part in `parts`, or -1.
int FindPart(const std::vector<StoredTensorSpec>& parts, StoredPart part);

}  // namespace octavo
