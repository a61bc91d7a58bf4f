// Canonical weights to panels and back. Pure moves of bytes; the layout is described in layout.h.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <utility>

#include "octavo/base/buffer.h"
#include "octavo/base/check.h"
#include "octavo/base/status.h"
#include "octavo/formats/format.h"
#include "octavo/kernels/check_args.h"
#include "octavo/kernels/cpu/cpu_path.h"
#include "octavo/kernels/cpu/layout.h"
#include "octavo/kernels/matrix.h"

namespace octavo::cpu {
namespace {

bool IsVector(const PackedMatrix& packed) {
  return packed.format == WeightFormat::kBf16 && packed.rows == 1;
}

int64_t ElemBytes(WeightFormat format) { return format == WeightFormat::kBf16 ? 2 : 1; }

// Bytes of one panel.
int64_t PanelBytes(const PackedMatrix& packed) {
  return RoundUp(packed.cols, kTileDepth) * kPanelCols * ElemBytes(packed.format);
}

// Calls move(packed_byte, canonical_byte, num_bytes) for every pair of depths of rows
// [first_row, first_row + num_rows); canonical bytes count from first_row.
template <typename Move>
void ForEachPair(const PackedMatrix& packed, int64_t first_row, int64_t num_rows, Move move) {
  const bool is_bf16 = packed.format == WeightFormat::kBf16;
  const int64_t elem_bytes = ElemBytes(packed.format);
  const int64_t panel_bytes = PanelBytes(packed);
  for (int64_t i = 0; i < num_rows; ++i) {
    const int64_t row = first_row + i;
    const int64_t panel = row / kPanelCols * panel_bytes;
    const int64_t n = row % kPanelCols;
    const int64_t canonical = i * packed.cols * elem_bytes;
    const int64_t even_cols = packed.cols / 2 * 2;
    if (is_bf16) {
      for (int64_t k = 0; k < even_cols; k += 2) {
        move(panel + PanelElem(k, n) * 2, canonical + k * 2, 4);
      }
    } else {
      for (int64_t k = 0; k < even_cols; k += 2) {
        move(panel + Fp8PanelByte(k, n), canonical + k, 2);
      }
    }
    if (even_cols < packed.cols) {
      const int64_t to = is_bf16 ? PanelElem(even_cols, n) * 2 : Fp8PanelByte(even_cols, n);
      move(panel + to, canonical + even_cols * elem_bytes, elem_bytes);
    }
  }
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
  ASSIGN_OR_RETURN(made.scales,
                   Buffer::AllocateHost(static_cast<int64_t>(canonical.scales.size_bytes())));
  if (!canonical.scales.empty()) {
    std::memcpy(made.scales.data(), canonical.scales.data(), canonical.scales.size_bytes());
  }
  const std::byte* from = canonical.codes.data();
  if (IsVector(made)) {
    ASSIGN_OR_RETURN(made.codes, Buffer::AllocateHost(made.cols * 2));
    std::memcpy(made.codes.data(), from, canonical.codes.size());
  } else {
    ASSIGN_OR_RETURN(made.codes, Buffer::AllocateHost(NumPanels(made.rows) * PanelBytes(made)));
    std::byte* to = made.codes.data();
    // By panel and short runs of depth, so that the 64-byte lines written stay in the cache.
    ForEachPair(made, 0, made.rows, [=](int64_t panel_byte, int64_t canonical_byte, int64_t bytes) {
      std::memcpy(to + panel_byte, from + canonical_byte, static_cast<size_t>(bytes));
    });
  }
  *packed = std::move(made);
  return OkStatus();
}

void UnpackPanels(const PackedMatrix& packed, int64_t first_row, int64_t num_rows,
                  std::span<std::byte> codes) {
  CHECK(first_row >= 0);
  CHECK(num_rows >= 0);
  CHECK(first_row + num_rows <= packed.rows);
  CHECK(static_cast<int64_t>(codes.size()) == num_rows * packed.cols * ElemBytes(packed.format));
  if (IsVector(packed)) {
    std::memcpy(codes.data(), packed.codes.data(), codes.size());
    return;
  }
  const std::byte* from = packed.codes.data();
  std::byte* to = codes.data();
  ForEachPair(packed, first_row, num_rows,
              [=](int64_t panel_byte, int64_t canonical_byte, int64_t bytes) {
                std::memcpy(to + canonical_byte, from + panel_byte, static_cast<size_t>(bytes));
              });
}

void UnpackRow(const PackedMatrix& packed, int64_t row, uint16_t* y) {
  UnpackPanels(packed, row, 1,
               {reinterpret_cast<std::byte*>(y), static_cast<size_t>(packed.cols * 2)});
}

}  // namespace octavo::cpu
