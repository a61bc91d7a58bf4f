#pragma once
// FP8 panels times few rows on VDPBF16PS: MatMulKernel::stream of dot.h.

#include <cstdint>

#include "octavo/kernels/cpu/kernel_table.h"

namespace octavo::cpu {

// Three passes over the codes: 298 GFLOP/s of FP8 at 24 rows, against 252 by decoding once for all;
// with 32 it is 194 against 246 (AMD EPYC, family 26, one thread beside others).
inline constexpr int64_t kDotStreamRows = 24;

// Requires that CheckDot succeeded.
void DotStream(PanelCode code, const StreamArgs& args);

}  // namespace octavo::cpu
