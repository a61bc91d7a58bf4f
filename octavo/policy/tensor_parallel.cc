#include "octavo/policy/tensor_parallel.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "octavo/base/check.h"
#include "octavo/base/status.h"
#include "octavo/formats/block_grid.h"
#include "octavo/formats/format.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"

namespace octavo {
namespace {

// What ranks share out.
enum class Stock { kNothing, kHeads, kKvHeads, kInner, kVocabulary };

struct RoleCut {
  Stock stock = Stock::kNothing;
  CutAxis axis = CutAxis::kNone;
};

// As Megatron-LM cuts transformer layers (arXiv 1909.08053, section 3), and the vocabulary by rows.
RoleCut CutOfRole(Role role) {
  switch (role) {
    case Role::kEmbedding:
    case Role::kLmHead:
      return {Stock::kVocabulary, CutAxis::kRows};
    case Role::kAttentionQ:
    case Role::kMlaQB:
    case Role::kMlaKvB:
      return {Stock::kHeads, CutAxis::kRows};
    case Role::kAttentionK:
    case Role::kAttentionV:
      return {Stock::kKvHeads, CutAxis::kRows};
    case Role::kAttentionO:
      return {Stock::kHeads, CutAxis::kCols};
    case Role::kMlpGate:
    case Role::kMlpUp:
    case Role::kExpertGate:
    case Role::kExpertUp:
    case Role::kSharedExpertGate:
    case Role::kSharedExpertUp:
      return {Stock::kInner, CutAxis::kRows};
    case Role::kMlpDown:
    case Role::kExpertDown:
    case Role::kSharedExpertDown:
      return {Stock::kInner, CutAxis::kCols};
    default:
      return {};
  }
}

int64_t SizeAlong(const PrecisionRow& row, CutAxis axis) {
  return axis == CutAxis::kRows ? row.shape.front() : row.shape.back();
}

// The MLP that a weight belongs to: gate, up and down are cut alike.
using InnerKey = std::tuple<int, int, bool, bool>;  // Layer, expert, shared, MTP.
InnerKey KeyOf(const WeightSpec& weight) {
  const bool is_shared = weight.role == Role::kSharedExpertGate ||
                         weight.role == Role::kSharedExpertUp ||
                         weight.role == Role::kSharedExpertDown;
  return {weight.layer, weight.expert, is_shared, weight.is_mtp};
}

class Planner {
 public:
  Planner(const ModelSpec& spec, const PrecisionTable& table, int64_t tp)
      : spec_(spec), table_(table), tp_(tp) {
    for (size_t i = 0; i < table.rows.size(); ++i) {
      const RoleCut cut = CutOfRole(table.rows[i].role);
      if (cut.stock == Stock::kInner) {
        int64_t& block = inner_blocks_.try_emplace(KeyOf(spec.weights[i]), 1).first->second;
        block = std::max(block, BlockAlong(table.rows[i].format, cut.axis));
      }
    }
  }

  TensorCut Plan(size_t row_idx) const;

 private:
  void CutHeads(int64_t num_heads, TensorCut* cut) const;
  void CutBlocks(TensorCut* cut) const;
  std::string Refusal(const PrecisionRow& row, const TensorCut& cut, std::string_view why) const {
    return fmt::format("{}: axis {} of {} at TP {}: {}", row.name,
                       cut.axis == CutAxis::kRows ? 0 : 1, cut.size, tp_, why);
  }

