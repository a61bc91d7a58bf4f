#include "octavo/model/spec/text_prefix.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <system_error>

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
  int64_t layer = 0;
  const char* const end = name.data() + name.size();
  const auto [stop, error] = std::from_chars(name.data(), end, layer);
  const bool is_whole = error == std::errc() && (stop == end || *stop == '.');
  return is_whole && layer >= 0 ? layer : -1;
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
