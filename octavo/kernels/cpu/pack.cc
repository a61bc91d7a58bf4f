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
#include "octavo/kernels/cpu/kernel_table.h"
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

// How rows of codes or of scales lie in their panels.
struct RowsLayout {
  bool is_fp8 = false;  // Else 32-bit words: pairs of BF16, and runs.
  int64_t row_bytes = 0;
  int64_t panel_bytes = 0;
};

RowsLayout CodesLayout(const PackedMatrix& packed) {
  const bool is_words =
      packed.format == WeightFormat::kBf16 || packed.format == WeightFormat::kNvfp4;
  return {.is_fp8 = !is_words,
          .row_bytes = CodeRowBytes(packed),
          .panel_bytes = CodePanelBytes(packed)};
}

RowsLayout RunsLayout(int64_t row_bytes) {
  return {.is_fp8 = false, .row_bytes = row_bytes, .panel_bytes = RunPanelBytes(row_bytes)};
}

// A row's bytes from `begin` on in steps that stay together in a panel: calls
// move(panel_byte, row_byte, bytes), where panel bytes count from the row's panel.
template <typename Move>
void ForEachStep(const RowsLayout& layout, int64_t row, int64_t begin, Move move) {
  const int64_t n = row % kPanelCols;
  const int64_t step = layout.is_fp8 ? 2 : 4;
  for (int64_t at = begin; at < layout.row_bytes; at += step) {
    move(layout.is_fp8 ? Fp8PanelByte(at, n) : at * kPanelCols + n * 4, at,
         std::min(step, layout.row_bytes - at));
  }
}

// Calls whole(row) for the first of 16 rows that fill a panel, which returns how many bytes of each
// of them it moved, and rest(row, begin) for what is left of any row.
template <typename Whole, typename Rest>
void ForPanels(int64_t first_row, int64_t num_rows, Whole whole, Rest rest) {
  const int64_t end = first_row + num_rows;
  for (int64_t row = first_row; row < end;) {
    const bool is_whole = row % kPanelCols == 0 && row + kPanelCols <= end;
    const int64_t begin = is_whole ? whole(row) : 0;
    const int64_t next = is_whole ? row + kPanelCols : row + 1;
    for (; row < next; ++row) {
      rest(row, begin);
    }
  }
}

void PackRows(const LayoutKernels& kernels, const RowsLayout& layout, const std::byte* from,
              int64_t num_rows, std::byte* to) {
  const auto panel_of = [&](int64_t row) { return to + row / kPanelCols * layout.panel_bytes; };
  const auto whole = [&](int64_t row) {
    return kernels.pack({.is_fp8 = layout.is_fp8,
                         .from = from + row * layout.row_bytes,
                         .to = panel_of(row),
                         .row_bytes = layout.row_bytes,
                         .num_lines = layout.row_bytes / 4}) *
           4;
  };
  const auto rest = [&](int64_t row, int64_t begin) {
    ForEachStep(layout, row, begin, [&](int64_t panel_byte, int64_t row_byte, int64_t bytes) {
      std::memcpy(panel_of(row) + panel_byte, from + row * layout.row_bytes + row_byte,
                  static_cast<size_t>(bytes));
    });
  };
  ForPanels(0, num_rows, whole, rest);
}

// Some rows of panels.
struct PanelRows {
  const std::byte* panels = nullptr;
  int64_t first_row = 0;
  int64_t num_rows = 0;
};

void UnpackRows(const LayoutKernels& kernels, const RowsLayout& layout, const PanelRows& rows,
                std::byte* to) {
  const auto panel_of = [&](int64_t row) {
    return rows.panels + row / kPanelCols * layout.panel_bytes;
  };
  const auto row_at = [&](int64_t row) { return to + (row - rows.first_row) * layout.row_bytes; };
  const auto whole = [&](int64_t row) {
    return kernels.unpack({.is_fp8 = layout.is_fp8,
                           .from = panel_of(row),
                           .to = row_at(row),
                           .row_bytes = layout.row_bytes,
                           .num_lines = layout.row_bytes / 4}) *
           4;
  };
  const auto rest = [&](int64_t row, int64_t begin) {
    ForEachStep(layout, row, begin, [&](int64_t panel_byte, int64_t row_byte, int64_t bytes) {
      std::memcpy(row_at(row) + row_byte, panel_of(row) + panel_byte, static_cast<size_t>(bytes));
    });
  };
  ForPanels(rows.first_row, rows.num_rows, whole, rest);
}

