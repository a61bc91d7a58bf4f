#include "octavo/formats/fp8_block.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>

#include "octavo/base/float_env.h"
#include "octavo/base/status.h"
#include "octavo/formats/bf16.h"
#include "octavo/formats/bf16_span.h"
#include "octavo/formats/e4m3.h"
#include "octavo/formats/fp8_block_simd.h"

namespace octavo {
namespace {

struct Lengths {
  int64_t rows;
  int64_t cols;
  size_t values;
  size_t codes;
  size_t scales;
};

Status CheckLength(std::string_view what, size_t actual, int64_t expected) {
  if (actual != static_cast<size_t>(expected)) {
    return InvalidArgument("fp8 block {}: expected {} elements, got {}", what, expected, actual);
  }
  return OkStatus();
}

Status CheckLengths(const Lengths& lengths) {
  if (lengths.rows < 0 || lengths.cols < 0) {
    return InvalidArgument("fp8 block matrix: expected extents of 0 or more, got [{}, {}]",
                           lengths.rows, lengths.cols);
  }
  int64_t elems = 0;
  if (__builtin_mul_overflow(lengths.rows, lengths.cols, &elems)) {
    return InvalidArgument("fp8 block matrix: [{}, {}] has too many elements", lengths.rows,
                           lengths.cols);
  }
  RETURN_IF_ERROR(CheckLength("values", lengths.values, elems));
  RETURN_IF_ERROR(CheckLength("codes", lengths.codes, elems));
  return CheckLength("scales", lengths.scales,
                     NumFp8Blocks(lengths.rows) * NumFp8Blocks(lengths.cols));
}

Status CheckEncode(const Fp8BlockEncodeArgs& args) {
  return CheckLengths({.rows = args.rows,
                       .cols = args.cols,
                       .values = args.values.size(),
                       .codes = args.codes.size(),
                       .scales = args.scales.size()});
}

// The extent of one tile: its first element and the ends of its rows and columns.
struct Tile {
  int64_t row_begin;
  int64_t row_end;
  int64_t col_begin;
  int64_t col_end;
};

float TileAmax(const Fp8BlockEncodeArgs& args, const Tile& tile) {
  float amax = 0.0F;
  for (int64_t n = tile.row_begin; n < tile.row_end; ++n) {
    for (int64_t k = tile.col_begin; k < tile.col_end; ++k) {
      const uint16_t value = args.values[static_cast<size_t>(n * args.cols + k)];
      amax = std::max(amax, Bf16ToFloat(value & 0x7FFFU));
    }
  }
  return amax;
}

void EncodeTile(const Fp8BlockEncodeArgs& args, const Tile& tile, float scale) {
  for (int64_t n = tile.row_begin; n < tile.row_end; ++n) {
    for (int64_t k = tile.col_begin; k < tile.col_end; ++k) {
      const auto idx = static_cast<size_t>(n * args.cols + k);
      args.codes[idx] = FloatToE4m3(Bf16ToFloat(args.values[idx]) / scale);
    }
  }
}

}  // namespace

Status CheckFinite(std::span<const uint16_t> values, int64_t cols) {
  const NonFiniteCount bad = CountNonFinite(values);
  if (bad.count == 0) {
    return OkStatus();
  }
  return InvalidArgument("expected finite values, got {} NaN or infinite, the first at [{}, {}]",
                         bad.count, bad.first_idx / cols, bad.first_idx % cols);
}

bool HasNaNCode(std::span<const uint8_t> codes) {
  // Eight at a time: adding 1 to the low seven bits of a byte sets its top bit for 0x7F alone.
  constexpr uint64_t kLowBits = 0x7F7F7F7F7F7F7F7FU;
  constexpr uint64_t kOnes = 0x0101010101010101U;
  uint64_t found = 0;
  size_t i = 0;
  for (; i + sizeof(uint64_t) <= codes.size(); i += sizeof(uint64_t)) {
    uint64_t word = 0;
    std::memcpy(&word, &codes[i], sizeof(word));
    found |= ((word & kLowBits) + kOnes) & ~kLowBits;
  }
  bool tail_found = false;
  for (; i < codes.size(); ++i) {
    tail_found = tail_found || IsE4m3NaN(codes[i]);
  }
  return found != 0 || tail_found;
}

Status EncodeFp8Block(const Fp8BlockEncodeArgs& args) {
  RETURN_IF_ERROR(CheckEncode(args));
  const ScopedIeeeSubnormals guard;
  if (!simd::EncodeFp8Block(args)) {
    return CheckFinite(args.values, args.cols);
  }
  return OkStatus();
}

Status EncodeFp8BlockScalar(const Fp8BlockEncodeArgs& args) {
  RETURN_IF_ERROR(CheckEncode(args));
  RETURN_IF_ERROR(CheckFinite(args.values, args.cols));
  const ScopedIeeeSubnormals guard;
  size_t scale_idx = 0;
  for (int64_t n = 0; n < args.rows; n += kFp8BlockDim) {
    for (int64_t k = 0; k < args.cols; k += kFp8BlockDim) {
      const Tile tile = {.row_begin = n,
                         .row_end = std::min(n + kFp8BlockDim, args.rows),
                         .col_begin = k,
                         .col_end = std::min(k + kFp8BlockDim, args.cols)};
      const float scale = Fp8BlockScale(TileAmax(args, tile));
      args.scales[scale_idx++] = scale;
      EncodeTile(args, tile, scale);
    }
  }
  return OkStatus();
}

Status DecodeFp8Block(const Fp8BlockDecodeArgs& args) {
  RETURN_IF_ERROR(CheckLengths({.rows = args.rows,
                                .cols = args.cols,
                                .values = args.values.size(),
                                .codes = args.codes.size(),
                                .scales = args.scales.size()}));
  const ScopedIeeeSubnormals guard;
  simd::DecodeFp8Block(args);
  return OkStatus();
}

Status DecodeFp8BlockScalar(const Fp8BlockDecodeArgs& args) {
  RETURN_IF_ERROR(CheckLengths({.rows = args.rows,
                                .cols = args.cols,
                                .values = args.values.size(),
                                .codes = args.codes.size(),
                                .scales = args.scales.size()}));
  const ScopedIeeeSubnormals guard;
  const int64_t scale_cols = NumFp8Blocks(args.cols);
  for (int64_t n = 0; n < args.rows; ++n) {
    for (int64_t k = 0; k < args.cols; ++k) {
      const auto idx = static_cast<size_t>(n * args.cols + k);
      const float scale =
          args.scales[static_cast<size_t>((n / kFp8BlockDim) * scale_cols + k / kFp8BlockDim)];
      args.values[idx] = FloatToBf16(E4m3ToFloat(args.codes[idx]) * scale);
    }
  }
  return OkStatus();
}

}  // namespace octavo
