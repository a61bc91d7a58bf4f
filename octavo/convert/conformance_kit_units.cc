// AppendUnits of conformance_kit_recognize.h: a matrix cut into what shares a scale.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <utility>

#include "octavo/base/tensor.h"
#include "octavo/convert/conformance_kit_recognize.h"
#include "octavo/convert/stored_values.h"

namespace octavo {
namespace {

constexpr int64_t kBlockEdge = 128;

struct Place {
  int64_t row = 0;
  int64_t col = 0;
};

uint8_t ByteAt(const ConstTensorView& view, int64_t idx) {
  return static_cast<uint8_t>(view.data[idx]);
}

// The values and codes from `begin` on, as far as unit and matrix reach.
KitUnit UnitAt(const KitMatrix& matrix, const Place& begin, const KitUnitSize& size, bool packed) {
  KitUnit unit;
  const int64_t row_end = std::min(begin.row + size.rows, matrix.rows);
  const int64_t col_end = std::min(begin.col + size.cols, matrix.cols);
  for (int64_t row = begin.row; row < row_end; ++row) {
    for (int64_t col = begin.col; col < col_end; ++col) {
      const int64_t idx = row * matrix.cols + col;
      const float value = matrix.values[static_cast<size_t>(idx)];
      unit.values.push_back(value);
      unit.amax = std::max(unit.amax, std::fabs(value));
      unit.codes.push_back(
          packed ? static_cast<uint8_t>((ByteAt(matrix.codes, idx / 2) >> (idx % 2 * 4)) & 0xF)
                 : ByteAt(matrix.codes, idx));
    }
  }
  const bool is_whole = row_end - begin.row == size.rows && col_end - begin.col == size.cols;
  unit.padded_amax = is_whole ? unit.amax : std::max(unit.amax, std::fabs(matrix.last_value));
  return unit;
}

}  // namespace

KitUnitSize UnitSizeOf(std::string_view format, int64_t rows, int64_t cols) {
  if (format == "fp8" || format == "fp8-ue8m0") {
    return {.rows = kBlockEdge, .cols = kBlockEdge};
  }
  if (format == "fp8-channel") {
    return {.rows = 1, .cols = cols};
  }
  if (format == "fp8-tensor") {
    return {.rows = rows, .cols = cols};
  }
  return {.rows = 1, .cols = format == "mxfp8" ? 32 : 16};
}

void AppendUnits(const KitMatrix& matrix, int64_t num_units_max, KitOutput& output) {
  const bool packed = output.format.starts_with("nvfp4");
  const bool byte_scales = packed || output.format == "mxfp8";
  const KitUnitSize size = UnitSizeOf(output.format, matrix.rows, matrix.cols);
  const int64_t units_a_row = (matrix.cols + size.cols - 1) / size.cols;
  const int64_t value_rows = matrix.cols == 0 ? 0 : std::ssize(matrix.values) / matrix.cols;
  for (int64_t unit_idx = 0; unit_idx < num_units_max; ++unit_idx) {
    const Place begin = {.row = unit_idx / units_a_row * size.rows,
                         .col = unit_idx % units_a_row * size.cols};
    if (std::min(begin.row + size.rows, matrix.rows) > value_rows || begin.row >= matrix.rows) {
      break;
    }
    KitUnit unit = UnitAt(matrix, begin, size, packed);
    unit.tensor_idx = output.tensors.size();
    if (byte_scales) {
      unit.byte = ByteAt(matrix.scales, unit_idx);
    } else {
      unit.scale = ScaleAt(matrix.scales, static_cast<size_t>(unit_idx));
    }
    output.units.push_back(std::move(unit));
  }
  output.tensors.push_back(matrix.tensor);
}

}  // namespace octavo