Status PackScales(const LayoutKernels& kernels, const CanonicalMatrix& canonical,
                  PackedMatrix* made) {
  const int64_t run_bytes = ScaleRunBytes(*made);
  const auto canonical_bytes = static_cast<int64_t>(canonical.scales.size_bytes());
  ASSIGN_OR_RETURN(
      made->scales,
      Buffer::AllocateHost(run_bytes == 0 ? canonical_bytes
                                          : NumPanels(made->rows) * RunPanelBytes(run_bytes)));
  if (run_bytes != 0) {
    PackRows(kernels, RunsLayout(run_bytes), canonical.scales.data(), made->rows,
             made->scales.data());
  } else if (canonical_bytes != 0) {
    std::memcpy(made->scales.data(), canonical.scales.data(), canonical.scales.size_bytes());
  }
  return OkStatus();
}

}  // namespace

Status PackPanels(const LayoutKernels& kernels, const CanonicalMatrix& canonical,
                  PackedMatrix* packed) {
  RETURN_IF_ERROR(CheckCanonical(canonical));
  PackedMatrix made;
  made.format = canonical.format;
  made.rows = canonical.rows;
  made.cols = canonical.cols;
  made.tensor_scale = canonical.tensor_scale;
  made.tensor_scale_divides = canonical.tensor_scale_divides;
  made.input = canonical.input;
  made.input_scale = canonical.input_scale;
  RETURN_IF_ERROR(PackScales(kernels, canonical, &made));
  const std::byte* from = canonical.codes.data();
  if (IsVector(made)) {
    ASSIGN_OR_RETURN(made.codes, Buffer::AllocateHost(made.cols * 2));
    std::memcpy(made.codes.data(), from, canonical.codes.size());
  } else {
    ASSIGN_OR_RETURN(made.codes, Buffer::AllocateHost(NumPanels(made.rows) * CodePanelBytes(made)));
    PackRows(kernels, CodesLayout(made), from, made.rows, made.codes.data());
  }
  *packed = std::move(made);
  return OkStatus();
}

void UnpackPanels(const LayoutKernels& kernels, const PackedMatrix& packed, int64_t first_row,
                  int64_t num_rows, std::span<std::byte> codes) {
  CHECK(first_row >= 0);
  CHECK(num_rows >= 0);
  CHECK(first_row + num_rows <= packed.rows);
  CHECK(static_cast<int64_t>(codes.size()) == num_rows * CodeRowBytes(packed));
  if (IsVector(packed)) {
    std::memcpy(codes.data(), packed.codes.data(), codes.size());
    return;
  }
  UnpackRows(kernels, CodesLayout(packed),
             {.panels = packed.codes.data(), .first_row = first_row, .num_rows = num_rows},
             codes.data());
}

void UnpackPanelScales(const LayoutKernels& kernels, const PackedMatrix& packed,
                       std::span<std::byte> scales) {
  const int64_t row_bytes = ScaleRunBytes(packed);
  if (row_bytes == 0) {
    const std::span<const std::byte> stored = packed.scales.bytes();
    CHECK(scales.size() == stored.size());
    std::copy(stored.begin(), stored.end(), scales.begin());
    return;
  }
  CHECK(static_cast<int64_t>(scales.size()) == packed.rows * row_bytes);
  UnpackRows(kernels, RunsLayout(row_bytes),
             {.panels = packed.scales.data(), .first_row = 0, .num_rows = packed.rows},
             scales.data());
}

void UnpackRow(const PackedMatrix& packed, int64_t row, uint16_t* y) {
  if (IsVector(packed)) {
    std::memcpy(y, packed.codes.data(), static_cast<size_t>(packed.cols) * 2);
    return;
  }
  // Pairs of depths are words, and the panel begins at a multiple of 16 rows.
  const auto* panel = reinterpret_cast<const uint16_t*>(packed.codes.data()) +
                      row / kPanelCols * CodePanelBytes(packed) / 2;
  for (int64_t k = 0; k < packed.cols; k += 2) {
    std::memcpy(y + k, panel + PanelElem(k, row % kPanelCols),
                static_cast<size_t>(std::min<int64_t>(2, packed.cols - k)) * 2);
  }
}

}  // namespace octavo::cpu
