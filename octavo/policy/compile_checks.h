#pragma once
// What a decided table must hold, so that a policy says what its author means and engines can serve
// it. Errors name the rule.

#include <vector>

#include "octavo/base/status.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/compile_rules.h"
#include "octavo/policy/precision_table.h"

namespace octavo {

// kInvalidArgument for a rule that matches nothing, with patterns that would match, or wins
// nowhere, with the rules that took its weights.
Status CheckRulesTookPart(const ModelSpec& spec, const PrecisionTable& table,
                          const std::vector<CompiledRule>& rules);

// kInvalidArgument when the members of a fused set, or the routed experts of a layer, differ in
// format.
Status CheckNothingIsSplit(const ModelSpec& spec, const PrecisionTable& table,
                           const std::vector<CompiledRule>& rules);

// kUnsupported when no configuration can state the formats of the table side by side, or when its
// layout has none for them.
Status CheckFormatsGoTogether(const PrecisionTable& table);

}  // namespace octavo
