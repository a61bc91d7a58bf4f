#include "octavo/sync/weight_plan.h"

#include <algorithm>
#include <cstddef>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/check.h"
#include "octavo/base/status.h"
#include "octavo/kernels/matrix.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/model/spec/stacked_experts.h"
#include "octavo/model/spec/text_prefix.h"
#include "octavo/policy/precision_table.h"
#include "octavo/sync/arithmetic.h"

namespace octavo {
namespace {

bool IsStatic(InputForm input) {
  return input == InputForm::kFp8Static || input == InputForm::kNvfp4Static;
}

void AddTargets(size_t row_idx, const PrecisionRow& row, WeightPlan* plan) {
  const std::vector<StoredTensorSpec>& parts = plan->parts[row_idx];
  for (size_t part_idx = 0; part_idx < parts.size(); ++part_idx) {
    plan->targets.emplace(parts[part_idx].name, PutTarget{row_idx, part_idx, false});
  }
  // The codes of some layouts have another name than the weight.
  plan->targets.emplace(row.name, PutTarget{.row_idx = row_idx}).first->second.is_weight = true;
}

std::vector<std::vector<int>> StaticInputSets(const ModelSpec& spec,
                                              const std::vector<InputForm>& inputs) {
  std::vector<std::vector<int>> sets;
  std::vector<bool> has_set(inputs.size(), false);
  const auto add = [&](std::vector<int> members) {
    std::erase_if(members, [&](int row) { return !IsStatic(inputs[static_cast<size_t>(row)]); });
    for (const int row : members) {
      has_set[static_cast<size_t>(row)] = true;
    }
    if (!members.empty()) {
      sets.push_back(std::move(members));
    }
  };
  std::map<std::pair<int, bool>, std::vector<int>> experts;  // Of a layer: gate and up, or down.
  for (size_t i = 0; i < spec.weights.size(); ++i) {
    const WeightSpec& weight = spec.weights[i];
    if (IsExpertRole(weight.role)) {
      experts[{weight.layer, weight.role == Role::kExpertDown}].push_back(static_cast<int>(i));
    }
  }
  for (auto& [key, members] : experts) {
    add(std::move(members));
  }
  for (const FusedSet& set : FusedSetsOf(spec)) {
    if (!has_set[static_cast<size_t>(set.members.front())]) {
      add(set.members);
    }
  }
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (!has_set[i]) {
      add({static_cast<int>(i)});
    }
  }
  return sets;
}

}  // namespace

bool IsInputScale(StoredPart part) {
  return part == StoredPart::kInputScale || part == StoredPart::kInputDivisor;
}

int FindPart(const std::vector<StoredTensorSpec>& parts, StoredPart part) {
  const auto found = std::ranges::find(parts, part, &StoredTensorSpec::part);
  return found == parts.end() ? -1 : static_cast<int>(found - parts.begin());
}

Result<std::unique_ptr<const WeightPlan>> MakeWeightPlan(const ModelSpec& spec,
                                                         const PrecisionTable& table,
                                                         const ArithmeticOptions& options) {
  CHECK(spec.weights.size() == table.rows.size());
  auto plan = std::make_unique<WeightPlan>();
  plan->spec = &spec;
  plan->table = &table;
  ASSIGN_OR_RETURN(plan->inputs, InputFormsOf(table, options));
  plan->parts.reserve(table.rows.size());
  for (size_t row_idx = 0; row_idx < table.rows.size(); ++row_idx) {
    plan->parts.push_back(AcceptedTensorsOf(table.rows[row_idx], table.layout));
    AddTargets(row_idx, table.rows[row_idx], plan.get());
  }
  for (StackedSource& source : StackedSourcesOf(spec)) {
    std::string name = source.name;
    plan->stacked.emplace(std::move(name), std::move(source));
  }
  if (spec.tie_word_embeddings) {
    plan->tied_head = HeadNameOf(spec.prefix);
    plan->embedding_idx =
        static_cast<size_t>(std::ranges::find(spec.weights, Role::kEmbedding, &WeightSpec::role) -
                            spec.weights.begin());
    CHECK(plan->embedding_idx < spec.weights.size());
  }
  plan->scale_sets = SharedScaleSets(spec, table);
  plan->scale_set_of.assign(table.rows.size(), -1);
  for (size_t set_idx = 0; set_idx < plan->scale_sets.size(); ++set_idx) {
    for (const int row : plan->scale_sets[set_idx]) {
      plan->scale_set_of[static_cast<size_t>(row)] = static_cast<int>(set_idx);
    }
  }
  plan->static_input_sets = StaticInputSets(spec, plan->inputs);
  return std::unique_ptr<const WeightPlan>(std::move(plan));
}

}  // namespace octavo
