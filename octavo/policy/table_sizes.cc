#include "octavo/policy/table_sizes.h"

#include <cstdint>
#include <vector>

#include "octavo/base/tensor.h"
#include "octavo/formats/format.h"
#include "octavo/policy/precision_table.h"

namespace octavo {

int64_t StoredBytes(const PrecisionRow& row, StoredLayout layout) {
  int64_t num_bytes = 0;
  for (const StoredTensorSpec& tensor : StoredTensorsOf(row, layout)) {
    num_bytes += NumElements(tensor.shape) * DTypeBytes(tensor.dtype);
  }
  return num_bytes;
}

int64_t Bf16Bytes(const PrecisionRow& row) {
  return NumElements(row.shape) * DTypeBytes(DType::kBf16);
}

std::vector<FormatSize> FormatSizesOf(const PrecisionTable& table) {
  std::vector<FormatSize> sizes;
  for (const WeightFormat format : AllWeightFormats()) {
    FormatSize size{.format = format};
    for (const PrecisionRow& row : table.rows) {
      if (row.format == format) {
        ++size.num_tensors;
        size.stored_bytes += StoredBytes(row, table.layout);
        size.bf16_bytes += Bf16Bytes(row);
      }
    }
    if (size.num_tensors > 0) {
      sizes.push_back(size);
    }
  }
  return sizes;
}

}  // namespace octavo
