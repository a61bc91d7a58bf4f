#pragma once
// The MatMul order on VDPBF16PS, the dot product of BF16 pairs of AVX512_BF16.
//
// The instruction adds a pair of products to an FP32 lane, the upper one first, each by a fused
// multiply-add under flushed subnormals: two links of a chain. With the depths 0 and 2 of a column
// as one pair and 1 and 3 as the other, it computes the chains over even and over odd depths of
// ops.h, twice as fast as FMA on FP32. That its roundings are those of two FMAs is documented for
// no processor, so it is asked of each (DotIsTwoFmas).

#include "octavo/base/status.h"
#include "octavo/kernels/cpu/kernel_table.h"

namespace octavo::cpu {

// Errors: kUnsupported when the processor has no AVX512_BF16 with AVX-512 VL and VBMI, which the
// files are compiled for, or rounds otherwise.
Status CheckDot();

// Requires that CheckDot succeeded.
MatMulKernel DotMatMulKernel();

// Whether VDPBF16PS gives the bits of two FMAs on hard cases: ties, cancellation, subnormals on
// either side, overflow, signed zeros, infinities. Requires what CheckDot asks of the processor.
bool DotIsTwoFmas();

}  // namespace octavo::cpu
