#pragma once
// What flags of policy make of a model folder, for commands that write nothing.

#include <string>

#include "octavo/base/status.h"
#include "octavo/cli/commands.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"

namespace octavo {

struct PlannedModel {
  ModelSpec spec;
  PrecisionTable table;
};

// A folder of config.json alone will do. Errors: those of the config, the spec and the policy.
Result<PlannedModel> PlanModel(const std::string& model, const PolicyFlags& flags);

}  // namespace octavo
