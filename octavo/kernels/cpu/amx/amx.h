#pragma once
// The matmul kernel on AMX tiles (Sapphire Rapids and later), and its software model.

#include "octavo/base/status.h"
#include "octavo/kernels/cpu/kernel_table.h"

namespace octavo::cpu {

// Asks the system for the tile registers; the process keeps the permission. Idempotent.
// Errors: kUnsupported when the processor has no AMX-BF16, or the system does not save the tiles or
// denies them.
Status PrepareAmx();

// Requires that PrepareAmx succeeded.
MatMulKernel AmxMatMulKernel();

// The same loops over a software model of the tile instructions, for processors without them: the
// tests' stand-in, so that everything but the instructions themselves is tested everywhere.
MatMulKernel AmxModelMatMulKernel();

}  // namespace octavo::cpu
