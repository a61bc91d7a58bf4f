#pragma once
// Policies that users know from other tools, by name: `preset` of a policy file, --preset.

#include <span>
#include <string_view>

#include "octavo/base/status.h"
#include "octavo/policy/precision_table.h"

namespace octavo {

struct PolicyPreset {
  std::string_view name;
  std::string_view summary;  // One sentence: whose policy it is and what it quantizes.
  std::string_view text;     // A policy file.
};

std::span<const PolicyPreset> AllPolicyPresets();

// Errors: kInvalidArgument for an unknown name, with the nearest ones.
Result<PolicyOptions> PresetPolicy(std::string_view name);

}  // namespace octavo
