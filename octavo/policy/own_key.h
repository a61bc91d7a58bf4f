#pragma once
// Names of the object that Octavo puts into quantization_config, shared by its writer and reader.

#include <string_view>

#include "octavo/policy/precision_table.h"

namespace octavo {

inline constexpr std::string_view kOwnKey = "octavo";
// Version of the object. A change of its meaning raises it.
inline constexpr int kOwnSchema = 1;

inline constexpr std::string_view LayoutName(StoredLayout layout) {
  return layout == StoredLayout::kDefault ? "default" : "compressed-tensors";
}

}  // namespace octavo
