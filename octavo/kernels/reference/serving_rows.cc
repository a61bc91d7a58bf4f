// The serving recipe for any x86-64, and the choice between its two builds.

#include "octavo/kernels/reference/row_math.h"
#include "octavo/kernels/reference/serving_rows-inl.h"

namespace octavo {

const RowMath& ServingRowMath() {
  return __builtin_cpu_supports("fma") ? internal::ServingRowMathHardwareFma()
                                       : internal::ServingRowMathLibmFma();
}

namespace internal {

struct LibmFma {};

const RowMath& ServingRowMathLibmFma() { return ServingRows<LibmFma>::kTable; }

}  // namespace internal
}  // namespace octavo
