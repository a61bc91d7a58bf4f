// XXH3 on AVX2; only reached after CPUID said that the processor has it.

#include "octavo/base/hash_kernels-inl.h"

namespace octavo::internal {

const HashKernels& HashKernelsAvx2() { return kHashKernels; }

}  // namespace octavo::internal
