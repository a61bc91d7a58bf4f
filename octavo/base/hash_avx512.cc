// XXH3 on AVX-512; only reached after CPUID said that the processor has it.

#include "octavo/base/hash_kernels-inl.h"

namespace octavo::internal {

const HashKernels& HashKernelsAvx512() { return kHashKernels; }

}  // namespace octavo::internal
