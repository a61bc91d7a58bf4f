#pragma once
// Which paths this processor and build have.

#include "octavo/kernels/cpu/cpu_path.h"

namespace octavo::cpu {

// The path of `isa`, kScalar excepted (that is the reference backend).
// Errors: kUnsupported, saying what is missing: the build, the processor or the system.
Result<CpuPath> FindPath(Isa isa);

// A path of particular instructions; for tests that compare all that this processor has.
// Errors: as FindPath.
Result<CpuPath> FindVectorPath(VectorTarget target);
// AVX-512 with VBMI, and the dot products of AVX512_BF16 for many rows.
Result<CpuPath> FindDotPath();

}  // namespace octavo::cpu
