#include "octavo/policy/policy_presets.h"

#include <fmt/core.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/policy/keep_pattern.h"
#include "octavo/policy/policy_file.h"
#include "octavo/policy/precision_table.h"

namespace octavo {
namespace {

constexpr auto kPresets = std::to_array<PolicyPreset>({
    {"miles-fp8", "convert_hf_to_fp8.py of miles with 128x128 blocks: every linear weight.",
     R"(format = "fp8"
)"},
    {"miles-mxfp8", "convert_hf_to_mxfp8.py of miles: every linear weight but kv_b_proj.",
     R"(format = "mxfp8"
)"},
    {"miles-nvfp4",
     "convert_hf_to_nvfp4.py of miles: routed experts; shared experts, attention and MTP stay.",
     R"(format = "nvfp4"
scope = "experts"
)"},
    {"slime-fp8", "convert_hf_to_fp8.py of slime with 128x128 blocks: every linear weight.",
     R"(format = "fp8"
)"},
    {"slime-fp8-channel", "The same with --strategy channel.",
     R"(format = "fp8-channel"
)"},
    {"deepseek-fp8", "As DeepSeek-V3.1 is published: blocks with power-of-two scales.",
     R"(format = "fp8-ue8m0"
)"},
    {"modelopt-nvfp4", "NVFP4_DEFAULT_CFG of ModelOpt: every linear weight but kv_b_proj.",
     R"(format = "nvfp4"
scope = "all"
)"},
    {"modelopt-nvfp4-mlp", "NVFP4_MLP_ONLY_CFG of ModelOpt: experts and MLPs.",
     R"(format = "nvfp4"
scope = "mlp"
)"},
    {"llm-compressor-fp8", "FP8_DYNAMIC of llm-compressor: every linear weight, by channel.",
     R"(format = "fp8-channel"
)"},
    {"llm-compressor-nvfp4", "NVFP4 of llm-compressor: every linear weight, packed.",
     R"(format = "nvfp4"
scope = "all"
layout = "compressed-tensors"
)"},
    {"nvfp4-experts-fp8-rest",
     "Routed experts in NVFP4, every other linear weight in FP8 by channel; kv_b_proj stays.",
     R"(format = "fp8-channel"
layout = "compressed-tensors"
[[rule]]
role = "mla.kv_b"
format = "bf16"
optional = true
[[rule]]
role = "expert"
format = "nvfp4"
)"},
});
constexpr size_t kMaxSuggestions = 3;

}  // namespace

std::span<const PolicyPreset> AllPolicyPresets() { return kPresets; }

Result<PolicyOptions> PresetPolicy(std::string_view name) {
  const auto* const found = std::ranges::find(kPresets, name, &PolicyPreset::name);
  if (found != kPresets.end()) {
    return ParsePolicyFile(found->text, fmt::format("preset {}", name));
  }
  std::vector<std::string> names;
  names.reserve(kPresets.size());
  for (const PolicyPreset& preset : kPresets) {
    names.emplace_back(preset.name);
  }
  const std::vector<std::string> near = NearestNames(name, names, kMaxSuggestions);
  return InvalidArgument("preset {}: there is none of that name; {}: {}", name,
                         near.empty() ? "known" : "nearest",
                         fmt::join(near.empty() ? names : near, ", "));
}

}  // namespace octavo
