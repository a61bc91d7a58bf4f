#pragma once
// The weight formats that Octavo knows by name (docs/formats.md).

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

namespace octavo {

enum class WeightFormat {
  kBf16,        // Two bytes, no scale.
  kFp8,         // E4M3 in 128x128 blocks, one FP32 scale each.
  kFp8Ue8m0,    // The same with scales that are powers of two.
  kFp8Channel,  // E4M3, one FP32 scale per row (output channel).
  kFp8Tensor,   // E4M3, one FP32 scale for the tensor, shared by the members of a fused set.
  kMxfp8,       // E4M3 in groups of 32 along a row, one E8M0 scale each.
  kNvfp4,       // E2M1 in groups of 16 along a row, one E4M3 scale each, one FP32 global scale that
                // the members of a fused set share.
};

// In the order above.
std::span<const WeightFormat> AllWeightFormats();

// "bf16", "fp8", "fp8-ue8m0", "fp8-channel", "fp8-tensor", "mxfp8", "nvfp4": the spelling of
// --format.
std::string_view WeightFormatName(WeightFormat format);
// Inverse of WeightFormatName; nullopt for any other text.
std::optional<WeightFormat> ParseWeightFormat(std::string_view name);

// The width of a row must be a multiple of this many values: 32 for mxfp8, 16 for nvfp4, 1 for the
// others. A matrix of another width stays BF16.
int64_t ColsMultipleOf(WeightFormat format);

// Whether one scale is computed from the largest magnitude of a whole fused set (gate/up, q/k/v,
// q_a/kv_a), so that all members must be seen before any is encoded: fp8-tensor and nvfp4.
bool SharesScale(WeightFormat format);

}  // namespace octavo
