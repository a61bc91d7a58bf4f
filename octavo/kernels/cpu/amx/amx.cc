// The tile instructions, and whether this machine has them. They are written as inline assembly:
// the intrinsics of GCC 12 take a tile's number as text, so they cannot be given one by a template,
// and do not tell the compiler which memory they read. Nothing else of the compiler's output uses
// tiles, so none is saved or clobbered.

#include "octavo/kernels/cpu/amx/amx.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>

#include "octavo/base/status.h"
#include "octavo/kernels/cpu/amx/matmul_tiles-inl.h"
#include "octavo/kernels/cpu/kernel_table.h"

namespace octavo::cpu {
namespace {

// CPUID leaf 7, subleaf 0, EDX.
constexpr unsigned kCpuidAmxBf16 = 1U << 22;
constexpr unsigned kCpuidAmxTile = 1U << 24;
// CPUID leaf 1, ECX: the system uses XSAVE, so XGETBV may be executed.
constexpr unsigned kCpuidOsXsave = 1U << 27;
// XCR0: the system saves tile configuration (17) and tile data (18).
constexpr uint64_t kXcr0Tiles = (uint64_t{1} << 17) | (uint64_t{1} << 18);
// Linux, Documentation/arch/x86/xstate.rst.
constexpr long kArchReqXcompPerm = 0x1023;
constexpr long kXfeatureTileData = 18;

uint64_t ReadXcr0() {
  uint32_t low = 0;
  uint32_t high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t{high} << 32) | low;
}

// The operand of LDTILECFG (palette 1): 64 bytes.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

void Begin() {
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) {  // The other entries must be zero.
    config.row_bytes[tile] = 64;
    config.rows[tile] = static_cast<uint8_t>(kTileRows);
  }
  __asm__ volatile("ldtilecfg %0" : : "m"(config) : "memory");
}

void End() { __asm__ volatile("tilerelease" : : : "memory"); }

struct HardwareTiles {
  template <int kTile>
  static void Zero() {
    __asm__ volatile("tilezero %%tmm%c0" : : "n"(kTile));
  }
  template <int kTile>
  static void Load(const void* from, int64_t row_bytes) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2"
                     :
                     : "r"(from), "r"(row_bytes), "n"(kTile)
                     : "memory");
  }
  template <int kTile>
  static void Store(void* to, int64_t row_bytes) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)"
                     :
                     : "r"(to), "r"(row_bytes), "n"(kTile)
                     : "memory");
  }
  template <int kC, int kA, int kB>
  static void Dot() {
    // AT&T order: the sources, last one first, then the destination.
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "n"(kC), "n"(kA), "n"(kB));
  }
};

}  // namespace

Status PrepareAmx() {
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  constexpr unsigned kNeeded = kCpuidAmxBf16 | kCpuidAmxTile;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0 || (edx & kNeeded) != kNeeded) {
    return Unsupported("cpu/amx: this processor has no AMX-BF16 tiles");
  }
  if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0 || (ecx & kCpuidOsXsave) == 0 ||
      (ReadXcr0() & kXcr0Tiles) != kXcr0Tiles) {
    return Unsupported("cpu/amx: the operating system does not save AMX tiles");
  }
  if (syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureTileData) != 0) {
    return Unsupported("cpu/amx: the operating system denied AMX tiles: {}", strerror(errno));
  }
  return OkStatus();
}

MatMulKernel AmxMatMulKernel() {
  return {.a_elem_bytes = 2,
          .row_step = kTileRows,
          .attention_rows = 2 * kTileRows,
          .begin = Begin,
          .end = End,
          .matmul = MatMulOnTiles<HardwareTiles>,
          .burn = BurnTiles<HardwareTiles>};
}

}  // namespace octavo::cpu