  const ModelSpec& spec_;
  const PrecisionTable& table_;
  const int64_t tp_;
  std::map<InnerKey, int64_t> inner_blocks_;
};

// Heads are never split and every rank has as many.
void Planner::CutHeads(int64_t num_heads, TensorCut* cut) const {
  const int64_t head_size = cut->size / num_heads;
  int64_t extent = 0;
  if (num_heads % tp_ == 0) {
    extent = num_heads / tp_ * head_size;
  } else if (num_heads < spec_.num_heads && tp_ % num_heads == 0) {
    extent = head_size;
    cut->ranks_per_slice = tp_ / num_heads;
  } else {
    cut->reason = fmt::format("{} heads do not divide among the ranks", num_heads);
    return;
  }
  if (extent < cut->size && extent % cut->block != 0) {
    cut->reason =
        fmt::format("a slice of {} is no multiple of the block of {}", extent, cut->block);
    return;
  }
  cut->verdict = CutVerdict::kEven;
  cut->extents.assign(static_cast<size_t>(tp_), extent);
}

void Planner::CutBlocks(TensorCut* cut) const {
  Result<std::vector<int64_t>> extents = CutWholeBlocks(cut->size, cut->block, tp_);
  if (!extents.has_value()) {
    cut->reason = extents.error().message();
    return;
  }
  const bool is_even =
      std::ranges::all_of(*extents, [&](int64_t extent) { return extent == extents->front(); });
  cut->verdict = is_even ? CutVerdict::kEven : CutVerdict::kUneven;
  cut->extents = *std::move(extents);
}

TensorCut Planner::Plan(size_t row_idx) const {
  const PrecisionRow& row = table_.rows[row_idx];
  const RoleCut role = CutOfRole(row.role);
  if (role.stock == Stock::kNothing) {
    return {};
  }
  TensorCut cut = {.axis = role.axis,
                   .verdict = CutVerdict::kRefused,
                   .size = SizeAlong(row, role.axis),
                   .block = BlockAlong(row.format, role.axis)};
  switch (role.stock) {
    case Stock::kHeads:
      CutHeads(spec_.num_heads, &cut);
      break;
    case Stock::kKvHeads:
      CutHeads(spec_.num_kv_heads, &cut);
      break;
    case Stock::kInner:
      cut.block = inner_blocks_.at(KeyOf(spec_.weights[row_idx]));
      CutBlocks(&cut);
      break;
    case Stock::kVocabulary:
    case Stock::kNothing:
      CutBlocks(&cut);
      break;
  }
  if (cut.verdict == CutVerdict::kRefused) {
    cut.reason = Refusal(row, cut, cut.reason);
  }
  return cut;
}

}  // namespace

int64_t BlockAlong(WeightFormat format, CutAxis axis) {
  // Scales of a row or of the tensor are on every rank; no cut touches them.
  if (axis == CutAxis::kNone || format == WeightFormat::kBf16 ||
      format == WeightFormat::kFp8Channel || format == WeightFormat::kFp8Tensor) {
    return 1;
  }
  const BlockGrid grid = BlockGridOf(format, 1, 1);
  return axis == CutAxis::kRows ? grid.block_rows : grid.block_cols;
}

bool NeedsSharedAmax(WeightFormat format, CutAxis axis) {
  if (axis == CutAxis::kNone) {
    return false;
  }
  return SharesScale(format) || (format == WeightFormat::kFp8Channel && axis == CutAxis::kCols);
}

BlockRange BlocksTouched(int64_t offset, int64_t size, int64_t block) {
  CHECK(offset >= 0);
  CHECK(size >= 0);
  CHECK(block > 0);
  const int64_t first = offset / block;
  const int64_t end = (offset + size + block - 1) / block;
  return {.first = first, .count = size == 0 ? 0 : end - first};
}

Result<std::vector<int64_t>> CutWholeBlocks(int64_t size, int64_t block, int64_t tp) {
  const int64_t num_blocks = (size + block - 1) / block;
  if (num_blocks < tp) {
    return InvalidArgument("{} blocks of {} are fewer than the ranks", num_blocks, block);
  }
  std::vector<int64_t> extents;
  int64_t begin = 0;
  for (int64_t rank = 0; rank < tp; ++rank) {
    const int64_t blocks = num_blocks / tp + (rank < num_blocks % tp ? 1 : 0);
    const int64_t end = std::min(begin + blocks * block, size);
    extents.push_back(end - begin);
    begin = end;
  }
  return extents;
}

std::string_view CutVerdictName(CutVerdict verdict) {
  switch (verdict) {
    case CutVerdict::kReplicated:
      return "replicated";
    case CutVerdict::kEven:
      return "even";
    case CutVerdict::kUneven:
      return "uneven";
    case CutVerdict::kRefused:
      return "refused";
  }
  return "";
}

bool TensorParallelPlan::is_even() const {
  return std::ranges::none_of(cuts, [](const TensorCut& cut) {
    return cut.verdict == CutVerdict::kUneven || cut.verdict == CutVerdict::kRefused;
  });
}

std::string_view TensorParallelPlan::refusal() const {
  for (const TensorCut& cut : cuts) {
    if (cut.verdict == CutVerdict::kRefused) {
      return cut.reason;
    }
  }
  return "";
}

Result<TensorParallelPlan> PlanTensorParallel(const ModelSpec& spec, const PrecisionTable& table,
                                              int64_t tp) {
  if (tp < 1) {
    return InvalidArgument("tp: expected at least 1, got {}", tp);
  }
  CHECK(table.rows.size() == spec.weights.size());
  const Planner planner(spec, table, tp);
  TensorParallelPlan plan{.tp = tp};
  plan.cuts.reserve(table.rows.size());
  for (size_t i = 0; i < table.rows.size(); ++i) {
    plan.cuts.push_back(planner.Plan(i));
  }
  return plan;
}

}  // namespace octavo
