#include "octavo/cli/planned_model.h"

#include <fmt/format.h>

#include <cstdio>
#include <optional>
#include <string>
#include <utility>

#include "octavo/base/status.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/checkpoint/hf_config.h"
#include "octavo/cli/commands.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"

namespace octavo {
namespace {

// With the names that the tensors have; a folder of config.json alone is planned too.
Result<ModelSpec> SpecOf(const std::string& model, const HfConfig& config) {
  const Result<Checkpoint> checkpoint = Checkpoint::Open(model);
  if (checkpoint) {
    return MakeCheckpointSpec(*checkpoint);
  }
  if (checkpoint.error().code() != StatusCode::kNotFound) {
    return checkpoint.error();
  }
  return MakeModelSpec(config);
}

// By the policy, or as it is stored. A policy beside a checkpoint that stores something else is
// what a conversion would make of it.
Result<PrecisionTable> PlannedTable(const ModelSpec& spec, const HfConfig& config,
                                    const std::optional<PolicyOptions>& policy) {
  if (!policy.has_value()) {
    return TableFromQuantizationConfig(spec, config.quantization_config);
  }
  ASSIGN_OR_RETURN(PrecisionTable table, CompilePolicy(spec, *policy));
  if (!config.quantization_config.empty()) {
    const auto stored = TableFromQuantizationConfig(spec, config.quantization_config);
    if (!stored || stored->Hash() != table.Hash()) {
      fmt::print(stderr,
                 "octavo: the checkpoint stores another table: this is what `octavo convert` would "
                 "write\n");
    }
  }
  return table;
}

}  // namespace

Result<PlannedModel> PlanModel(const std::string& model, const PolicyFlags& flags) {
  ASSIGN_OR_RETURN(const std::optional<PolicyOptions> policy, ParsePolicy(flags));
  ASSIGN_OR_RETURN(const HfConfig config, ReadHfConfig(model));
  ASSIGN_OR_RETURN(ModelSpec spec, SpecOf(model, config));
  ASSIGN_OR_RETURN(PrecisionTable table, PlannedTable(spec, config, policy));
  return PlannedModel{.spec = std::move(spec), .table = std::move(table)};
}

}  // namespace octavo
