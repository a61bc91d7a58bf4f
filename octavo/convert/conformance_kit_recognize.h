#pragma once
// Which rules explain an output: every combination of rules is tried on every scale, and then on
// every code.

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/convert/conformance_kit.h"

namespace octavo {

// Values that share a scale (a block, a row, a group, or a whole tensor), with what was made of
// them.
struct KitUnit {
  size_t tensor_idx = 0;            // Into KitOutput::tensors.
  std::vector<float> values = {};   // Of the input.
  std::vector<uint8_t> codes = {};  // One a value: E4M3 bytes or E2M1 nibbles.
  // The largest magnitude: of the values, and if padding repeats the last value of the matrix.
  float amax = 0.0F;
  float padded_amax = 0.0F;
  float scale = 0.0F;  // As stored, for formats with FP32 scales.
  uint8_t byte = 0;    // As stored, for mxfp8 (E8M0) and nvfp4 (E4M3).
};

// A matrix of the output.
struct KitTensor {
  float set_amax = 0.0F;  // Of its scale-sharing set.
  float own_amax = 0.0F;
  float global = 1.0F;  // As stored: fp8-tensor's scale, nvfp4's factor or divisor.
};

// What one format's file holds, as far as it can be read.
struct KitOutput {
  std::string format;
  std::vector<KitTensor> tensors;
  std::vector<KitUnit> units;
};

// One rule for each aspect of the format. Thread-safe.
std::vector<KitRule> RecognizeRules(const KitOutput& output);

// The quantizers in use whose rules are those of `rules` in every aspect.
std::vector<std::string> QuantizersWithRules(std::string_view format,
                                             const std::vector<KitRule>& rules);

}  // namespace octavo
