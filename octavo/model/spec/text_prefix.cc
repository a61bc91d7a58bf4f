#include "octavo/model/spec/text_prefix.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "octavo/checkpoint/hf_config.h"

namespace octavo {
namespace {

constexpr std::string_view kWrappedPrefix = "language_model.model.";
// In the order in which a draw is decided.
constexpr std::array<std::string_view, 5> kPrefixes = {
    "model.", kWrappedPrefix, "model.language_model.", "model.text_model.", ""};
// The same with what stands before a wrapped head, longest first.
constexpr std::array<std::string_view, 5> kStripped = {
    kWrappedPrefix, "model.language_model.", "model.text_model.", "language_model.", "model."};
constexpr std::string_view kLayers = "layers.";

// N of "layers.N" or "layers.N.…"; -1 for anything else.
int64_t LayerOfStripped(std::string_view name) {
  if (!name.starts_with(kLayers)) {
    return -1;
  }
  name.remove_prefix(kLayers.size());
  const std::string_view digits = name.substr(0, name.find('.'));
  constexpr size_t kDigitsMax = 9;  // Far more layers than any model has, and no overflow.
  if (digits.empty() || digits.size() > kDigitsMax) {
    return -1;
  }
  int64_t layer = 0;
  for (const char digit : digits) {
    if (digit < '0' || digit > '9') {
      return -1;
    }
    layer = layer * 10 + (digit - '0');
  }
  return layer;
}

}  // namespace

bool IsTextPrefix(std::string_view prefix) {
  return std::find(kPrefixes.begin(), kPrefixes.end(), prefix) != kPrefixes.end();
}

std::string_view HeadNameOf(std::string_view prefix) {
  return prefix == kWrappedPrefix ? "language_model.lm_head.weight" : "lm_head.weight";
}

std::string DetectPrefix(std::span<const std::string_view> tensor_names, const HfConfig& config) {
  const int64_t num_layers = config.num_layers + config.num_mtp_layers;
  std::array<int64_t, kPrefixes.size()> counts = {};
  for (const std::string_view name : tensor_names) {
    for (size_t i = 0; i < kPrefixes.size(); ++i) {
      if (name.starts_with(kPrefixes[i])) {
        const int64_t layer = LayerOfStripped(name.substr(kPrefixes[i].size()));
        counts[i] += layer >= 0 && layer < num_layers ? 1 : 0;
      }
    }
  }
  const auto best = std::max_element(counts.begin(), counts.end());  // The first of equals.
  return std::string(kPrefixes[static_cast<size_t>(best - counts.begin())]);
}

std::string_view StripPrefix(std::string_view name) {
  for (const std::string_view prefix : kStripped) {
    if (name.starts_with(prefix)) {
      return name.substr(prefix.size());
    }
  }
  return name;
}

int64_t LayerOfName(std::string_view name) { return LayerOfStripped(StripPrefix(name)); }

}  // namespace octavo
