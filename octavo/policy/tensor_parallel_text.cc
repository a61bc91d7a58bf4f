// What TensorParallelPlan looks like to people and to scripts.

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/formats/format.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"
#include "octavo/policy/tensor_parallel.h"

namespace octavo {
namespace {

using Json = nlohmann::ordered_json;

// Weights that are cut alike: same role, shape, format and block.
struct Kind {
  const PrecisionRow* row = nullptr;  // The first.
  const TensorCut* cut = nullptr;
  int64_t num_alike = 0;
};

std::vector<Kind> KindsOf(const PrecisionTable& table, const TensorParallelPlan& plan) {
  std::vector<Kind> kinds;
  for (size_t i = 0; i < table.rows.size(); ++i) {
    const PrecisionRow& row = table.rows[i];
    const TensorCut& cut = plan.cuts[i];
    const auto known = std::ranges::find_if(kinds, [&](const Kind& kind) {
      return kind.row->role == row.role && kind.row->shape == row.shape &&
             kind.row->format == row.format && kind.cut->block == cut.block;
    });
    if (known != kinds.end()) {
      ++known->num_alike;
    } else {
      kinds.push_back({.row = &row, .cut = &cut, .num_alike = 1});
    }
  }
  return kinds;
}

// 1, 2, 4, ... 64, and `tp`.
std::vector<int64_t> SizesToTell(int64_t tp) {
  std::vector<int64_t> sizes = {1, 2, 4, 8, 16, 32, 64};
  if (std::ranges::find(sizes, tp) == sizes.end()) {
    sizes.push_back(tp);
    std::ranges::sort(sizes);
  }
  return sizes;
}

// "6144 x 2", "256 x 2, 128 x 2".
std::string ExtentsText(const TensorCut& cut) {
  std::string text;
  for (size_t i = 0; i < cut.extents.size();) {
    size_t end = i;
    while (end < cut.extents.size() && cut.extents[end] == cut.extents[i]) {
      ++end;
    }
    text += fmt::format("{}{} x {}", text.empty() ? "" : ", ", cut.extents[i], end - i);
    i = end;
  }
  return text;
}

std::string KindText(const Kind& kind) {
  const TensorCut& cut = *kind.cut;
  if (cut.verdict == CutVerdict::kRefused) {
    return fmt::format("  refused  {}\n", cut.reason);
  }
  std::string notes;
  if (cut.ranks_per_slice > 1) {
    notes += fmt::format(", {} ranks to a slice", cut.ranks_per_slice);
  }
  if (NeedsSharedAmax(kind.row->format, cut.axis)) {
    notes += ", ranks share the largest magnitude";
  }
  return fmt::format("  {:<8} {}: {} tensors, {}, axis {} of {} in blocks of {}: {}{}\n",
                     CutVerdictName(cut.verdict), kind.row->name, kind.num_alike,
                     WeightFormatName(kind.row->format), cut.axis == CutAxis::kRows ? 0 : 1,
                     cut.size, cut.block, ExtentsText(cut), notes);
}

Json KindJson(const Kind& kind) {
  const TensorCut& cut = *kind.cut;
  return {{"name", kind.row->name},
          {"role", RoleName(kind.row->role)},
          {"format", WeightFormatName(kind.row->format)},
          {"num_alike", kind.num_alike},
          {"axis", cut.axis == CutAxis::kNone ? Json() : Json(cut.axis == CutAxis::kRows ? 0 : 1)},
          {"size", cut.size},
          {"block", cut.block},
          {"extents", cut.extents},
          {"ranks_per_slice", cut.ranks_per_slice},
          {"needs_shared_amax", NeedsSharedAmax(kind.row->format, cut.axis)},
          {"verdict", CutVerdictName(cut.verdict)},
          {"reason", cut.reason}};
}

}  // namespace

Result<std::string> TensorParallelText(const ModelSpec& spec, const PrecisionTable& table,
                                       int64_t tp) {
  ASSIGN_OR_RETURN(const TensorParallelPlan plan, PlanTensorParallel(spec, table, tp));
  std::string text =
      fmt::format("tensor parallel {}: {}\n", tp,
                  !plan.is_legal() ? plan.refusal() : (plan.is_even() ? "legal" : "legal, uneven"));
  int64_t num_replicated = 0;
  for (const Kind& kind : KindsOf(table, plan)) {
    if (kind.cut->axis == CutAxis::kNone) {
      num_replicated += kind.num_alike;
    } else {
      text += KindText(kind);
    }
  }
  text += fmt::format("  {} more tensors whole on every rank\n", num_replicated);
  for (const int64_t size : SizesToTell(tp)) {
    ASSIGN_OR_RETURN(const TensorParallelPlan other, PlanTensorParallel(spec, table, size));
    text += fmt::format("TP {}: {}\n", size,
                        other.is_legal() ? (other.is_even() ? "legal" : "legal, uneven")
                                         : "refused: " + std::string(other.refusal()));
  }
  text.pop_back();
  return text;
}

Result<std::string> TensorParallelJson(const ModelSpec& spec, const PrecisionTable& table,
                                       int64_t tp) {
  ASSIGN_OR_RETURN(const TensorParallelPlan plan, PlanTensorParallel(spec, table, tp));
  Json tensors = Json::array();
  for (const Kind& kind : KindsOf(table, plan)) {
    tensors.push_back(KindJson(kind));
  }
  Json sizes = Json::array();
  for (const int64_t size : SizesToTell(tp)) {
    ASSIGN_OR_RETURN(const TensorParallelPlan other, PlanTensorParallel(spec, table, size));
    sizes.push_back({{"tp", size},
                     {"legal", other.is_legal()},
                     {"even", other.is_even()},
                     {"reason", other.refusal()}});
  }
  const Json json = {{"tp", tp},
                     {"legal", plan.is_legal()},
                     {"even", plan.is_even()},
                     {"reason", plan.refusal()},
                     {"tensors", std::move(tensors)},
                     {"sizes", std::move(sizes)}};
  // Replacing, because no name in a checkpoint may make this throw.
  return json.dump(-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
}

}  // namespace octavo
