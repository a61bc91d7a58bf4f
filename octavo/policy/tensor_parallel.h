#pragma once
// Tensor parallelism, its arithmetic alone: where each weight is cut for TP ranks, and whether the
// cut leaves every scale whole. Nothing here executes on several ranks.
//
//   Rows (axis 0) are cut: q, k, v, q_b, kv_b by heads; gate and up by the MLP's inner width;
//   embedding and head by the vocabulary. Columns (axis 1) are cut: o by heads, down by the inner
//   width. All else is on every rank.
//
// A cut is exact when it falls between blocks: then a rank's slice of codes and scales is the slice
// of the whole, and quantizing the slice gives the same bytes as slicing what was quantized (for
// scales that span more than a slice: when the ranks share the largest magnitude first). A cut
// through a block is never made, for a slice anchored at its own start has other scales than the
// trainer's. An MLP whose inner width does not divide into whole blocks is cut into whole blocks
// all the same, unevenly; its gate, up and down alike.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/formats/format.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"

namespace octavo {

enum class CutAxis { kNone, kRows, kCols };  // kNone: every rank has the whole.

// Values of a block along an axis: 128 of fp8 and fp8-ue8m0 along both; along the columns 32 of
// mxfp8, 16 of nvfp4; 1 where a cut can fall anywhere.
int64_t BlockAlong(WeightFormat format, CutAxis axis);

// Whether a rank must know the largest magnitude of more than its own slice to code it as the whole
// is coded: fp8-channel cut along its columns, and the formats whose tensor has a scale.
bool NeedsSharedAmax(WeightFormat format, CutAxis axis);

// The blocks that [offset, offset + size) lies in: ceil((offset + size) / block) -
// floor(offset / block) of them, none for a size of 0.
struct BlockRange {
  int64_t first = 0;
  int64_t count = 0;
};
BlockRange BlocksTouched(int64_t offset, int64_t size, int64_t block);

// `size` values in whole blocks to `tp` ranks, the earlier ones getting one more where they do not
// divide; the last block may be partial and is the last rank's. 768 in blocks of 128 at TP 4:
// 256, 256, 128, 128. Errors: kInvalidArgument when there are fewer blocks than ranks.
Result<std::vector<int64_t>> CutWholeBlocks(int64_t size, int64_t block, int64_t tp);

enum class CutVerdict { kReplicated, kEven, kUneven, kRefused };
std::string_view CutVerdictName(CutVerdict verdict);  // "replicated", "even", ...

// What becomes of one weight.
struct TensorCut {
  CutAxis axis = CutAxis::kNone;
  CutVerdict verdict = CutVerdict::kReplicated;
  int64_t size = 0;                   // Along the axis.
  int64_t block = 1;                  // What boundaries must be multiples of, its peers' included.
  std::vector<int64_t> extents = {};  // Of each rank; [tp], empty when replicated or refused.
  // Key and value heads fewer than ranks: tp / heads ranks have the same one.
  int64_t ranks_per_slice = 1;
  std::string reason = {};  // kRefused: names tensor, axis, size and TP.
};

struct TensorParallelPlan {
  int64_t tp = 1;
  std::vector<TensorCut> cuts = {};  // One a row of the table, in its order.

  bool is_legal() const { return refusal().empty(); }
  bool is_even() const;
  // Of the first weight that is refused; empty when none is.
  std::string_view refusal() const;
};

// `table` was compiled for `spec`. Errors: kInvalidArgument for a tp below 1.
Result<TensorParallelPlan> PlanTensorParallel(const ModelSpec& spec, const PrecisionTable& table,
                                              int64_t tp);

// For people: what each kind of weight is cut into, each kind once, and which of `sizes` are legal.
// The first line is "tensor parallel 4: legal" (", uneven") or "tensor parallel 4: REASON".
Result<std::string> TensorParallelText(const ModelSpec& spec, const PrecisionTable& table,
                                       int64_t tp);
// For scripts: {"tp", "legal", "even", "reason", "tensors": [{"name", "role", "format",
// "num_alike", "axis", "size", "block", "extents", "ranks_per_slice", "needs_shared_amax",
// "verdict", "reason"}], "sizes": [{"tp", "legal", "even", "reason"}]}.
Result<std::string> TensorParallelJson(const ModelSpec& spec, const PrecisionTable& table,
                                       int64_t tp);

}  // namespace octavo
