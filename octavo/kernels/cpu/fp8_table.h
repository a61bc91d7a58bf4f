#pragma once
// FP8 codes to BF16 by bytes, as VPERMI2B looks them up.

#include <bit>
#include <cstdint>

#include "octavo/formats/e4m3.h"

namespace octavo::cpu {

// The low and the high byte of each code's BF16, without its sign.
struct Fp8DecodeTable {
  alignas(64) uint8_t low[128];
  alignas(64) uint8_t high[128];
};

constexpr Fp8DecodeTable MakeFp8DecodeTable() {
  Fp8DecodeTable table = {};
  for (int code = 0; code < 128; ++code) {
    const auto bits = std::bit_cast<uint32_t>(E4m3ToFloat(static_cast<uint8_t>(code)));
    table.low[code] = static_cast<uint8_t>(bits >> 16);
    table.high[code] = static_cast<uint8_t>(bits >> 24);
  }
  return table;
}
inline constexpr Fp8DecodeTable kFp8DecodeTable = MakeFp8DecodeTable();

// Where the codes of a 16-byte lane of a panel (layout.h: four columns, depths 0 1 | 2 3) go, so
// that decoding gives the pairs 2 0 | 3 1 of MatMulKernel::pair_b.
alignas(16) inline constexpr uint8_t kFp8PairOrder[16] = {8, 0, 10, 2, 12, 4, 14, 6,
                                                          9, 1, 11, 3, 13, 5, 15, 7};

}  // namespace octavo::cpu
