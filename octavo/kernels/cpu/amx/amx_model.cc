// A software model of the tile instructions, after their pseudocode in the Intel 64 SDM (TILELOADD,
// TILESTORED, TDPBF16PS), under flushed subnormals: the tiles ignore MXCSR and always flush.

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "octavo/formats/bf16.h"
#include "octavo/kernels/cpu/amx/amx.h"
#include "octavo/kernels/cpu/amx/matmul_tiles-inl.h"
#include "octavo/kernels/cpu/kernel_table.h"

namespace octavo::cpu {
namespace {

constexpr int64_t kTileRowBytes = 64;

struct TileRegisters {
  alignas(64) std::array<std::array<std::byte, kTileRows * kTileRowBytes>, 8> tiles;
};

// Each thread has its tile registers, as on the processor.
thread_local TileRegisters registers;

struct ModelTiles {
  template <int kTile>
  static void Zero() {
    registers.tiles[kTile].fill(std::byte{0});
  }
  template <int kTile>
  static void Load(const void* from, int64_t row_bytes) {
    for (int64_t r = 0; r < kTileRows; ++r) {
      std::memcpy(registers.tiles[kTile].data() + r * kTileRowBytes,
                  static_cast<const std::byte*>(from) + r * row_bytes, kTileRowBytes);
    }
  }
  template <int kTile>
  static void Store(void* to, int64_t row_bytes) {
    for (int64_t r = 0; r < kTileRows; ++r) {
      std::memcpy(static_cast<std::byte*>(to) + r * row_bytes,
                  registers.tiles[kTile].data() + r * kTileRowBytes, kTileRowBytes);
    }
  }
  template <int kC, int kA, int kB>
  static void Dot() {
    const auto* a = reinterpret_cast<const uint16_t*>(registers.tiles[kA].data());
    const auto* b = reinterpret_cast<const uint16_t*>(registers.tiles[kB].data());
    auto* c = reinterpret_cast<float*>(registers.tiles[kC].data());
    for (int m = 0; m < 16; ++m) {
      for (int n = 0; n < 16; ++n) {
        float even = 0.0F;
        float odd = 0.0F;
        for (int k = 0; k < 16; ++k) {
          even = std::fma(Bf16ToFloat(a[m * 32 + 2 * k]), Bf16ToFloat(b[k * 32 + 2 * n]), even);
          odd =
              std::fma(Bf16ToFloat(a[m * 32 + 2 * k + 1]), Bf16ToFloat(b[k * 32 + 2 * n + 1]), odd);
        }
        c[m * 16 + n] += even + odd;
      }
    }
  }
};

void Nothing() {}

}  // namespace

MatMulKernel AmxModelMatMulKernel() {
  return {.a_elem_bytes = 2,
          .row_step = kTileRows,
          .attention_rows = 2 * kTileRows,
          .begin = Nothing,
          .end = Nothing,
          .matmul = MatMulOnTiles<ModelTiles>,
          .burn = BurnTiles<ModelTiles>};
}

}  // namespace octavo::cpu
