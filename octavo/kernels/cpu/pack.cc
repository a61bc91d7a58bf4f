// Canonical weights to panels and back. Pure moves of bytes; the layouts are described in layout.h.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <utility>

#include "octavo/base/buffer.h"
#include "octavo/base/check.h"
#include "octavo/base/status.h"
#include "octavo/formats/format.h"
#include "octavo/formats/quantize.h"
#include "octavo/kernels/check_args.h"
#include "octavo/kernels/cpu/cpu_path.h"
#include "octavo/kernels/cpu/layout.h"
#include "octavo/kernels/matrix.h"

namespace octavo::cpu {
namespace {

bool IsVector(const PackedMatrix& packed) {
  return packed.format == WeightFormat::kBf16 && packed.rows == 1;
}

// Bytes of a canonical row of codes.
int64_t CodeRowBytes(const PackedMatrix& packed) {
  return packed.format == WeightFormat::kBf16 ? 2 * packed.cols
                                              : CodeBytes(packed.format, 1, packed.cols);
}

// Rows of scales that lie in runs; 0 where scales stay canonical.
int64_t ScaleRunBytes(const PackedMatrix& packed) {
  const bool has_runs =
      packed.format == WeightFormat::kMxfp8 || packed.format == WeightFormat::kNvfp4;
  return has_runs ? ScaleBytes(packed.format, 1, packed.cols) : 0;
}

int64_t CodePanelBytes(const PackedMatrix& packed) {
  const int64_t depth = RoundUp(packed.cols, kTileDepth);
  switch (packed.format) {
    case WeightFormat::kBf16:
      return depth * kPanelCols * 2;
    case WeightFormat::kNvfp4:
      return RunPanelBytes(depth / 2);
    default:
      return depth * kPanelCols;
  }
}

// A row's bytes in steps that stay together in a panel: calls move(panel_byte, row_byte, bytes),
// where panel bytes count from the row's panel.
template <typename Move>
void ForEachStep(WeightFormat format, int64_t row, int64_t row_bytes, Move move) {
  const int64_t n = row % kPanelCols;
  if (format == WeightFormat::kBf16) {
    for (int64_t at = 0; at < row_bytes; at += 4) {
      move(PanelElem(at / 2, n) * 2, at, std::min<int64_t>(4, row_bytes - at));
    }
  } else {
    for (int64_t at = 0; at < row_bytes; at += 2) {
      move(Fp8PanelByte(at, n), at, std::min<int64_t>(2, row_bytes - at));
    }
  }
}

template <typename Move>
void ForEachRun(int64_t row, int64_t row_bytes, Move move) {
  const int64_t n = row % kPanelCols;
  for (int64_t at = 0; at < row_bytes; at += 4) {
    move(at * kPanelCols + n * 4, at, std::min<int64_t>(4, row_bytes - at));
  }
}

template <typename Move>
void ForEachCodeStep(const PackedMatrix& packed, int64_t row, Move move) {
  if (packed.format == WeightFormat::kNvfp4) {
    ForEachRun(row, CodeRowBytes(packed), move);
  } else {
    ForEachStep(packed.format, row, CodeRowBytes(packed), move);
  }
}

void PackRunRows(const std::byte* from, int64_t rows, int64_t row_bytes, std::byte* to) {
  for (int64_t row = 0; row < rows; ++row) {
    std::byte* panel = to + row / kPanelCols * RunPanelBytes(row_bytes);
    const std::byte* canonical = from + row * row_bytes;
    ForEachRun(row, row_bytes, [=](int64_t panel_byte, int64_t row_byte, int64_t bytes) {
      std::memcpy(panel + panel_byte, canonical + row_byte, static_cast<size_t>(bytes));
    });
  }
}

Status PackScales(const CanonicalMatrix& canonical, PackedMatrix* made) {
  const int64_t run_bytes = ScaleRunBytes(*made);
  const auto canonical_bytes = static_cast<int64_t>(canonical.scales.size_bytes());
  ASSIGN_OR_RETURN(
      made->scales,
      Buffer::AllocateHost(run_bytes == 0 ? canonical_bytes
                                          : NumPanels(made->rows) * RunPanelBytes(run_bytes)));
  if (run_bytes != 0) {
    PackRunRows(canonical.scales.data(), made->rows, run_bytes, made->scales.data());
  } else if (canonical_bytes != 0) {
    std::memcpy(made->scales.data(), canonical.scales.data(), canonical.scales.size_bytes());
  }
  return OkStatus();
}

}  // namespace

Status PackPanels(const CanonicalMatrix& canonical, PackedMatrix* packed) {
  RETURN_IF_ERROR(CheckCanonical(canonical));
  PackedMatrix made;
  made.format = canonical.format;
  made.rows = canonical.rows;
  made.cols = canonical.cols;
  made.tensor_scale = canonical.tensor_scale;
  made.tensor_scale_divides = canonical.tensor_scale_divides;
  made.input = canonical.input;
  made.input_scale = canonical.input_scale;
  RETURN_IF_ERROR(PackScales(canonical, &made));
  const std::byte* from = canonical.codes.data();
  if (IsVector(made)) {
    ASSIGN_OR_RETURN(made.codes, Buffer::AllocateHost(made.cols * 2));
    std::memcpy(made.codes.data(), from, canonical.codes.size());
  } else {
    ASSIGN_OR_RETURN(made.codes, Buffer::AllocateHost(NumPanels(made.rows) * CodePanelBytes(made)));
    for (int64_t row = 0; row < made.rows; ++row) {
      std::byte* panel = made.codes.data() + row / kPanelCols * CodePanelBytes(made);
      const std::byte* row_codes = from + row * CodeRowBytes(made);
      ForEachCodeStep(made, row, [=](int64_t panel_byte, int64_t row_byte, int64_t bytes) {
        std::memcpy(panel + panel_byte, row_codes + row_byte, static_cast<size_t>(bytes));
      });
    }
  }
  *packed = std::move(made);
  return OkStatus();
}

void UnpackPanels(const PackedMatrix& packed, int64_t first_row, int64_t num_rows,
                  std::span<std::byte> codes) {
  const int64_t row_bytes = CodeRowBytes(packed);
  CHECK(first_row >= 0);
  CHECK(num_rows >= 0);
  CHECK(first_row + num_rows <= packed.rows);
  CHECK(static_cast<int64_t>(codes.size()) == num_rows * row_bytes);
  if (IsVector(packed)) {
    std::memcpy(codes.data(), packed.codes.data(), codes.size());
    return;
  }
  for (int64_t row = first_row; row < first_row + num_rows; ++row) {
    const std::byte* panel = packed.codes.data() + row / kPanelCols * CodePanelBytes(packed);
    std::byte* to = codes.data() + (row - first_row) * row_bytes;
    ForEachCodeStep(packed, row, [=](int64_t panel_byte, int64_t row_byte, int64_t bytes) {
      std::memcpy(to + row_byte, panel + panel_byte, static_cast<size_t>(bytes));
    });
  }
}

void UnpackPanelScales(const PackedMatrix& packed, std::span<std::byte> scales) {
  const int64_t row_bytes = ScaleRunBytes(packed);
  if (row_bytes == 0) {
    const std::span<const std::byte> stored = packed.scales.bytes();
    CHECK(scales.size() == stored.size());
    std::copy(stored.begin(), stored.end(), scales.begin());
    return;
  }
  CHECK(static_cast<int64_t>(scales.size()) == packed.rows * row_bytes);
  for (int64_t row = 0; row < packed.rows; ++row) {
    const std::byte* panel = packed.scales.data() + row / kPanelCols * RunPanelBytes(row_bytes);
    std::byte* to = scales.data() + row * row_bytes;
    ForEachRun(row, row_bytes, [=](int64_t panel_byte, int64_t row_byte, int64_t bytes) {
      std::memcpy(to + row_byte, panel + panel_byte, static_cast<size_t>(bytes));
    });
  }
}

void UnpackRow(const PackedMatrix& packed, int64_t row, uint16_t* y) {
  UnpackPanels(packed, row, 1,
               {reinterpret_cast<std::byte*>(y), static_cast<size_t>(packed.cols * 2)});
}

}  // namespace octavo::cpu
