#pragma once
// The rules of a policy over the weight table of one model; CompilePolicy lets them compete.

#include <string>
#include <vector>

#include "octavo/formats/format.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"

namespace octavo {

struct CompiledRule {
  std::string text;    // As the user wrote it; stands in tables and messages.
  std::string reason;  // One sentence, the same for every weight that the rule wins.
  WeightFormat format = WeightFormat::kBf16;
  std::vector<std::string> patterns;  // Of --keep and [[rule]].
  // Not asked for by the user: it may match or win nothing.
  bool is_structural = false;
  // It may win nothing when its weights have its format anyway: [[rule]].
  bool may_agree = false;
  std::vector<bool> matches;  // One for each weight of the spec.
  int num_matched = 0;
  int num_won = 0;
};

// Strongest first; every weight is matched by one of them at least.
std::vector<CompiledRule> MakePolicyRules(const ModelSpec& spec, const PolicyOptions& options);

}  // namespace octavo
