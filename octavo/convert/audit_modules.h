#pragma once
// What the tensors of a checkpoint say by themselves: which weights are stored as codes, in which
// format, with which scales. Configuration and model are not asked, for they may be wrong.

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/tensor.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/convert/source.h"
#include "octavo/formats/format.h"
#include "octavo/policy/precision_table.h"

namespace octavo {

// A weight that is stored as codes. Pointers are into the checkpoint; null where nothing is stored.
struct StoredModule {
  std::string name = {};  // "model.layers.0.mlp.up_proj"; of a stacked tensor its full name.
  std::string weight =
      {};  // Name of the weight: module + ".weight", or that of the stacked tensor.
  const StoredTensor* codes = nullptr;
  const StoredTensor* scales =
      nullptr;  // Per block, channel, group, or of the tensor (fp8-tensor).
  const StoredTensor* global = nullptr;  // nvfp4.
  const StoredTensor* input = nullptr;   // Activation scale.
  // What the parts are together; nullopt when they make no format of ours.
  std::optional<WeightFormat> format = {};
  StoredLayout layout = StoredLayout::kDefault;
  bool ct_names = false;  // Names of compressed-tensors for blocks or MX groups: weight_scale.
  int64_t stack = 1;      // Matrices in a stacked tensor.
  int64_t rows = 0;       // Of one matrix, in values.
  int64_t cols = 0;

  // Whether dtypes and shapes are complete, so that codes can be decoded.
  bool IsSound() const { return format.has_value() && is_sound; }
  bool is_sound = false;
};

struct StoredModules {
  std::map<std::string, StoredModule, std::less<>> by_weight;
  std::vector<const StoredTensor*> orphans;    // Scales of nothing, by name.
  std::vector<const StoredTensor*> kv_scales;  // k_scale, v_scale.
};

// `prefers_ue8m0`: the configuration says scale_fmt ue8m0, which tells fp8-ue8m0 from fp8.
StoredModules FindStoredModules(const Checkpoint& checkpoint, bool prefers_ue8m0);

// Codes and scales of all modules.
std::set<const StoredTensor*> PartsOfModules(const StoredModules& modules);

// The shapes that the scales of `module` may have, the usual one first. Empty for formats whose
// scale is a single value.
std::vector<Shape> ScaleShapes(const StoredModule& module);

// The module as something to decode. Requires IsSound() and stack == 1.
WeightSource SourceOf(const StoredModule& module);

// "self_attn.qkv_proj" for members of one fused set, by their last name; empty for other modules.
std::string FusedSetName(std::string_view module);

}  // namespace octavo
