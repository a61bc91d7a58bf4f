#include "octavo/policy/precision_table.h"

#include <fmt/core.h>

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/check.h"
#include "octavo/base/hash.h"
#include "octavo/base/tensor.h"
#include "octavo/formats/format.h"
#include "octavo/formats/fp8_block.h"

namespace octavo {

const PrecisionRow* PrecisionTable::Find(std::string_view name) const {
  const auto row = std::ranges::find(rows, name, &PrecisionRow::name);
  return row == rows.end() ? nullptr : &*row;
}

std::string PrecisionTable::Hash() const {
  std::vector<std::string> lines;
  lines.reserve(rows.size());
  for (const PrecisionRow& row : rows) {
    lines.push_back(fmt::format("{} {}\n", row.name, WeightFormatName(row.format)));
  }
  // Names hold no byte below the blank that follows them, so lines sort as their names do.
  std::ranges::sort(lines);
  std::string text;
  for (const std::string& line : lines) {
    text += line;
  }
  return HashHex(HashText(text));
}

std::vector<StoredTensorSpec> StoredTensorsOf(const PrecisionRow& row) {
  switch (row.format) {
    case WeightFormat::kBf16:
      return {{row.name, DType::kBf16, row.shape}};
    case WeightFormat::kFp8:
      CHECK(row.shape.size() == 2U);
      return {{row.name, DType::kF8E4m3, row.shape},
              {row.name + "_scale_inv",
               DType::kF32,
               {NumFp8Blocks(row.shape[0]), NumFp8Blocks(row.shape[1])}}};
  }
  return {};
}

}  // namespace octavo
