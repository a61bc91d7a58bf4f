#pragma once
// What a table costs to store.

#include <cstdint>
#include <vector>

#include "octavo/policy/precision_table.h"

namespace octavo {

struct FormatSize {
  WeightFormat format = WeightFormat::kBf16;
  int64_t num_tensors = 0;   // Weights, not counting their scales.
  int64_t stored_bytes = 0;  // Codes and scales.
  int64_t bf16_bytes = 0;    // The same weights in BF16.
};

// Bytes of the tensors of StoredTensorsOf(row, layout).
int64_t StoredBytes(const PrecisionRow& row, StoredLayout layout = StoredLayout::kDefault);
int64_t Bf16Bytes(const PrecisionRow& row);

// One element a format that occurs, in the order of WeightFormat.
std::vector<FormatSize> FormatSizesOf(const PrecisionTable& table);

}  // namespace octavo
