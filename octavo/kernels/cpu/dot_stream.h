#pragma once
// FP8 panels times few rows on VDPBF16PS: MatMulKernel::stream of dot.h.

#include <cstdint>

#include "octavo/kernels/cpu/kernel_table.h"

namespace octavo::cpu {

inline constexpr int64_t kDotStreamRows = 16;

// Requires what DotMatMulKernel requires, and AVX-512 VBMI.
void DotStream(PanelCode code, const StreamArgs& args);

}  // namespace octavo::cpu
