#pragma once
// Which rules explain an output: every combination of rules is tried on every scale, and then on
// every code.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/tensor.h"
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

// A matrix and what was made of it. Views and spans outlive the call alone.
struct KitMatrix {
  int64_t rows = 0;
  int64_t cols = 0;
  std::span<const float> values;  // Whole rows, from the first on; maybe not all.
  float last_value = 0.0F;        // Of the whole matrix.
  ConstTensorView codes;          // Of all rows.
  ConstTensorView scales;         // F32 or BF16, or bytes for mxfp8 and nvfp4.
  KitTensor tensor;
};

// Rows and columns of the units of a format, in values.
struct KitUnitSize {
  int64_t rows = 0;
  int64_t cols = 0;
};
KitUnitSize UnitSizeOf(std::string_view format, int64_t rows, int64_t cols);

// Appends the matrix and those of its units whose values are all there, at most `num_units_max`.
void AppendUnits(const KitMatrix& matrix, int64_t num_units_max, KitOutput& output);

// One rule for each aspect of the format. Thread-safe.
std::vector<KitRule> RecognizeRules(const KitOutput& output);

// The quantizers in use whose rules are those of `rules` in every aspect.
std::vector<std::string> QuantizersWithRules(std::string_view format,
                                             const std::vector<KitRule>& rules);

}  // namespace octavo
