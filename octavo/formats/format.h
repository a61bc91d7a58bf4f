#pragma once
// The weight formats that Octavo knows by name.

#include <optional>
#include <string_view>

namespace octavo {

enum class WeightFormat {
  kBf16,  // Two bytes, no scale.
  kFp8,   // E4M3 in 128x128 blocks, one FP32 scale each (docs/formats.md).
};

// "bf16", "fp8": the spelling of --format.
std::string_view WeightFormatName(WeightFormat format);
// Inverse of WeightFormatName; nullopt for any other text.
std::optional<WeightFormat> ParseWeightFormat(std::string_view name);

}  // namespace octavo
