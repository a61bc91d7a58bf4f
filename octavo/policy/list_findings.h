#pragma once
// What is odd about the list of a configuration, as one engine reads it: for PlanAs.

#include <span>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/dialect.h"
#include "octavo/policy/engine_modules.h"
#include "octavo/policy/plan_as.h"
#include "octavo/policy/policy_finding.h"
#include "octavo/policy/quantization_fields.h"

namespace octavo {

struct ListFindingsInput {
  const ModelSpec* spec = nullptr;
  ForeignEngine engine = ForeignEngine::kSglang;
  Dialect dialect = Dialect::kSglangFp8;
  const QuantizationFields* fields = nullptr;
  std::span<const PlannedModule> modules;  // Judged by this engine.
};

// Codes, all warnings:
//   list-hidden        one key of the configuration hides another that is filled
//   kept-by-one-expert a container of experts is kept only because single experts are listed
//   entry-fused-name   an entry names a fused module that is quantized: only its shards are
//   compared entry-unmatched    an entry reaches no module, nor stands there for another engine
// Errors: those of MakeReader.
Result<std::vector<PolicyFinding>> ListFindings(const ListFindingsInput& input);

}  // namespace octavo
